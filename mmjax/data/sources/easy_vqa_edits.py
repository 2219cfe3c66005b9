"""Edits of easy-VQA's pictures: a shape of one of eight colours, with soft edges, on a flat
background.

A picture is ``background + alpha * (colour - background)``. So it can be taken apart exactly, and
put together again with another colour or shape.
"""

import dataclasses
import random
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from mmjax.data.differences.interfaces import Kind, Segment, Unfit
from mmjax.data.sources.easy_vqa import COLOURS, SHAPES

INSTRUCTION = "Describe the difference between the pictures."
PALETTE = {
    "black": (0, 0, 0), "blue": (0, 0, 255), "brown": (165, 42, 42), "gray": (128, 128, 128),
    "green": (0, 255, 0), "red": (255, 0, 0), "teal": (0, 128, 128), "yellow": (255, 255, 0),
}  # fmt: skip
_FAINT = 40  # summed over channels: what differs less from the background is a soft edge
_FINE = 8  # shapes are drawn this many times larger, for soft edges
_SMALL = (9, 13)  # sides of an added shape, which is "small" as easy-VQA's captions have it


@dataclasses.dataclass(frozen=True)
class Thing:
    """A shape in a colour."""

    colour: str
    shape: str

    def __str__(self) -> str:
        return f"{self.colour} {self.shape}"

    def edited(self, kind: Kind, rng: random.Random) -> "Thing | None":
        """What stands in its place after an edit, None for nothing; of ``add``: what comes beside
        it, another thing."""
        if kind == "delete":
            return None
        if kind == "modify":
            return Thing(
                rng.choice([colour for colour in COLOURS if colour != self.colour]), self.shape
            )
        if kind == "swap":
            return Thing(
                self.colour, rng.choice([shape for shape in SHAPES if shape != self.shape])
            )
        things = [Thing(colour, shape) for colour in COLOURS for shape in SHAPES]
        return rng.choice([thing for thing in things if thing != self])


def sentence(kind: Kind, before: Thing, after: Thing | None) -> str:
    """The difference in words."""
    first, second = "in the first picture", "in the second picture"
    return {
        "modify": lambda: f"the shape is {before.colour} {first} and {after.colour} {second}.",
        "swap": lambda: f"there is a {before.shape} {first} and a {after.shape} {second}.",
        "delete": lambda: f"there is a {before} {first} and no shape {second}.",
        "add": lambda: f"there is a {after} {second} that is not {first}.",
    }[kind]()


@dataclasses.dataclass(frozen=True, eq=False)
class Parts:
    """A picture taken apart.

    Attributes:
      background: f64[3].
      alpha: f64[H W], how much of each pixel the shape covers.
      thing: the shape.
    """

    background: np.ndarray
    alpha: np.ndarray
    thing: Thing


def take_apart(frame: np.ndarray) -> Parts:  # uint8[H W 3]
    """Raises Unfit for a picture that is not a shape on a flat background."""
    pixels = frame.astype(np.float64)
    background = np.median(pixels.reshape(-1, 3), axis=0)
    differs = np.abs(pixels - background).sum(-1)
    shape = differs > _FAINT  # bool[H W]
    if not shape.any() or (differs > 0).mean() > 0.5:
        raise Unfit("no shape on a flat background, as easy-VQA's pictures have")
    colours, counts = np.unique(frame[shape], axis=0, return_counts=True)
    rgb = tuple(colours[counts.argmax()].tolist())
    colour = next((name for name, known in PALETTE.items() if known == rgb), None)
    if colour is None:
        raise Unfit(f"a shape of the colour {rgb}, which is none of easy-VQA's")
    towards = np.array(rgb) - background
    alpha = np.clip((pixels - background) @ towards / (towards @ towards), 0, 1)
    return Parts(background, alpha, Thing(colour, _shape(alpha >= 0.5)))


def _shape(mask: np.ndarray) -> str:  # bool[H W]
    """A rectangle fills its box; of a triangle, a quarter is in the upper half."""
    left, top, right, bottom = Segment(mask, "").box
    box = mask[top:bottom, left:right]
    if box.mean() > 0.92:
        return "rectangle"
    half = len(box) // 2
    return "triangle" if box[:half].sum() < 0.55 * box[-half:].sum() else "circle"


def apply(
    frame: np.ndarray, kind: Kind, after: Thing | None, seed: int, mask: np.ndarray | None = None
) -> np.ndarray:
    """An edit of an easy-VQA picture.

    Args:
      frame: uint8[H W 3].
      kind: ``modify`` changes the colour alone, ``swap`` draws another shape in the same box.
      after: as `Thing.edited` gives it.
      seed: of the place and size of what is added.
      mask: bool[H W], where it may be added; by default wherever there is nothing.

    Returns:
      uint8[H W 3].
    """
    parts = take_apart(frame)
    pixels = np.broadcast_to(parts.background, frame.shape)
    if kind == "modify":
        pixels = _painted(pixels, parts.alpha, after.colour)
    elif kind == "swap":
        alpha = _drawn(after.shape, Segment(parts.alpha >= 0.5, "").box, frame.shape)
        pixels = _painted(pixels, alpha, after.colour)
    elif kind == "add":
        free = parts.alpha == 0 if mask is None else mask
        alpha = _drawn(after.shape, _place(free, seed), frame.shape)
        pixels = _painted(frame, alpha, after.colour)
    return np.round(pixels).astype(np.uint8)


def _painted(pixels: np.ndarray, alpha: np.ndarray, colour: str) -> np.ndarray:
    return pixels + alpha[..., None] * (np.array(PALETTE[colour]) - pixels)


def _drawn(shape: str, box: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """f64[H W]: how much of each pixel a shape covers that fills ``box``; of a circle, the shorter
    side and its middle."""
    canvas = Image.new("L", (size[1] * _FINE, size[0] * _FINE))
    left, top, right, bottom = (edge * _FINE for edge in box)
    if shape == "circle":
        rest = (right - left) - (bottom - top)
        left, right = left + max(rest, 0) // 2, right - (max(rest, 0) + 1) // 2
        top, bottom = top + max(-rest, 0) // 2, bottom - (max(-rest, 0) + 1) // 2
    draw = ImageDraw.Draw(canvas)
    corners = (left, top, right - 1, bottom - 1)  # both ends are drawn
    if shape == "rectangle":
        draw.rectangle(corners, fill=255)
    elif shape == "circle":
        draw.ellipse(corners, fill=255)
    else:
        draw.polygon([((left + right) / 2, top), corners[2:], (left, bottom - 1)], fill=255)
    return np.asarray(canvas.reduce(_FINE), np.float64) / 255


def _place(free: np.ndarray, seed: int) -> tuple[int, int, int, int]:
    """A box with a margin of a pixel, all of it where ``free`` bool[H W] is."""
    rng = random.Random(seed)
    for side in range(rng.randint(*_SMALL), _SMALL[0] - 1, -1):
        windows = np.lib.stride_tricks.sliding_window_view(free, (side + 2, side + 2))
        tops, lefts = np.nonzero(windows.all(axis=(2, 3)))
        if len(tops):
            at = rng.randrange(len(tops))
            top, left = int(tops[at]) + 1, int(lefts[at]) + 1
            return left, top, left + side, top + side
    raise Unfit(f"no room for a shape of {_SMALL[0]} pixels")
