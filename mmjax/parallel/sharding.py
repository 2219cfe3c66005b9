"""From logical axis names to the mesh: a table per preset, one resolver, constraints."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P

from mmjax.parallel.distributed import fetch

ROWS = ("data", "fsdp")  # what the rows of a batch are spread over, in every preset

# Logical names of parameters: one that is not here is an error. None = whole along that dimension.
_NAMES = (
    "layers embed mlp heads kv_heads vocab projection "
    "vit_embed vit_mlp vit_heads clip_embed clip_mlp clip_heads "
    "query_embed query_mlp query_heads"
).split()
_EMBED = ("embed", "vit_embed", "clip_embed", "query_embed")
_FSDP = dict.fromkeys(_NAMES) | dict.fromkeys(_EMBED, "fsdp")
_TENSOR = {"mlp": "tensor", "heads": "tensor", "kv_heads": "tensor", "vocab": "tensor"}
_TENSOR |= {
    "vit_mlp": "tensor",
    "vit_heads": "tensor",
    "clip_mlp": "tensor",
    "clip_heads": "tensor",
    "query_mlp": "tensor",
    "query_heads": "tensor",
}
PRESETS: dict[str, dict[str, str | None]] = {
    "dp": dict.fromkeys(_NAMES),
    "fsdp": _FSDP,
    "fsdp_tp": _FSDP | _TENSOR,
}

REPLICATE_BELOW = 4 * 2**20  # bytes; a smaller parameter whose length does not divide stays whole
FIXED = ("layers",)  # a scan walks along it: cut there, every turn would gather the whole stack


def resolve(
    specs: Mapping[str, Any], mesh: Mesh | AbstractMesh, preset: str
) -> dict[str, NamedSharding]:
    """Where every parameter lives; ``specs`` maps its path to its `mmjax.nn.param.ParamSpec`.

    A parameter of `REPLICATE_BELOW` bytes or more is cut along every mesh axis of its names. Where
    a length does not divide (a vocabulary of 32,001), the axis moves to another dimension that
    does; a smaller parameter stays whole instead.

    Raises:
      ValueError: an unknown preset; or all parameters at once whose names are unknown, collide on a
        mesh axis, or have no dimension that divides.
    """
    if preset not in PRESETS:
        raise ValueError(f"sharding preset {preset!r} is none of {', '.join(PRESETS)}")
    rules, problems, shardings = PRESETS[preset], [], {}
    for path, spec in specs.items():
        unknown = [name for name in spec.axes if name is not None and name not in rules]
        if unknown:
            problems.append(f"{path}: axis names {unknown} are not in the preset's table")
            continue
        axes = [None if name is None else rules[name] for name in spec.axes]
        axes = [axis if axis is None or mesh.shape[axis] > 1 else None for axis in axes]
        used = [axis for axis in axes if axis is not None]
        if twice := sorted({axis for axis in used if used.count(axis) > 1}):
            problems.append(
                f"{path}: dimensions {spec.axes} share the mesh axis {', '.join(map(repr, twice))}"
            )
            continue
        cuts = [() if axis is None else (axis,) for axis in axes]
        for i, axis in enumerate(axes):
            if axis is not None and spec.shape[i] % mesh.shape[axis]:
                cuts[i] = ()
                if spec.size * spec.dtype.itemsize >= REPLICATE_BELOW and not _moved(
                    axis, cuts, spec, mesh
                ):
                    problems.append(
                        f"{path}: {spec.axes[i]} = {spec.shape[i]} does not divide by "
                        f"{axis} = {mesh.shape[axis]}, nor does another dimension of {spec.shape}"
                    )
        shardings[path] = NamedSharding(mesh, P(*(_entry(cut) for cut in cuts)))
    if problems:
        raise ValueError(
            f"{len(problems)} problems in placing the parameters by preset {preset!r} on the mesh "
            f"{dict(mesh.shape)}; choose other mesh sizes or another preset:\n  "
            + "\n  ".join(problems)
        )
    return shardings


def _moved(axis: str, cuts: list[tuple[str, ...]], spec: Any, mesh: Mesh | AbstractMesh) -> bool:
    """Gives ``axis`` to the first dimension that divides by it and by what cuts it already."""
    for i, length in enumerate(spec.shape):
        parts = mesh.shape[axis]
        for other in cuts[i]:
            parts *= mesh.shape[other]
        if spec.axes[i] not in FIXED and length % parts == 0:
            cuts[i] = (*cuts[i], axis)
            return True
    return False


def _entry(cut: tuple[str, ...]) -> str | tuple[str, ...] | None:
    return cut if len(cut) > 1 else cut[0] if cut else None


def place(array: np.ndarray, sharding: Sharding, dtype=None) -> jax.Array:
    """A host's array on the devices: each receives its own slice, cast to ``dtype``, and nothing
    else. In several processes each serves its own devices (`jax.device_put` would first compare the
    whole array among them)."""
    dtype = np.dtype(dtype or array.dtype)
    return jax.make_array_from_callback(
        array.shape, sharding, lambda index: np.asarray(array[index], dtype), dtype=dtype
    )


def rows_sharding(mesh: Mesh) -> NamedSharding:
    """Arrays whose first dimension is the batch."""
    return NamedSharding(mesh, P(ROWS))


def num_row_shards(mesh: Mesh | AbstractMesh) -> int:
    """How many parts the rows of a batch are cut into."""
    return mesh.shape[ROWS[0]] * mesh.shape[ROWS[1]]


def row_share(devices: np.ndarray, process: int) -> tuple[int, int]:
    """(index, count): ``process`` feeds the index-th of count equal shares of every batch's rows.

    Processes whose devices hold the same rows (``tensor`` reaches over them) feed the same share.

    Args:
      devices: of a mesh, [data fsdp tensor].

    Raises:
      ValueError: the processes hold parts of each other's rows.
    """
    held: dict[int, set[int]] = {}
    for shard, same_rows in enumerate(devices.reshape(-1, devices.shape[-1])):
        for device in same_rows:
            held.setdefault(device.process_index, set()).add(shard)
    shares = sorted({tuple(sorted(shards)) for shards in held.values()})
    num_shards = devices.shape[0] * devices.shape[1]
    if len({len(share) for share in shares}) > 1 or sum(map(len, shares)) != num_shards:
        raise ValueError(
            f"the mesh {dict(zip(('data', 'fsdp', 'tensor'), devices.shape, strict=True))} cuts "
            f"rows across {len(held)} processes: each must hold all rows of its devices, or the "
            "same ones as another; make tensor divide the devices of one process, or be a multiple"
        )
    return shares.index(tuple(sorted(held[process]))), len(shares)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def constrain_rows(x: jax.Array) -> jax.Array:
    """Pins the residual stream [b ...] to the rows' devices; without it XLA may gather and re-split
    it per layer.

    Outside of a mesh (`jax.set_mesh`) there is nothing to pin.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or x.shape[0] % (mesh.shape[ROWS[0]] * mesh.shape[ROWS[1]]):
        return x
    return jax.lax.with_sharding_constraint(x, P(ROWS))


