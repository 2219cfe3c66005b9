"""What is timed or counted: a stage of a config, with drawn weights and a made-up batch of the
config's shapes in which every place is filled. No data."""

import copy
import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mmjax.data.batch import Batch, Sequence
from mmjax.data.sequence import join
from mmjax.nn.param import Params, init_params, specs
from mmjax.systems.registry import make_system
from mmjax.systems.system import System
from mmjax.train.build import held_dtypes
from mmjax.train.optim import make_optimizer
from mmjax.train.plan import Stage, sketch
from mmjax.train.step import Step, make_step

ONE_PASS = ("image_embedding", "image_linear.bias", "image_linear.kernel")  # LMEye without asking


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is timed: a stage of a config with drawn weights and a made-up batch of numpy arrays."""

    config: dict
    stage: Stage
    batch: Batch
    trainable: tuple[str, ...]

    @property
    def shapes(self) -> str:
        """A line for the heading."""
        batch, section = self.batch, self.stage.section
        texts = dict(prefix=batch.prefix, request=batch.request, target=batch.target)
        lengths = [f"{name} {x.tokens.shape[1]}" for name, x in texts.items() if x is not None]
        seen = batch.features if batch.features is not None else batch.frames
        if seen is not None:
            kind = "frames" if batch.features is None else "features"
            lengths.append(f"{kind} {list(seen.shape[1:])}")
        return (
            f"{self.config['system']} {self.config['variant']}, {self.stage.name}: "
            f"{section['batch_size']} rows in {section['accumulation']} slices, "
            f"{', '.join(lengths)}; computed in {self.dtype}, frozen parts kept in "
            f"{self.config['frozen_dtype']}"
        )

    @property
    def dtype(self) -> str:
        return str(jnp.dtype(self.stage.system.dtype))

    @property
    def num_tokens(self) -> int:
        batch = self.batch
        parts = (batch.prefix, batch.request, batch.target)
        return sum(int((part.segments > 0).sum()) for part in parts if part is not None)


def subject(config: dict, stage: str | None = None) -> Subject:
    """A stage (the last one by default) of a config of plain values, see
    `mmjax.train.config.check`.

    Raises:
      ValueError: the config has no such stage.
    """
    stage = stage_of(config, stage)
    system = make_system(config["system"], config["model"])
    wanted = specs(system)
    made = Stage(stage, config, system, wanted, held_dtypes(config, wanted), None, None)
    return Subject(config, made, _made_up(made), made.selection.trainable)


def with_rows(config: dict, stage: str | None, rows: int) -> dict:
    """A copy of ``config`` in which the stage reads so many rows at once; see `subject`."""
    config = copy.deepcopy(config)
    config[stage_of(config, stage)] |= dict(batch_size=rows, accumulation=1)
    return config


def stage_of(config: dict, stage: str | None) -> str:
    """``stage``, or the last one of ``config``. Raises ValueError if it has no such stage."""
    stage = stage or config["stages"][-1]
    if stage not in config["stages"]:
        raise ValueError(f"stage {stage!r} is none of {', '.join(config['stages'])}")
    return stage


def _made_up(stage: Stage) -> Batch:
    """A batch of the stage's shapes: the template's slots, and words everywhere else."""
    rng, shapes, row = np.random.default_rng(0), stage.batch(), sketch(stage.section)
    config, rows = stage.system.config, len(shapes.row_id)
    words = min(config.language.vocab_size, getattr(config, "spare_row", None) or 2**31)
    texts, start = {}, 0
    for name in ("prefix", "request", "target"):
        text = getattr(row, name)
        if text is not None:
            texts[name] = _filled(text, rows, words, rng, start, is_left=name == "prefix")
            start = text.tokens.shape[1] if name == "prefix" else start
    batch = Batch(np.arange(rows, dtype=np.int32), **texts)
    if shapes.features is None and shapes.frames is None:
        return batch
    f, videos = shapes.frame_item.shape[1], stage.section["data"].get("num_frames", 0)
    item, time = (np.broadcast_to(x, (rows, f)).astype(np.int32) for x in _places(f, videos))
    batch = dataclasses.replace(batch, frame_item=item, frame_time=time)
    if shapes.features is None:
        frames = rng.integers(0, 256, shapes.frames.shape, dtype=np.uint8)
        return dataclasses.replace(batch, frames=frames)
    features = rng.normal(size=shapes.features.shape).astype(shapes.features.dtype)
    return dataclasses.replace(batch, features=features)


def _places(f: int, video: int) -> tuple[np.ndarray, np.ndarray]:
    """(`Batch.frame_item`, `Batch.frame_time`) of one row: f pictures, or videos of so many frames
    each."""
    places = np.arange(f)
    return (places // video, places % video) if video else (places, np.full(f, -1))


def _filled(
    text: Sequence, rows: int, words: int, rng: np.random.Generator, start: int, *, is_left: bool
) -> Sequence:
    """Rows like the one of ``text``, words in place of its pads; those on the right are answers."""
    length = text.tokens.shape[1]
    is_pad = text.segments[0] == 0
    answers = (is_pad | (text.weights[0] > 0)) & (not is_left)
    tokens = np.where(is_pad, rng.integers(3, words, (rows, length)), text.tokens)
    targets = np.where(answers, rng.integers(3, words, (rows, length)), text.targets)
    wide = lambda x: np.broadcast_to(x, (rows, length))  # noqa: E731
    return Sequence(
        tokens=tokens.astype(np.int32),
        positions=wide(np.arange(start, start + length, dtype=np.int32)).copy(),
        segments=np.ones((rows, length), np.int32),
        targets=targets.astype(np.int32),
        weights=wide(answers).astype(np.float32),
        slots={name: wide(slot[0]).copy() for name, slot in text.slots.items()},
    )


def trained_by(one: Subject) -> tuple[optax.GradientTransformation, Callable[[System], Step]]:
    """(the optimizer, a system -> its step)."""
    stage, section = one.stage, one.stage.section
    multiplier = dict.fromkeys(one.trainable, 1.0) | stage.selection.multiplier
    chosen = {path: multiplier[path] for path in one.trainable}
    optimizer = make_optimizer(stage.settings, chosen, section["steps"])
    options = dict(
        seed=one.config["seed"],
        accumulation=section["accumulation"],
        label_smoothing=section.get("label_smoothing", 0.0),
    )
    return optimizer, lambda system: make_step(system, optimizer, **options)


def drawn_params(one: Subject) -> Params:
    """All weights, from the seed, in the types that training keeps them in."""
    dtypes = one.stage.dtypes
    return jax.jit(
        lambda: {
            path: x.astype(dtypes[path])
            for path, x in init_params(one.stage.wanted, one.config["seed"]).items()
        }
    )()


def one_pass(one: Subject) -> Subject:
    """LMEye as a model that does not ask back: the same text read once, the picture's linear layer
    alone trains.

    Raises:
      ValueError: it is another system's.
    """
    one = two_full_passes(one)
    slots = {"media": one.batch.target.slots["media"]}
    target = dataclasses.replace(one.batch.target, slots=slots)
    batch = dataclasses.replace(one.batch, request=None, target=target)
    return dataclasses.replace(one, batch=batch, trainable=ONE_PASS)


def two_full_passes(one: Subject) -> Subject:
    """LMEye's step as its original does it: both passes read the prefix.

    Raises:
      ValueError: it is another system's.
    """
    batch = one.batch
    if one.config["system"] != "lmeye" or batch.prefix is None or batch.request is None:
        raise ValueError(
            f"{one.config['system']}, {one.stage.name} has no two passes over one prefix: compare "
            "configs/lmeye.py, stage instruct"
        )
    request, target = (join(batch.prefix, text) for text in (batch.request, batch.target))
    batch = dataclasses.replace(batch, prefix=None, request=request, target=target)
    return dataclasses.replace(one, batch=batch)


VARIATIONS: Mapping[str, Callable[[Subject], Subject]] = {
    "one_pass": one_pass,
    "two_full_passes": two_full_passes,
}


def varied(one: Subject, names: tuple[str, ...]) -> dict[str, Subject]:
    """``one`` under "", and each of its variations under ", NAME".

    Raises:
      ValueError: a name that is none of `VARIATIONS`, or one that the system does not allow.
    """
    if strangers := sorted(set(names) - set(VARIATIONS)):
        raise ValueError(f"--compare {', '.join(strangers)}: there are {', '.join(VARIATIONS)}")
    return {"": one} | {f", {name}": VARIATIONS[name](one) for name in names}
