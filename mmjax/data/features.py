"""A frozen tower's outputs on disk: one row for each picture, looked up by the picture's key, and
one for each frame that is shown of a video.

A store is a folder. Its features are mapped, not read, so it may be larger than the memory:

    meta.json       shape and dtype of a row, number of rows, fingerprint, how it was made
    features.bin    the rows, one after the other
    keys.jsonl      the picture of each row
    bad.jsonl       [key, reason] of each picture that could not be read

It is written under another name, which becomes its own when all of it is there.
"""

import collections
import concurrent.futures
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import ml_dtypes
import numpy as np

from mmjax.data.example import BadSample, Media
from mmjax.data.sources import Source
from mmjax.data.workers import default_workers

_VERSION = 1
_INCOMPLETE = ".incomplete"
_DTYPES = {
    name: np.dtype(getattr(ml_dtypes, name, name)) for name in ("float32", "float16", "bfloat16")
}


def media_of(source: Source) -> Iterator[Media]:
    """Every picture of ``source`` once, in order of first appearance.

    Records that cannot be read have none; the pipeline will say why.
    """
    seen: set[str] = set()
    for record in range(len(source)):
        try:
            found = source[record].media
        except BadSample:
            continue
        for media in found:
            if media.key not in seen:
                seen.add(media.key)
                yield media


def frame_keys(media: Media, num_frames: int) -> list[str]:
    """Of the rows of a picture (one) or a video, of which ``num_frames`` are shown."""
    if not media.is_video:
        return [media.key]
    return [f"{media.key}#{number}" for number in range(num_frames)]


