"""Positive and negative instructions about easy-VQA's pictures, made on the fly: LRV-Instruction's
three kinds of negatives (its reference, section 1.4) in the few words of the tiny language model.

    kind     of a picture with a red circle                              answer
    present  any of the forms below, and true                            yes
    neg1     nonexistent object: nothing of it is right
             is there a blue triangle?   is there a blue shape?          no
    neg2     existent object: some of it is right, some is wrong
             is there a blue circle?     is the circle blue?             no
    neg3     knowledge: a caption with one fact altered
             the image contains a blue circle. is the answer right?      no
    colour   what color is the shape?                                    red
    shape    what shape is in the image?                                 circle

Form, wording and what is mentioned are drawn independently of the answer, and every form is as
often negative as any other: so a text alone does not tell the answer. Interrogative and declarative
forms (``there is a blue circle.``) are mixed.
"""

import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import Literal

from mmjax.data.example import Example, Text, Turn
from mmjax.data.sources.easy_vqa import COLOURS, SHAPES, captioned, picture, questions

NEGATIVES = ("neg1", "neg2", "neg3")
KINDS = ("present", *NEGATIVES, "colour", "shape")
OPEN = 0.2  # of the positive instructions do not ask for yes or no

VALUES: Mapping[str, Sequence[str]] = {
    "colour": COLOURS,
    "shape": SHAPES,
    "size": ("small", "medium", "large"),
    "row": ("top", "middle", "bottom"),
    "column": ("left", "center", "right"),
}
"""Fact -> its values; the fields of `Facts`."""

# What is negated by which kind: one fact alone by neg1, several by neg1 and neg2, ...
_FORMS_OF = {"neg1": ("one", "several"), "neg2": ("several", "attribute"), "neg3": ("caption",)}
_PRESENT = ("one", "several", "several", "attribute", "caption", "caption")  # so often each of them
_OBJECT = (
    "is there a {thing}?",
    "is there a {thing} in the image?",
    "is a {thing} present?",
    "does the image contain a {thing}?",
    "there is a {thing} in the image.",
    "the image contains a {thing}.",
)
_WORDINGS = {
    "one": _OBJECT,
    "several": _OBJECT,
    "attribute": ("is the {thing} {value}?", "the {thing} is {value}."),
    "caption": tuple(
        wording
        for caption in (
            "a {thing}.",
            "there is a {thing}.",
            "the image contains a {thing}.",
            "a picture of a {thing}.",
        )
        for wording in (f"{caption} is the answer right?", f"is the answer right? {caption}")
    ),
    "colour": (
        "what color is the shape?",
        "what is the color of the shape?",
        "the color of the shape in the image.",
    ),
    "shape": (
        "what shape is in the image?",
        "what shape does the image contain?",
        "the shape in the image.",
    ),
}
Said = dict[str, str]  # fact -> value, of some facts


@dataclasses.dataclass(frozen=True)
class Instruction:
    """What is asked of a picture.

    Attributes:
      kind: one of `KINDS`.
      form: which wordings it was drawn from.
      question: the text.
      answer: one word.
      sentence: the answer in a sentence, a wrong premise put right.
    """

    kind: str
    form: str
    question: str
    answer: str
    sentence: str


