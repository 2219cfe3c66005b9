"""What the tiny language model that reads several pictures learns from: easy-VQA in words.

Documents have the layout of Cheetor's prompts, with a caption in words wherever Cheetor puts a
picture's vectors: each part of the user's turn after the other, a blank between them.

    Image: CAPTION. Image: CAPTION. QUESTION\\nAnswer: ANSWER </s> QUESTION\\n ...

    task         the pictures, and what is said of them
    question     record i of ``easy-vqa-multi``; more questions about its pictures follow
    difference   record i of the same, task=difference; or edited pictures: one deleted shape (a
                 caption says "no shape"), one added shape (a caption of both)
    single       a picture and its own questions in easy-VQA
    caption      a picture, "Describe the picture.", and another caption of it; also without the
                 request, or without it and ``Answer:``
    description  several pictures, "describe the second picture.", and another caption of that
"""

import random
import re
from collections.abc import Iterator, Sequence
from typing import Literal

from mmjax.data.example import Example, Text, Turn
from mmjax.data.sources.easy_vqa import COLOURS, NUM_FORMS, SHAPES, Facts, questions
from mmjax.data.sources.easy_vqa_multi import (
    DESCRIBE,
    DESCRIBE_DIFFERENCE,
    DETAILS,
    DIFFERENCES,
    ORDINALS,
    EasyVQAMulti,
    Record,
    ask_at,
    ask_which,
    laid_out,
)
from mmjax.data.sources.easy_vqa_text import by_kinds

PROPORTIONS = {"question": 45, "difference": 15, "single": 15, "caption": 10, "description": 15}
"""Relative frequencies of the tasks. Descriptions, all of whose words are copied, teach soonest
which picture to look at."""

EDITS = {
    "delete": "there is a {} in the first picture and no shape in the second picture.",
    "add": "there is a {} in the second picture that is not in the first picture.",
}
"""Kind of difference that takes an edited picture -> its sentence, given the colour and shape."""

CUE = "\nAnswer:"

NUM_VECTORS = 8  # of a picture: a shuffled caption has up to as many words
_EMPTY = ("no shape", "there is no shape", "the image contains no shape", "a picture of no shape")

Scene = tuple[Facts, ...]
"""What a picture shows, one for each shape; edited ones have none or two."""


class EasyVQAMultiText:
    """Documents about one to four pictures; answers are assistant turns, all else is the user's.

    Attributes:
      kinds: of each document, its task.
      notices: as the source of the pictures has them.
    """

    def __init__(
        self,
        split: Literal["train", "dev", "test"] = "train",
        num_documents: int = 50_000,
        max_words: int = 82,
        shuffled: float = 0.0,
        graded: bool = False,
        seed: int = 0,
    ):
        """Document i depends on ``seed`` and i only.

        Args:
          split: whose pictures.
          num_documents: length of the source.
          max_words: of a document, punctuation marks, bos and eos counted; questions are added
            while they fit.
          shuffled: how often a document's pictures are told by the words of a caption in any
            order, some of them repeated, as a set of vectors tells them.
          graded: for evaluation: no captions or descriptions, and one question a document, whose
            kind and answer are the example's ``info``.
          seed: of all choices.
        """
        self.name = f"easy-vqa-multi-text/{split}"
        self._asked = EasyVQAMulti(split, "question", num_documents, seed)
        self._differences = EasyVQAMulti(split, "difference", num_documents, seed)
        self._facts = self._asked.facts
        self._numbers = list(self._facts)
        self._own = {number: [] for number in self._facts}
        for question in questions(split):
            if question.picture in self._own:
                self._own[question.picture].append(question)
        self._max_words, self._shuffled, self._graded = max_words, shuffled, graded
        self._seed, self.notices = seed, self._asked.notices
        free = ("caption", "description") if graded else ()
        weights = {task: share for task, share in PROPORTIONS.items() if task not in free}
        self.kinds: Sequence[str] = random.Random(f"{seed}/tasks").choices(
            list(weights), list(weights.values()), k=num_documents
        )

    def __len__(self) -> int:
        return len(self.kinds)

    def __getitem__(self, index: int) -> Example:
        rng = random.Random(f"{self._seed}/words/{index}")
        task, name = self.kinds[index], f"{self.name}/{index}"
        if task in ("caption", "description"):
            number = 1 if task == "caption" else rng.randint(2, 4)
            return Example(name, self._caption(number, rng), {"kind": task})
        if task == "question":
            record = self._asked.record(index)
            scenes = {number: (self._facts[number],) for number in record.pictures}
            further = _further([self._facts[number] for number in record.pictures], rng)
        elif task == "difference":
            record, scenes = self._difference(index, rng)
            further = iter(())
        else:
            number = rng.choice(self._numbers)
            first, *others = by_kinds(self._own[number], rng)
            record = Record(first.kind, (number, first.question), first.answer)
            scenes = {number: (self._facts[number],)}
            further = ((other.question, other.answer) for other in others)
        turns = self._dialogue(record, scenes, iter(()) if self._graded else further, rng)
        return Example(name, turns, {"kind": record.kind, "answer": record.answer})

    def _dialogue(
        self,
        record: Record,
        scenes: dict[int, Scene],
        further: Iterator[tuple[str, str]],
        rng: random.Random,
    ) -> tuple[Turn, ...]:
        """``record`` with its pictures in words, then ``further`` questions while they fit."""
        shuffled = rng.random() < self._shuffled
        details = record.kind in ("which size", "which place", "resize", "move")
        pieces = [
            part
            if isinstance(part, str)
            else shown(scenes[part], rng, shuffled, details or rng.random() < DETAILS)
            for part in record.parts
        ]
        turns = _exchange(" ".join(pieces), record.answer)
        for question, answer in further:
            more = _exchange(f" {question}", answer)
            if _num_words((*turns, *more)) > self._max_words:
                break
            turns += more
        return turns

    def _difference(self, index: int, rng: random.Random) -> tuple[Record, dict[int, Scene]]:
        """Two real pictures, or one and what is left of it, or came to it, by an edit."""
        kind = rng.choice((*DIFFERENCES, *EDITS))
        if kind in DIFFERENCES:
            record = self._differences.record(index)
            return record, {number: (self._facts[number],) for number in record.pictures}
        original = self._facts[rng.choice(self._numbers)]
        if kind == "delete":
            changed, scenes = original, {0: (original,), 1: ()}
        else:
            changed = original
            while (changed.colour, changed.shape) == (original.colour, original.shape):
                changed = Facts(rng.choice(COLOURS), rng.choice(SHAPES), "small", *_place(rng))
            scenes = {0: (original,), 1: (original, changed)}
        answer = EDITS[kind].format(f"{changed.colour} {changed.shape}")
        return Record(kind, (0, 1, DESCRIBE_DIFFERENCE), answer), scenes

    def _caption(self, number: int, rng: random.Random) -> tuple[Turn, ...]:
        """That many pictures, and another caption of one of them, which tells no more."""
        facts = [self._facts[picture] for picture in rng.sample(self._numbers, number)]
        told = [rng.random() < DETAILS for _ in facts]
        shuffled = rng.random() < self._shuffled
        pieces = [
            shown((one,), rng, shuffled, details) for one, details in zip(facts, told, strict=True)
        ]
        which = rng.randrange(number)
        details = told[which] and rng.random() < DETAILS
        answer = facts[which].caption(rng.randrange(NUM_FORMS), details=details)
        if number > 1:
            text = f"describe the {ORDINALS[which]} picture."
            return _exchange(" ".join(laid_out(text, pieces, rng, numbered=True)), answer)
        asked = rng.choice((*pieces, pieces[0] + CUE, f"{pieces[0]} {DESCRIBE}{CUE}"))
        return Turn("user", (Text(asked),)), Turn("assistant", (Text(answer),))


