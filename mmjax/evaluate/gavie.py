"""GAVIE: a judge that reads of a picture in captions and boxes scores answers from 0 to 10, for
their relevancy and for their accuracy (LRV reference, section 4).

The layout of the prompt is the original's, the words are ours. The original prints a region's width
for its height: ``legacy_height`` does so, too. It always shows the answers in the same order; here
the order is drawn for each question.
"""

import dataclasses
import itertools
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmjax.data.regions import Region
from mmjax.data.sources import records
from mmjax.data.sources.jsonl import JsonlFormat
from mmjax.data.sources.lrv import Lrv

CRITERIA = ("relevancy", "accuracy")

_HEADER = (
    "What follows describes a picture by its regions: each has a caption, the place of its upper "
    "left corner (X, Y), and its size (Width, Height), in pixels. Boxes that cover each other "
    "almost wholly may be one and the same object."
)
_REQUEST = (
    "You are a smart teacher. With what is told of the picture above, give each of the answers a "
    "score from 0 to 10 for each of these:\n"
    "1: does the answer follow the instruction?\n"
    "2: is the answer accurate with regard to the picture?\n"
    "Write nothing but the following, with each score as one number."
)


@dataclasses.dataclass(frozen=True)
class Item:
    """A question of the evaluation set."""

    image_id: str
    question: str

    @property
    def id(self) -> str:
        """Names it in files of questions and answers."""
        return f"{self.image_id}: {self.question}"


def read_items(path: str | Path) -> tuple[list[Item], int]:
    """The questions of ``evaluation_set.json``, and how many were there before.

    Raises what `Lrv` does.
    """
    source = Lrv(path)
    infos = [source[record].info for record in range(len(source))]
    items = [Item(_bare(info["image_id"]), info["question"]) for info in infos]
    once = list(dict.fromkeys(items))
    return once, len(items) - len(once)


def questions(items: Sequence[Item], images: str, extension: str) -> list[dict[str, Any]]:
    """Rows for ``scripts/generate.py --jsonl``, whose answers `read_answers` knows again."""
    return [
        {
            "id": item.id,
            "image": f"{images}/{item.image_id}.{extension}",
            "question": item.question,
        }
        for item in items
    ]


def read_answers(path: str | Path) -> dict[Item, str]:
    """A model's answers: JSON lines, or a JSON list.

        {"id": "2356371: Is it red?", "answer": "no"}                         of generate.py
        {"image_id": "2356371", "question": "Is it red?", "answer": "no"}     or "image", with or
                                                                              without folder and
                                                                              ending; "instruction"

    Rows with an ``error`` are none.

    Raises:
      FileNotFoundError: no such file.
      ValueError: bad rows, or two answers to a question: lists the first 20.
    """
    path = records.existing(path)
    found: dict[Item, str] = {}

    def parse(where: str, row: Any) -> list[None]:
        row = records.as_object(records.parse_json(row) if isinstance(row, str) else row)
        if "error" not in row:
            item, answer = _answer(row)
            if found.setdefault(item, answer) != answer:
                raise ValueError(f"another answer to {item.id!r:.80}")
        return [None]

    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        is_list = file.read(4096).lstrip().startswith("[")
    rows = records.read_list(path) if is_list else JsonlFormat.items(path)
    records.parse_all(path, rows, parse)
    return found


def _answer(row: dict[str, Any]) -> tuple[Item, str]:
    answer = records.checked("field 'answer'", row.pop("answer", None))
    question = records.one_of(row, "question", "instruction")
    picture = records.one_of(row, "image_id", "image")
    if question is None or picture is None:
        image_id, colon, question = str(row.get("id", "")).partition(": ")
        if not colon:
            raise ValueError(
                "it has neither 'image_id' and 'question' nor an 'id' of both, as the rows that "
                "evaluate.py gavie --questions writes"
            )
        return Item(image_id, question), answer
    return Item(_bare(str(picture)), records.checked("field 'question'", question)), answer


def _bare(picture: str) -> str:
    """Without folder and ending."""
    return re.sub(r"(?i)\.(?:jpe?g|png|webp|bmp|gif)$", "", picture.rpartition("/")[2])


def shuffled(item: Item, names: Sequence[str], seed: int | None) -> list[str]:
    """The order in which the judge sees the answers to ``item``; as given without a seed."""
    names = list(names)
    if seed is not None:
        random.Random(f"{seed}/{item.id}").shuffle(names)
    return names


