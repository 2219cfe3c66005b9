"""The order in which records are seen: infinite, random access, and a function of the seed alone.

Nothing here knows hosts or batches, so the data position of a run is its step (``order[step *
batch_size + row]``), on any number of hosts.
"""

import zlib
from collections.abc import Mapping

import grain

from mmjax.data.sources import Source


def weighted_order(
    source: Source, weights: Mapping[str, float] | None, seed: int
) -> grain.MapDataset:
    """Record numbers of ``source``, endlessly: ``order[i]`` is the i-th.

    Without weights, every record once in each epoch, shuffled anew each time. With weights, each
    kind (`source.kinds`) is shuffled and repeated by itself, and kinds alternate in these
    proportions, exactly.

    Raises:
      ValueError: weights that name no kind of the source or leave one out (give it 0), or are
        negative or all zero.
    """
    if len(source) == 0:
        raise ValueError(f"{source.name} has no records")
    if weights is None:
        return grain.MapDataset.range(len(source)).seed(_seed(seed, "")).shuffle().repeat()
    records: dict[str, list[int]] = {}
    for record, kind in enumerate(source.kinds):
        records.setdefault(kind, []).append(record)
    unknown, missing = (
        sorted(weights.keys() - records.keys()),
        sorted(records.keys() - weights.keys()),
    )
    if unknown or missing:
        raise ValueError(
            f"sampling weights of {source.name}: no such kinds {unknown}, "
            f"no weight for {missing} (0 leaves a kind out)"
        )
    if min(weights.values()) < 0 or sum(weights.values()) == 0:
        raise ValueError(
            f"sampling weights of {source.name} must be >= 0 and not all 0, got {dict(weights)}"
        )
    drawn = sorted(kind for kind in weights if weights[kind] > 0)
    orders = [
        grain.MapDataset.source(records[kind]).seed(_seed(seed, kind)).shuffle().repeat()
        for kind in drawn
    ]
    return grain.MapDataset.mix(orders, weights=[weights[kind] for kind in drawn])


def _seed(seed: int, kind: str) -> int:
    return zlib.crc32(f"{seed}/{kind}".encode())  # 32 bits, as grain wants
