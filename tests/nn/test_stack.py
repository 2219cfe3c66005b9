"""Repeated layers: splits, edits, taps, periods, remat, a program that does not grow with depth."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmjax.nn.dense import Dense
from mmjax.nn.param import merge, specs
from mmjax.nn.stack import run, stack

DIM = 4


class Block(nnx.Module):
    def __init__(self):
        self.mix = Dense(DIM, DIM, axes=("embed", "mlp"), bias=True)

    def __call__(self, x):
        return x + jnp.tanh(self.mix(x))


class Model(nnx.Module):
    def __init__(self, num_layers, splits=(), *, extras=0):
        self.layers = stack(Block(), num_layers, splits)
        self.extras = stack(Block(), extras) if extras else None


def body(block, x, scale, extra):
    x = block(x) if scale is None else block(x * scale)
    return (x if extra is None else extra(x)), jnp.sum(x)


def weights(model, seed=0):
    rng = np.random.default_rng(seed)
    return {
        path: rng.normal(size=spec.shape).astype(np.float32) for path, spec in specs(model).items()
    }


def split(params, bounds):
    """The same weights for a stack that is cut at ``bounds``."""
    return {
        path.replace("layers.", f"layers.{i}."): value[start:stop]
        for path, value in params.items()
        for i, (start, stop) in enumerate(itertools.pairwise(bounds))
    }


def plain(params, x, scales, *, period=1, edits=None):
    """The same, one layer after the other. Returns every layer's output, and the sums."""
    states, sums = [], []
    for i, scale in enumerate(scales):
        x = edits[i](x) if edits and i in edits else x
        x = x * scale
        x = x + np.tanh(x @ params["layers.mix.kernel"][i] + params["layers.mix.bias"][i])
        sums.append(x.sum())
        if i % period == 0 and "extras.mix.kernel" in params:
            j = i // period
            x = x + np.tanh(x @ params["extras.mix.kernel"][j] + params["extras.mix.bias"][j])
        states.append(x)
    return states, sums


X = np.random.default_rng(1).normal(size=(2, DIM)).astype(np.float32)
SCALES = np.linspace(0.5, 1.5, 7).astype(np.float32)


def test_plain_stack_runs_the_layers_in_order():
    params = weights(Model(7))
    states, sums = plain(params, X, SCALES)
    out, ys, tapped = run(merge(Model(7), params).layers, body, X, xs=SCALES, taps=(0, 4, 6))
    np.testing.assert_allclose(out, states[-1], atol=1e-5)
    np.testing.assert_allclose(ys, sums, atol=1e-4)
    np.testing.assert_allclose(tapped, [states[0], states[4], states[6]], atol=1e-5)


@pytest.mark.parametrize("splits", [(3,), (1, 2, 6)])
def test_splits_change_nothing_and_let_edits_in(splits):
    params = weights(Model(7))
    model = merge(Model(7, splits), split(params, (0, *splits, 7)))
    states, sums = plain(params, X, SCALES)
    out, ys, tapped = run(model.layers, body, X, xs=SCALES, taps=(0, 2, 5))
    np.testing.assert_allclose(out, states[-1], atol=1e-5)
    np.testing.assert_allclose(ys, sums, atol=1e-4)
    np.testing.assert_allclose(tapped, [states[0], states[2], states[5]], atol=1e-5)

    edits = {layer: (lambda x, layer=layer: -x + layer) for layer in splits}
    states, _ = plain(params, X, SCALES, edits=edits)
    out, _, tapped = run(model.layers, body, X, xs=SCALES, edits=edits, taps=(splits[0] - 1,))
    np.testing.assert_allclose(out, states[-1], atol=1e-5)
    np.testing.assert_allclose(tapped[0], states[splits[0] - 1], atol=1e-5)


def test_an_edit_touches_the_hidden_states_of_a_larger_carry():
    params = weights(Model(4))
    model = merge(Model(4, (2,)), split(params, (0, 2, 4)))
    count = lambda block, carry, *_: ((block(carry[0]), carry[1] + 1), None)  # noqa: E731
    (out, steps), ys, tapped = run(
        model.layers, count, (X, jnp.int32(0)), edits={2: lambda x: 2 * x}, taps=(1,)
    )
    states, _ = plain(params, X, np.ones(4), edits={2: lambda x: 2 * x})
    np.testing.assert_allclose(out, states[-1], atol=1e-5)
    np.testing.assert_allclose(tapped[0], states[1], atol=1e-5)
    assert int(steps) == 4
    assert ys is None


