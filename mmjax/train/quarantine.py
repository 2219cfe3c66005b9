"""``bad_samples.jsonl``: which records could not be used, where they were met, and why."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


class BadSamples:
    """The file of a run directory: one JSON object for each bad record of a stage's data.

    ``stage``; ``step``, the first one whose batch needed the record; ``source``, ``row``, ``id``
    and ``reason``. What threads have read ahead is not in it, so that the file of a run that was
    killed and went on is the one of a run that was not.
    """

    def __init__(self, workdir: str | Path):
        self.path = Path(workdir) / "bad_samples.jsonl"
        self._records: dict[tuple, dict[str, Any]] = {}
        if self.path.exists():
            for line in self.path.read_text().splitlines():
                self._add(json.loads(line))

    def recall(self, stage: str, step: int) -> list[dict[str, Any]]:
        """What ``stage`` had met up to ``step``; later records are dropped, to be met again."""
        kept = [r for r in self._records.values() if r["stage"] != stage or r["step"] <= step]
        self._records = {}
        for record in kept:
            self._add(record)
        return [record for record in kept if record["stage"] == stage]

    def note(self, stage: str, step: int, records: Iterable[Mapping[str, Any]]) -> int:
        """Adds those of ``records`` (`Pipeline.quarantine`) that ``stage`` has met up to ``step``,
        writes the file, and returns how many ``stage`` has by now.

        Records without a step of their own (an evaluation's) were met at ``step``.
        """
        met = [{"stage": stage, "step": step} | record for record in records]
        for record in sorted(met, key=lambda r: (r["step"], r["row"])):
            if record["step"] <= step:
                self._add(record)
        partial = self.path.with_suffix(".jsonl.partial")
        partial.write_text("".join(json.dumps(r) + "\n" for r in self._records.values()))
        os.replace(partial, self.path)
        return sum(record["stage"] == stage for record in self._records.values())

    def _add(self, record: dict[str, Any]) -> None:
        self._records.setdefault((record["stage"], record["source"], record["row"]), record)
