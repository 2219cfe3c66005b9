"""easy-VQA without pictures, or with little to say about them: what Visual-LLaMA's second stage
mixes with questions to pictures, and what it is tested with besides.

    easy-vqa-told           "Image: there is a small red circle at the top left. is it red?": the
                            picture in words, so that the language model alone can answer
    easy-vqa-captions       pictures to describe, one record for each
    easy-vqa-instructions   questions to pictures, with these two
"""

import zlib
from collections.abc import Sequence
from typing import Literal

from mmjax.data.example import Example, Text, Turn
from mmjax.data.sources.easy_vqa import NUM_FORMS, EasyVQA, Facts, captioned, picture, questions


class EasyVQATold:
    """Questions, each with a caption in place of its picture; of pictures whose colour and shape
    are known.

    Attributes:
      kinds: of each record, ``told`` and that of the question.
    """

    def __init__(self, split: Literal["train", "dev", "test"] = "train", limit: int | None = None):
        """``limit``: how many records at most, from all over the split."""
        self.name = f"easy-vqa-told/{split}"
        self._facts = _known(split)
        asked = [question for question in questions(split) if question.picture in self._facts]
        self._questions = asked[:: max(1, len(asked) // limit)][:limit] if limit else asked
        self.kinds: Sequence[str] = [f"told {question.kind}" for question in self._questions]

    def __len__(self) -> int:
        return len(self.kinds)

    def __getitem__(self, index: int) -> Example:
        question = self._questions[index]
        caption = _caption(self._facts[question.picture], f"{question.picture}/{index}")
        text = f"Image: {caption}\n {question.question}"
        info = dict(question=text, answer=question.answer, kind=self.kinds[index])
        turns = Turn("user", (Text(text),)), Turn("assistant", (Text(question.answer),))
        return Example(f"{self.name}/{index}", turns, info)


class EasyVQACaptions:
    """Pictures to describe. A caption is right if colour and shape are (``info["contains"]``)."""

    def __init__(self, split: Literal["train", "dev", "test"] = "train"):
        self.name = f"easy-vqa-captions/{split}"
        self._split, self._facts = split, list(_known(split).items())
        self.kinds: Sequence[str] = ["caption"] * len(self._facts)

    def __len__(self) -> int:
        return len(self.kinds)

    def __getitem__(self, index: int) -> Example:
        number, facts = self._facts[index]
        caption = _caption(facts, f"{number}")
        info = dict(answer=caption, contains=f"{facts.colour} {facts.shape}", kind="caption")
        turns = Turn("user", (picture(self._split, number),)), Turn("assistant", (Text(caption),))
        return Example(f"{self.name}/{index}", turns, info)


class EasyVQAInstructions:
    """Questions to pictures, captions, and ``told`` questions or none.

    Attributes:
      kinds: of each record: that of the question, ``caption`` or ``told``.
    """

    def __init__(self, split: Literal["train", "dev", "test"] = "train", told: int = 1):
        """``told``: 0 leaves texts alone out."""
        self.name = f"easy-vqa-instructions/{split}"
        parts = [EasyVQA(split), EasyVQACaptions(split)] + [EasyVQATold(split)] * bool(told)
        self._records = [(part, index) for part in parts for index in range(len(part))]
        self.kinds: Sequence[str] = [
            part.kinds[index] if part is not parts[-1] or not told else "told"
            for part, index in self._records
        ]

    def __len__(self) -> int:
        return len(self.kinds)

    def __getitem__(self, index: int) -> Example:
        part, record = self._records[index]
        return part[record]


def _known(split: str) -> dict[int, Facts]:
    """Pictures of which colour and shape are known."""
    return {number: facts for number, facts in captioned(split) if facts.colour and facts.shape}


def _caption(facts: Facts, name: str) -> str:
    """In a wording that the name decides."""
    chance = zlib.crc32(name.encode())
    return facts.caption(chance % NUM_FORMS, details=chance // NUM_FORMS % 10 < 6)
