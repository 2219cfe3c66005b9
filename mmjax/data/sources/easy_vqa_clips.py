"""Clips of a moment, made of easy-VQA's shapes on the fly, with a question that no single frame
answers: what a model that reads videos (Lynx) learns from at tiny size.

A shape moves over a flat background, changes its colour or its size, or stays; or there are two of
them, of which one moves.

    kind            question (one wording of several)                answer
    direction       to what side is the shape moving?                one of `SIDES`
    moving colour   what color is the moving shape?                  one of `COLOURS`; of two shapes
    moving shape    what shape is moving?                            one of `SHAPES`; likewise
    moving          is the shape moving?                             yes | no
    moving to       is the shape moving to the left?                 yes | no (to another side)
    changing        what is changing?                                color | size | place | nothing
    colours         from what color to what is the color changing?   red to blue
    from to         is the color changing from red to blue?          yes | no (from blue to red)
    size            is the shape changing from small to large?       yes | no (the other way)

Wording and answer are drawn first and independently, then a clip that makes the answer true: the
wording gives nothing away. Nor does the middle frame: there, what moves is where it could also stay
or come from any side, and what changes has changed in half of the clips. So ``frames=1``, the
middle frame alone, measures what is guessed: of two shapes one, of two colours the order. (The
first and the last frame do tell something: what is far left has come from the right, or goes
there.)

Times are from 0 to 1, whatever the number of frames: the same record with more frames is the same
clip.
"""

import dataclasses
import functools
import io
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
from PIL import Image

from mmjax.data.differences.interfaces import Segment
from mmjax.data.example import Example, Media, Text, Turn
from mmjax.data.sources.easy_vqa import COLOURS, SHAPES, captioned, picture, questions
from mmjax.data.sources.easy_vqa_edits import PALETTE, take_apart

SIDES = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}
"""Side -> the way there, (x, y)."""
DESCRIBE = "Describe the picture."
FORMS = ("{thing} is {what}.", "there is {thing} {what}.", "a picture of {thing} {what}.")

_WORDINGS = {
    "direction": ("to what side is the shape moving?", "the shape is moving to what side?"),
    "moving colour": ("what color is the moving shape?", "what is the color of the moving shape?"),
    "moving shape": ("what shape is moving?", "what is the moving shape?"),
    "moving": ("is the shape moving?", "is there a moving shape?"),
    "moving to": ("is the shape moving to the {}?", "is there a shape moving to the {}?"),
    "changing": ("what is changing?", "what of the shape is changing?"),
    "colours": (
        "from what color to what color is the shape changing?",
        "from what color to what is the color changing?",
    ),
    "from to": (
        "is the color changing from {} to {}?",
        "is the shape changing from {} to {}?",
    ),
    "size": (
        "is the shape changing from {} to {}?",
        "is the size changing from {} to {}?",
    ),
}
KINDS = tuple(_WORDINGS)

_CANVAS = 64
_STEP = 12  # pixels from the middle to where it comes from, and to where it goes
_SIZES = {"small": (12, 15), "large": (26, 30)}  # longer sides
_CENTERS = (28, 36)  # of a shape alone in the middle frame: a large one can move to any side
_LANES = ((12, 20), (44, 52))  # of two shapes, across the movement; along it they are ...
_ALONG = (21, 43)


@dataclasses.dataclass(frozen=True)
class Actor:
    """A shape of a clip, as it is at first and at last.

    Attributes:
      picture: number of the easy-VQA picture it is cut out of.
      shape: what it is.
      colours: names.
      sizes: names; ``sides`` the longer sides of its box in pixels (the others are at least half
        as long, if need be longer than in the picture).
      side: where it moves to, or None.
      center: (x, y) in the middle of the clip.
    """

    picture: int
    shape: str
    colours: tuple[str, str]
    sizes: tuple[str, str]
    sides: tuple[int, int]
    side: str | None
    center: tuple[int, int]

    def caption(self, form: str) -> str:
        colour = "" if self.colours[0] != self.colours[1] else f"{self.colours[0]} "
        what = "not moving" if self.side is None else f"moving to the {self.side}"
        for values in (self.colours, self.sizes):
            if values[0] != values[1]:
                what = f"changing from {values[0]} to {values[1]}"
        return form.format(thing=f"a {colour}{self.shape}", what=what)

    @property
    def changes(self) -> str:
        """An answer to what is changing."""
        changed = {"color": self.colours, "size": self.sizes}
        for name, (before, after) in changed.items():
            if before != after:
                return name
        return "nothing" if self.side is None else "place"


