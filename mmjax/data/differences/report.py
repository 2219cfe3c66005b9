"""What became of the edits: the pairs for training, and the counts."""

import collections
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from mmjax.data.resumable import ResumableFile, write_bytes, write_json

_REPORT = "report.json"
_MAX_SHOWN = 20  # reasons in a report


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of a source's pictures.

    Attributes:
      out: the folder.
      counts: of edits: all, made (into a pair), skipped, failed; of pictures; of the source's other
        records: repeats (the picture is an earlier one's), without one picture, and bad ones.
      kinds: kind of edit -> pairs made.
      reasons: why an edit was skipped or failed -> how often.
      usage: what the text model took, summed.
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
        return cls(out, **json.loads((out / _REPORT).read_text()), was_complete=was_complete)

    def __str__(self) -> str:
        done = "was complete already, nothing was done" if self.was_complete else "is complete"
        lines = [f"{self.out} {done}: {figures(self.counts)}"]
        for title, found in (("kinds", self.kinds), ("text model", self.usage)):
            lines += [f"{title}: {figures(found)}"] if found else []
        lines += [f"{count:,} x {reason}" for reason, count in self.reasons.items()]
        return "\n  ".join(lines)


def write_results(
    out: Path, file: ResumableFile, counts: Mapping[str, int], *, instruction: str
) -> None:
    """Writes ``pairs.jsonl`` and ``report.json``, and leaves no pictures but the pairs'.

    Args:
      out: the folder.
      file: what became of each edit.
      counts: of pictures and records, for the report.
      instruction: what the user says.
    """
    kinds, reasons, usage = (collections.Counter() for _ in range(3))
    outcomes = dict(made=0, skipped=0, failed=0)
    pairs, pictures = [], set()
    for row in file.rows():
        usage.update(row.get("usage", {}))
        what = next((what for what in ("skipped", "failed") if what in row), "made")
        outcomes[what] += 1
        if what != "made":
            reasons[f"{what}: {row[what]}"] += 1
            continue
        kinds[row["kind"]] += 1
        images = pair_files(row["id"])
        pictures |= {out / image for image in images}
        pair = dict(id=row["id"], images=images, question=instruction)
        pair |= dict(answer=row["sentence"], kind=row["kind"], edit=row["edit"])
        pairs.append(json.dumps(pair | dict(source=row["source"])) + "\n")
    for path in out.glob("pictures/*"):
        if path not in pictures:
            path.unlink()  # of an edit that was cut short, and then came to nothing
    shown = dict(reasons.most_common(_MAX_SHOWN))
    if others := reasons.total() - sum(shown.values()):
        shown["other reasons, see outcomes.jsonl"] = others
    report = dict(
        counts=dict(edits=file.num_lines, **outcomes, **counts),
        kinds=dict(sorted(kinds.items())),
        reasons=shown,
        usage=dict(sorted(usage.items())),
    )
    write_bytes(out / "pairs.jsonl", "".join(pairs).encode())
    write_json(out / _REPORT, report)


def pair_files(id: str) -> list[str]:
    """Original and edited picture of a pair, relative to the folder."""
    return [f"pictures/{name}.png" for name in (id.partition("-")[0], id)]


def figures(counts: Mapping[str, float]) -> str:
    """``3 made, 1 failed``."""
    return ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items())
