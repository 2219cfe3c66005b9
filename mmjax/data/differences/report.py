"""What became of the edits: the pairs for training, and the counts."""

import collections
import json
from collections.abc import Mapping
from pathlib import Path

from mmjax.data.outcomes import REPORT, most_common
from mmjax.data.resumable import ResumableFile, write_bytes, write_json


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
    report = dict(
        counts=dict(edits=file.num_lines, **outcomes, **counts),
        kinds=dict(sorted(kinds.items())),
        reasons=most_common(reasons, rest=file.name),
        usage=dict(sorted(usage.items())),
    )
    write_bytes(out / "pairs.jsonl", "".join(pairs).encode())
    write_json(out / REPORT, report)


def pair_files(id: str) -> list[str]:
    """Original and edited picture of a pair, relative to the folder."""
    return [f"pictures/{name}.png" for name in (id.partition("-")[0], id)]