@dataclasses.dataclass(frozen=True)
class Clip:
    """What happens: ``actors``, and the time at which changes come, above 0 and below 1."""

    actors: tuple[Actor, ...]
    change: float

    def caption(self, form: int) -> str:
        """In one sentence, in one of `FORMS`."""
        first, *others = self.actors
        said = [first.caption(FORMS[form].removesuffix("."))]
        said += [one.caption(FORMS[0 if form == 0 else 1].removesuffix(".")) for one in others]
        return " and ".join(said) + "."

    def frame(self, split: str, time: float) -> np.ndarray:
        """uint8[64 64 3] at ``time``, from 0 to 1."""
        background, _ = _cut_out(split, self.actors[0].picture)
        pixels = np.broadcast_to(background, (_CANVAS, _CANVAS, 3))
        now = 0 if time < self.change else 1
        for actor in self.actors:
            _, shape = _cut_out(split, actor.picture)
            longer = actor.sides[now]
            size = [max(round(side * longer / max(shape.size)), longer // 2) for side in shape.size]
            way = SIDES.get(actor.side, (0, 0))
            at = [
                round(center + (2 * time - 1) * _STEP * step - side / 2)
                for center, step, side in zip(actor.center, way, size, strict=True)
            ]
            canvas = Image.new("L", (_CANVAS, _CANVAS))
            canvas.paste(shape.resize(size, Image.Resampling.BICUBIC), at)
            alpha = np.asarray(canvas)[..., None] / 255
            pixels = pixels + alpha * (np.array(PALETTE[actor.colours[now]]) - pixels)
        return np.round(pixels).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Record:
    """A question about a clip, before anything is drawn."""

    kind: str
    question: str
    answer: str
    clip: Clip


class EasyVQAClips:
    """Questions about clips, or captions of the same clips; record i depends on ``seed`` and i
    alone.

    Attributes:
      kinds: of each record: `KINDS` by turns, or ``caption``.
      notices: how many pictures lend no shape because their questions do not tell colour or shape.
    """

    def __init__(
        self,
        split: Literal["train", "dev", "test"] = "train",
        task: Literal["question", "caption"] = "question",
        num_records: int = 20_000,
        frames: int = 5,
        wordings: Literal["all", "one"] = "all",
        seed: int = 0,
    ):
        """
        Args:
          split: whose pictures lend their shapes and backgrounds.
          task: what the records are.
          num_records: length of the source.
          frames: of each clip; 1 is the middle one.
          wordings: of the questions; ``one`` asks each kind in one of the two alone.
          seed: of all choices.
        """
        if task not in ("question", "caption"):
            raise ValueError(f"task must be 'question' or 'caption', got {task!r}")
        if wordings not in ("all", "one"):
            raise ValueError(f"wordings must be 'all' or 'one', got {wordings!r}")
        if frames < 1:
            raise ValueError(f"frames must be at least 1, got {frames}")
        self.name = f"easy-vqa-clips/{split}"
        self._split, self._task, self._seed = split, task, seed
        self._times = [n / (frames - 1) for n in range(frames)] if frames > 1 else [0.5]
        self._cast, self._has_one_wording = _cast(split), wordings == "one"
        self.kinds: Sequence[str] = (
            ["caption"] * num_records
            if task == "caption"
            else [KINDS[i % len(KINDS)] for i in range(num_records)]
        )
        left_out = len({asked.picture for asked in questions(split)}) - len(self._cast.facts)
        self.notices = (
            f"{left_out:,} pictures lend no shape: what is asked of them tells no colour or no "
            f"shape; {len(self._cast.facts):,} do",
        )

    def __len__(self) -> int:
        return len(self.kinds)

    def __getitem__(self, index: int) -> Example:
        record = self.record(index)
        info = {"question": record.question, "answer": record.answer, "kind": record.kind}
        turns = (
            Turn("user", (self._video(index, record.clip), Text(record.question))),
            Turn("assistant", (Text(record.answer),)),
        )
        return Example(f"{self.name}/{self._task}/{index}", turns, info)

    def record(self, index: int) -> Record:
        """Record ``index``, of which nothing is drawn."""
        rng = random.Random(f"{self._seed}/{index}")
        kind = KINDS[index % len(KINDS)]
        record = self._cast.question(kind, rng, self._has_one_wording)
        if self._task == "question":
            return record
        caption = record.clip.caption(rng.randrange(len(FORMS)))
        return Record("caption", DESCRIBE, caption, record.clip)

    def _video(self, index: int, clip: Clip) -> Media:
        key = f"{self.name}/{self._seed}/{index}/{len(self._times)} frames"
        frames = (
            Media(f"{key}@{time:.6g}", functools.partial(_encoded, clip, self._split, time))
            for time in self._times
        )
        return Media(key, tuple(frames), is_video=True)


class Cast:
    """The shapes of a split, and what they can be asked to do.

    Attributes:
      facts: number of a picture -> what it shows; all whose colour and shape are known.
    """

    def __init__(self, split: str):
        self.facts = {n: fact for n, fact in captioned(split) if fact.colour and fact.shape}
        self._with: dict[tuple[str, str], list[int]] = {}
        for number, fact in self.facts.items():
            self._with.setdefault((fact.colour, fact.shape), []).append(number)

    def question(self, kind: str, rng: random.Random, has_one_wording: bool = False) -> Record:
        """A question of one of `KINDS`."""
        wording = rng.choice(_WORDINGS[kind])
        wording = _WORDINGS[kind][0] if has_one_wording else wording
        named, answer, actors = _ASKED[kind](self, rng)
        return Record(kind, wording.format(*named), answer, Clip(actors, rng.uniform(0.01, 0.99)))

    def alone(self, rng: random.Random, **changed) -> tuple[Actor]:
        """A shape of any colour and size that does what ``changed`` says, or stays."""
        colour, shape, size = rng.choice(COLOURS), rng.choice(SHAPES), rng.choice([*_SIZES])
        center = rng.randint(*_CENTERS), rng.randint(*_CENTERS)
        given = dict(colours=(colour, colour), sizes=(size, size), side=None) | changed
        return (self._actor(shape, center=center, rng=rng, **given),)

    def pair(self, rng: random.Random, colour: str, shape: str) -> tuple[Actor, Actor]:
        """Two small shapes unlike in both, in any order, of which the one described moves."""
        side = rng.choice([*SIDES])
        other = (
            rng.choice([each for each in COLOURS if each != colour]),
            rng.choice([each for each in SHAPES if each != shape]),
        )
        actors = []
        lanes = rng.sample(_LANES, 2)
        for (paint, form), goes, lane in zip(
            ((colour, shape), other), (side, None), lanes, strict=True
        ):
            along, across = rng.randint(*_ALONG), rng.randint(*lane)
            center = (along, across) if SIDES[side][0] else (across, along)
            sizes, colours = ("small", "small"), (paint, paint)
            actors.append(
                self._actor(form, colours=colours, sizes=sizes, side=goes, center=center, rng=rng)
            )
        rng.shuffle(actors)
        return tuple(actors)

    def _actor(
        self,
        shape: str,
        *,
        colours: tuple[str, str],
        sizes: tuple[str, str],
        rng: random.Random,
        **rest,
    ) -> Actor:
        number = rng.choice(self._with[colours[0], shape])
        side = {size: rng.randint(*_SIZES[size]) for size in dict.fromkeys(sizes)}
        sides = side[sizes[0]], side[sizes[1]]
        return Actor(number, shape, colours, sizes, sides, **rest)


def further_questions(clip: Clip, rng: random.Random) -> Iterator[tuple[str, str]]:
    """(question, answer), a kind each, of all that can be asked of ``clip`` in any order."""
    moving = next((actor for actor in clip.actors if actor.side), None)
    asked: dict[str, tuple[tuple[str, ...], str]] = {}  # kind -> what it names, answer
    if len(clip.actors) > 1:
        asked |= {"moving colour": ((), moving.colours[0]), "moving shape": ((), moving.shape)}
    else:
        (actor,) = clip.actors
        asked |= {"moving": ((), "yes" if moving else "no"), "changing": ((), actor.changes)}
        for kind, name in (("from to", "colours"), ("size", "sizes")):
            before, after = getattr(actor, name)
            if before != after:
                asked[kind] = rng.choice([((before, after), "yes"), ((after, before), "no")])
        if actor.changes == "color":
            asked["colours"] = ((), " to ".join(actor.colours))
    if moving:
        others = [side for side in SIDES if side != moving.side]
        yes_or_no = [((moving.side,), "yes"), ((rng.choice(others),), "no")]
        asked |= {"direction": ((), moving.side), "moving to": rng.choice(yes_or_no)}
    for kind in rng.sample([*asked], len(asked)):
        named, answer = asked[kind]
        yield rng.choice(_WORDINGS[kind]).format(*named), answer


_cast = functools.cache(Cast)

# Each of these gives (what the wording names, answer, actors).
_Asked = tuple[tuple[str, ...], str, tuple[Actor, ...]]


def _direction(cast: Cast, rng: random.Random) -> _Asked:
    side = rng.choice([*SIDES])
    return (), side, cast.alone(rng, side=side)


def _moving_colour(cast: Cast, rng: random.Random) -> _Asked:
    colour = rng.choice(COLOURS)
    return (), colour, cast.pair(rng, colour, rng.choice(SHAPES))


def _moving_shape(cast: Cast, rng: random.Random) -> _Asked:
    shape = rng.choice(SHAPES)
    return (), shape, cast.pair(rng, rng.choice(COLOURS), shape)


def _moving(cast: Cast, rng: random.Random) -> _Asked:
    answer = rng.choice(("yes", "no"))
    return (), answer, cast.alone(rng, side=rng.choice([*SIDES]) if answer == "yes" else None)


def _moving_to(cast: Cast, rng: random.Random) -> _Asked:
    named, answer = rng.choice([*SIDES]), rng.choice(("yes", "no"))
    others = [side for side in SIDES if side != named]
    side = named if answer == "yes" else rng.choice(others)
    return (named,), answer, cast.alone(rng, side=side)


def _changing(cast: Cast, rng: random.Random) -> _Asked:
    answer = rng.choice(("color", "size", "place", "nothing"))
    does = {
        "color": lambda: dict(colours=tuple(rng.sample(COLOURS, 2))),
        "size": lambda: dict(sizes=tuple(rng.sample([*_SIZES], 2))),
        "place": lambda: dict(side=rng.choice([*SIDES])),
        "nothing": dict,
    }
    return (), answer, cast.alone(rng, **does[answer]())


def _colours(cast: Cast, rng: random.Random) -> _Asked:
    colours = tuple(rng.sample(COLOURS, 2))
    return (), " to ".join(colours), cast.alone(rng, colours=colours)


def _from_to(cast: Cast, rng: random.Random) -> _Asked:
    named, answer = tuple(rng.sample(COLOURS, 2)), rng.choice(("yes", "no"))
    return named, answer, cast.alone(rng, colours=named if answer == "yes" else named[::-1])


def _size(cast: Cast, rng: random.Random) -> _Asked:
    named, answer = tuple(rng.sample([*_SIZES], 2)), rng.choice(("yes", "no"))
    return named, answer, cast.alone(rng, sizes=named if answer == "yes" else named[::-1])


_ASKED: dict[str, Callable[[Cast, random.Random], _Asked]] = {
    "direction": _direction,
    "moving colour": _moving_colour,
    "moving shape": _moving_shape,
    "moving": _moving,
    "moving to": _moving_to,
    "changing": _changing,
    "colours": _colours,
    "from to": _from_to,
    "size": _size,
}


@functools.lru_cache(maxsize=8192)
def _cut_out(split: str, number: int) -> tuple[np.ndarray, Image.Image]:
    """(background f64[3], how much of each pixel of its box the shape covers)."""
    parts = take_apart(np.asarray(Image.open(picture(split, number).data).convert("RGB")))
    left, top, right, bottom = Segment(parts.alpha >= 0.5, "").box
    covered = np.round(parts.alpha[top:bottom, left:right] * 255).astype(np.uint8)
    return parts.background, Image.fromarray(covered)


def _encoded(clip: Clip, split: str, time: float) -> bytes:
    data = io.BytesIO()
    Image.fromarray(clip.frame(split, time)).save(data, "BMP")
    return data.getvalue()
