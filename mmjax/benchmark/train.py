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
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.benchmark.measure import Line, ceiling, heading, page, save, take_turns
from mmjax.benchmark.operations import step_flops
from mmjax.benchmark.subject import Subject, drawn_params, subject, trained_by, varied
from mmjax.nn.param import Params
from mmjax.parallel.mesh import make_mesh
from mmjax.parallel.sharding import put_rows, replicated
from mmjax.train.state import TrainState
from mmjax.train.step import jit_step


class Ours:
    """Our step, called again and again on the same batch.

    Attributes:
      first_seconds: of the first call: tracing, compiling, a step.
    """

    def __init__(self, one: Subject, params: Params):
        stage, settings = one.stage, one.stage.settings
        mesh = make_mesh(devices=jax.devices()[:1])
        optimizer, make = trained_by(one)
        trained = {path: jnp.copy(params[path]).astype(jnp.float32) for path in one.trainable}
        start = jax.jit(
            lambda p: TrainState.start(p, optimizer, settings.loss_scale),
            out_shardings=replicated(mesh),
        )
        self._state = start(trained)
        self._frozen = {path: x for path, x in params.items() if path not in trained}
        self._batch = put_rows(one.batch, mesh)
        self._mesh, self._one = mesh, one
        with jax.set_mesh(mesh):
            self._step = jit_step(make(stage.system), self._state, self._frozen, mesh)
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

    def line(self, name: str, taken: tuple[float, float], top: float) -> Line:
        """Args: taken: (seconds, spread); top: FLOP/s that the device reaches."""
        seconds, spread = taken
        useful, every = step_flops(self._one)
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
    one = subject(copy.deepcopy(config), stage)
    subjects = {f"mmjax{name}": each for name, each in varied(one, compare).items()}
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
