"""Parameters are declared, not allocated.

A module's constructor only says what each parameter is: shape, dtype, logical axes, initializer.
What lives on devices is one flat dict, ``"language.layers.attention.q.kernel" -> array``: the view
of the optimizer, the checkpoint, the converter and `jax.jit` alike. `merge` puts such a dict back
into a module, strictly.
"""

import dataclasses
import zlib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import nnx

Params = dict[str, jax.Array]
Initializer = Callable[[jax.Array, tuple[int, ...], jnp.dtype], jax.Array]


@dataclasses.dataclass(frozen=True)
class ParamSpec:
    """What a parameter is.

    Attributes:
      shape: as stored; a stacked parameter has the number of layers first.
      dtype: as created; `mmjax.train.state` may hold frozen ones in another.
      axes: one logical name (or None) for each dimension; `mmjax.parallel.sharding` maps them to
        the mesh.
      init: ``init(key, shape, dtype)``; called once per layer for a stacked parameter.
    """

    shape: tuple[int, ...]
    dtype: jnp.dtype
    axes: tuple[str | None, ...]
    init: Initializer

    @property
    def size(self) -> int:
        n = 1
        for length in self.shape:
            n *= length
        return n


def normal(std: float = 0.02) -> Initializer:
    return jax.nn.initializers.normal(std)


def uniform(bound: float) -> Initializer:
    """Between -bound and bound; `torch.nn.Linear` starts so, with bound = 1/sqrt(inputs)."""
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


def linear(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """A kernel [in out] as `torch.nn.Linear` starts it, whatever its number of inputs."""
    return uniform(shape[0] ** -0.5)(key, shape, dtype)


zeros = jax.nn.initializers.zeros
ones = jax.nn.initializers.ones


def param(
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    init: Initializer,
    dtype: jnp.dtype = jnp.float32,
) -> nnx.Param:
    """Declares a parameter of a module; allocates nothing."""
    if len(shape) != len(axes):
        raise ValueError(f"a parameter of shape {shape} needs {len(shape)} axis names, got {axes}")
    return nnx.Param(jax.ShapeDtypeStruct(shape, dtype), axes=axes, init=init)


def _paths(module: nnx.Module) -> dict[str, tuple[tuple, nnx.Variable]]:
    state = nnx.to_flat_state(nnx.split(module)[1])
    return {".".join(map(str, path)): (path, variable) for path, variable in state}


def specs(module: nnx.Module) -> dict[str, ParamSpec]:
    """Flat path -> `ParamSpec` of every parameter of ``module`` (as constructed, not merged),
    sorted by path."""
    found = {}
    for name, (_, variable) in sorted(_paths(module).items()):
        value = variable.get_value()
        axes, init = variable.get_metadata("axes"), variable.get_metadata("init")
        found[name] = ParamSpec(tuple(value.shape), jnp.dtype(value.dtype), tuple(axes), init)
    return found


def stack_params(block: nnx.Module, num_layers: int) -> nnx.Module:
    """The same declarations with a leading ``layers`` axis of length ``num_layers`` on every
    parameter."""
    graph, state = nnx.split(block)

    def stacked(variable: nnx.Variable) -> nnx.Variable:
        value, axes = variable.get_value(), variable.get_metadata("axes")
        value = jax.ShapeDtypeStruct((num_layers, *value.shape), value.dtype)
        return variable.replace(value=value, axes=("layers", *axes))

    is_variable = lambda leaf: isinstance(leaf, nnx.Variable)  # noqa: E731
    return nnx.merge(graph, jax.tree.map(stacked, state, is_leaf=is_variable))


def init_params(wanted: Mapping[str, ParamSpec], seed: int) -> Params:
    """Creates the parameters in ``wanted``.

    Each leaf's key depends on ``seed`` and its own path only, so a new parameter does not reshuffle
    the others. Jit it with ``out_shardings`` to create every leaf directly in its shards.
    """
    root = jax.random.key(seed)
    created = {}
    for name, spec in wanted.items():
        key = jax.random.fold_in(root, zlib.crc32(name.encode()))
        if spec.axes[:1] == ("layers",):
            keys = jax.random.split(key, spec.shape[0])
            created[name] = jax.vmap(lambda k, s=spec: s.init(k, s.shape[1:], s.dtype))(keys)
        else:
            created[name] = spec.init(key, spec.shape, spec.dtype)
    return created


def check_params(
    wanted: Mapping[str, ParamSpec], params: Mapping[str, jax.Array], where: str
) -> None:
    """Raises ValueError that lists every missing, unknown and wrongly shaped parameter at once."""
    problems = [
        f"missing: {name} {wanted[name].shape}" for name in sorted(wanted.keys() - params.keys())
    ]
    problems += [
        f"unknown: {name} {params[name].shape}" for name in sorted(params.keys() - wanted.keys())
    ]
    problems += [
        f"shape: {name} is {tuple(params[name].shape)}, the model wants {wanted[name].shape}"
        for name in sorted(wanted.keys() & params.keys())
        if tuple(params[name].shape) != wanted[name].shape
    ]
    if problems:
        raise ValueError(
            f"{len(problems)} parameters of {where} do not fit the model; "
            "is it another size, system or version?\n  " + "\n  ".join(problems)
        )


def merge(module: nnx.Module, params: Mapping[str, jax.Array]) -> nnx.Module:
    """A copy of ``module`` that holds ``params``: exactly its paths, exactly its shapes.

    `nnx.merge` pairs leaves by position and takes any shape, hence the check. It is made while
    tracing and costs nothing.
    """
    check_params(specs(module), params, type(module).__name__)
    graph, _ = nnx.split(module)
    paths = _paths(module)
    tree = nnx.traversals.unflatten_mapping(
        {paths[name][0]: value for name, value in params.items()}
    )
    return nnx.merge(graph, tree)


def subset(params: Mapping[str, jax.Array], prefix: str) -> Params:
    """The parameters under ``prefix`` (a module's path), with the prefix taken off."""
    return {
        name[len(prefix) + 1 :]: value
        for name, value in params.items()
        if name.startswith(prefix + ".")
    }
