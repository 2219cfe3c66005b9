"""A frozen tower's outputs, computed once for every picture and looked up afterwards."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from mmjax.data.example import BadSample, Media
from mmjax.data.sources import Source


def media_of(source: Source) -> list[Media]:
    """Every picture of ``source`` once, in order of first appearance."""
    found: dict[str, Media] = {}
    for record in range(len(source)):
        for media in source[record].media:
            found.setdefault(media.key, media)
    return list(found.values())


class FeatureStore:
    """Picture key -> feature row.

    Attributes:
      fingerprint: of the tower and its preprocessing; a store of another one is refused on loading.
      bad: key -> reason, of the pictures that could not be read when the store was computed.
    """

    def __init__(
        self, keys: Sequence[str], features: np.ndarray, fingerprint: str, bad: dict[str, str]
    ):
        if len(keys) != len(features):
            raise ValueError(f"{len(keys)} keys for {len(features)} feature rows")
        self._features, self.fingerprint, self.bad = features, fingerprint, bad
        self._rows = {key: row for row, key in enumerate(keys)}

    @classmethod
    def compute(
        cls,
        media: Iterable[Media],
        load_frame: Callable[[Media], np.ndarray],
        tower: Callable[[np.ndarray], np.ndarray],
        *,
        batch_size: int,
        fingerprint: str,
    ) -> "FeatureStore":
        """Runs ``tower`` over all pictures.

        Args:
          media: pictures; one that has come before (same key) is skipped.
          load_frame: a picture as uint8[H W 3]; those it raises `BadSample` for are noted in `bad`.
          tower: uint8[b H W 3] -> [b ...] with b = ``batch_size`` always (the last batch is
            padded), so that it is compiled once.
          batch_size: pictures for each call of ``tower``.
          fingerprint: see the class.

        Raises:
          ValueError: none of the pictures can be read; names the first reasons.
        """
        keys, bad, batch, features = [], {}, [], []

        def run() -> None:
            padded = np.stack(batch + batch[-1:] * (batch_size - len(batch)))
            features.append(_storable(np.asarray(tower(padded)))[: len(batch)])
            batch.clear()

        for item in {item.key: item for item in media}.values():
            try:
                batch.append(load_frame(item))
            except BadSample as error:
                bad[item.key] = str(error)
                continue
            keys.append(item.key)
            if len(batch) == batch_size:
                run()
        if batch:
            run()
        if not keys:
            raise ValueError(
                f"none of {len(bad)} pictures can be read: {'; '.join([*bad.values()][:5])}"
            )
        return cls(keys, np.concatenate(features), fingerprint, bad)

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
            if key not in self._rows:
                raise BadSample(
                    key, None, self.bad.get(key, "no features are stored for this picture")
                )
        return self._features[[self._rows[key] for key in keys]]

    def save(self, path: str | Path) -> None:
        """Writes one ``.npz`` file; ``path`` is the old one or the new one, never half of it."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        with partial.open("wb") as file:
            np.savez(
                file,
                keys=np.array(list(self._rows), dtype=np.str_),
                features=self._features,
                fingerprint=np.array(self.fingerprint),
                bad=np.array([*self.bad.items()], dtype=np.str_).reshape(-1, 2),
            )
        partial.replace(path)

    @classmethod
    def load(cls, path: str | Path, fingerprint: str) -> "FeatureStore":
        """Reads what `save` wrote.

        Raises:
          ValueError: it was computed with another tower or other preprocessing.
        """
        with np.load(path, allow_pickle=False) as file:
            found = str(file["fingerprint"])
            if found != fingerprint:
                raise ValueError(
                    f"the features in {path} have fingerprint {found}, the tower {fingerprint}: "
                    "they come from other weights or other preprocessing; delete the file to "
                    "compute them again"
                )
            return cls(
                [str(key) for key in file["keys"]],
                file["features"],
                found,
                dict(file["bad"].tolist()),
            )


def _storable(features: np.ndarray) -> np.ndarray:
    """bfloat16, which numpy's files do not know, as float32."""
    return features.astype(np.float32) if features.dtype.name == "bfloat16" else features
