"""LRV-Instruction's data (arXiv 2306.14565): ``lrv:PATH`` of ``filter_cap.json``, of the file with
more of them, of the chart instructions, or of what ``prepare_data.py instructions`` writes; a JSON
list, or JSON lines.

    {"image_id": "2356371", "question": "Is the table red?", "answer": "No, it is brown.",
     "task": "negative"}

image_id                 names the picture: ``<image_id>.jpg``, or as it is with an ending
question | instruction   what the user says
answer | answer_gt | gt  what is to be said; not needed for generation
task                     one of `TASKS`, or ``negative``; names that GPT-4 gave are kept as they are
negative                 neg1, neg2 or neg3, which the published files do not tell; any other field
                         is kept in ``info``

``info`` has ``image_id``, ``task``, ``negative`` (neg1, neg2, neg3; ``negative`` where the file
does not tell which; else nothing) and ``kind``, for scores: ``positive`` or the kind of negative.

Options: ``images``, the folder of the pictures (by default ``image`` beside the file);
``extension`` (jpg); ``kind=task`` for scores by task; ``negatives_are=neg3``: what the file's
negatives are, where it does not tell; ``negatives`` and ``seed``, see `Lrv`.
"""

import collections
import fractions
import math
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from mmjax.data.example import Example, Media, Text, Turn
from mmjax.data.sources import records
from mmjax.data.sources.jsonl import JsonlFormat

TASKS = (
    "image captioning",
    "image sentiment analysis",
    "activity recognition",
    "object interaction analysis",
    "object attribute detection",
    "multi-choice vqa",
    "visual entailment",
    "visual commonsense reasoning",
    "styled image captioning",
    "referential expression grounding",
    "object detection",
    "image quality assessment",
    "image anomaly detection",
    "ocr",
    "semantic segmentation",
    "dense captioning",
)
"""Of positive instructions; the first ten are those of the published prompt."""
NEGATIVES = ("neg1", "neg2", "neg3")
_NEGATIVE = re.compile(r"neg(?:ative)?[ _-]?([123])?", re.IGNORECASE)
_PICTURE = re.compile(r".*\.(?:jpe?g|png|webp|bmp|gif)", re.IGNORECASE)


class Lrv(records.Records):
    """The instructions of a file."""

    def __init__(
        self,
        path: str | Path,
        images: str | Path | None = None,
        extension: str = "jpg",
        kind: Literal["negative", "task"] = "negative",
        negatives_are: Literal["neg1", "neg2", "neg3", ""] = "",
        negatives: float | None = None,
        seed: int = 0,
    ):
        """Reads and checks the whole file; pictures are not opened.

        Args:
          path: of the file.
          images: the folder of the pictures.
          extension: of pictures whose ``image_id`` has none.
          kind: what ``info["kind"]`` is.
          negatives_are: which, where the file does not tell.
          negatives: share of negative instructions. Both sides are shuffled by themselves, and the
            one that is too small is repeated, so that none is left out but with 0 or 1.
          seed: of that.

        Raises:
          FileNotFoundError: no such file.
          ValueError: bad records (lists the first 20), no records, a wrong option, or a share of
            negatives that the file cannot give.
        """
        if kind not in ("negative", "task"):
            raise ValueError(f"kind must be 'negative' or 'task', got {kind!r}")
        if negatives_are and negatives_are not in NEGATIVES:
            raise ValueError(f"negatives_are: one of {', '.join(NEGATIVES)}, got {negatives_are!r}")
        path = records.existing(path)
        root = path.parent / "image" if images is None else Path(images)

        def parse(where: str, record: Any) -> list[Example]:
            if isinstance(record, str):
                record = records.parse_json(record)
            number = where.split()[-1]
            example = _example(record, f"{path.name}:{number}", root, extension, negatives_are)
            by = "positive" if kind == "negative" else example.info["task"]
            kinds = {"kind": example.info["negative"] or by}
            return [Example(example.id, example.turns, {**example.info, **kinds})]

        examples = records.parse_all(path, _items(path), parse)
        notices = _unknown_tasks(examples)
        if negatives is not None:
            order, more = _mixed(path, examples, float(negatives), seed)
            examples, notices = [examples[record] for record in order], [*notices, *more]
        super().__init__(str(path), examples, notices)


