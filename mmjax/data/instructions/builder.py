"""Makes a folder of positive and negative instructions about pictures that a text model reads of,
as LRV-Instruction was made (its reference, sections 1.3 to 1.6).

    instructions.json  for the source ``lrv:``
    regions.json       what was known of the pictures, for `mmjax.data.regions`
    outcomes.jsonl     every reply as it came, or why there is none, in order
    report.json        the counts

It may be killed at any moment: the same command goes on. What is left out is decided from the
replies: another choice of `Quality` asks nobody again.
"""

import collections
import dataclasses
import hashlib
import itertools
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmjax.data.instructions.prompts import KINDS, Prompts
from mmjax.data.instructions.replies import Quality, parse_reply
from mmjax.data.instructions.writers import Asked, Writer
from mmjax.data.outcomes import REPORT, Report, append_all, most_common
from mmjax.data.recorded import prompt_hash
from mmjax.data.regions import Region
from mmjax.data.resumable import ResumableFile, write_json
from mmjax.data.sources.lrv import TASKS


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is asked for.

    Attributes:
      kinds: of instructions, each of them asked for once of each picture.
      tasks: of positive ones.
      tasks_per_picture: as many of them are drawn for each picture.
      min_regions: pictures with fewer are passed over.
      seed: of all draws.
    """

    kinds: tuple[str, ...] = KINDS
    tasks: tuple[str, ...] = TASKS
    tasks_per_picture: int = 10
    min_regions: int = 1
    seed: int = 0

    def __post_init__(self):
        problems = []
        if unknown := [kind for kind in self.kinds if kind not in KINDS]:
            problems.append(f"no kind {', '.join(unknown)}; there are {', '.join(KINDS)}")
        if not self.kinds or len(set(self.kinds)) < len(self.kinds):
            problems.append(f"each kind once, and at least one; got {list(self.kinds)}")
        if not 1 <= self.tasks_per_picture <= len(self.tasks):
            problems.append(
                f"tasks_per_picture must be 1 to {len(self.tasks)}, the number of tasks; got "
                f"{self.tasks_per_picture}"
            )
        if problems:
            raise ValueError("\n".join(problems))


def build(
    pictures: Mapping[str, Sequence[Region]],
    writer: Writer,
    prompts: Prompts,
    settings: Settings,
    quality: Quality,
    out: Path,
    *,
    made_by: Mapping[str, Any],
    limit: int | None = None,
) -> Report:
    """Asks for every kind of every picture once.

    Args:
      pictures: image id -> regions.
      writer: who writes.
      prompts: what it is asked.
      settings: what for.
      quality: what is left out.
      out: the folder; a new one, or one that was begun with the same.
      made_by: JSON-able; names regions and writer.
      limit: take as many of the first pictures only.

    Raises:
      ValueError: no picture has regions enough, ``out`` holds something else, or too many requests
        in a row failed.
    """
    least = settings.min_regions
    enough = {id: regions for id, regions in pictures.items() if len(regions) >= least}
    if not enough:
        raise ValueError(f"none of {len(pictures):,} pictures has {least} regions")
    taken = dict(list(enough.items())[:limit])
    origin = dict(
        made_by=made_by,
        settings=dataclasses.asdict(settings),
        prompts=dataclasses.asdict(prompts),
        pictures=_hash([[id, *map(dataclasses.astuple, found)] for id, found in taken.items()]),
    )
    out = Path(out)
    file = ResumableFile(out / "outcomes.jsonl", origin)
    was_complete = file.is_complete
    if not was_complete:
        asked = itertools.islice(_requests(taken, prompts, settings), file.num_lines, None)
        rows = (_outcome(image_id, request, writer) for image_id, request in asked)
        append_all(file, rows, what="requests", total=len(taken) * len(settings.kinds))
        seen = {
            image_id: [dict(caption=region.caption, bbox=region.box) for region in regions]
            for image_id, regions in taken.items()
        }
        write_json(out / "regions.json", seen)
    counts = dict(pictures=len(taken), too_few_regions=len(pictures) - len(enough))
    _write_results(out, file, quality, counts)
    if not was_complete:
        file.finish()
    return Report.read(out, was_complete=was_complete)


def _requests(
    pictures: Mapping[str, Sequence[Region]], prompts: Prompts, settings: Settings
) -> Iterator[tuple[str, Asked]]:
    for image_id, regions in pictures.items():
        for kind in settings.kinds:
            rng = random.Random(f"{settings.seed}/{image_id}/{kind}")
            tasks = rng.sample(settings.tasks, settings.tasks_per_picture)
            prompt = prompts.compose(kind, regions, tasks)
            count = prompts.positive_count if kind == "positive" else prompts.negative_count
            yield image_id, Asked(kind, regions, count, prompt, rng.getrandbits(32))


def _outcome(image_id: str, asked: Asked, writer: Writer) -> dict[str, Any]:
    row = dict(source=image_id, kind=asked.kind, prompt_sha256=prompt_hash(asked.prompt))
    try:
        written = writer(asked)
    except Exception as error:  # whatever a writer raises is counted, and many in a row stop
        row |= dict(failed=f"{type(error).__name__}: {error}")
        usage = getattr(error, "usage", None)
    else:
        row |= dict(reply=written.reply)
        usage = dict(written.usage)
    return row | (dict(usage=usage) if usage else {})


def _write_results(
    out: Path, file: ResumableFile, quality: Quality, counts: Mapping[str, int]
) -> None:
    """Writes ``instructions.json`` and ``report.json``."""
    kinds, reasons, usage = (collections.Counter() for _ in range(3))
    counts = collections.Counter({**counts, "replies": 0, "failed": 0, "instructions": 0})
    found = []
    for row in file.rows():
        usage.update(row.get("usage", {}))
        if "failed" in row:
            counts["failed"] += 1
            reasons[f"failed: {row['failed']}"] += 1
            continue
        counts["replies"] += 1
        positive = row["kind"] == "positive"
        groups, incomplete = parse_reply(row["reply"], positive=positive)
        reasons["left out: an incomplete instruction"] += incomplete
        reasons["a reply without a whole instruction"] += not groups
        for group in groups:
            if problem := quality.problem(group):
                reasons[f"left out: {problem}"] += 1
                continue
            kinds[row["kind"]] += 1
            record = dict(image_id=row["source"], question=group.instruction, answer=group.answer)
            negative = "" if positive else row["kind"]
            found.append(record | dict(task=group.task or "negative", negative=negative))
    counts["instructions"] = len(found)
    report = dict(
        counts=dict(counts),
        kinds=dict(sorted(kinds.items())),
        reasons=most_common(+reasons, rest=file.name),
        usage=dict(sorted(usage.items())),
    )
    write_json(out / "instructions.json", found)
    write_json(out / REPORT, report)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
