"""``scripts/compile.py``: a run's programs, compiled for devices that need not be here.

    tower      what a picture becomes, where the tower is frozen
    step       one optimizer step, as training runs it
    prefill    reading a batch of questions
    decode     one more token for each of them

What the compiler says of memory is exact, and so is a refusal: it knows the device. The seconds are
a bound from below by what a chip could do at best (`mmjax.parallel.chips`), not a measurement.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mmjax.generate.config import GenerationConfig
from mmjax.generate.generator import Generator
from mmjax.kernels.attention import noted
from mmjax.kernels.decoding import copies_layers
from mmjax.nn.apart import Apart, stacked_paths
from mmjax.nn.param import merge, specs
from mmjax.parallel.chips import Chip
from mmjax.parallel.collectives import Traffic, traffic
from mmjax.parallel.mesh import make_mesh
from mmjax.parallel.sharding import num_row_shards, replicated, resolve, rows_sharding
from mmjax.systems.registry import make_system
from mmjax.systems.system import System
from mmjax.train.build import held_dtypes
from mmjax.train.costs import Cost, cost
from mmjax.train.memory import shard_bytes
from mmjax.train.plan import Stage
from mmjax.train.report import human_bytes
from mmjax.train.state import TrainState, state_shardings
from mmjax.train.step import jit_step, make_step
from mmjax.train.tower import Tower, tower_program

PROGRAMS = ("tower", "step", "prefill", "decode")


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A program that was compiled, and what one device needs for one call of it.

    Attributes:
      name: of `PROGRAMS`.
      rows: of the batch, over all devices.
      seconds: that the compiler took.
      held, temporary: bytes: what lies there meanwhile (all weights, in training the optimizer,
        the batch; what it does not read, too), and what it needs besides.
      cost: of what it computes; ``useful``: without what is computed again (remat).
      traffic: kind of collective -> what is sent so.
      kernels: of its attention, see `mmjax.kernels.attention.noted`.
    """

    name: str
    rows: int
    seconds: float
    held: int
    temporary: int
    cost: Cost
    useful: Cost
    traffic: Mapping[str, Traffic]
    kernels: tuple[str, ...] = ()

    @property
    def memory(self) -> int:
        return self.held + self.temporary

    def bounds(self, chip: Chip) -> dict[str, float]:
        """Seconds that a call takes at least, by what would have to be waited for: products at the
        chip's best speed, its memory, its links (both directions of one axis; what is summed goes
        twice)."""
        sent = sum(
            one.size * (2 if kind == "all-reduce" else 1) for kind, one in self.traffic.items()
        )
        return {
            "products": self.cost.flops / chip.flops,
            "memory": self.cost.moved / chip.bandwidth,
            "links": sent / (2 * chip.link),
        }

    def utilisation(self, chip: Chip) -> tuple[float, float]:
        """(least, most) of MFU: if nothing of the above happens at the same time, if all does."""
        times = self.bounds(chip).values()
        useful = self.useful.flops / chip.flops
        return useful / sum(times), useful / max(times)


class DoesNotFit(Exception):
    """The compiler's word that a program needs more memory than the device has."""


