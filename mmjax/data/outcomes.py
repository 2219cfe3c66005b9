"""Work of many steps that may fail one by one: what became of them, written down and counted."""

import collections
import dataclasses
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmjax.data.resumable import ResumableFile

MAX_FAILED = 10
"""Failures in a row that end the work: then it is not the single step. They are not written down,
so that they are tried again."""
REPORT = "report.json"
_MAX_SHOWN = 20  # reasons in a report


@dataclasses.dataclass(frozen=True)
class Report:
    """What came of it.

    Attributes:
      out: the folder.
      counts: of everything that went in or came out.
      kinds: kind of what came out -> how many.
      reasons: why something did not -> how often.
      usage: what the model that was asked took, summed.
      was_complete: whether all was done before.
    """

    out: Path
    counts: Mapping[str, int]
    kinds: Mapping[str, int]
    reasons: Mapping[str, int]
    usage: Mapping[str, float]
    was_complete: bool

    @classmethod
    def read(cls, out: Path, *, was_complete: bool) -> "Report":
        return cls(out, **json.loads((out / REPORT).read_text()), was_complete=was_complete)

    def __str__(self) -> str:
        done = "was complete already, nothing was done" if self.was_complete else "is complete"
        lines = [f"{self.out} {done}: {figures(self.counts)}"]
        for title, found in (("kinds", self.kinds), ("usage", self.usage)):
            lines += [f"{title}: {figures(found)}"] if found else []
        lines += [f"{count:,} x {reason}" for reason, count in self.reasons.items()]
        return "\n  ".join(lines)


def append_all(file: ResumableFile, rows: Iterable[dict[str, Any]], *, what: str, total: int):
    """Appends each row as it comes; those that have ``failed`` when one comes that has not.

    Args:
      file: where to.
      rows: with ``source``, what a row was made of.
      what: they are, for messages.
      total: how many there will be in the end.

    Raises:
      ValueError: `MAX_FAILED` of them in a row failed.
    """
    waiting: list[dict[str, Any]] = []  # failures since the last one that did not fail
    for row in rows:
        waiting.append(row)
        if "failed" not in row:
            file.append(waiting)
            waiting = []
        elif len(waiting) == MAX_FAILED:
            raise ValueError(
                f"{MAX_FAILED} {what} in a row failed, up to that of {row['source']}; with what is "
                f"wrong mended, the same command goes on. The last reasons:\n  "
                + "\n  ".join(dict.fromkeys(each["failed"] for each in waiting))
            )
        if sys.stderr.isatty():
            print(f"\r{file.num_lines:,} of {total:,}", end="\r", file=sys.stderr, flush=True)
    file.append(waiting)


def most_common(reasons: collections.Counter, *, rest: str) -> dict[str, int]:
    """The first reasons, and how many others there are; ``rest`` says where to find these."""
    shown = dict(reasons.most_common(_MAX_SHOWN))
    if others := reasons.total() - sum(shown.values()):
        shown[f"other reasons, see {rest}"] = others
    return shown


def figures(counts: Mapping[str, float]) -> str:
    """``3 made, 1 failed``."""
    return ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items())
