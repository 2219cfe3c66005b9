"""Two to four easy-VQA pictures with a question about all of them, made on the fly: what a model
that reads several pictures (Cheetor) learns from at tiny size.

    first [picture] second [picture] third [picture] which picture is different in color?

The question may also stand before or between the pictures; their numbers are told where the
question or the answer has one.

    kind            question (one wording of several)                answer
    same colour     do both pictures contain the same color?         yes | no
    same shape      do both pictures contain the same shape?         yes | no
    colour at       what color is the shape in the third picture?    one of `COLOURS`
    shape at        what shape is in the first picture?              one of `SHAPES`
    which colour    which picture contains a red shape?              one of `ORDINALS`
    which shape     which picture contains a circle?                 likewise
    which both      which picture contains a red circle?             likewise
    which size      which picture contains the largest shape?        likewise
    which place     which picture contains a shape at the left?      likewise
    odd colour      which picture is different in color?             likewise; of 3 or more
    odd shape       which picture is different in shape?             likewise; of 3 or more

Wording, number of pictures and answer are drawn first and independently, then pictures that make
the answer true: so the wording gives nothing away. Sizes and places are asked only where they are
far apart (small or large, left or right, top or bottom).

    kind            difference: sentences about two pictures that are otherwise alike
    modify          the shape is red in the first picture and blue in the second picture.
    swap            there is a circle in the first picture and a triangle in the second picture.
    resize, move    as modify, of size (small, large) and place (at the left, ...)

    kind            one picture, and "Describe the picture."
    caption         a caption, as the source ``easy-vqa`` has them
"""

import dataclasses
import functools
import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Literal

from mmjax.data.example import Example, Text, Turn
from mmjax.data.sources.easy_vqa import COLOURS, NUM_FORMS, SHAPES, captioned, picture, questions

ORDINALS = ("first", "second", "third", "fourth")

DESCRIBE = "Describe the picture."
DETAILS = 0.6  # of the captions tell size and place
DESCRIBE_DIFFERENCE = "Describe the difference between the pictures."
_CHANGED = "the shape is {0} in the first picture and {1} in the second picture."
DIFFERENCES = {
    "modify": _CHANGED,
    "swap": "there is a {0} in the first picture and a {1} in the second picture.",
    "resize": _CHANGED,
    "move": _CHANGED,
}
"""Kind of difference -> its sentence, given what the first and the second picture show."""

_VALUES = {
    "colour": COLOURS,
    "shape": SHAPES,
    "size": ("small", "large"),
    "row": ("top", "bottom"),
    "column": ("left", "right"),
}  # fact -> what may be asked
_WORDINGS = {
    "same colour": (
        "do both pictures contain the same color?",
        "are the shapes in both pictures the same color?",
        "is the color of the shape the same in both pictures?",
    ),
    "same shape": (
        "do both pictures contain the same shape?",
        "is the shape the same in both pictures?",
        "is there the same shape in both pictures?",
    ),
    "colour at": (
        "what color is the shape in the {} picture?",
        "what is the color of the shape in the {} picture?",
    ),
    "shape at": (
        "what shape is in the {} picture?",
        "what shape does the {} picture contain?",
    ),
    "which": (
        "which picture contains {}?",
        "in which picture is {}?",
    ),
    "odd colour": (
        "which picture is different in color?",
        "in which picture is the color different?",
    ),
    "odd shape": (
        "which picture is different in shape?",
        "in which picture is the shape different?",
    ),
}  # kind, or its first word -> wordings
_WHICH = {
    "which colour": (("colour",),),
    "which shape": (("shape",),),
    "which both": (("colour", "shape"),),
    "which size": (("size",),),
    "which place": (("row",), ("column",)),
}  # kind -> the facts it may ask for
KINDS = (
    *("same colour", "same shape", "colour at", "shape at"),
    *_WHICH,
    *("odd colour", "odd shape"),
)
BEHIND = 0.6  # of the questions stand behind their pictures, the others before or between them


@dataclasses.dataclass(frozen=True)
class Record:
    """A question, or a difference, before its pictures are looked at.

    Attributes:
      kind: one of `KINDS` or `DIFFERENCES`, or ``caption``.
      parts: of the user's turn, in order; a number is a picture's.
      answer: one word, or a sentence.
    """

    kind: str
    parts: tuple[int | str, ...]
    answer: str

    @property
    def pictures(self) -> tuple[int, ...]:
        return tuple(part for part in self.parts if isinstance(part, int))

    @property
    def question(self) -> str:
        """The text that is not a picture's number."""
        (text,) = {part for part in self.parts if isinstance(part, str)}.difference(ORDINALS)
        return text


