"""What the tiny language model that reads several pictures learns from: easy-VQA in words.

Documents have the layout of Cheetor's prompts, with words wherever Cheetor puts a picture's
vectors: what the picture shows, in any order, some of it repeated, as a set of vectors tells it.

    Image: WORDS. Image: WORDS. QUESTION\\nAnswer: ANSWER </s> QUESTION\\n ...

    task         the pictures, and what is said of them
    pair         two pictures; what the first or second shows, and which of them shows it
    question     record i of ``easy-vqa-multi``; more questions follow if its pictures have numbers
    difference   record i of the same, task=difference; or edited pictures: one deleted shape (a
                 picture's words are "no shape"), one added shape (the words of both)
    caption      a picture, "Describe the picture.", and a caption of it; also without the request,
                 or without it and ``Answer:``
    description  several pictures, "describe the second picture.", and a caption of that

Pairs are what all else is built on: a model that has learned them first learns the others soon, and
one that meets all at once stays long where it began.
"""

import random
import re
from collections.abc import Iterator, Sequence
from typing import Literal

from mmjax.data.example import Example, Text, Turn
from mmjax.data.sources.easy_vqa import COLOURS, NUM_FORMS, SHAPES, Facts
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

PROPORTIONS = {"pair": 10, "question": 50, "difference": 15, "caption": 10, "description": 15}
"""Relative frequencies of the tasks."""

EDITS = {
    "delete": "there is a {} in the first picture and no shape in the second picture.",
    "add": "there is a {} in the second picture that is not in the first picture.",
}
"""Kind of difference that takes an edited picture -> its sentence, given the colour and shape."""

CUE = "\nAnswer:"

NUM_VECTORS = 8  # of a picture: it is told in up to as many words

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
        graded: bool = False,
        seed: int = 0,
    ):
        """Document i depends on ``seed`` and i only.

        Args:
          split: whose pictures.
          num_documents: length of the source.
          max_words: of a document, punctuation marks, bos and eos counted; questions are added
            while they fit.
          graded: for evaluation: one question a document and nothing else; its kind and answer
            are the example's ``info``.
          seed: of all choices.
        """
        self.name = f"easy-vqa-multi-text/{split}"
        common = dict(num_records=num_documents, seed=seed)
        self._asked = EasyVQAMulti(split, "question", **common)
        self._differences = EasyVQAMulti(split, "difference", **common)
        self._facts = self._asked.facts
        self._numbers = list(self._facts)
        self._max_words, self._graded = max_words, graded
        self._seed, self.notices = seed, self._asked.notices
        tasks = ("question",) if graded else PROPORTIONS
        weights = {task: PROPORTIONS[task] for task in tasks}
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
        if task == "pair":
            return Example(name, self._pair(rng), {"kind": task})
        if task == "question":
            record = self._asked.record(index)
            scenes = {number: (self._facts[number],) for number in record.pictures}
            numbered = ORDINALS[0] in record.parts
            further = _further([self._facts[n] for n in record.pictures if numbered], rng)
        else:
            record, scenes = self._difference(index, rng)
            further = iter(())
        turns = self._dialogue(record, scenes, iter(()) if self._graded else further, rng)
        return Example(name, turns, {"kind": record.kind, "answer": record.answer})

    def _pair(self, rng: random.Random) -> tuple[Turn, ...]:
        """Two pictures, and questions about them behind them."""
        first, second = numbers = rng.sample(self._numbers, 2)
        facts = [self._facts[number] for number in numbers]
        questions = _further(facts, rng)
        for question, answer in questions:
            record = Record("pair", (ORDINALS[0], first, ORDINALS[1], second, question), answer)
            scenes = {number: (self._facts[number],) for number in numbers}
            return self._dialogue(record, scenes, questions, rng)
        return self._pair(rng)  # they show the same

    def _dialogue(
        self,
        record: Record,
        scenes: dict[int, Scene],
        further: Iterator[tuple[str, str]],
        rng: random.Random,
    ) -> tuple[Turn, ...]:
        """``record`` with its pictures in words, then ``further`` questions while they fit."""
        details = record.kind in ("which size", "which place", "resize", "move")
        pieces = [
            part
            if isinstance(part, str)
            else shown(scenes[part], rng, details or rng.random() < DETAILS)
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
        """That many pictures, and a caption of one of them, which tells no more."""
        facts = [self._facts[picture] for picture in rng.sample(self._numbers, number)]
        told = [rng.random() < DETAILS for _ in facts]
        pieces = [shown((one,), rng, details) for one, details in zip(facts, told, strict=True)]
        which = rng.randrange(number)
        details = told[which] and rng.random() < DETAILS
        answer = facts[which].caption(rng.randrange(NUM_FORMS), details=details)
        if number > 1:
            text = f"describe the {ORDINALS[which]} picture."
            return _exchange(" ".join(laid_out(text, pieces, rng, numbered=True)), answer)
        asked = rng.choice((*pieces, pieces[0] + CUE, f"{pieces[0]} {DESCRIBE}{CUE}"))
        return Turn("user", (Text(asked),)), Turn("assistant", (Text(answer),))


def shown(scene: Scene, rng: random.Random, details: bool) -> str:
    """``Image: WORDS.``; ``details``: size and place are told."""
    return f"Image: {_words(scene, rng, details)}."


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
