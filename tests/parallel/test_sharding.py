"""Where parameters live, and that it changes no number.

LMEye, with LoRA and dropout, trains alike on every mesh; so does every other system in
tests/systems/test_system_contract.py, on `fsdp_tp`, and slowly on the others.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import PartitionSpec as P

from mmjax.nn.param import ParamSpec, specs, zeros
from mmjax.parallel.mesh import make_mesh
from mmjax.parallel.sharding import PRESETS, put_rows, resolve
from mmjax.systems.lmeye import LMEye, LMEyeConfig
from mmjax.systems.registry import make_system
from mmjax.systems.system import config_to_dict
from mmjax.train.optim import OptimizerConfig
from mmjax.train.step import jit_step, make_step


def spec(*shape, axes, dtype=jnp.float32):
    return ParamSpec(shape, jnp.dtype(dtype), axes, zeros)


def test_presets():
    wanted = {
        "kernel": spec(2, 16, 32, axes=("layers", "embed", "mlp")),
        "table": spec(24, 16, axes=("vocab", "embed")),
        "scale": spec(16, axes=("embed",)),
        "free": spec(3, axes=(None,)),
    }
    mesh = make_mesh(2, 2, 2)
    placed = {
        preset: {path: s.spec for path, s in resolve(wanted, mesh, preset).items()}
        for preset in PRESETS
    }
    assert placed["dp"] == {
        "kernel": P(None, None, None),
        "table": P(None, None),
        "scale": P(None),
        "free": P(None),
    }
    assert placed["fsdp"]["kernel"] == P(None, "fsdp", None)
    assert placed["fsdp_tp"]["kernel"] == P(None, "fsdp", "tensor")
    assert placed["fsdp_tp"]["table"] == P("tensor", "fsdp")
    assert placed["fsdp_tp"]["scale"] == P("fsdp")
    assert resolve(wanted, make_mesh(8, 1, 1), "fsdp_tp")["table"].spec == P(None, None)


def test_every_published_model_has_a_place():
    for preset in PRESETS:
        resolve(specs(LMEye(LMEyeConfig.named("llama-7b"))), make_mesh(1, 4, 2), preset)
        resolve(specs(LMEye(LMEyeConfig.named("tiny"))), make_mesh(2, 2, 2), preset)


def test_small_parameters_that_do_not_divide_stay_whole():
    wanted = {"odd": spec(7, 16, axes=("vocab", "embed"))}
    assert resolve(wanted, make_mesh(2, 2, 2), "fsdp_tp")["odd"].spec == P(None, "fsdp")


def test_all_problems_at_once():
    wanted = {
        "fine": spec(16, axes=("embed",)),
        "named": spec(16, 16, axes=("embed", "query")),
        "collides": spec(16, 8, 8, axes=("embed", "heads", "mlp")),
        "odd": spec(1001, 4097, axes=("vocab", "embed")),
    }
    with pytest.raises(ValueError, match="4 problems in placing") as error:
        resolve(wanted, make_mesh(2, 2, 2), "fsdp_tp")
    message = str(error.value)
    assert "named: axis names ['query'] are not in the preset's table" in message
    assert "collides: dimensions ('embed', 'heads', 'mlp') share the mesh axis 'tensor'" in message
    assert "odd: vocab = 1001 does not divide by tensor = 2, nor does another dimension" in message
    assert "odd: embed = 4097 does not divide by fsdp = 2" in message
    assert "fine" not in message
    with pytest.raises(ValueError, match="preset 'zero3' is none of dp, fsdp, fsdp_tp"):
        resolve(wanted, make_mesh(2, 2, 2), "zero3")


CONFIG = tiny.lmeye_config(dropout=0.3)
LORA = dict(target=r"language\.layers\.attention\.(q|v)", rank=2, alpha=0.2, dropout=0.1)
FROZEN = r"clip\..*|language\.(?!layers\.(mlp\.up\.|attention\.k\.|.*lora_)).*"


def train(mesh, preset):
    """(losses, state, jitted step) of three steps on one batch, with pictures and dropout."""
    system = make_system("lmeye", config_to_dict(CONFIG) | dict(lora=LORA))
    frames = np.random.default_rng(0).integers(0, 256, (8, 1, 8, 8, 3), dtype=np.uint8)
    batch = dataclasses.replace(tiny.lmeye_batch(CONFIG, 8), features=None, frames=frames)
    settings = OptimizerConfig(learning_rate=0.01, schedule="constant", eps=1e-6)
    with jax.set_mesh(mesh):
        state, frozen, optimizer = tiny.start(system, mesh, preset, FROZEN, settings)
        frozen = {path: x.astype(jnp.bfloat16) for path, x in frozen.items()}  # as at full size
        step = jit_step(make_step(system, optimizer, seed=0), state, frozen, mesh)
        losses = []
        for _ in range(3):
            state, metrics = step(state, frozen, put_rows(batch, mesh))
            losses.append(float(metrics["loss"]))
    return losses, state, step


@pytest.fixture(scope="module")
def on_one_device(quick_compile):
    losses, state, _ = train(make_mesh(devices=jax.devices()[:1]), "dp")
    assert losses[2] < 0.95 * losses[0]
    return losses, state


@pytest.mark.parametrize(
    ("preset", "sizes"),
    [("dp", (8, 1, 1)), ("fsdp", (1, 8, 1)), ("fsdp_tp", (2, 2, 2))],
    ids=str,
)
def test_training_does_not_depend_on_the_mesh(preset, sizes, on_one_device):
    losses, state, step = train(make_mesh(*sizes), preset)
    np.testing.assert_allclose(losses, on_one_device[0], rtol=2e-5)
    for path, value in on_one_device[1].trainable.items():
        np.testing.assert_allclose(state.trainable[path], value, atol=2e-4, err_msg=path)
    assert step._cache_size() == 1

    assert set(PRESETS) == {"dp", "fsdp", "fsdp_tp"}, "one that is not tried here"
    shards = (1 if preset == "dp" else sizes[1]) * (sizes[2] if preset == "fsdp_tp" else 1)
    moments = state.opt_state["adam"]
    for leaves in (state.trainable, moments.mu, moments.nu):
        kernel = leaves["language.layers.mlp.up.kernel"]
        assert {shard.data.size for shard in kernel.addressable_shards} == {kernel.size // shards}
        assert len({str(shard.index) for shard in kernel.addressable_shards}) == shards