class FeatureWriter:
    """Writes a store; used in a ``with`` block, whose end makes it appear, or not at all."""

    def __init__(
        self,
        folder: str | Path,
        *,
        fingerprint: Mapping[str, str] | None,
        made_by: Mapping[str, Any] | None = None,
    ):
        """
        Args:
          folder: where to.
          fingerprint: what the features depend on: the tower's weights, the pictures' preparation;
            None where it is not known (imported features).
          made_by: further facts for the reader of ``meta.json``.

        Raises:
          FileExistsError: there is something already.
        """
        self._folder = Path(folder)
        if self._folder.exists():
            raise FileExistsError(f"{folder} exists already: delete it, or choose another folder")
        self._fingerprint, self._made_by = fingerprint, dict(made_by or {})
        self._row: tuple[tuple[int, ...], np.dtype] | None = None
        self._count = self._bad = 0

    def __enter__(self) -> Self:
        name = f"{self._folder.name}.{os.getpid()}{_INCOMPLETE}"
        self._partial = self._folder.absolute().with_name(name)
        for killed in self._partial.parent.glob(f"{self._folder.name}.*{_INCOMPLETE}"):
            shutil.rmtree(killed)  # there is one writer at a time
        self._partial.mkdir(parents=True)
        names = ("features.bin", "keys.jsonl", "bad.jsonl")
        self._files = {name: (self._partial / name).open("wb") for name in names}
        return self

    def add(self, keys: Sequence[str], rows: np.ndarray) -> None:
        """Appends ``rows`` [n ...], the features of the pictures ``keys``."""
        if len(keys) != len(rows):
            raise ValueError(f"{len(keys)} keys for {len(rows)} feature rows")
        row = rows.shape[1:], rows.dtype
        if self._row is None and rows.dtype.name not in _DTYPES:
            raise ValueError(f"features must be {', '.join(_DTYPES)}; these are {rows.dtype}")
        if self._row not in (None, row):
            raise ValueError(f"a feature row of {row} after others of {self._row}")
        self._row = row
        self._files["features.bin"].write(np.ascontiguousarray(rows).tobytes())
        self._files["keys.jsonl"].write(b"".join(_line(key) for key in keys))
        self._count += len(keys)

    def add_bad(self, key: str, reason: str) -> None:
        self._files["bad.jsonl"].write(_line([key, reason]))
        self._bad += 1

    def __exit__(self, kind, error, traceback) -> None:
        try:
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())
                file.close()
            if kind is not None:
                return
            if self._row is None:
                reasons = (self._partial / "bad.jsonl").read_text().splitlines()[:5]
                raise ValueError(
                    f"no features for {self._folder}: none of {self._bad} pictures can be read"
                    + "".join(f"\n  {reason}" for reason in reasons)
                )
            shape, dtype = self._row
            meta = dict(
                version=_VERSION,
                count=self._count,
                shape=shape,
                dtype=dtype.name,
                fingerprint=self._fingerprint,
                made_by=self._made_by,
            )
            (self._partial / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")
            self._partial.rename(self._folder)
        finally:
            shutil.rmtree(self._partial, ignore_errors=True)


def compute_features(
    media: Iterable[Media],
    load_frame: Callable[[Media], np.ndarray],
    tower: Callable[[np.ndarray], np.ndarray],
    writer: FeatureWriter,
    *,
    batch_size: int,
    num_frames: int = 0,
) -> None:
    """Runs ``tower`` over pictures and hands the rows to ``writer``, a batch at a time.

    Args:
      media: the pictures; of two with the same key the second is skipped.
      load_frame: a picture as uint8[H W 3], a video as uint8[``num_frames`` H W 3]; those it
        raises `BadSample` for are noted as bad.
      tower: uint8[b H W 3] -> [b ...] with b = ``batch_size`` always: the last batch is padded, so
        that it is compiled once.
      writer: open.
      batch_size: pictures for each call of ``tower``.
    """
    keys: list[str] = []
    frames: list[np.ndarray] = []

    def run() -> None:
        padded = np.stack(frames + frames[-1:] * (batch_size - len(frames)))
        writer.add(keys, np.asarray(tower(padded))[: len(keys)])
        keys.clear()
        frames.clear()

    for item, frame in _loaded(media, load_frame, ahead=2 * batch_size):
        names = frame_keys(item, num_frames)
        if isinstance(frame, BadSample):
            for name in names:
                writer.add_bad(name, str(frame))
            continue
        for name, one in zip(names, frame if item.is_video else [frame], strict=True):
            keys.append(name)
            frames.append(one)
            if len(keys) == batch_size:
                run()
    if keys:
        run()


def _loaded(
    media: Iterable[Media], load_frame: Callable[[Media], np.ndarray], *, ahead: int
) -> Iterator[tuple[Media, np.ndarray | BadSample]]:
    """Pictures in order, decoded by threads, never more than ``ahead`` of them waiting."""

    def load(item: Media) -> np.ndarray | BadSample:
        try:
            return load_frame(item)
        except BadSample as error:
            return error

    seen: set[str] = set()
    waiting: collections.deque = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(default_workers()) as threads:
        for item in media:
            if item.key in seen:
                continue
            seen.add(item.key)
            waiting.append((item, threads.submit(load, item)))
            if len(waiting) == ahead:
                done, frame = waiting.popleft()
                yield done, frame.result()
        for done, frame in waiting:
            yield done, frame.result()


class FeatureStore:
    """Picture key -> feature row.

    Attributes:
      folder: where it lies.
      fingerprint: what the features depend on; None for imported ones, whose tower is not known.
      made_by: further facts about how they were made.
      shape: of a row.
      bad: key -> reason, of the pictures that could not be read when the store was made.
    """

    def __init__(self, folder: str | Path):
        """Opens what a `FeatureWriter` wrote; reads keys, maps features.

        Raises:
          FileNotFoundError: there is no store.
          ValueError: it is of another version, or damaged.
        """
        self.folder = Path(folder)
        if not (self.folder / "meta.json").is_file():
            raise FileNotFoundError(
                f"{folder} holds no features (no meta.json); make them with "
                "scripts/prepare_data.py features, or python -m conversion features"
            )
        try:
            meta = json.loads((self.folder / "meta.json").read_text())
            version, count, dtype = meta["version"], meta["count"], _DTYPES[meta["dtype"]]
            self.shape = tuple(meta["shape"])
            self.fingerprint, self.made_by = meta["fingerprint"], meta["made_by"]
            keys = [json.loads(line) for line in (self.folder / "keys.jsonl").open("rb")]
            bad = [json.loads(line) for line in (self.folder / "bad.jsonl").open("rb")]
            self.bad: dict[str, str] = dict(bad)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(f"{type(error).__name__}: {error}") from error
        if version != _VERSION:
            raise ValueError(f"{folder} is of version {version}, this is {_VERSION}; make it anew")
        expected = count * int(np.prod(self.shape)) * dtype.itemsize
        file = self.folder / "features.bin"
        found = file.stat().st_size if file.is_file() else 0
        if found != expected or len(keys) != count:
            raise self._damaged(
                f"{count} rows of {self.shape} {dtype} are {expected} bytes, "
                f"there are {found} and {len(keys)} keys"
            )
        self._features = np.memmap(file, dtype, "r", shape=(count, *self.shape))
        self._rows = {key: row for row, key in enumerate(keys)}

    def _damaged(self, what: str) -> ValueError:
        return ValueError(f"the features in {self.folder} are damaged ({what}); make them anew")

    def check(self, fingerprint: Mapping[str, str]) -> None:
        """Raises ValueError if the features depend on anything else than ``fingerprint`` says."""
        found = self.fingerprint
        if found is None:
            return
        differ = [
            f"{name}: {found.get(name)} there, {fingerprint.get(name)} here"
            for name in sorted(found.keys() | fingerprint.keys())
            if found.get(name) != fingerprint.get(name)
        ]
        if differ:
            raise ValueError(
                f"the features in {self.folder} are not what this tower would give; use another "
                "folder, or delete it and compute them again\n  " + "\n  ".join(differ)
            )

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def __getitem__(self, keys: Sequence[str]) -> np.ndarray:
        """[n ...], one row for each key.

        Raises:
          BadSample: there is none for a key.
        """
        for key in keys:
            if key in self.bad:
                reason = f"it was bad when {self.folder} was made: {self.bad[key]}"
                raise BadSample(key, None, reason)
            if key not in self._rows:
                raise BadSample(key, None, f"{self.folder} has no features of this picture")
        return np.array(self._features[[self._rows[key] for key in keys]])


def _line(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"