def _items(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        is_list = file.read(4096).lstrip().startswith("[")
    yield from records.read_list(path) if is_list else JsonlFormat.items(path)


def _example(record: Any, name: str, root: Path, extension: str, negatives_are: str) -> Example:
    """Raises ValueError that names the field."""
    record = records.as_object(record)
    name = records.id_of(record, name)
    image_id = records.id_of({"id": record.pop("image_id", None)}, "")
    if not image_id:
        raise ValueError("field 'image_id' is missing or empty")
    question = records.one_of(record, "question", "instruction")
    if question is None:
        raise ValueError("field 'question' (or 'instruction') is missing")
    question = records.checked("field 'question'", question)
    answer = records.one_of(record, "answer", "answer_gt", "gt")
    task = _task(records.text_of(record, "task", needed=False) or "")
    negative = records.text_of(record, "negative", needed=False) or ""
    if negative and negative not in NEGATIVES:
        raise ValueError(
            f"field 'negative': expected one of {', '.join(NEGATIVES)}, got {negative!r:.40}"
        )
    if found := _NEGATIVE.fullmatch(task):
        negative = negative or (f"neg{found[1]}" if found[1] else negatives_are or "negative")
    info = dict(image_id=image_id, question=question, task=task, negative=negative)
    answered = []
    if answer is not None:
        info["answer"] = records.checked("field 'answer'", answer)
        answered = [Turn("assistant", (Text(answer),))]
    file = root / (image_id if _PICTURE.fullmatch(image_id) else f"{image_id}.{extension}")
    asked = Turn("user", (Media(str(file), file), Text(question)))
    return Example(name, (asked, *answered), {**records.info_of(record), **info})


def _task(name: str) -> str:
    """As `TASKS` spells it, but for blanks, case, and what stands around it."""
    plain = " ".join(re.sub(r"[^\w\s-]", " ", name).lower().split())
    spelled = {re.sub(r"[ -]", "", task): task for task in TASKS}
    return spelled.get(re.sub(r"[ -]", "", plain), plain)


def _unknown_tasks(examples: Sequence[Example]) -> list[str]:
    known = {*TASKS, ""}
    counts = collections.Counter(
        example.info["task"]
        for example in examples
        if example.info["task"] not in known and not example.info["negative"]
    )
    if not counts:
        return []
    some = ", ".join(f"{task!r:.40} ({count:,})" for task, count in counts.most_common(5))
    return [
        f"{counts.total():,} of {len(examples):,} records name a task that is none of the "
        f"{len(TASKS)}: {some}{', ...' if len(counts) > 5 else ''}"
    ]


def _mixed(
    path: Path, examples: Sequence[Example], share: float, seed: int
) -> tuple[list[int], list[str]]:
    """Which record stands at which place, so that ``share`` of any stretch are negative."""
    if not 0 <= share <= 1:
        raise ValueError(f"negatives is a share, from 0 to 1; got {share:g}")
    share = fractions.Fraction(share).limit_denominator(10**6)  # 0.9 is nine of ten, exactly
    sides: dict[bool, list[int]] = {True: [], False: []}
    for record, example in enumerate(examples):
        sides[bool(example.info["negative"])].append(record)
    shares = {True: share, False: 1 - share}
    names = {True: "negative", False: "positive"}
    asked = f"negatives={float(share):g}"
    for side, wanted in shares.items():
        if wanted and not sides[side]:
            raise ValueError(
                f"{path}: {asked}, but none of its {len(examples):,} instructions is "
                f"{names[side]} (a field 'task' or 'negative' tells); give negatives="
                f"{int(not side)}, leave it out, or mix in a file that has some"
            )
    length = max(math.ceil(len(sides[side]) / wanted) for side, wanted in shares.items() if wanted)
    drawn = {side: _endlessly(sides[side], f"{seed}/{names[side]}") for side in sides}
    order = []
    times, of = share.as_integer_ratio()
    for place in range(length):
        order.append(next(drawn[(place + 1) * times // of > place * times // of]))
    notices = []
    for side, found in sides.items():
        given = sum(bool(examples[record].info["negative"]) == side for record in order)
        if found and not given:
            notices.append(f"{asked}: {len(found):,} {names[side]} ones are left out")
        elif given > len(found):
            notices.append(f"{asked}: {len(found):,} {names[side]} ones are repeated to {given:,}")
    return order, notices


def _endlessly(records: Sequence[int], seed: str) -> Iterator[int]:
    """All of them, in a new order each time."""
    cycle = 0
    while records:
        yield from random.Random(f"{seed}/{cycle}").sample(records, len(records))
        cycle += 1