def compose(
    regions: Sequence[Region], question: str, answers: Sequence[str], *, legacy_height: bool = False
) -> str:
    """What the judge is asked. Blanks within answers become one: an answer of several lines could
    look like the parts that follow it."""
    lines = []
    for region in regions:
        x, y, width, height = (f"{value:g}" for value in region.box)
        height = width if legacy_height else height
        lines.append(f"{region.caption} X:{x} Y:{y} Width:{width} Height:{height}")
    shown = [
        f"Answer{number}: {' '.join(answer.split())}"
        for number, answer in enumerate(answers, start=1)
    ]
    slots = "\n".join(f"score of answer{number}:\nreason:" for number in range(1, len(answers) + 1))
    return "\n".join(
        (_HEADER, "", "bounding box:", *lines, "", "", "This is the instruction for the picture:",
         question, "", *shown, "", _REQUEST, "", "Output format:", "", "Relevancy:", slots, "",
         "Accuracy:", slots, "")
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Score:
    """0 to 10, and why."""

    score: float
    reason: str


_HEADING = re.compile(
    r"^[\s\d.)(*_#>-]*\b(relevan|accura)\w*(?:[ \t]+scores?)?[ \t*_]*(?:[:\uff1a][ \t*_]*|$)",
    re.IGNORECASE | re.MULTILINE,
)
_LABEL = re.compile(
    r"score\s+(?:of|for)\s+(?:the\s+)?answer\s*#?(\d+)[ \t*_]*[:\uff1a][\s*_]*", re.IGNORECASE
)
_VALUE = re.compile(
    r"(-?\d+(?:\.\d+)?)[*_]*(?:\s*/\s*(\d+)|\s+out\s+of\s+(\d+))?[*_]*(?![\w/])", re.IGNORECASE
)
_RANGE = re.compile(r"[ \t]*(?:[-\u2013~,.]|to|or)[ \t]*\d", re.IGNORECASE)
_REASON = re.compile(r"reasons?[ \t*_]*\d*[ \t*_]*[:\uff1a][ \t*_]*", re.IGNORECASE)


def parse_scores(reply: str, count: int) -> dict[str, list[Score]]:
    """The scores of ``count`` answers for each of `CRITERIA`, in whichever order these come.

    Tolerated are case, numbering, emphasis, ``/10``, a number on the line below. What could mean
    two things means nothing.

    Raises:
      ValueError: says what is missing, out of range, or there with two values.
    """
    found: dict[str, dict[int, Score | None]] = {name: {} for name in CRITERIA}
    problems = []
    for criterion, number, said in _labelled(reply):
        what = f"{criterion} of answer {number}"
        try:
            score = _score(said)
        except ValueError as error:
            problems.append(f"{what}: {error}")
            found[criterion].setdefault(number, None)
            continue
        known = found[criterion].setdefault(number, score)
        if known is not None and known.score != score.score:
            problems.append(f"{what}: both {known.score:g} and {score.score:g}")
    numbers = range(1, count + 1)
    for criterion, scores in found.items():
        problems += [f"{criterion} of answer {n}: missing" for n in numbers if n not in scores]
        others = sorted(scores.keys() - set(numbers))
        problems += [f"{criterion} of answer {n}: there are {count} answers" for n in others]
    if problems:
        raise ValueError("; ".join(problems))
    return {name: [scores[n] for n in numbers] for name, scores in found.items()}


def _labelled(reply: str) -> Iterator[tuple[str, int, str]]:
    """(criterion, number of the answer, what follows), wherever a score is announced."""
    headings = list(_HEADING.finditer(reply))
    for heading, following in itertools.zip_longest(headings, headings[1:]):
        criterion = "relevancy" if heading[1].lower() == "relevan" else "accuracy"
        block = reply[heading.end() : len(reply) if following is None else following.start()]
        labels = list(_LABEL.finditer(block))
        for label, after in itertools.zip_longest(labels, labels[1:]):
            end = len(block) if after is None else after.start()
            yield criterion, int(label[1]), block[label.end() : end]


def _score(said: str) -> Score:
    value = _VALUE.match(said)
    if value is None or _RANGE.match(said, value.end()):
        raise ValueError(f"not one number: {said.strip()[:30]!r}")
    score, of = float(value[1]), value[2] or value[3] or "10"
    if of != "10" or not 0 <= score <= 10:
        raise ValueError(f"{value[0].strip()} is not from 0 to 10")
    rest = said[value.end() :]
    if (reason := _REASON.search(rest)) is not None:
        rest = rest[reason.end() :]
    return Score(score, " ".join(rest.split()))