def shown(scene: Scene, rng: random.Random, shuffled: bool, details: bool) -> str:
    """``Image: CAPTION.``, or ``Image: `` and words of it in any order, some of them repeated.

    ``details``: size and place are told.
    """
    return f"Image: {(_words if shuffled else _sentence)(scene, rng, details)}."


def _sentence(scene: Scene, rng: random.Random, details: bool) -> str:
    if not scene:
        return rng.choice(_EMPTY)
    forms = (rng.randrange(NUM_FORMS), *[0] * (len(scene) - 1))
    told = (facts.caption(form, details=details) for facts, form in zip(scene, forms, strict=True))
    return " and ".join(caption.removesuffix(".") for caption in told)


def _words(scene: Scene, rng: random.Random, details: bool) -> str:
    words = [] if scene else ["no", "shape"]
    for facts in scene:
        words += [facts.colour, facts.shape]
        places = (facts.size, facts.row, facts.column)
        words += [word for word in places if details or rng.random() < 0.5]
    words += rng.choices(words, k=rng.randint(0, max(0, NUM_VECTORS - len(words))))
    return " ".join(rng.sample(words, len(words)))


def _further(facts: Sequence[Facts], rng: random.Random) -> Iterator[tuple[str, str]]:
    """Questions about what each of the pictures shows, and which of them shows it."""
    asked = [(kind, i) for kind in ("colour", "shape") for i in range(len(facts))]
    for fact, position in rng.sample(asked, len(asked)):
        value = getattr(facts[position], fact)
        if rng.random() < 0.5:
            yield ask_at(f"{fact} at", position, rng), value
        elif [getattr(one, fact) for one in facts].count(value) == 1:
            yield ask_which({fact: value}, rng), ORDINALS[position]


def _place(rng: random.Random) -> tuple[str, str]:
    return rng.choice(("top", "middle", "bottom")), rng.choice(("left", "center", "right"))


def _exchange(asked: str, answer: str) -> tuple[Turn, ...]:
    return Turn("user", (Text(asked + CUE),)), Turn("assistant", (Text(answer),))


def _num_words(turns: Sequence[Turn]) -> int:
    """With bos, and eos after each answer."""
    texts = [part.text for turn in turns for part in turn.parts if isinstance(part, Text)]
    return 1 + len(turns) // 2 + sum(len(re.findall(r"\w+|[^\w\s]", text)) for text in texts)
