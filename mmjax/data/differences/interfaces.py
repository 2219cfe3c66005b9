"""What makes a pair of pictures that differ in one thing, part by part.

Cheetor reference, section 8: the object that the Q-Former attends to least is edited, so that only
who looks at the pictures again can tell the difference.

    picture --> Attention --> how much each place is looked at --+
       |                                                         +--> the least attended segment
       +------> Segmenter --> masks, labels ---------------------+         |
                                                                           v
    caption, labels, places --> TextModel --> what shall be there; the sentence --> Editor
                                                                                       |
                                          the pair <-- Filter, if there is one <-- edited picture

Each part is an object that can be called as below; which one, is said by name (see
`mmjax.data.differences.plugins`). A part raises `Unfit` for a picture that it is not made for:
counted as skipped. Any other exception is counted as failed.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np

Kind = Literal["modify", "swap", "delete", "add"]
KINDS: tuple[Kind, ...] = ("modify", "swap", "delete", "add")


class Unfit(Exception):
    """A picture, or a result, of which no pair shall be made; says why.

    Attributes:
      usage: what was spent nevertheless, as in `Wording`.
    """

    def __init__(self, reason: str, usage: Mapping[str, float] | None = None):
        super().__init__(reason)
        self.usage = dict(usage or {})


@dataclasses.dataclass(frozen=True, eq=False)
class Segment:
    """A part of a picture.

    Attributes:
      mask: bool[H W].
      label: what it shows, in words.
      is_background: things are added to background, all other edits are of objects.
    """

    mask: np.ndarray
    label: str
    is_background: bool = False

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom of the mask in pixels; right and bottom are outside."""
        columns, rows = (np.flatnonzero(self.mask.any(axis=axis)) for axis in (0, 1))
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
    """What the text model knows of a picture: ``caption`` is empty where there is none."""

    caption: str
    segments: Sequence[Segment]


@dataclasses.dataclass(frozen=True)
class Wording:
    """What the text model writes.

    Attributes:
      edit: what the edited segment shall show, for the editor.
      sentence: the difference, for the multimodal model to say.
      usage: what it took: requests, tokens, money; summed in the report.
    """

    edit: str
    sentence: str
    usage: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Edit:
    """What the editor is to do: make ``segment`` show what ``description`` says."""

    kind: Kind
    segment: Segment
    description: str


class Attention(Protocol):
    """How much a Q-Former's general queries look at each patch: cross-attention probabilities,
    averaged over layers, heads and queries, class token dropped.

    Attributes:
      image_size: side of the square frames that it takes; pictures are squashed to it.
      identity: JSON-able; tells this model from another.
    """

    image_size: int
    identity: Mapping[str, Any]

    def __call__(self, frames: np.ndarray) -> np.ndarray:  # uint8[n s s 3] -> f32[n g g]
        ...


class Segmenter(Protocol):
    def __call__(self, frame: np.ndarray) -> Sequence[Segment]:  # uint8[H W 3]
        ...


class TextModel(Protocol):
    def __call__(self, scene: Scene, target: int, kind: Kind, seed: int) -> Wording:
        """``target`` is the number of the segment to be edited."""
        ...


class Editor(Protocol):
    def __call__(self, frame: np.ndarray, edit: Edit, seed: int) -> np.ndarray:
        """uint8[H W 3] -> uint8[H W 3]; pixels far from the segment stay as they are."""
        ...


class Filter(Protocol):
    def __call__(self, frame: np.ndarray, edited: np.ndarray, edit: Edit) -> float:
        """How well the edited picture shows what was wanted; the more, the better."""
        ...