def constrain_table(x: jax.Array) -> jax.Array:
    """Pins a vocabulary table [v d] for a look-up: whole rows, or XLA rematerialises the table in
    full."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or x.shape[0] % mesh.shape["tensor"]:
        return x
    return jax.lax.with_sharding_constraint(x, P("tensor", None))


def shard_obstacle(query: jax.Array, key: jax.Array) -> str | None:
    """Why `shard_attention` cannot spread these [b length heads h] over the mesh, or None."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return None
    if query.shape[0] % num_row_shards(mesh):
        return f"{query.shape[0]} rows do not divide by data x fsdp = {num_row_shards(mesh)}"
    if key.shape[2] % mesh.shape["tensor"]:
        return f"{key.shape[2]} key heads do not divide by tensor = {mesh.shape['tensor']}"
    return None


def shard_attention(kernel: Callable, query, key, value, query_segments, key_segments) -> jax.Array:
    """Runs a kernel that knows one device only on every device's rows and heads."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return kernel(query, key, value, query_segments, key_segments)
    heads, rows = P(ROWS, None, "tensor", None), P(ROWS, None)
    segments = rows if query_segments is not None else None
    return jax.shard_map(
        kernel, in_specs=(heads, heads, heads, segments, segments), out_specs=heads, check_vma=False
    )(query, key, value, query_segments, key_segments)


def put_rows(batch, mesh: Mesh):
    """A batch of numpy arrays (this process's share of the rows, see `row_share`) as one global
    batch spread over the mesh's rows.

    Where a process's devices are not neighbours in the mesh, the global rows are in another order
    than the shares'.
    """
    if jax.process_count() == 1:
        return _placed(mesh)(batch)
    sharding = rows_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


@functools.cache
def _placed(mesh: Mesh) -> Callable:
    """A program that does nothing: it takes a batch of many arrays in a fifth of the time that
    `jax.device_put` does."""
    return jax.jit(lambda batch: batch, out_shardings=rows_sharding(mesh))


def gather_rows(batch, mesh: Mesh):
    """All processes' rows, as numpy arrays in each; the inverse of the split that `put_rows`
    spreads."""
    if jax.process_count() == 1:
        return batch
    return jax.tree.map(fetch, put_rows(batch, mesh))
