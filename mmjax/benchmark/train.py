"""The step of a config's stage, timed beside PyTorch's: random weights, a made-up batch of the
config's shapes in which every place is filled, no data.

A frozen tower's work is left out on both sides: it is a program of its own, which training runs
once for a picture or once for a step (`mmjax.train.tower`). One device; what trains, precision,
slices of the batch, recomputation and the optimizer's settings are the config's on both sides.

Useful operations are those of the matrix products (`mmjax.train.costs`) that the contestant's own
algorithm needs, nothing computed again; MFU is their rate over that of a large product in the same
precision, measured in the same run.
"""

import copy
import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.benchmark.measure import Line, ceiling, heading, page, save, take_turns
from mmjax.data.batch import Batch, Sequence
from mmjax.data.sequence import join
from mmjax.nn.param import Params, init_params, specs
from mmjax.parallel.mesh import make_mesh
from mmjax.parallel.sharding import put_rows, replicated
from mmjax.systems.registry import make_system
from mmjax.systems.system import System
from mmjax.train.ahead import without_remat
from mmjax.train.build import held_dtypes
from mmjax.train.costs import cost
from mmjax.train.optim import make_optimizer
from mmjax.train.plan import Stage, sketch
from mmjax.train.state import TrainState
from mmjax.train.step import jit_step, make_step

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
    stage = stage or config["stages"][-1]
    if stage not in config["stages"]:
        raise ValueError(f"stage {stage!r} is none of {', '.join(config['stages'])}")
    system = make_system(config["system"], config["model"])
    wanted = specs(system)
    made = Stage(stage, config, system, wanted, held_dtypes(config, wanted), None, None)
    return Subject(config, made, _made_up(made), made.selection.trainable)


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


class Ours:
    """Our step, called again and again on the same batch.

    Attributes:
      first_seconds: of the first call: tracing, compiling, a step.
    """

    def __init__(self, one: Subject, params: Params):
        stage, section = one.stage, one.stage.section
        mesh = make_mesh(devices=jax.devices()[:1])
        settings = stage.settings
        multiplier = dict.fromkeys(one.trainable, 1.0) | stage.selection.multiplier
        optimizer = make_optimizer(
            settings, {path: multiplier[path] for path in one.trainable}, section["steps"]
        )
        trained = {path: jnp.copy(params[path]).astype(jnp.float32) for path in one.trainable}
        start = jax.jit(
            lambda p: TrainState.start(p, optimizer, settings.loss_scale),
            out_shardings=replicated(mesh),
        )
        self._state = start(trained)
        self._frozen = {path: x for path, x in params.items() if path not in trained}
        self._batch = put_rows(one.batch, mesh)
        self._make = lambda system: make_step(
            system,
            optimizer,
            seed=one.config["seed"],
            accumulation=section["accumulation"],
            label_smoothing=section.get("label_smoothing", 0.0),
        )
        self._mesh, self._one = mesh, one
        with jax.set_mesh(mesh):
            self._step = jit_step(self._make(stage.system), self._state, self._frozen, mesh)
        begin = time.perf_counter()
        self()
        self.first_seconds = time.perf_counter() - begin

    def __call__(self) -> dict[str, jax.Array]:
        """A step, to its end: its metrics."""
        return jax.block_until_ready(self.queue())

    def queue(self) -> dict[str, jax.Array]:
        """A step, without waiting for it."""
        with jax.set_mesh(self._mesh):
            self._state, metrics = self._step(self._state, self._frozen, self._batch)
        return metrics

    def python_seconds(self, count: int = 8) -> float:
        """Until a call returns while the steps before it are still to be computed: what Python and
        the runtime take for themselves. Less than the device's queue may hold."""
        taken = []
        for _ in range(count):
            begin = time.perf_counter()
            metrics = self.queue()
            taken.append(time.perf_counter() - begin)
        jax.block_until_ready(metrics)
        return statistics.median(taken)

    def flops(self) -> tuple[float, float]:
        """(useful, all) operations of a step's products."""
        plain = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)  # noqa: E731
        arguments = plain((self._state, self._frozen, self._batch))
        config = self._one.config
        without = make_system(config["system"], without_remat(config["model"]))

        def count(system: System) -> float:
            # On a CPU's mesh attention is plain products; kernels would hide them.
            with jax.set_mesh(make_mesh(devices=jax.devices("cpu")[:1])):
                return cost(jax.make_jaxpr(self._make(system))(*arguments).jaxpr).flops

        return count(without), count(self._one.stage.system)

    def line(self, name: str, taken: tuple[float, float], top: float) -> Line:
        """Args: taken: (seconds, spread); top: FLOP/s that the device reaches."""
        seconds, spread = taken
        useful, every = self.flops()
        further = {
            "TFLOP": f"{useful / 1e12:.3g}",
            "again": f"{100 * (every / useful - 1):.0f} %",
            "MFU": f"{100 * useful / top / seconds:.1f} %",
            **_pace(self._one, seconds),
            "first call s": f"{self.first_seconds:.1f}",
            "Python ms": f"{1000 * self.python_seconds():.2f}",
        }
        return Line(name, seconds, spread, every / top, further)