@pytest.mark.parametrize(("num_layers", "period"), [(6, 2), (7, 2), (7, 3), (4, 1), (2, 3)])
def test_every_pth_layer_has_an_extra(num_layers, period):
    extras = -(-num_layers // period)
    model = Model(num_layers, extras=extras)
    params, scales = weights(model), SCALES[:num_layers]
    states, sums = plain(params, X, scales, period=period)
    merged = merge(model, params)
    taps = (0, num_layers - 1)
    out, ys, tapped = run(
        merged.layers,
        body,
        X,
        xs=scales,
        extras=merged.extras,
        period=period,
        taps=taps,
        remat="full",
    )
    np.testing.assert_allclose(out, states[-1], atol=1e-5)
    np.testing.assert_allclose(ys, sums, atol=1e-4)
    np.testing.assert_allclose(tapped, [states[0], states[-1]], atol=1e-5)


@pytest.mark.parametrize(("splits", "period"), [((4,), 2), ((3, 6), 3), ((1, 2, 5), 1)])
def test_split_stacks_have_their_extras(splits, period):
    extras = -(-7 // period)
    params = weights(Model(7, extras=extras))
    layers = {path: x for path, x in params.items() if path.startswith("layers.")}
    cut = split(layers, (0, *splits, 7)) | {p: x for p, x in params.items() if p not in layers}
    model = merge(Model(7, splits, extras=extras), cut)
    edits = {splits[-1]: lambda x: 1 - x}
    states, sums = plain(params, X, SCALES, period=period, edits=edits)
    asked = dict(xs=SCALES, extras=model.extras, period=period, edits=edits)
    out, ys, _ = run(model.layers, body, X, **asked)
    np.testing.assert_allclose(out, states[-1], atol=1e-5)
    np.testing.assert_allclose(ys, sums, atol=1e-4)


def test_rematerialisation_changes_neither_values_nor_gradients():
    model = Model(5, (2,))
    params = weights(model)

    def loss(params, remat):
        out, ys, _ = run(merge(model, params).layers, body, X, remat=remat)
        return jnp.sum(out**2) + jnp.sum(ys)

    value, grads = jax.value_and_grad(loss)(params, "none")
    for remat in ("full", "dots"):
        again, again_grads = jax.value_and_grad(loss)(params, remat)
        np.testing.assert_allclose(again, value, rtol=1e-6)
        for path, grad in grads.items():
            np.testing.assert_allclose(again_grads[path], grad, rtol=1e-4, atol=1e-5, err_msg=path)
            assert np.abs(grad).max() > 0


def test_full_rematerialisation_keeps_only_the_hidden_states():
    model = Model(6)

    def kept(remat):
        loss = lambda p, x: run(merge(model, p).layers, body, x, remat=remat)[0].sum()  # noqa: E731
        residuals = jax.eval_shape(
            lambda p, x: jax.vjp(loss, p, x)[1], weights(model), jnp.zeros((512, DIM))
        )
        return sum(leaf.size for leaf in jax.tree.leaves(residuals) if 512 in leaf.shape)

    assert kept("full") == 6 * 512 * DIM < kept("none")


def test_the_program_does_not_grow_with_depth():
    def length(num_layers, extras=0, period=1):
        model = Model(num_layers, extras=extras)

        def loss(params):
            merged = merge(model, params)
            return run(merged.layers, body, X, taps=(1,), extras=merged.extras, period=period)[
                2
            ].sum()

        return len(str(jax.make_jaxpr(jax.grad(loss))(weights(model))).splitlines())

    assert length(2) == length(24)
    assert length(4, 2, 2) == length(24, 12, 2)


@pytest.mark.parametrize("splits", [(0,), (4,), (3, 2), (2, 2), (5,)])
def test_splits_must_lie_within_and_ascend(splits):
    with pytest.raises(ValueError, match="splits"):
        stack(Block(), 4, splits)


def test_wrong_calls_are_refused():
    model = Model(4, (2,))
    layers = merge(model, weights(model)).layers
    with pytest.raises(
        ValueError, match=r"no split before layers \[1\]; the stack is split before \[2\]"
    ):
        run(layers, body, X, edits={1: lambda x: x})
    with pytest.raises(ValueError, match="remat 'half' is none of"):
        run(layers, body, X, remat="half")
    with pytest.raises(ValueError, match=r"taps \[4\]"):
        run(layers, body, X, taps=(1, 4))
    model = Model(5, extras=2)
    merged = merge(model, weights(model))
    with pytest.raises(ValueError, match="2 extras"):
        run(merged.layers, body, X, extras=merged.extras, period=2)
    model = Model(4, (1, 3), extras=2)
    merged = merge(model, weights(model))
    with pytest.raises(ValueError, match=r"split before layers \[1, 3\], within a turn of 2"):
        run(merged.layers, body, X, extras=merged.extras, period=2)
