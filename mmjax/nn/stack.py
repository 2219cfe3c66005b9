"""Repeated layers: stored stacked, run by `jax.lax.scan`. Compile time does not grow with depth.

plain       one block's parameters with a leading axis of ``num_layers``
splits      (16,): two stacks, layers 0-15 and 16-.., so that the hidden states can be edited
            between them. A static slice of one stack would copy half of the weights, a `lax.cond`
            in the body would make the backward pass run below the edit.
period p    every p-th layer has an extra part (cross-attention, an adapter), stored as a stack of
            its own with ceil(num_layers / p) entries; the scan then runs p layers per turn, over a
            free reshape. A split must lie between two turns; each of its stacks is given a slice of
            the extras, which are small.
taps        the hidden states after chosen layers

Where parameters are kept apart (`mmjax.nn.apart`), the layers run one after the other.
"""

import itertools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.nn.apart import Apart, is_apart, joined
from mmjax.nn.param import stack_params

# body(block, carry, x, extra) -> (carry, y). The carry is the hidden states, or a tuple that starts
# with them.
Body = Callable[[nnx.Module, object, object, nnx.Module | None], tuple[object, object]]

REMAT = ("none", "full", "dots")


def stack(block: nnx.Module, num_layers: int, splits: tuple[int, ...] = ()) -> nnx.Module:
    """Declares ``num_layers`` of ``block``, cut before each layer in ``splits``."""
    bounds = (0, *splits, num_layers)
    if list(bounds) != sorted(set(bounds)):
        raise ValueError(f"splits {splits} must ascend strictly between 0 and {num_layers}")
    if not splits:
        return stack_params(block, num_layers)
    return nnx.List(
        [stack_params(block, stop - start) for start, stop in itertools.pairwise(bounds)]
    )


