"""Affine layers, embeddings, norms and feed-forward layers against torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mmjax.nn.dense import Dense, Embedding, Linear
from mmjax.nn.mlp import MLP, GatedMLP
from mmjax.nn.norm import LayerNorm, RMSNorm
from mmjax.nn.param import init_params, merge, specs

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def same(ours, theirs, atol=1e-5):
    np.testing.assert_allclose(np.asarray(ours, np.float32), theirs.detach().numpy(), atol=atol)


def test_dense_is_torchs_linear():
    theirs = torch.nn.Linear(6, 3)
    params = {"kernel": theirs.weight.detach().numpy().T, "bias": theirs.bias.detach().numpy()}
    x = normal(2, 5, 6)
    ours = merge(Dense(6, 3, axes=("embed", "mlp"), bias=True), params)
    same(ours(jnp.asarray(x)), theirs(torch.tensor(x)))
    same(ours(jnp.asarray(x[0, 0])), theirs(torch.tensor(x[0, 0])))
    assert ours(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16
    without = merge(Dense(6, 3, axes=("embed", "mlp")), {"kernel": params["kernel"]})
    same(without(jnp.asarray(x)), theirs(torch.tensor(x)) - theirs.bias)


def test_linear_starts_as_torchs():
    wanted = specs(Linear(100, 400, axes=("embed", "mlp")))
    assert list(wanted) == ["bias", "kernel"]
    for value in init_params(wanted, 0).values():
        theirs = torch.nn.Linear(100, 400).weight
        assert np.abs(value).max() <= 0.1
        np.testing.assert_allclose(np.std(value), theirs.detach().std(), rtol=0.1)
    weaker = init_params(specs(Linear(100, 400, axes=("embed", "mlp"), gain=0.5)), 0)
    assert 0.049 < np.abs(weaker["kernel"]).max() <= 0.05


def test_added_rows_follow_the_table_and_train_apart():
    params = {"table": normal(5, 3), "added": normal(2, 3)}
    tokens = jnp.array([[0, 4, 5], [6, 1, 5]])
    layer = Embedding(5, 3, added_rows=2)
    both = np.concatenate([params["table"], params["added"]])
    np.testing.assert_array_equal(merge(layer, params)(tokens, jnp.float32), both[tokens])
    assert merge(layer, params)(tokens, jnp.bfloat16).dtype == jnp.bfloat16
    grads = jax.grad(lambda p: merge(layer, p)(tokens, jnp.float32).sum())(params)
    np.testing.assert_array_equal(grads["added"][:, 0], [2, 1])
    np.testing.assert_array_equal(grads["table"][:, 0], [1, 1, 0, 0, 1])
    hidden = normal(2, 4, 3)
    logits = merge(layer, params).attend(jnp.asarray(hidden))  # added rows have no logits
    np.testing.assert_allclose(logits, hidden @ params["table"].T, atol=1e-5)


def test_layer_norm_and_rms_norm():
    x, scale, bias = 10 + 3 * normal(4, 7), normal(7), normal(7)
    theirs = torch.nn.functional.layer_norm(
        torch.tensor(x), (7,), torch.tensor(scale), torch.tensor(bias), 1e-3
    )
    same(
        merge(LayerNorm(7, eps=1e-3), {"scale": scale, "bias": bias})(jnp.asarray(x)), theirs, 1e-4
    )
    theirs = torch.nn.functional.rms_norm(torch.tensor(x), (7,), torch.tensor(scale), 1e-3)
    ours = merge(RMSNorm(7, eps=1e-3), {"scale": scale})
    same(ours(jnp.asarray(x)), theirs)
    half = ours(jnp.asarray(1000 * x, jnp.float16))  # the mean square is beyond float16
    assert half.dtype == jnp.float16
    same(half, theirs, 1e-2)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("gelu", torch.nn.functional.gelu),
        ("quick_gelu", lambda x: x * torch.sigmoid(1.702 * x)),
        ("silu", torch.nn.functional.silu),
    ],
)
def test_feed_forward_layers(name, theirs):
    x, up, down, gate, bias = normal(2, 3, 4), normal(4, 8), normal(8, 4), normal(4, 8), normal(8)
    t = torch.tensor
    params = {"up.kernel": up, "up.bias": bias, "down.kernel": down, "down.bias": bias[:4]}
    ours = merge(MLP(4, 8, activation=name), params)(jnp.asarray(x))
    same(ours, theirs(t(x) @ t(up) + t(bias)) @ t(down) + t(bias[:4]), 1e-4)
    params = {"up.kernel": up, "gate.kernel": gate, "down.kernel": down}
    ours = merge(GatedMLP(4, 8, activation=name), params)(jnp.asarray(x))
    same(ours, (theirs(t(x) @ t(gate)) * (t(x) @ t(up))) @ t(down), 1e-4)
