"""Half precision against float32: the same weights, the same made-up batch of a config's shapes,
pictures included; how often the same token is the best, and how far logits are apart.

Weights that the config names (and tiny configs bring with them) are loaded, the others drawn. What
trains stays in float32, everything else is kept in the narrower type, as in training.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.benchmark.measure import heading, save
from mmjax.benchmark.subject import Subject, subject, with_rows
from mmjax.data.batch import Batch
from mmjax.nn.param import Params, merge
from mmjax.parallel.mesh import make_mesh
from mmjax.systems.registry import make_system
from mmjax.train.build import create_params
from mmjax.train.report import text_table

DTYPES = ("bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Of one type with float32, over all predicted places.

    Attributes:
      places: how many.
      same: share of them where the same token is the best.
      close: share of the others where float32's best two are nearer than ``gap``: ties, as it were;
        None where there are no others.
      gap: the largest difference between two logits; ``spread``: the standard deviation of
        float32's.
    """

    dtype: str
    places: int
    same: float
    close: float | None
    gap: float
    spread: float


def measure(
    config: dict, *, stage: str | None = None, rows: int = 8, file: str | Path | None = None
) -> list[Agreement]:
    """Prints a table and returns its lines.

    Raises:
      ValueError: an unknown stage, or weights that do not fit.
    """
    one = subject(with_rows(config, stage, rows) | {"frozen_dtype": "float32"}, stage)
    batch = _with_pictures(one)
    mesh = make_mesh(devices=jax.devices()[:1])
    given = create_params(one.config, one.stage.wanted, mesh, one.stage.system.copies)
    exact = _logits(one, "float32", given, batch)
    found = []
    for dtype in DTYPES:
        kept = {path: x if path in one.trainable else x.astype(dtype) for path, x in given.items()}
        found.append(_compared(dtype, exact, _logits(one, dtype, kept, batch)))
    shapes = f"{config['system']} {config['variant']}: {rows} rows, {len(exact)} places"
    print(heading(shapes))
    head = ["", "same best token", "else a near tie", "largest gap", "spread of logits"]
    percent = lambda share: "" if share is None else f"{100 * share:.4g} %"  # noqa: E731
    body = [
        [x.dtype, percent(x.same), percent(x.close), f"{x.gap:.3g}", f"{x.spread:.3g}"]
        for x in found
    ]
    print("\n" + text_table(head, body, [], align="<>>>>"))
    if file is not None:
        save(file, "precision", shapes, found)
    return found


def _with_pictures(one: Subject) -> Batch:
    """The batch with frames in place of a frozen tower's features."""
    batch = one.batch
    if batch.features is None:
        return batch
    size, (b, f) = one.stage.system.image_size, batch.features.shape[:2]
    frames = np.random.default_rng(1).integers(0, 256, (b, f, size, size, 3), dtype=np.uint8)
    return dataclasses.replace(batch, features=None, frames=frames)


def _logits(one: Subject, dtype: str, params: Params, batch: Batch) -> np.ndarray:
    """f32[places v] of what is predicted, in ``dtype``."""
    model = one.config["model"] | {"dtype": dtype}
    system = make_system(one.config["system"], model)

    @jax.jit
    def read(params: Params, batch: Batch) -> jax.Array:
        made = merge(system, params)
        return made.logits(made.hidden(batch).states)

    return np.asarray(read(params, jax.tree.map(jnp.asarray, batch)))[batch.target.weights > 0]


def _compared(dtype: str, exact: np.ndarray, other: np.ndarray) -> Agreement:
    best, gap = exact.argmax(axis=1), np.abs(other - exact).max()
    is_same = best == other.argmax(axis=1)
    first, second = np.sort(exact[~is_same], axis=1)[:, ::-1][:, :2].T
    close = None if is_same.all() else float(np.mean(first - second < gap))
    return Agreement(
        dtype, len(exact), float(is_same.mean()), close, float(gap), float(exact.std())
    )