def run(
    layers: nnx.Module,
    body: Body,
    carry,
    *,
    xs=None,
    edits: Mapping[int, Callable[[jax.Array], jax.Array]] | None = None,
    taps: tuple[int, ...] = (),
    extras: nnx.Module | None = None,
    period: int = 1,
    remat: str = "none",
):
    """Runs the layers in order.

    Args:
      layers: what `stack` returned, holding arrays.
      body: see `Body`; ``extra`` is None on layers that have none.
      carry: handed from layer to layer.
      xs: pytree with a leading axis of ``num_layers``; each layer gets its entry. Beside parameters
        that are kept apart, arrays may be too; entries of numpy arrays are numbers then, and not
        traced.
      edits: layer -> function applied to the hidden states just before it; only where the stack is
        split, or before layer 0.
      taps: layers after which the hidden states are wanted.
      extras: stack of the parts that layers 0, period, 2*period, ... have besides.
      period: see above.
      remat: ``full`` recomputes each layer in the backward pass, ``dots`` keeps its matrix
        products, ``none`` all.

    Returns:
      (carry, ys stacked over layers, or apart as the parameters are; tapped [len(taps) ...] or
      None).

    Raises:
      ValueError: edits where nothing is split, taps that are no layers, or a number of extras that
        does not fit.
    """
    if remat not in REMAT:
        raise ValueError(f"remat {remat!r} is none of {', '.join(REMAT)}")
    segments = list(layers) if isinstance(layers, nnx.List) else [layers]
    lengths = [_length(segment) for segment in segments]
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    if missing := set(edits or {}) - set(starts):
        raise ValueError(
            f"no split before layers {sorted(missing)}; the stack is split before {starts[1:]}"
        )
    num_layers = sum(lengths)
    if strangers := [layer for layer in taps if not 0 <= layer < num_layers]:
        raise ValueError(f"taps {strangers} are no layers; the stack has {num_layers}")
    if extras is not None:
        _check_extras(extras, period, num_layers, starts)
    hidden = _hidden(carry)
    tapped = jnp.zeros((len(taps), *hidden.shape), hidden.dtype) if taps else None
    every_y = []
    for segment, start, length in zip(segments, starts, lengths, strict=True):
        if edits and start in edits:
            carry = _with_hidden(carry, edits[start](_hidden(carry)))
        part = (
            xs
            if len(segments) == 1
            else jax.tree.map(lambda x, s=start, n=length: x[s : s + n], xs, is_leaf=is_apart)
        )
        extra = None if extras is None else _entries(extras, start // period, -(-length // period))
        kind = _Loop if is_apart(_first(segment)) else _Scan
        segment_run = kind(segment, body, extra, period, remat, start, length, taps)
        (carry, tapped), ys = segment_run((carry, tapped), part)
        every_y.append(ys)
    return carry, joined(every_y), tapped


def each_layer(f: Callable[[nnx.Module], object], layers: nnx.Module):
    """``f`` of every layer: what it returns, stacked or apart as the parameters are."""
    _, ys, _ = run(layers, lambda layer, carry, x, extra: (carry, f(layer)), jnp.zeros(()))
    return ys


def _check_extras(extras: nnx.Module, period: int, num_layers: int, starts: list[int]) -> None:
    count, wanted = _length(extras), -(-num_layers // period)
    if count != wanted:
        raise ValueError(
            f"{count} extras for {num_layers} layers, every {period} with one: it takes {wanted}"
        )
    if inside := [start for start in starts if start % period]:
        raise ValueError(
            f"the stack is split before layers {inside}, within a turn of {period} layers that "
            f"share an extra; split it before a multiple of {period}"
        )


def _entries(stacked: nnx.Module, first: int, count: int) -> nnx.Module:
    """Entries ``first`` ... of a stack."""
    if count == _length(stacked):
        return stacked
    graph, state = nnx.split(stacked)
    taken = jax.tree.map(lambda x: x[first : first + count], _pure(state), is_leaf=is_apart)
    return nnx.merge(graph, taken)


def _pure(state: nnx.State) -> dict:
    return nnx.to_pure_dict(state)


def _first(stacked: nnx.Module):
    """Any parameter."""
    return jax.tree.leaves(_pure(nnx.split(stacked)[1]), is_leaf=is_apart)[0]


def _length(stacked: nnx.Module) -> int:
    return _first(stacked).shape[0]


class _Scan:
    """One segment: a scan over turns of ``period`` layers, then the layers that do not fill a
    turn."""

    def __init__(self, segment, body, extras, period, remat, start, length, taps):
        self.graph, state = nnx.split(segment)
        self.weights = _pure(state)
        self.extra_graph, extra_state = nnx.split(extras) if extras is not None else (None, None)
        self.extra_weights = None if extras is None else _pure(extra_state)
        self.body, self.period, self.remat = body, period, remat
        self.start, self.length, self.taps = start, length, taps

    def __call__(self, carry, xs):
        p, turns = self.period, self.length // self.period
        fold = lambda x: x[: turns * p].reshape(turns, p, *x.shape[1:])  # noqa: E731
        whole = turns * p == self.length
        head = (lambda x: x.reshape(turns, p, *x.shape[1:])) if whole else fold
        index = jnp.arange(self.start, self.start + self.length)
        stacked = jax.tree.map(head, (index, self.weights, xs))
        extras = jax.tree.map(lambda x: x[:turns] if x.shape[0] != turns else x, self.extra_weights)
        # Forth and back are two loops: nothing of one can stand in for the other's, so barriers
        # against that would only keep XLA from fusing.
        turn = _remat(self._turn, self.remat, prevent_cse=False)
        carry, ys = jax.lax.scan(turn, carry, (stacked, extras))
        ys = jax.tree.map(lambda y: y.reshape(turns * p, *y.shape[2:]), ys)
        if not whole:
            tail = jax.tree.map(lambda x: x[turns * p :], (index, self.weights, xs))
            extra = jax.tree.map(lambda x: x[turns], self.extra_weights)
            carry, last = _remat(self._turn, self.remat)(carry, (tail, extra))
            ys = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), ys, last)
        return carry, ys

    def _turn(self, carry, inputs):
        (indices, weights, xs), extra_weights = inputs
        ys = []
        for j in range(indices.shape[0]):
            index, w, x = jax.tree.map(lambda leaf, j=j: leaf[j], (indices, weights, xs))
            carry, y = self._layer(carry, index, w, x, extra_weights if j == 0 else None)
            ys.append(y)
        return carry, jax.tree.map(lambda *y: jnp.stack(y), *ys)

    def _layer(self, carry, index, weights, x, extra_weights):
        state, tapped = carry
        extra = None if extra_weights is None else nnx.merge(self.extra_graph, extra_weights)
        state, y = self.body(nnx.merge(self.graph, weights), state, x, extra)
        for slot, layer in enumerate(self.taps):
            kept = jnp.where(index == layer, _hidden(state), tapped[slot])
            tapped = tapped.at[slot].set(kept)
        return (state, tapped), y


class _Loop(_Scan):
    """One segment whose parameters are kept apart. Nothing is computed again: it is not for
    training."""

    def __call__(self, carry, xs):
        at = lambda tree, i: jax.tree.map(lambda leaf: leaf[i], tree, is_leaf=is_apart)  # noqa: E731
        ys = []
        for i in range(self.length):
            turn, j = divmod(i, self.period)
            extra = at(self.extra_weights, turn) if j == 0 else None
            weights, x = at(self.weights, i), at(xs, i)
            carry, y = self._layer(carry, self.start + i, weights, x, extra)
            ys.append(y)
        return carry, jax.tree.map(lambda *y: Apart(y), *ys)


def _remat(turn, remat: str, *, prevent_cse: bool = True):
    if remat == "none":
        return turn
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
    return jax.checkpoint(turn, policy=policy, prevent_cse=prevent_cse)


def _hidden(carry) -> jax.Array:
    return carry[0] if isinstance(carry, tuple) else carry


def _with_hidden(carry, hidden: jax.Array):
    return (hidden, *carry[1:]) if isinstance(carry, tuple) else hidden