class EasyVQALRV:
    """User: picture, instruction. Assistant: the answer.

    Attributes:
      kinds: of each record, one of `KINDS`.
    """

    def __init__(
        self,
        split: Literal["train", "dev", "test"] = "train",
        negatives: float = 0.5,
        num_records: int = 50_000,
        facts: str = "colour,shape",
        answers: Literal["word", "sentence"] = "word",
        seed: int = 0,
    ):
        """Record i depends on the options and i only.

        Args:
          split: whose pictures.
          negatives: share of the records; 0 are positive instructions only, just as many.
          num_records: length of the source.
          facts: what instructions speak of: colour, shape, and if you like size, row, column, which
            the tiny towers hardly see.
          answers: ``sentence`` says what there is instead: ``no. there is a red circle.``
          seed: of all choices.
        """
        told = tuple(str(facts).split(","))
        problems = []
        if not 0 <= float(negatives) <= 1:
            problems.append(f"negatives is a share, from 0 to 1; got {negatives}")
        if num_records < 1:
            problems.append(f"num_records must be at least 1, got {num_records}")
        once = len(set(told)) == len(told)
        if not (once and {"colour", "shape"} <= {*told} <= VALUES.keys()):
            problems.append(
                f"facts: expected colour,shape and any of size, row, column, each once; got {facts}"
            )
        if answers not in ("word", "sentence"):
            problems.append(f"answers must be 'word' or 'sentence', got {answers!r}")
        if problems:
            raise ValueError("\n".join(problems))
        self.name = f"easy-vqa-lrv/{split}"
        self._split, self._facts, self._seed = split, told, seed
        self._negatives, self._answers = float(negatives), answers
        self._pictures = [
            (number, {fact: getattr(known, fact) for fact in VALUES})
            for number, known in captioned(split)
            if known.colour and known.shape
        ]
        left_out = len({question.picture for question in questions(split)}) - len(self._pictures)
        self.notices = (
            f"{left_out:,} pictures are left out: their questions do not tell colour and shape",
        )
        self.kinds: Sequence[str] = [
            drawn_kind(random.Random(f"{seed}/kind/{index}"), self._negatives)
            for index in range(num_records)
        ]

    def __len__(self) -> int:
        return len(self.kinds)

    def __getitem__(self, index: int) -> Example:
        rng = random.Random(f"{self._seed}/{index}")
        number, facts = rng.choice(self._pictures)
        made = instruction(self.kinds[index], {fact: facts[fact] for fact in self._facts}, rng)
        answer = made.answer if self._answers == "word" else made.sentence
        info = dict(question=made.question, answer=answer, kind=made.kind, form=made.form)
        info["negative"] = made.kind if made.kind in NEGATIVES else ""
        asked = Turn("user", (picture(self._split, number), Text(made.question)))
        return Example(f"{self.name}/{index}", (asked, Turn("assistant", (Text(answer),))), info)


def drawn_kind(rng: random.Random, negatives: float) -> str:
    """One of `KINDS`; ``negatives`` is the share of the negative ones."""
    if rng.random() < negatives:
        return rng.choice(NEGATIVES)
    return rng.choice(("colour", "shape")) if rng.random() < OPEN else "present"


def instruction(kind: str, facts: Said, rng: random.Random) -> Instruction:
    """An instruction about a picture.

    Args:
      kind: one of `KINDS`.
      facts: what is known of the picture and may be spoken of; colour and shape at least.
      rng: of all choices.
    """
    if kind in ("colour", "shape"):
        value = facts[kind]
        sentence = f"the color is {value}." if kind == "colour" else f"the shape is a {value}."
        return Instruction(kind, kind, rng.choice(_WORDINGS[kind]), value, sentence)
    form = rng.choice(_FORMS_OF.get(kind, _PRESENT))
    wording = rng.choice(_WORDINGS[form])
    if form == "attribute":
        asked = rng.choice(list(facts))
        others = [fact for fact in facts if fact != asked]
        named = _some(facts, rng.sample(others, rng.randint(0, len(others))))
        value = _other(asked, facts, rng) if kind == "neg2" else facts[asked]
        question = wording.format(thing=_thing(named), value=_predicate(asked, value))
        mentioned = [*named, asked]
    else:
        least = 1 if form == "one" else 2
        mentioned = rng.sample(list(facts), 1 if form == "one" else rng.randint(least, len(facts)))
        said = _some(facts, mentioned)
        wrong = _wrong(kind, mentioned, rng)
        said |= {fact: _other(fact, facts, rng) for fact in wrong}
        question = wording.format(thing=_thing(said))
    answer = "yes" if kind == "present" else "no"
    sentence = f"{answer}. there is a {_thing(_some(facts, mentioned))}."
    return Instruction(kind, form, question, answer, sentence)


def _wrong(kind: str, mentioned: Sequence[str], rng: random.Random) -> Sequence[str]:
    """Which of the facts mentioned are altered."""
    if kind == "present":
        return ()
    if kind == "neg1":
        return mentioned
    return rng.sample(mentioned, 1 if kind == "neg3" else rng.randint(1, len(mentioned) - 1))


def _other(fact: str, facts: Said, rng: random.Random) -> str:
    return rng.choice([value for value in VALUES[fact] if value != facts[fact]])


def _some(facts: Said, names: Sequence[str]) -> Said:
    return {name: facts[name] for name in names}


def _thing(said: Said) -> str:
    """``small red circle at the top left``."""
    words = [said.get("size"), said.get("colour"), said.get("shape", "shape")]
    place = [said[fact] for fact in ("row", "column") if fact in said]
    words += ["at the", *place] if place else []
    return " ".join(word for word in words if word)


def _predicate(fact: str, value: str) -> str:
    return {"shape": "a {}", "row": "at the {}", "column": "at the {}"}.get(fact, "{}").format(
        value
    )
