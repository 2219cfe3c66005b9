"""What the tiny language model that reads clips learns from: easy-VQA and its clips in words.

Documents have the layout of Lynx's prompt, with a caption in words where Lynx puts a picture's or a
clip's vectors:

    CAPTION. User: QUESTION\\nBot: ANSWER </s> User: QUESTION\\nBot: ANSWER </s> ...

    task      the caption's                     and what is said of it
    clip      a clip of ``easy-vqa-clips``      record i of that, then all that can be asked of it
    picture   a picture of easy-VQA             its own questions
    caption   either                            "Describe the picture." and another caption
"""

import itertools
import random
import re
from collections.abc import Iterable, Sequence
from typing import Literal

from mmjax.data.example import Example, Text, Turn
from mmjax.data.sources.easy_vqa import NUM_FORMS, Facts, captioned, questions
from mmjax.data.sources.easy_vqa_clips import (
    DESCRIBE,
    FORMS,
    Actor,
    Clip,
    EasyVQAClips,
    further_questions,
)
from mmjax.data.sources.easy_vqa_text import DETAILS, by_kinds
from mmjax.data.templates import LynxPrompt

PROPORTIONS = {"clip": 50, "picture": 35, "caption": 15}
"""Relative frequencies of the tasks."""


class EasyVQAClipsText:
    """Documents about a clip or a picture; answers are assistant turns, all else is the user's.

    Attributes:
      kinds: of each document, its task.
      notices: as the source of the clips has them.
    """

    def __init__(
        self,
        split: Literal["train", "dev", "test"] = "train",
        num_documents: int = 100_000,
        max_words: int = 72,
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
          shuffled: how often a caption's words stand in any order, as vectors tell them; "from red"
            and "to blue" stay together, and so do the words of one of two shapes.
          graded: for evaluation: no captions, and one question a document, whose kind and answer
            are the example's ``info``.
          seed: of all choices.
        """
        self.name = f"easy-vqa-clips-text/{split}"
        self._clips = EasyVQAClips(split, num_records=num_documents, seed=seed)
        self._facts = dict(captioned(split))
        self._numbers = list(self._facts)
        self._own = {number: [] for number in self._facts}
        for question in questions(split):
            if question.picture in self._own:
                self._own[question.picture].append(question)
        self._max_words, self._shuffled, self._graded = max_words, shuffled, graded
        self._seed, self.notices = seed, self._clips.notices
        weights = {k: v for k, v in PROPORTIONS.items() if not (graded and k == "caption")}
        self.kinds: Sequence[str] = random.Random(f"{seed}/tasks").choices(
            list(weights), list(weights.values()), k=num_documents
        )

    def __len__(self) -> int:
        return len(self.kinds)

    def __getitem__(self, index: int) -> Example:
        rng = random.Random(f"{self._seed}/words/{index}")
        task, record = self.kinds[index], self._clips.record(index)
        number = rng.choice(self._numbers)
        scene = record.clip if task == "clip" or rng.random() < 0.5 else self._facts[number]
        if task == "clip":
            kind, first = record.kind, (record.question, record.answer)
            asked = itertools.chain([first], further_questions(record.clip, rng))
        elif task == "picture":
            scene, own = self._facts[number], by_kinds(self._own[number], rng)
            kind, asked = own[0].kind, ((one.question, one.answer) for one in own)
        else:
            kind, asked = task, [(DESCRIBE, _sentence(scene, rng))]
        turns = self._dialogue(self._shown(scene, rng), asked)
        answer = next(part.text for turn in turns[1:2] for part in turn.parts)
        return Example(f"{self.name}/{index}", turns, {"kind": kind, "answer": answer})

    def _dialogue(self, shown: str, asked: Iterable[tuple[str, str]]) -> tuple[Turn, ...]:
        """As many questions as fit, each once."""
        layout = LynxPrompt(tokens_per_picture=0)  # for its wording
        turns, seen, num_words = [], set(), 1
        for question, answer in asked:
            text = f"{'' if turns else shown} {layout.prompt.format(question=question)}"
            num_words += _num_words(text) + _num_words(answer) + 1
            if turns and (num_words > self._max_words or self._graded):
                break
            if question in seen:
                continue
            seen.add(question)
            turns += [Turn("user", (Text(text),)), Turn("assistant", (Text(answer),))]
        return tuple(turns)

    def _shown(self, scene: Clip | Facts, rng: random.Random) -> str:
        """What stands where the vectors will."""
        if rng.random() >= self._shuffled:
            return _sentence(scene, rng)
        if isinstance(scene, Clip):
            return " and ".join(_words(actor, rng) for actor in scene.actors) + "."
        words = [word for word in (scene.colour, scene.shape) if word]
        words += [word for word in (scene.size, scene.row, scene.column) if rng.random() < 0.5]
        return " ".join(rng.sample(words, len(words))) + "."


def _sentence(scene: Clip | Facts, rng: random.Random) -> str:
    if isinstance(scene, Clip):
        return scene.caption(rng.randrange(len(FORMS)))
    return scene.caption(rng.randrange(NUM_FORMS), details=rng.random() < DETAILS)


def _words(actor: Actor, rng: random.Random) -> str:
    """``from red``, ``circle``, ``to blue``, ``changing`` in any order."""
    words = [actor.shape]
    words += ["moving", actor.side] if actor.side else []
    words += [] if actor.changes == "color" else [actor.colours[0]]
    for before, after in (actor.colours, actor.sizes):
        words += [f"from {before}", f"to {after}", "changing"] if before != after else []
    words += ["not moving"] if actor.changes == "nothing" else []
    return " ".join(rng.sample(words, len(words)))


def _num_words(text: str) -> int:
    return len(re.findall(r"\w+|[^\w\s]", text))
