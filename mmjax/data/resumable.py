"""A file of JSON lines that survives being killed at any moment.

    OUT.origin.json   what the lines are made from: inputs, settings, model
    OUT.partial       the lines so far; the last one may be cut short
    OUT               all of them: OUT.partial, renamed in one step

The origin stays beside the finished file: it tells how the lines were made, and a start with
anything else is refused then, too, instead of being told that all is done.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


class ResumableFile:
    """Lines that are only ever added.

    Attributes:
      name: of the file.
      num_lines: whole lines so far.
      is_complete: whether nothing is left to do.
    """

    def __init__(
        self,
        out: Path,
        origin: Mapping[str, Any],
        *,
        writes: bool = True,
        wait: Callable[[], None] = lambda: None,
    ):
        """Goes on with what is there; a line cut short is dropped.

        Args:
          out: the file.
          origin: JSON-able; all that the lines depend on.
          writes: False in a process that only keeps count, while another one writes.
          wait: for all processes to come here.

        Raises:
          ValueError: what is there was made from something else, or nobody knows from what.
        """
        self._out, self.name = out, out.name
        self._partial = out.with_name(f"{out.name}.partial")
        described = out.with_name(f"{out.name}.origin.json")
        self.num_lines = 0
        self.is_complete = out.exists()
        self._file = None
        started = out if self.is_complete else self._partial
        has_lines = self.is_complete or (started.exists() and started.stat().st_size > 0)
        whole = 0
        if has_lines:
            _check_origin(started, described, origin)
            for line in _whole_lines(started):
                whole += len(line)
                self.count(json.loads(line))
        wait()  # nobody writes before all have read
        if writes and not self.is_complete:
            if not has_lines:
                write_json(described, origin)
            self._file = self._partial.open("ab")
            self._file.truncate(whole)

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Returns when they are on disk."""
        for row in rows:
            self.count(row)
        if self._file is not None:
            self._file.write(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
            self._file.flush()
            os.fsync(self._file.fileno())

    def rows(self) -> Iterator[dict[str, Any]]:
        """All lines so far."""
        for line in _whole_lines(self._out if self.is_complete else self._partial):
            yield json.loads(line)

    def finish(self) -> None:
        """All lines are there."""
        self.is_complete = True
        if self._file is not None:
            self._file.close()
            os.replace(self._partial, self._out)

    def count(self, row: Mapping[str, Any]) -> None:
        """Called with each line, found or added; subclasses keep figures."""
        self.num_lines += 1


class KeyedFile:
    """JSON lines that have a ``key`` and are only ever added, in any order, by one start after the
    other; unlike a `ResumableFile`, it goes on whatever it is asked for.

    Attributes:
      rows: key -> its lines, in order.
    """

    def __init__(self, path: Path):
        """A last line that was cut short is dropped.

        Raises:
          ValueError: another line is damaged, and nothing is dropped for its sake; or another
            process has the file open.
        """
        import fcntl  # Windows has none, and all else here needs none

        self.rows: dict[str, list[dict[str, Any]]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise ValueError(f"another process writes {path}: wait for it, or end it") from None
        data = path.read_bytes()
        whole = 0
        for number, line in enumerate(data.splitlines(keepends=True), start=1):
            try:
                row = json.loads(line)
                key = row["key"]
            except (ValueError, TypeError, KeyError) as error:
                if whole + len(line) < len(data):
                    self.close()
                    raise ValueError(
                        f"{path}, line {number} is damaged ({error}): mend or remove it"
                    ) from error
                break
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            self.rows.setdefault(key, []).append(row)
        self._file.truncate(whole)

    def close(self) -> None:
        self._file.close()

    def append(self, row: Mapping[str, Any]) -> None:
        """Returns when it is on disk."""
        self.rows.setdefault(row["key"], []).append(dict(row))
        self._file.write(json.dumps(row).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def write_json(path: Path, value: Any) -> None:
    """As `write_bytes`."""
    write_bytes(path, json.dumps(value, indent=2).encode() + b"\n")


def write_bytes(path: Path, data: bytes) -> None:
    """In one step: the file is whole, or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _whole_lines(path: Path) -> Iterator[bytes]:
    """Up to the first that is cut short, or was not yet on disk when the power failed."""
    with path.open("rb") as lines:
        for line in lines:
            try:
                is_whole = line.endswith(b"\n") and isinstance(json.loads(line), dict)
            except ValueError:
                is_whole = False
            if not is_whole:
                return
            yield line


def _check_origin(started: Path, described: Path, origin: Mapping[str, Any]) -> None:
    if not described.is_file():
        raise ValueError(
            f"{started} exists, and no {described.name} beside it says what it was made from: "
            "give another --out, or move it away"
        )
    there, here = (_flat(x) for x in (json.loads(described.read_text()), _plain(origin)))
    changed = sorted(key for key in there.keys() | here.keys() if there.get(key) != here.get(key))
    if changed:
        lines = [
            f"{key}: {there.get(key)!r:.200} there, {here.get(key)!r:.200} now" for key in changed
        ]
        raise ValueError(
            f"{started} was made from something else; give another --out, or delete {started.name} "
            f"and {described.name} to start anew:\n  " + "\n  ".join(lines)
        )


def _plain(origin: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(origin))  # as it is read back: lists for tuples


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix.removesuffix("."): value}
    found: dict[str, Any] = {}
    for key, below in value.items():
        found |= _flat(below, f"{prefix}{key}.")
    return found
