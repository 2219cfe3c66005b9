"""What the tiny foundations learn from: easy-VQA in words.

A frozen language model can use a picture's vector only if it has met its like: so the documents
have the layouts of LMEye's prompts, with a caption in words wherever LMEye puts a vector.

    kind       document                                          prepares for
    context    Image: CAPTION BLOCK BLOCK ...                    `<img>`, and often response slots
    response   BLOCK BLOCK ..., each with a caption              response slots alone
    blind      BLOCK BLOCK ..., without captions                 (the prior of the answers)
    caption    Image: CAPTION\\n PARAPHRASE </s>                  the alignment stage

    BLOCK is ``\\n QUESTION [CAPTION]\\nAnswer: ANSWER </s>``.
"""

import itertools
import random
import re
from collections.abc import Sequence
from typing import Literal

from mmjax.data.example import Example, Text, Turn
from mmjax.data.sources.easy_vqa import NUM_FORMS, Facts, Question, captioned, picture, questions
from mmjax.data.templates import LMEyeQuestion

PROPORTIONS = {"context": 50, "response": 30, "caption": 20, "blind": 10}
"""Relative frequencies."""

DETAILS = 0.6  # of the captions tell size and place


class EasyVQAText:
    """Documents, each about one picture; answers are assistant turns, all else is the user's.

    Attributes:
      kinds: of each document, a key of `PROPORTIONS`.
    """

    def __init__(
        self,
        split: Literal["train", "dev", "test"] = "train",
        num_documents: int = 50_000,
        max_words: int = 60,
        shuffled: float = 0.0,
        seed: int = 0,
    ):
        """Document i depends on ``seed`` and i only.

        Args:
          split: whose pictures.
          num_documents: length of the source.
          max_words: of a document, punctuation marks and eos counted; questions are added while
            they fit.
          shuffled: how often a picture is told by a caption's words in any order instead. In
            captions a colour always comes just before its shape, and a model that relies on that
            cannot read both from one vector.
          seed: of all choices.
        """
        self.name = f"easy-vqa-text/{split}"
        self._facts = captioned(split)
        self._questions: dict[int, list[Question]] = {number: [] for number, _ in self._facts}
        for question in questions(split):
            if question.picture in self._questions:
                self._questions[question.picture].append(question)
        self._max_words, self._shuffled, self._seed = max_words, shuffled, seed
        names, weights = list(PROPORTIONS), list(PROPORTIONS.values())
        self.kinds: Sequence[str] = random.Random(f"{seed}/kinds").choices(
            names, weights, k=num_documents
        )

    def __len__(self) -> int:
        return len(self.kinds)

    def __getitem__(self, index: int) -> Example:
        kind = self.kinds[index]
        rng = random.Random(f"{self._seed}/{index}")
        number, facts = rng.choice(self._facts)
        if kind == "caption":
            text = f"Image: {self._context(facts, rng)}\n {_caption(facts, rng)}"
            turns = (Turn("user", (Text(text),)),)
        else:
            turns = self._dialogue(kind, number, facts, rng)
        return Example(f"{self.name}/{index}", turns, {"kind": kind})

    def _dialogue(
        self, kind: str, number: int, facts: Facts, rng: random.Random
    ) -> tuple[Turn, ...]:
        layout = LMEyeQuestion(image_token=0, slot_token=0)  # for its wording
        turns, num_words = [], 1
        for question in by_kinds(self._questions[number], rng):
            text = layout.after.replace("{text}", question.question)
            if not turns and kind == "context":
                text = layout.before + self._context(facts, rng) + text
            if kind == "response" or (kind == "context" and rng.random() < 0.5):
                text += self._context(facts, rng)
            text += layout.cue
            num_words += _num_words(text) + _num_words(question.answer) + 1
            if turns and num_words > self._max_words:
                break
            turns += [Turn("user", (Text(text),)), Turn("assistant", (Text(question.answer),))]
        return tuple(turns)

    def _context(self, facts: Facts, rng: random.Random) -> str:
        """What stands where a picture will: a caption, or its words in any order."""
        if not self._shuffled or rng.random() >= self._shuffled:
            return _caption(facts, rng)
        words = [word for word in (facts.colour, facts.shape) if word]
        words += [word for word in (facts.size, facts.row, facts.column) if rng.random() < 0.5]
        return " ".join(rng.sample(words, len(words))) + "."


class EasyVQAPairs:
    """Pictures whose colour and shape are both known, each also mirrored, with two captions.

    The user's text is the short caption (colour and shape), the assistant's the rich one (size and
    place as well; left and right swapped for a mirrored picture).
    """

    def __init__(self, split: Literal["train", "dev", "test"] = "train", mirror: bool = True):
        """``mirror=False`` leaves the mirrored pictures out."""
        self.name = f"easy-vqa-pairs/{split}"
        self._split, self._copies = split, 2 if mirror else 1
        self._facts = [
            (number, facts) for number, facts in captioned(split) if facts.colour and facts.shape
        ]
        self.kinds: Sequence[str] = ["pair"] * (len(self._facts) * self._copies)

    def __len__(self) -> int:
        return len(self.kinds)

    def __getitem__(self, index: int) -> Example:
        number, facts = self._facts[index // self._copies]
        mirrored = index % self._copies == 1
        facts = facts.mirrored if mirrored else facts
        short, rich = facts.caption(0, details=False), facts.caption(0, details=True)
        media = picture(self._split, number, mirrored=mirrored)
        turns = Turn("user", (media, Text(short))), Turn("assistant", (Text(rich),))
        return Example(f"{self.name}/{index}", turns, {"kind": "pair", "answer": rich})


def by_kinds(asked: Sequence[Question], rng: random.Random) -> list[Question]:
    """A shuffle that takes the kinds in turn.

    In the natural order a model would first learn, and long hold on to, what the wording of a
    question gives away.
    """
    kinds: dict[str, list[Question]] = {}
    for question in rng.sample(asked, len(asked)):
        kinds.setdefault(question.kind, []).append(question)
    in_turn = itertools.zip_longest(*rng.sample(list(kinds.values()), len(kinds)))
    return [question for turn in in_turn for question in turn if question is not None]


def _caption(facts: Facts, rng: random.Random) -> str:
    return facts.caption(rng.randrange(NUM_FORMS), details=rng.random() < DETAILS)


def _num_words(text: str) -> int:
    return len(re.findall(r"\w+|[^\w\s]", text))