class _Album:
    """The pictures of a split whose colour and shape are known, and what can be asked of them.

    Attributes:
      facts: number of a picture -> what it shows.
      num_left_out: pictures without known colour or shape.
    """

    def __init__(self, split: str, max_pictures: int):
        self._max_pictures = max_pictures
        known = captioned(split)
        self.facts = {number: fact for number, fact in known if fact.colour and fact.shape}
        self.num_left_out = len({asked.picture for asked in questions(split)}) - len(self.facts)
        self._all = list(self.facts.items())
        self._with: dict[tuple[str, str], set[int]] = {}
        for number, fact in self.facts.items():
            for pair in dataclasses.asdict(fact).items():
                self._with.setdefault(pair, set()).add(number)

    def showing(self, wanted: dict[str, str]) -> list[int]:
        """Numbers of the pictures with these facts, in order."""
        return sorted(set.intersection(*(self._with[pair] for pair in wanted.items())))

    def question(self, kind: str, rng: random.Random) -> Record:
        """A question of one of `KINDS`."""
        if kind.startswith("same"):
            text, answer, wanted = _same(kind, rng)
        else:
            ask = _at if kind.endswith("at") else _which if kind in _WHICH else _odd
            text, answer, wanted = ask(kind, self._max_pictures, rng)
        shown: list[int] = []
        for facts in wanted:
            shown.append(
                next(n for n in _from_anywhere(self.showing(facts), rng) if n not in shown)
            )
        return Record(kind, laid_out(text, shown, rng, numbered="same" not in kind), answer)

    def difference(self, kind: str, rng: random.Random) -> Record:
        """Two pictures that differ in one of the five facts, and `DIFFERENCES` of ``kind``."""
        named = {"modify": ("colour",), "swap": ("shape",), "resize": ("size",)}
        fact = rng.choice(named.get(kind, ("row", "column")))
        before, after = rng.sample(_VALUES[fact], 2)
        for first in _from_anywhere(self.showing({fact: before}), rng):
            alike = self.showing(dataclasses.asdict(self.facts[first]) | {fact: after})
            if alike:
                break
        else:
            raise LookupError(f"no two pictures differ in {fact} alone, {before} and {after}")
        said = [f"at the {value}" if kind == "move" else value for value in (before, after)]
        answer = DIFFERENCES[kind].format(*said)
        return Record(kind, (first, rng.choice(alike), DESCRIBE_DIFFERENCE), answer)

    def caption(self, kind: str, rng: random.Random) -> Record:
        number, facts = rng.choice(self._all)
        caption = facts.caption(rng.randrange(NUM_FORMS), details=rng.random() < DETAILS)
        return Record(kind, (number, DESCRIBE), caption)


class EasyVQAMulti:
    """Questions about several pictures, differences between two, or captions of one; record i
    depends on ``seed`` and i alone.

    Attributes:
      kinds: of each record: `KINDS` or `DIFFERENCES` by turns, or ``caption``.
      facts: number of each picture that may be shown -> what it shows.
      notices: how many pictures are left out because their questions do not tell colour or shape.
    """

    def __init__(
        self,
        split: Literal["train", "dev", "test"] = "train",
        task: Literal["question", "difference", "caption"] = "question",
        num_records: int = 20_000,
        max_pictures: int = 4,
        seed: int = 0,
    ):
        """
        Args:
          split: whose pictures, see `mmjax.data.sources.easy_vqa`.
          task: what the records are.
          num_records: length of the source.
          max_pictures: of a question, 3 or 4.
          seed: of all choices.
        """
        if task not in _TASKS:
            raise ValueError(f"task must be one of {', '.join(_TASKS)}, got {task!r}")
        if max_pictures not in (3, 4):
            raise ValueError(f"max_pictures must be 3 or 4, got {max_pictures}")
        self.name = f"easy-vqa-multi/{split}"
        self._split, self._task, self._seed = split, task, seed
        self._album = _album(split, max_pictures)
        self.facts = self._album.facts
        names = _TASKS[task]
        self.kinds: Sequence[str] = [names[i % len(names)] for i in range(num_records)]
        self.notices = (
            f"{self._album.num_left_out:,} pictures are left out: what is asked of them tells no "
            f"colour or no shape; {len(self._album.facts):,} are shown",
        )

    def __len__(self) -> int:
        return len(self.kinds)

    def __getitem__(self, index: int) -> Example:
        record = self.record(index)
        parts = tuple(
            Text(part) if isinstance(part, str) else picture(self._split, part)
            for part in record.parts
        )
        info = {"question": record.question, "answer": record.answer, "kind": record.kind}
        turns = Turn("user", parts), Turn("assistant", (Text(record.answer),))
        return Example(f"{self.name}/{self._task}/{index}", turns, info)

    def record(self, index: int) -> Record:
        """Record ``index`` with the numbers of its pictures."""
        rng = random.Random(f"{self._seed}/{self._task}/{index}")
        return getattr(self._album, self._task)(self.kinds[index], rng)


