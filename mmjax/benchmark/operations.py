"""What a config's step computes, counted from its program (`mmjax.train.costs`): no device, no
weights, the same on every machine."""

import copy
import re

import jax
import jax.numpy as jnp

from mmjax.benchmark.subject import Subject, subject, trained_by, varied
from mmjax.parallel.mesh import make_mesh
from mmjax.systems.registry import make_system
from mmjax.systems.system import System
from mmjax.train.ahead import without_remat
from mmjax.train.costs import FORMULA, cost
from mmjax.train.report import text_table
from mmjax.train.state import TrainState
from mmjax.train.tower import tower_program


def step_flops(one: Subject) -> tuple[float, float]:
    """(useful, all) operations of a step's products: all has what is computed again."""
    optimizer, make = trained_by(one)
    params = one.stage.params
    trained = {
        path: jax.ShapeDtypeStruct(params[path].shape, jnp.float32) for path in one.trainable
    }
    frozen = {path: x for path, x in params.items() if path not in trained}
    scale = one.stage.settings.loss_scale
    state = jax.eval_shape(lambda p: TrainState.start(p, optimizer, scale), trained)
    config = one.config

    def count(system: System) -> float:
        # On a CPU's mesh attention is plain products; kernels would hide them.
        with jax.set_mesh(make_mesh(devices=jax.devices("cpu")[:1])):
            return cost(jax.make_jaxpr(make(system))(state, frozen, one.batch).jaxpr).flops

    without = make_system(config["system"], without_remat(config["model"]))
    return count(without), count(one.stage.system)


def tower_flops(one: Subject) -> float | None:
    """Of a frozen tower's look at one frame; None where it is not a program of its own."""
    stage = one.stage
    if not stage.is_tower_frozen or one.batch.features is None:
        return None
    system, size = stage.system, stage.system.image_size
    params = {path: x for path, x in stage.params.items() if re.match(system.tower, path)}
    frame = jax.ShapeDtypeStruct((1, size, size, 3), jnp.uint8)
    with jax.set_mesh(make_mesh(devices=jax.devices("cpu")[:1])):
        return cost(jax.make_jaxpr(tower_program(system))(params, frame).jaxpr).flops


def count(config: dict, *, stage: str | None = None, compare: tuple[str, ...] = ()) -> None:
    """Prints a table; for the arguments and what it raises see `mmjax.benchmark.train.measure`."""
    one = subject(copy.deepcopy(config), stage)
    rows = []
    for name, each in varied(one, compare).items():
        useful, every = step_flops(each)
        again = f"{100 * (every / useful - 1):.0f} %"
        row = useful / len(each.batch.row_id)
        rows.append([f"step{name}", *(f"{x / 1e12:.4g}" for x in (useful, every, row)), again])
    if (tower := tower_flops(one)) is not None:
        rows.append(["frozen tower, a frame", "", "", f"{tower / 1e12:.4g}", ""])
    head = ["TFLOP", "useful", "computed", "useful, of a row", "again"]
    print(f"{one.shapes}\n{FORMULA}\n\n" + text_table(head, rows, [], align="<>>>>"))