def _pace(one: Subject, seconds: float) -> dict[str, str]:
    rows = len(one.batch.row_id)
    return {
        "samples/s": f"{rows / seconds:.4g}",
        "tokens/s": f"{one.num_tokens / seconds:.4g}",
    }


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


def drawn_params(one: Subject) -> Params:
    """All weights, from the seed, in the types that training keeps them in."""
    dtypes = one.stage.dtypes
    return jax.jit(
        lambda: {
            path: x.astype(dtypes[path])
            for path, x in init_params(one.stage.wanted, one.config["seed"]).items()
        }
    )()


def measure(
    config: dict,
    *,
    stage: str | None = None,
    compare: tuple[str, ...] = (),
    rounds: int = 10,
    seconds: float = 120.0,
    file: str | Path | None = None,
) -> list[Line]:
    """Prints a page and returns its lines; ``compare``: of `VARIATIONS`; see `take_turns` for
    ``rounds`` and ``seconds``, `save` for ``file``.

    Raises:
      ValueError: an unknown stage or comparison, or one that the system does not allow; torch does
        not see the device that JAX computes on.
    """
    if strangers := sorted(set(compare) - set(VARIATIONS)):
        raise ValueError(f"--compare {', '.join(strangers)}: there are {', '.join(VARIATIONS)}")
    one = subject(copy.deepcopy(config), stage)
    subjects = {"mmjax": one} | {f"mmjax, {name}": VARIATIONS[name](one) for name in compare}
    theirs, notices = _counterparts(one)
    params = drawn_params(one)
    ours = {name: Ours(each, params) for name, each in subjects.items()}
    top = ceiling(one.dtype)
    taken = take_turns({**ours, **theirs}, rounds=rounds, seconds=seconds)
    lines = [each.line(name, taken[name], top.flops) for name, each in ours.items()]
    lines += [_their_line(name, taken[name], one, each) for name, each in theirs.items()]
    print("\n".join([heading(one.shapes, top), "", page(lines), "", *notices]))
    if file is not None:
        peak = dict(product_flops=top.flops, memory_bytes=top.bytes)
        save(file, "train", one.shapes, lines, ceiling=peak, notices=notices)
    return lines


def _counterparts(one: Subject) -> tuple[dict[str, Any], list[str]]:
    """(steps by name that work, what is to be said of the others)."""
    from mmjax.benchmark.torch_train import TorchStep, device_of

    device = device_of(jax.default_backend())
    steps, notices = {}, []
    for name, compiles in (("torch, eager, SDPA", False), ("torch.compile", True)):
        try:
            step = TorchStep(one, device, compiles=compiles)
        except ValueError as error:
            return {}, [f"No PyTorch beside it: {error}."]
        try:
            step.start()
        except Exception as error:  # whatever a compiler may raise is what is to be told
            reason = str(error).strip().partition("\n")[0]
            notices.append(f"{name} failed: {type(error).__name__}: {reason}")
            continue
        steps[name] = step
    return steps, notices


def _their_line(name: str, taken: tuple[float, float], one: Subject, step: Any) -> Line:
    seconds, spread = taken
    first = {"first call s": f"{step.first_seconds:.1f}"}
    return Line(name, seconds, spread, None, _pace(one, seconds) | first)