_album = functools.cache(_Album)
_TASKS = {"question": KINDS, "difference": tuple(DIFFERENCES), "caption": ("caption",)}


def ask_at(kind: str, position: int, rng: random.Random) -> str:
    """A wording of ``colour at`` or ``shape at``."""
    return rng.choice(_WORDINGS[kind]).format(ORDINALS[position])


def ask_which(wanted: dict[str, str], rng: random.Random) -> str:
    """A wording of ``which picture`` with these facts."""
    if "size" in wanted:
        thing = {"small": "the smallest shape", "large": "the largest shape"}[wanted["size"]]
    elif "row" in wanted or "column" in wanted:
        thing = f"a shape at the {wanted.get('row') or wanted['column']}"
    else:
        thing = " ".join(["a", *wanted.values(), *(() if "shape" in wanted else ("shape",))])
    return rng.choice(_WORDINGS["which"]).format(thing)


def laid_out(
    text: str, shown: Sequence[int | str], rng: random.Random, *, numbered: bool
) -> tuple[int | str, ...]:
    """Pictures, with their `ORDINALS` if ``numbered``, and a text behind, before or between."""
    place = len(shown) if rng.random() < BEHIND else rng.randrange(len(shown))
    pieces = [
        (ordinal, one) if numbered else (one,)
        for ordinal, one in zip(ORDINALS, shown, strict=False)
    ]
    pieces.insert(place, (text,))
    return tuple(part for piece in pieces for part in piece)


# Each of these gives (text, answer, what each picture must show).
_Asked = tuple[str, str, list[dict[str, str]]]


def _same(kind: str, rng: random.Random) -> _Asked:
    fact = kind.removeprefix("same ")
    one, other = rng.sample(_VALUES[fact], 2)
    answer = rng.choice(("yes", "no"))
    wanted = [{fact: one}, {fact: one if answer == "yes" else other}]
    return rng.choice(_WORDINGS[kind]), answer, wanted


def _at(kind: str, max_pictures: int, rng: random.Random) -> _Asked:
    fact = kind.removesuffix(" at")
    wanted = [{fact: rng.choice(_VALUES[fact])} for _ in range(rng.randint(2, max_pictures))]
    position = rng.randrange(len(wanted))
    return ask_at(kind, position, rng), wanted[position][fact], wanted


def _which(kind: str, max_pictures: int, rng: random.Random) -> _Asked:
    wanted = {fact: rng.choice(_VALUES[fact]) for fact in rng.choice(_WHICH[kind])}
    number = rng.randint(2, max_pictures)
    position = rng.randrange(number)
    shown = [wanted if i == position else _unlike(wanted, rng) for i in range(number)]
    return ask_which(wanted, rng), ORDINALS[position], shown


def _odd(kind: str, max_pictures: int, rng: random.Random) -> _Asked:
    fact = kind.removeprefix("odd ")
    common, odd = rng.sample(_VALUES[fact], 2)
    number = rng.randint(3, max_pictures)
    position = rng.randrange(number)
    shown = [{fact: odd if i == position else common} for i in range(number)]
    return rng.choice(_WORDINGS[kind]), ORDINALS[position], shown


def _unlike(facts: dict[str, str], rng: random.Random) -> dict[str, str]:
    """``facts`` with one or more of them changed."""
    changed = rng.sample(list(facts), rng.randint(1, len(facts)))
    others = {
        fact: rng.choice([value for value in _VALUES[fact] if value != facts[fact]])
        for fact in changed
    }
    return facts | others


def _from_anywhere(numbers: list[int], rng: random.Random) -> Iterator[int]:
    """All of them once, from a random one on."""
    start = rng.randrange(len(numbers))
    return itertools.chain(itertools.islice(numbers, start, None), numbers[:start])
