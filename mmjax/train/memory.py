"""Memory that a training step takes on one device, from shapes and shardings alone.

weights      exact: every parameter in the dtype it is kept in, its shard on the mesh
gradients    exact: float32, of what trains, sharded alike; twice where steps accumulate
optimizer    exact: the moments and counters, sharded alike
batch        exact: the rows of the device
gathered     the largest parameter outside of the stacks, which is whole while it is used
activations  an estimate: the largest sum of values alive at once when the device's rows of one
             slice go forth and back, with one layer's weights among them; elementwise results that
             are read once are taken as fused, nothing else is, and tensor as 1. Both stages of the
             tiny LMEye came out at 97 to 123 % of what XLA reserves on a CPU, with remat or without

Not counted: a frozen tower at work (a program of its own, before the step), buffers of collectives,
kernels' workspace, generation's caches, fragmentation.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend import core
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from mmjax.data.batch import Batch
from mmjax.nn.param import ParamSpec, merge
from mmjax.parallel.sharding import num_row_shards, replicated
from mmjax.systems.system import System
from mmjax.train.state import TrainState, state_shardings

KINDS = ("weights", "gradients", "optimizer", "batch", "gathered", "activations")

# Neither take memory of their own where they are read once: XLA computes them where they are read.
_FUSED = frozenset(
    "abs add add_any and broadcast_in_dim ceil clamp convert_element_type copy cos div eq exp exp2 "
    "floor ge gt integer_pow iota is_finite le log log1p logistic lt max min mul ne neg not or pow "
    "reduce_precision rsqrt select_n sign sin sqrt square stop_gradient sub tanh".split()
)
_VIEWS = frozenset(("reshape", "squeeze", "expand_dims", "sharding_constraint"))


def device_memory(
    system: System,
    specs: Mapping[str, ParamSpec],
    dtypes: Mapping[str, np.dtype],
    trainable: tuple[str, ...],
    optimizer: optax.GradientTransformation,
    shardings: Mapping[str, NamedSharding],
    batch: Batch,
    *,
    accumulation: int,
) -> dict[str, int]:
    """Bytes of each of `KINDS`.

    Args:
      dtypes: path -> what the parameter is kept in.
      trainable: paths.
      shardings: of every parameter, on a mesh that may be abstract.
      batch: shapes (`jax.ShapeDtypeStruct`) of the global batch.
    """
    params = {path: jax.ShapeDtypeStruct(spec.shape, dtypes[path]) for path, spec in specs.items()}
    mesh = next(iter(shardings.values())).mesh
    trained = {path: params[path] for path in trainable}
    state = jax.eval_shape(lambda p: TrainState.start(p, optimizer), trained)
    places = state_shardings(state, shardings, replicated(mesh))
    rows = _rows_of_a_device(batch, mesh)
    gradients = sum(4 * _shard_size(params[path], shardings[path]) for path in trainable)
    return {
        "weights": sum(shard_bytes(x, shardings[path]) for path, x in params.items()),
        "gradients": gradients * (2 if accumulation > 1 else 1),
        "optimizer": sum(
            jax.tree.leaves(jax.tree.map(shard_bytes, state.opt_state, places.opt_state))
        ),
        "batch": sum(_bytes(x) for x in jax.tree.leaves(rows)),
        "gathered": max(
            (
                _bytes(x)
                for path, x in params.items()
                if specs[path].axes[:1] != ("layers",) and any(shardings[path].spec)
            ),
            default=0,
        ),
        "activations": activation_bytes(system, params, trainable, rows, accumulation),
    }


def activation_bytes(
    system: System,
    params: Mapping[str, jax.ShapeDtypeStruct],
    trainable: tuple[str, ...],
    rows: Batch,
    accumulation: int = 1,
) -> int:
    """The estimate for ``rows``, read in ``accumulation`` slices; see the module."""
    count = len(rows.row_id.shape) and rows.row_id.shape[0]
    slice_rows = max(1, count // accumulation)
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct((slice_rows, *x.shape[1:]), x.dtype), rows)

    def loss(trained, frozen, batch, key):
        return merge(system, {**frozen, **trained}).loss(batch, dropout_key=key)[0]

    trained = {path: params[path] for path in trainable}
    frozen = {path: x for path, x in params.items() if path not in trained}
    key = jax.eval_shape(lambda: jax.random.key(0))
    return peak_bytes(jax.make_jaxpr(jax.value_and_grad(loss))(trained, frozen, one, key).jaxpr)


def peak_bytes(jaxpr: core.Jaxpr) -> int:
    """The most bytes that are alive at once in a program, besides its inputs and outputs."""
    eqns = needed(jaxpr)
    given = {*jaxpr.invars, *jaxpr.constvars}
    outputs = {v for v in jaxpr.outvars if isinstance(v, core.Var)}
    reads: dict[core.Var, int] = {}
    for eqn in eqns:
        for v in _vars(eqn.invars):
            reads[v] = reads.get(v, 0) + 1
    # What a value's memory stands for: itself, or, of a view or a fused result, its operands.
    holds: dict[core.Var, frozenset] = {}
    last: dict[core.Var, int] = {}

    def held(v: core.Var) -> frozenset:
        return holds.get(v, frozenset((v,)))

    for eqn in eqns:
        operands = [held(v) for v in _vars(eqn.invars)]
        for v in eqn.outvars:
            fused = eqn.primitive.name in _FUSED and reads.get(v, 0) == 1 and v not in outputs
            if fused or eqn.primitive.name in _VIEWS:
                holds[v] = frozenset().union(*operands)
    for i, eqn in enumerate(eqns):
        for v in _vars(eqn.invars):
            for root in held(v):
                last[root] = i
    for v in outputs:
        for root in held(v):
            last[root] = len(eqns)
    ends: dict[int, list[core.Var]] = {}
    for v, i in last.items():
        ends.setdefault(i, []).append(v)
    live = peak = 0
    alive = set()
    for i, eqn in enumerate(eqns):
        made = [v for v in eqn.outvars if v not in holds]
        counted = [v for v in made if v not in outputs]
        size = sum(_bytes(v.aval) for v in counted)
        peak = max(peak, live + max(size, _inside(eqn) + (size if _repeats(eqn) else 0)))
        alive.update(v for v in counted if v in last)
        live += sum(_bytes(v.aval) for v in counted if v in last)
        for v in ends.get(i, ()):
            if v in alive and v not in given:
                alive.discard(v)
                live -= _bytes(v.aval)
    return peak


def needed(jaxpr: core.Jaxpr) -> list[core.JaxprEqn]:
    """The equations that an output depends on; XLA drops the others."""
    wanted = set(_vars(jaxpr.outvars))
    kept = []
    for eqn in reversed(jaxpr.eqns):
        if wanted.intersection(eqn.outvars) or eqn.effects:
            kept.append(eqn)
            wanted.update(_vars(eqn.invars))
    return kept[::-1]


def _repeats(eqn: core.JaxprEqn) -> bool:
    return eqn.primitive.name in ("scan", "while")


def _inside(eqn: core.JaxprEqn) -> int:
    """The peak of the programs within an equation; in a scan also its turn's inputs and outputs."""
    peaks = [0]
    for value in eqn.params.values():
        for inner in value if isinstance(value, tuple | list) else (value,):
            body = inner.jaxpr if isinstance(inner, core.ClosedJaxpr) else inner
            if not isinstance(body, core.Jaxpr):
                continue
            turn = sum(_bytes(v.aval) for v in body.outvars if not _repeats(eqn))
            if eqn.primitive.name == "scan":
                known = eqn.params["num_consts"] + eqn.params["num_carry"]
                turn = sum(_bytes(v.aval) for v in body.invars[known:])
                turn += sum(_bytes(v.aval) for v in body.outvars)
            peaks.append(peak_bytes(body) + turn)
    return max(peaks)


def _vars(atoms) -> list[core.Var]:
    return [atom for atom in atoms if not isinstance(atom, core.Literal)]


def _rows_of_a_device(batch: Batch, mesh: Mesh | AbstractMesh) -> Batch:
    parts = num_row_shards(mesh)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((max(1, x.shape[0] // parts), *x.shape[1:]), x.dtype), batch
    )


def _bytes(x) -> int:
    return math.prod(x.shape) * _itemsize(x.dtype)


def _itemsize(dtype) -> int:
    return 8 if jnp.issubdtype(dtype, jax.dtypes.prng_key) else np.dtype(dtype).itemsize


def _shard_size(x, sharding: NamedSharding) -> int:
    return math.prod(sharding.shard_shape(x.shape))


def shard_bytes(x, sharding: NamedSharding) -> int:
    return _shard_size(x, sharding) * _itemsize(x.dtype)
