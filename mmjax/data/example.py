"""A record as every source gives it and every template takes it: turns of typed parts.

A part is text, a picture or a video, never text with placeholders in it: a user may write
``<img>`` or ``</s>`` and it stays what it is, text.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

Role = Literal["system", "user", "assistant"]


@dataclasses.dataclass(frozen=True)
class Text:
    text: str


@dataclasses.dataclass(frozen=True)
class Media:
    """A picture, or a video.

    Attributes:
      key: names it uniquely within the project's data; stored features are looked up by it.
      data: the file, its encoded bytes, or a function that reads them (raises `BadSample`); None
        for one of which nothing but stored features is there. Of a video also its frames, each a
        picture of its own.
      mirrored: to be flipped left to right after decoding. A mirrored picture needs a key of its
        own. Videos are not.
      is_video: whether some of its frames are shown, in order of time, see `mmjax.data.video`; a
        picture that moves is shown by its first one.
    """

    key: str
    data: "Path | bytes | Callable[[], bytes] | tuple[Media, ...] | None"
    mirrored: bool = False
    is_video: bool = False


@dataclasses.dataclass(frozen=True)
class Turn:
    role: Role
    parts: tuple[Text | Media, ...]


@dataclasses.dataclass(frozen=True)
class Example:
    """One record: a dialogue and what is known about it.

    Attributes:
      id: for people, in error messages and reports.
      turns: in order.
      info: facts for sampling and scoring, such as ``kind``, ``question`` and ``answer``.
    """

    id: str
    turns: tuple[Turn, ...]
    info: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def media(self) -> tuple[Media, ...]:
        """All pictures and videos, in reading order."""
        return tuple(part for turn in self.turns for part in turn.parts if isinstance(part, Media))

    def text(self, role: Role) -> str:
        """The texts of all turns of ``role``, joined as they are."""
        parts = [part for turn in self.turns if turn.role == role for part in turn.parts]
        return "".join(part.text for part in parts if isinstance(part, Text))


class BadSample(Exception):
    """A record that cannot be used: a broken picture, a missing answer, too long a text.

    Attributes:
      source: the data set or file it comes from.
      row: its number there, or None where only the record itself is known.
      reason: what is wrong with it.
    """

    def __init__(self, source: str, row: int | None, reason: str):
        super().__init__(f"{source}{'' if row is None else f', record {row}'}: {reason}")
        self.source, self.row, self.reason = source, row, reason
