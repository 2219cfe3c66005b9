"""Layers kept apart: what decoding reads, once for every token, where it lies.

A stacked parameter [l ...] is what training scans over. Decoding is bound by memory, and on CPUs
and GPUs a scan takes the weights of a layer out of the stack before it multiplies: they are
read, written and read again (`mmjax.kernels.decoding.copies_layers`). An `Apart` stands where a
stacked array does, in parameters and in caches, and holds an array for each layer;
`mmjax.nn.stack.run` then goes through the layers one after the other in place of a scan. Programs
take longer to compile for it, the more so the deeper the model.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.nn.param import ParamSpec

Stacked = Any  # an array [l ...], or an Apart


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Apart:
    """Arrays of the same shape, one for each layer."""

    layers: tuple[jax.Array, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the stack."""
        return (len(self.layers), *self.layers[0].shape)

    @property
    def dtype(self) -> jnp.dtype:
        return self.layers[0].dtype

    def __getitem__(self, index: int | slice) -> Any:
        chosen = self.layers[index]
        return Apart(chosen) if isinstance(index, slice) else chosen


def is_apart(x: Any) -> bool:
    return isinstance(x, Apart)


def entry(stacked: Stacked, index: int | jax.Array) -> jax.Array:
    """The array of one layer; ``index`` may be traced where the layers are stacked."""
    if is_apart(stacked):
        return stacked[int(index)]
    return jax.lax.dynamic_index_in_dim(stacked, index, keepdims=False)


def each(f: Callable[..., jax.Array], *stacked: Stacked) -> Stacked:
    """``f`` of each layer's arrays, kept as the first of ``stacked`` is."""
    if is_apart(stacked[0]):
        return Apart(
            tuple(f(*of_layer) for of_layer in zip(*(x.layers for x in stacked), strict=True))
        )
    return jax.vmap(f)(*stacked)


def joined(parts: list[Any]) -> Any:
    """Pytrees of stacks, one after the other along the layers."""

    def join(*stacks: Stacked) -> Stacked:
        if is_apart(stacks[0]):
            return Apart(sum((x.layers for x in stacks), ()))
        return jnp.concatenate(stacks)

    return parts[0] if len(parts) == 1 else jax.tree.map(join, *parts, is_leaf=is_apart)


@jax.jit
def _split(x: jax.Array) -> tuple[jax.Array, ...]:
    return tuple(x[i] for i in range(len(x)))


def stacked_paths(wanted: Mapping[str, ParamSpec], prefix: str) -> list[str]:
    """Of the parameters below ``prefix`` that are stacks of layers."""
    is_stack = lambda spec: spec.axes[:1] == ("layers",)  # noqa: E731
    return [path for path, spec in wanted.items() if path.startswith(prefix) and is_stack(spec)]


def take_apart(params: dict[str, Any], wanted: Mapping[str, ParamSpec], prefix: str) -> None:
    """Keeps the layers of the stacked parameters below ``prefix`` apart, in place and in their
    shards: one parameter after the other, so that no more than one is there twice."""
    for path in stacked_paths(wanted, prefix):
        params[path] = Apart(jax.block_until_ready(_split(params.pop(path))))
