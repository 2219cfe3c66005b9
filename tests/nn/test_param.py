"""Parameters: strict merging, stable initialisation, the same in shards."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from mmjax.models.llama import Llama
from mmjax.nn.dense import Dense
from mmjax.nn.param import init_params, merge, normal, ones, param, specs, stack_params, subset
from mmjax.nn.stack import run, stack
from mmjax.parallel.mesh import make_mesh
from mmjax.parallel.sharding import resolve


class Pair(nnx.Module):
    def __init__(self, *, third: bool = False):
        self.first = Dense(3, 4, axes=("embed", "mlp"), bias=True)
        if third:
            self.between = Dense(3, 4, axes=("embed", "mlp"))
        self.second = Dense(3, 4, axes=("embed", "mlp"))


def test_declaring_allocates_nothing_and_tells_everything():
    config = tiny.llama_config(
        num_layers=5, embed_dim=1 << 20, mlp_dim=1 << 24
    )  # petabytes, were they allocated
    found = specs(Llama(config))
    assert list(found) == sorted(found)
    kernel = found["layers.mlp.up.kernel"]
    assert kernel.shape == (5, 1 << 20, 1 << 24)
    assert kernel.axes == ("layers", "embed", "mlp")
    assert kernel.dtype == jnp.float32
    assert kernel.size == 5 << 44


def test_axis_names_must_be_as_many_as_dimensions():
    with pytest.raises(ValueError, match=r"\(2, 3\) needs 2 axis names"):
        param((2, 3), ("embed",), ones)


def test_merge_puts_every_leaf_in_its_place():
    params = tiny.random_params(specs(Pair(third=True)))
    shuffled = dict(sorted(params.items(), reverse=True))
    model = merge(Pair(third=True), shuffled)
    for path, expected in params.items():
        module, leaf = path.split(".")
        np.testing.assert_array_equal(getattr(getattr(model, module), leaf)[...], expected)


def test_merge_lists_everything_that_does_not_fit():
    params = tiny.random_params(specs(Pair(third=True)))
    params["first.kernel"] = params["first.kernel"].T
    params["second.bias"] = np.zeros((4,))
    del params["between.kernel"], params["first.bias"]
    with pytest.raises(ValueError, match="Pair") as error:
        merge(Pair(third=True), params)
    message = str(error.value)
    for line in (
        "missing: between.kernel (3, 4)",
        "missing: first.bias (4,)",
        "unknown: second.bias (4,)",
        "shape: first.kernel is (4, 3), the model wants (3, 4)",
    ):
        assert line in message
    assert message.startswith("4 parameters")


def test_eleven_segments_keep_their_order():
    """Sorted as text, segment 10 comes before segment 2; flax pairs leaves by position."""

    class Shift(nnx.Module):
        def __init__(self):
            self.scale = param((), (), ones)
            self.shift = param((), (), ones)

    class Model(nnx.Module):
        def __init__(self):
            self.layers = stack(Shift(), 13, tuple(range(1, 13)))

    model = Model()
    names = [f"layers.{i}.{leaf}" for i in range(13) for leaf in ("scale", "shift")]
    assert sorted(specs(model)) == sorted(names)
    params = {name: jnp.full((1,), number, jnp.float32) for number, name in enumerate(names)}
    body = lambda block, x, *_: (x, (block.scale[...], block.shift[...]))  # noqa: E731
    _, (scales, shifts), _ = run(merge(model, params).layers, body, jnp.zeros(()))
    np.testing.assert_array_equal(scales, np.arange(0, 26, 2))
    np.testing.assert_array_equal(shifts, np.arange(1, 26, 2))


def test_a_new_parameter_does_not_change_the_others():
    small, large = (init_params(specs(Pair(third=third)), 7) for third in (False, True))
    assert set(large) - set(small) == {"between.kernel"}
    for path, value in small.items():
        np.testing.assert_array_equal(value, large[path])
    other_seed = init_params(specs(Pair()), 8)
    assert not np.array_equal(small["first.kernel"], other_seed["first.kernel"])
    assert not np.array_equal(small["first.kernel"], small["second.kernel"])


def test_a_leafs_key_is_its_path():
    """A run's seed stands for its weights: how keys are made must not change."""
    kernel = init_params(specs(Pair()), 5)["first.kernel"]
    key = jax.random.fold_in(jax.random.key(5), zlib.crc32(b"first.kernel"))
    np.testing.assert_allclose(kernel, 0.02 * jax.random.normal(key, (3, 4)), rtol=1e-6)


def test_layers_of_a_stack_start_differently():
    found = specs(stack_params(Dense(64, 32, axes=("embed", "mlp"), init=normal(0.5)), 3))
    assert found["kernel"].shape == (3, 64, 32)
    assert found["kernel"].axes == ("layers", "embed", "mlp")
    kernel = np.asarray(init_params(found, 0)["kernel"])
    assert np.abs(kernel.std(axis=(1, 2)) - 0.5).max() < 0.03
    assert not np.array_equal(kernel[0], kernel[1])


def test_init_in_shards_equals_init_on_one_device():
    wanted = specs(Llama(tiny.llama_config()))
    wanted = {
        path: wanted[path]
        for path in ("embedding.table", "layers.mlp.up.kernel", "layers.mlp_norm.scale")
    }
    shardings = resolve(wanted, make_mesh(2, 2, 2), "fsdp_tp")
    whole = jax.jit(lambda: init_params(wanted, 3))()
    sharded = jax.jit(lambda: init_params(wanted, 3), out_shardings=shardings)()
    assert sharded["layers.mlp.up.kernel"].addressable_shards[0].data.shape == (2, 8, 16)
    for path, value in whole.items():
        np.testing.assert_array_equal(sharded[path], value, err_msg=path)


def test_subset_takes_a_module():
    params = {"language.norm.scale": 1, "language_model.norm.scale": 2, "clip.norm.scale": 3}
    assert subset(params, "language") == {"norm.scale": 1}
