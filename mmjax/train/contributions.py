"""What each source of a mixture has given to a stage: rows counted as they are trained on."""

import collections
from collections.abc import Mapping

from mmjax.data.pipeline import Pipeline
from mmjax.parallel.distributed import gather
from mmjax.train.report import text_table


class Contributions:
    """Counts rows by the kinds that ``data.weights`` names; of a stage without weights, nothing.

    A row counts for the source that it was read from, also where it stands for a bad record of
    another one.
    """

    def __init__(self, pipeline: Pipeline, before: Mapping[str, int]):
        """``before``: the counts of earlier steps, as `read` gave them."""
        self._pipeline = pipeline
        self._total = collections.Counter(before)
        self._own: collections.Counter[str] = collections.Counter()  # since the last `read`

    def add(self, step: int) -> None:
        """Notes this process's rows of the batch of ``step``, counted from 1."""
        self._own.update(self._pipeline.drawn(step - 1))

    def read(self) -> dict[str, int]:
        """Rows so far of all processes, each of which must ask; a count for every weight."""
        for counts in gather([dict(self._own)]):
            self._total.update(counts)
        self._own.clear()
        return {name: self._total[name] for name in self._pipeline.weights}

    def table(self) -> str:
        """Rows and shares, beside those that were asked for; as `read`."""
        weights, rows = self._pipeline.weights, self.read()
        whole, asked = max(sum(rows.values()), 1), sum(weights.values())
        lines = [
            [
                name,
                f"{count:,}",
                f"{100 * count / whole:.3f} %",
                f"{100 * weights[name] / asked:.3f} %",
            ]
            for name, count in rows.items()
        ]
        return text_table(["source", "rows", "share", "asked for"], lines, [], align="<>>>")