class Ahead:
    """The programs of one stage of a config, on a mesh of devices that need not be here."""

    def __init__(self, config: dict, stage: str, devices: list[jax.Device]):
        """
        Args:
          config: of plain values, see `mmjax.train.config.check`; its weights and data need not be
            there.

        Raises:
          ValueError: the mesh does not fit the devices, or a parameter the mesh.
        """
        self.config = config
        self.system = make_system(config["system"], config["model"])
        self.mesh: Mesh = make_mesh(**config["mesh"], devices=devices)
        wanted = specs(self.system)
        self._shardings = resolve(wanted, self.mesh, config["preset"])
        dtypes = held_dtypes(config, wanted)
        self.stage = Stage(stage, config, self.system, wanted, dtypes, self._shardings, None)
        params = self.stage.params
        self._params = {path: _at(x, self._shardings[path]) for path, x in params.items()}

    def compile(
        self, names: tuple[str, ...], *, rows: int, max_new_tokens: int
    ) -> Iterator[Compiled]:
        """The programs of these names that the stage has.

        Args:
          rows: questions that are answered at once.
          max_new_tokens: of an answer.

        Raises:
          DoesNotFit: the first one that does not.
        """
        if "tower" in names and self.stage.is_tower_frozen:
            yield self._tower()
        if "step" in names:
            yield self._step()
        if {"prefill", "decode"} & set(names):
            yield from self._answers(names, rows, max_new_tokens)

    def _tower(self) -> Compiled:
        tower = Tower(self.system, self.mesh, self.config)
        size = self.system.image_size
        frames = jax.ShapeDtypeStruct((tower.batch_size, size, size, 3), jnp.uint8)
        frames = _at(frames, rows_sharding(self.mesh))
        params = {path: self._params[path] for path in tower.paths}
        program = self._traced(tower_program(self.system), params, frames)

        def alone(system: System, rows: int) -> Cost:
            part = jax.ShapeDtypeStruct((rows, *frames.shape[1:]), frames.dtype)
            look = lambda p, x: merge(system, p).media_features(x)  # noqa: E731
            return cost(jax.make_jaxpr(look)(_plain(self._params), part).jaxpr)

        beside = dataclasses.replace(self._state(), trainable={}), frames
        return self._compiled("tower", program, tower.batch_size, beside, alone)[0]

    def _state(self) -> TrainState:
        optimizer, scale = self.stage.optimizer, self.stage.settings.loss_scale
        trainable = {path: self._params[path] for path in self.stage.selection.trainable}
        state = jax.eval_shape(lambda p: TrainState.start(p, optimizer, scale), trainable)
        places = state_shardings(state, self._shardings, replicated(self.mesh))
        return jax.tree.map(_at, state, places)

    def _step(self) -> Compiled:
        stage, section = self.stage, self.stage.section
        optimizer, state, batch = stage.optimizer, self._state(), stage.batch()
        frozen = {path: self._params[path] for path in stage.selection.frozen}
        options = dict(
            seed=self.config["seed"],
            accumulation=section["accumulation"],
            label_smoothing=section.get("label_smoothing", 0.0),
        )
        step = make_step(self.system, optimizer, **options)
        at_rows = jax.tree.map(lambda x: _at(x, rows_sharding(self.mesh)), batch)
        step = jit_step(step, state, frozen, self.mesh)
        program = self._traced(step, state, frozen, at_rows)

        def alone(system: System, rows: int) -> Cost:
            part = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), batch
            )
            plain = make_step(system, optimizer, **options | dict(accumulation=1))
            arguments = _plain((state, frozen))
            return cost(jax.make_jaxpr(plain)(*arguments, part).jaxpr)

        beside = dataclasses.replace(state, trainable={}), at_rows
        return self._compiled("step", program, section["batch_size"], beside, alone)[0]

    def _answers(self, names: tuple[str, ...], rows: int, new: int) -> Iterator[Compiled]:
        generator = Generator(self.system, GenerationConfig(new))
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype),
                              self.stage.batch())  # fmt: skip
        at_rows = lambda tree: jax.tree.map(  # noqa: E731
            lambda x: _at(x, rows_sharding(self.mesh)), tree
        )
        begin, advance = generator.programs
        begun = at_rows((jax.ShapeDtypeStruct((rows,), np.int32),
                         jax.ShapeDtypeStruct((rows, 0), np.int32)))  # fmt: skip
        asked, held = at_rows(shapes), self._held_to_answer()
        program = self._traced(begin, held, asked, *begun, None)

        def parts(rows: int) -> tuple:
            cut = lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype)  # noqa: E731
            return _plain(held), *jax.tree.map(cut, (shapes, *begun)), None

        def first(system: System, rows: int) -> Cost:
            begin, _ = Generator(system, generator.config).programs
            return cost(jax.make_jaxpr(begin)(*parts(rows)).jaxpr)

        made, prefill = self._compiled("prefill", program, rows, asked, first)
        if "prefill" in names:
            yield made
        if "decode" not in names:
            return
        state = jax.tree.map(_at, jax.eval_shape(begin, *parts(rows)), prefill.output_shardings)

        def following(system: System, rows: int) -> Cost:
            begin, advance = Generator(system, generator.config).programs
            arguments = parts(rows)
            begun = jax.eval_shape(begin, *arguments)
            return cost(jax.make_jaxpr(advance)(arguments[0], begun).jaxpr)

        program = self._traced(advance, held, state)
        yield self._compiled("decode", program, rows, state, following)[0]

    def _held_to_answer(self) -> dict[str, Any]:
        """The parameters as `mmjax.train.answering.load_model` holds them."""
        params = dict(self._params)
        with jax.set_mesh(self.mesh):
            if not copies_layers():
                return params
        for path in stacked_paths(self.stage.wanted, "language."):
            count, *shape = params[path].shape
            place = NamedSharding(self.mesh, P(*params[path].sharding.spec[1:]))
            layer = jax.ShapeDtypeStruct(tuple(shape), params[path].dtype, sharding=place)
            params[path] = Apart((layer,) * count)
        return params

    def _traced(self, program: Callable, *arguments: Any) -> tuple[Any, tuple[str, ...]]:
        """(the program to be compiled, its kernels of attention)."""
        with jax.set_mesh(self.mesh), noted() as kernels:
            return program.trace(*arguments), tuple(kernels)

    def _compiled(
        self,
        name: str,
        traced: tuple[Any, tuple[str, ...]],
        rows: int,
        beside: Any,
        alone: Callable[[System, int], Cost],
    ) -> tuple[Compiled, Any]:
        """
        Args:
          traced: see `_traced`.
          beside: arrays that lie there beside the weights.
          alone: (system, rows) -> the cost of the rows of one device, by whole weights; found
            outside of the mesh, where attention is plain products that can be counted.
        """
        start = time.monotonic()
        to_compile, kernels = traced
        try:
            with jax.set_mesh(self.mesh):
                program = to_compile.lower(lowering_platforms=(self._platform,)).compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" in str(error):
                raise DoesNotFit(f"{name}: {_reason(str(error))}") from error
            raise
        seconds, memory = time.monotonic() - start, program.memory_analysis()
        mine = max(1, rows // num_row_shards(self.mesh))
        share = 1 / self.mesh.shape["tensor"]
        without = make_system(self.config["system"], without_remat(self.config["model"]))
        made = Compiled(
            name,
            rows,
            seconds,
            sum(shard_bytes(x, x.sharding) for x in jax.tree.leaves((self._params, beside))),
            memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes,
            alone(self.system, mine) * share,
            alone(without, mine) * share,
            traffic(program.as_text()),
            kernels,
        )
        return made, program

    @property
    def _platform(self) -> str:
        platform = self.mesh.devices.flat[0].platform
        return "cuda" if platform == "gpu" else platform


def _at(x: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _plain(tree):
    """The shapes alone: of a program on one device."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def without_remat(values):
    if not isinstance(values, dict):
        return values
    return {k: "none" if k == "remat" else without_remat(v) for k, v in values.items()}


def _reason(error: str) -> str:
    """The compiler's sentence about memory."""
    lines = [line.strip() for line in error.splitlines()]
    return next((line for line in lines if "exceed" in line or "Ran out" in line), lines[0])


def compiled(
    config: dict, stage: str, devices: list[jax.Device], *, memory: int, **asked
) -> tuple[list[Compiled], str | None]:
    """(the programs up to the first that does not fit into ``memory`` bytes, why that one does
    not).

    Raises:
      ValueError: see `Ahead`; also an unknown stage or program.
    """
    problems = [
        f"{what} {name!r} is none of {', '.join(known)}"
        for what, names, known in (
            ("stage", (stage,), config["stages"]),
            ("program", asked["names"], PROGRAMS),
        )
        for name in names
        if name not in known
    ]
    if problems:
        raise ValueError("; ".join(problems))
    made = []
    try:
        for one in Ahead(config, stage, devices).compile(**asked):
            made.append(one)
            if one.memory > memory:  # compilers for GPUs do not mind
                needs = f"{human_bytes(one.memory)} of {human_bytes(memory)}"
                return made, f"{one.name}: it needs {needs}"
    except DoesNotFit as error:
        return made, str(error)
    return made, None
