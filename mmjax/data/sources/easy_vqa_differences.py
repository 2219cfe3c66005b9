"""Pairs of easy-VQA pictures that differ in one thing, and what it is: the second one is edited
when it is needed.

Stands for Cheetor's synthetic data (its reference, section 8) without their costly half: what is
edited is drawn at random, no Q-Former chooses it. For that, and for pictures of your own, see
`mmjax.data.differences`.

    kind     the second picture                 sentence
    modify   the shape in another colour        the shape is red in the first picture and blue in
                                                the second picture.
    swap     another shape in its place         there is a circle in the first picture and a
                                                triangle in the second picture.
    delete   the background alone               there is a red circle in the first picture and no
                                                shape in the second picture.
    add      a small shape on the background    there is a blue circle in the second picture that
                                                is not in the first picture.
"""

import functools
import io
import random
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from mmjax.data.differences.interfaces import KINDS, Kind
from mmjax.data.example import Example, Media, Text, Turn
from mmjax.data.sources.easy_vqa import captioned, picture, questions
from mmjax.data.sources.easy_vqa_edits import INSTRUCTION, Thing, apply, sentence


class EasyVQADifferences:
    """User: original, edited picture, instruction. Assistant: the difference.

    Attributes:
      kinds: of each record, one of modify, swap, delete, add.
    """

    def __init__(
        self,
        split: Literal["train", "dev", "test"] = "train",
        num_records: int = 10_000,
        seed: int = 0,
    ):
        """Record i depends on ``seed`` and i only.

        Args:
          split: whose pictures.
          num_records: length of the source.
          seed: of all choices.
        """
        if num_records < 1:
            raise ValueError(f"num_records must be at least 1, got {num_records}")
        self.name = f"easy-vqa-differences/{split}"
        self._split, self._seed = split, seed
        self._things = [
            (number, Thing(facts.colour, facts.shape))
            for number, facts in captioned(split)
            if facts.colour and facts.shape
        ]
        left_out = len({question.picture for question in questions(split)}) - len(self._things)
        self.notices = (
            f"{left_out:,} pictures are left out: their questions do not tell colour and shape",
        )
        self.kinds: Sequence[Kind] = random.Random(f"{seed}/kinds").choices(KINDS, k=num_records)

    def __len__(self) -> int:
        return len(self.kinds)

    def __getitem__(self, index: int) -> Example:
        kind, rng = self.kinds[index], random.Random(f"{self._seed}/{index}")
        number, before = rng.choice(self._things)
        after = before.edited(kind, rng)
        original, difference = picture(self._split, number), sentence(kind, before, after)
        asked = Turn("user", (original, _edited(original, kind, after), Text(INSTRUCTION)))
        info = {"question": INSTRUCTION, "answer": difference, "kind": kind}
        return Example(
            f"{self.name}/{index}", (asked, Turn("assistant", (Text(difference),))), info
        )


def _edited(original: Media, kind: Kind, after: Thing | None) -> Media:
    """The same edit of a picture is the same picture, in whichever record."""
    key = f"{original.key}/{kind}" + (f" {after}" if after else "")
    draw = functools.partial(_draw, original.data, kind, after, zlib.crc32(key.encode()))
    return Media(key, draw)


def _draw(file: Path, kind: Kind, after: Thing | None, seed: int) -> bytes:
    """An encoded picture."""
    edited = apply(np.asarray(Image.open(file).convert("RGB")), kind, after, seed)
    data = io.BytesIO()
    Image.fromarray(edited).save(data, "PNG")
    return data.getvalue()
