"""The frozen tower, a program of its own: always the same one, for the same number of pictures.

What a picture becomes depends on the compiled program (in its last bits, also on how many pictures
it takes at once), but not on the picture's place or neighbours. So features that were computed and
stored, and those of pictures in a batch, are equal bit for bit, and so is what is trained on them.
"""

import dataclasses
import functools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mmjax.data.batch import Batch
from mmjax.nn.param import Params, merge, specs
from mmjax.parallel.distributed import fetch
from mmjax.parallel.sharding import num_row_shards, place, rows_sharding
from mmjax.systems.system import System


class Tower:
    """A system's frozen tower on a mesh.

    Attributes:
      paths: of its parameters; empty for a system that has no frozen tower.
      batch_size: pictures in each call.
      system, mesh: as given.
    """

    def __init__(self, system: System, mesh: Mesh, config: dict):
        self.paths = sorted(path for path in specs(system) if re.match(system.tower, path))
        self.system, self.mesh = system, mesh
        # The smallest training batch: others are cut into parts of this size, with little padding.
        sizes = [config[stage].get("batch_size", 1) for stage in config["stages"]]
        shards = num_row_shards(mesh)
        self.batch_size = -(-min(sizes) // shards) * shards

    def see(self, params: Params, batch: Batch, *, most: int | None = None) -> Batch:
        """``batch`` (on the mesh) with the features of its frames in their place, if it has any;
        zeros in empty places, for which the tower is not called where ``most`` says how few
        pictures there are, see `most`."""
        if batch.frames is None or not self.paths:
            return batch
        b, f = batch.frames.shape[:2]
        cut, join = _cut_and_join(b * f, self.batch_size, self.mesh)
        parts = cut(batch.frames, batch.frame_item)
        if most is not None:
            parts = parts[: max(1, -(-most * num_row_shards(self.mesh) // self.batch_size))]
        made = [self._features(params, part) for part in parts]
        features = join(made, batch.frame_item)
        features = features.reshape(b, f, *features.shape[1:])
        return dataclasses.replace(batch, frames=None, features=features)

    def most(self, batch: Batch) -> int | None:
        """How many pictures a device has at most, of ``batch`` on the host; None where that is not
        known: the batch does not say, or other processes have rows of it."""
        if batch.frame_item is None or jax.process_count() > 1:
            return None
        is_there = np.asarray(batch.frame_item).reshape(num_row_shards(self.mesh), -1) >= 0
        return int(is_there.sum(axis=1).max())

    def features(self, params: Params, frames: np.ndarray) -> np.ndarray:
        """uint8[batch_size H W 3] -> [batch_size ...]; every process calls it with the same."""
        return fetch(self._features(params, place(frames, rows_sharding(self.mesh))))

    def row_shape(self, params: Params, image_size: int) -> tuple[int, ...]:
        """Of one picture's features."""
        frames = jax.ShapeDtypeStruct((1, image_size, image_size, 3), np.uint8)
        return jax.eval_shape(self._features, params, frames).shape[1:]

    def _features(self, params: Params, frames: jax.Array) -> jax.Array:
        return tower_program(self.system)({path: params[path] for path in self.paths}, frames)


@functools.cache
def tower_program(system: System) -> Callable[[Params, jax.Array], jax.Array]:
    """(the tower's parameters, uint8[n H W 3]) -> [n ...]."""
    wanted = specs(system)

    @jax.jit
    def tower(params: Params, frames: jax.Array) -> jax.Array:
        others = {path: spec for path, spec in wanted.items() if path not in params}
        unused = {path: jnp.zeros(spec.shape, spec.dtype) for path, spec in others.items()}
        return merge(system, unused | params).media_features(frames)  # XLA drops what is unused

    return tower


def _taken(x: jax.Array, index: jax.Array) -> jax.Array:
    """x [s n ...], index i32[s m] -> [s m ...]."""
    return jax.vmap(lambda x, index: x[index])(x, index)


@functools.cache
def _cut_and_join(count: int, size: int, mesh: Mesh) -> tuple[Callable, Callable]:
    """Functions that cut pictures [b f H W 3] into parts [size H W 3], and that join the features
    [size ...] of the first parts, or of all, to [count ...], count = b * f. Both take
    `Batch.frame_item`, or None.

    Every device cuts its own pictures, so that nothing moves; empty places come last, copies of its
    last one fill up the last part.
    """
    shards = num_row_shards(mesh)
    rows, part = count // shards, size // shards
    num_parts = -(-rows // part)

    def order(item: jax.Array) -> jax.Array:
        return jnp.argsort(item.reshape(shards, rows) < 0, axis=1)  # stable

    def cut(frames: jax.Array, item: jax.Array | None) -> list[jax.Array]:
        if num_parts == 1 and rows == part:
            return [frames.reshape(count, *frames.shape[2:])]
        x = frames.reshape(shards, rows, *frames.shape[2:])
        if item is not None:
            x = _taken(x, order(item))
        x = jnp.pad(x, ((0, 0), (0, num_parts * part - rows), *[(0, 0)] * 3), mode="edge")
        return [y.reshape(size, *y.shape[2:]) for y in jnp.split(x, num_parts, axis=1)]

    def join(parts: list[jax.Array], item: jax.Array | None) -> jax.Array:
        x = jnp.concatenate([y.reshape(shards, part, *y.shape[1:]) for y in parts], axis=1)[
            :, :rows
        ]
        if item is not None:
            if num_parts > 1 or rows != part:
                back = jnp.argsort(order(item), axis=1)
                x = _taken(x, jnp.minimum(back, x.shape[1] - 1))  # what is cut off is empty
            there = item.reshape(shards, rows, *[1] * (x.ndim - 2)) >= 0
            x = jnp.where(there, x, jnp.zeros((), x.dtype))
        return x.reshape(count, *x.shape[2:])

    at_rows = dict(out_shardings=rows_sharding(mesh))
    return jax.jit(cut, **at_rows), jax.jit(join, **at_rows)
