"""Pictures with captions in tar files, as webdataset and img2dataset lay them out:
``tar:FOLDER/*.tar``. CC-3M and COYO come so.

    00000.tar    000000000.jpg   000000000.txt   000000000.json
                 000000001.jpg   ...

What is named alike up to the first full stop is one record: a picture (jpg, jpeg, png or webp) and
its caption, in a .txt, or in the field ``caption`` (or ``text``) of a .json.

Records are read at random: where each lies in its file is found by one walk over the file's
headers, and kept beside it (``00000.tar.places``) for the next time. Where that folder cannot be
written, or with ``keep=0``, every start walks.
"""

import dataclasses
import glob
import json
import os
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from mmjax.data.example import BadSample, Example, Media, Text, Turn
from mmjax.data.images import MAX_BYTES

PICTURES = (".jpg", ".jpeg", ".png", ".webp")
TEXTS = (".txt", ".json")
SUFFIX = ".places"
MAX_TEXT = 1 << 20  # bytes of a caption's file


@dataclasses.dataclass(frozen=True)
class Places:
    """Where the records of a tar file lie.

    Attributes:
      names: of records.
      at: i64[n 4], start and bytes of the picture, of the text.
      is_json: bool[n], of the text.
      incomplete: how many records lack their picture or their text.
    """

    names: list[str]
    at: np.ndarray
    is_json: np.ndarray
    incomplete: int


class TarShards:
    """Captions of pictures in tar files; safe to read from several threads.

    Attributes:
      kinds: ``caption`` for all.
      notices: records without a picture or a text; files whose places could not be kept.
    """

    def __init__(self, pattern: str | Path, keep: int = 1):
        """Finds every record; opens no picture.

        Args:
          pattern: of paths, ``*`` included.
          keep: 0 = write nothing beside the files.

        Raises:
          FileNotFoundError: no file fits.
          ValueError: files that are no plain tar, or hold no record; all of them at once.
        """
        files = [Path(file) for file in sorted(glob.glob(str(pattern)))]
        if not files:
            raise FileNotFoundError(f"no file fits {pattern}")
        self.name, self._files = f"tar:{pattern}", files
        problems, places, notices, unkept = [], [], [], []
        for file in files:
            try:
                found, is_kept = _places(file, keep=bool(keep))
            except (tarfile.TarError, OSError, ValueError) as error:
                problems.append(f"{file}: {error}; is it a whole tar file, not a compressed one?")
                continue
            places.append(found)
            unkept += [] if is_kept or not keep else [file]
            if not found.names:
                problems.append(
                    f"{file}: no picture with a text in it ({', '.join(PICTURES)} with "
                    f"{' or '.join(TEXTS)} of the same name)"
                )
        if problems:
            shown = "\n  ".join(problems[:20])
            raise ValueError(f"{len(problems)} of {len(files)} tar files:\n  {shown}")
        if lost := sum(found.incomplete for found in places):
            notices.append(f"{lost} records have no picture or no text and are left out")
        if unkept:
            notices.append(
                f"where the records of {len(unkept)} files lie could not be written beside them "
                f"({unkept[0]}{SUFFIX}): every start walks over them"
            )
        self.notices, self._places = tuple(notices), places
        self._ends = np.cumsum([len(found.names) for found in places])
        self.kinds: Sequence[str] = ["caption"] * int(self._ends[-1])

    def __len__(self) -> int:
        return len(self.kinds)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} records, there is no {index}")
        shard = int(np.searchsorted(self._ends, index, side="right"))
        file, places = self._files[shard], self._places[shard]
        row = index - (int(self._ends[shard]) - len(places.names))
        name = f"{file}/{places.names[row]}"
        start, size, text_start, text_size = map(int, places.at[row])
        caption = _caption(name, _read(file, text_start, text_size), bool(places.is_json[row]))
        picture = Media(name, lambda: _picture(name, file, start, size))
        turns = Turn("user", (picture,)), Turn("assistant", (Text(caption),))
        return Example(name, turns, dict(answer=caption, kind="caption"))


def _places(file: Path, *, keep: bool) -> tuple[Places, bool]:
    """(where the records of ``file`` lie, whether that is written beside it)."""
    kept, now = Path(f"{file}{SUFFIX}"), file.stat()
    stamp = [now.st_size, now.st_mtime_ns]
    if keep and kept.is_file():
        try:
            told = json.loads(kept.read_text())
            if told["of"] == stamp:
                at = np.array(told["at"], np.int64).reshape(-1, 4)
                is_json = np.array(told["is_json"], bool)
                return Places(told["names"], at, is_json, told["incomplete"]), True
        except (ValueError, KeyError, TypeError):
            pass  # written by halves, or by another version: it is written anew
    found = _walk(file)
    if not keep:
        return found, False
    told = dict(of=stamp, names=found.names, at=found.at.tolist())
    told |= dict(is_json=found.is_json.astype(int).tolist(), incomplete=found.incomplete)
    temporary = kept.with_name(f"{kept.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(told))
        temporary.replace(kept)
    except OSError:
        return found, False
    return found, True


def _walk(file: Path) -> Places:
    with tarfile.open(file, "r:") as archive:
        members = [m for m in archive if m.isfile()]
        end = file.stat().st_size
    if cut := [m.name for m in members if m.offset_data + m.size > end]:
        raise ValueError(f"{cut[0]} goes on after the end of the file")
    names, at, is_json, incomplete = [], [], [], 0
    for name, parts in _records(members):
        picture = next((parts[suffix] for suffix in PICTURES if suffix in parts), None)
        text = next((suffix for suffix in TEXTS if suffix in parts), None)
        if picture is None or text is None:
            incomplete += 1
            continue
        names.append(name)
        at.append((*picture, *parts[text]))
        is_json.append(text == ".json")
    places = np.array(at, np.int64).reshape(-1, 4)
    return Places(names, places, np.array(is_json, bool), incomplete)


def _records(members: Iterable[tarfile.TarInfo]):
    """(name, suffix -> (start, bytes)) of each record, in order of appearance."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for member in members:
        folder, _, file = member.name.rpartition("/")
        stem, dot, rest = file.partition(".")
        suffix = f"{dot}{rest}".lower()
        if suffix in PICTURES + TEXTS:
            name = f"{folder}/{stem}" if folder else stem
            parts = found.setdefault(name, {})
            if suffix in parts:
                raise ValueError(f"{member.name} is there twice")
            parts[suffix] = (member.offset_data, member.size)
    return found.items()


def _read(file: Path, start: int, size: int) -> bytes:
    with file.open("rb") as opened:
        opened.seek(start)
        return opened.read(size)


def _picture(name: str, file: Path, start: int, size: int) -> bytes:
    if size > MAX_BYTES:
        raise BadSample(name, None, f"its picture has {size:,} bytes, the limit is {MAX_BYTES:,}")
    return _read(file, start, size)


def _caption(name: str, data: bytes, is_json: bool) -> str:
    try:
        if len(data) > MAX_TEXT:
            raise ValueError(f"{len(data):,} bytes, the limit is {MAX_TEXT:,}")
        text = data.decode("utf-8-sig")
        if is_json:
            told = json.loads(text)
            fields = ("caption", "text") if isinstance(told, dict) else ()
            text = next((told[field] for field in fields if told.get(field)), None)
        if not isinstance(text, str) or not text.strip():
            raise ValueError("there is none")
    except (ValueError, RecursionError) as error:
        raise BadSample(name, None, f"its text cannot be read: {error}") from error
    return text.strip()
