"""Full size: nothing large is whole on a device, neither later nor on its way there."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from conversion.weights import load_weights
from mmjax.nn.param import ParamSpec, init_params, normal, specs
from mmjax.parallel.mesh import make_abstract_mesh, make_mesh
from mmjax.parallel.sharding import REPLICATE_BELOW, place, replicated, resolve
from mmjax.systems.lmeye import LMEye, LMEyeConfig
from mmjax.systems.registry import SYSTEMS
from mmjax.systems.visual_llama import ConnectorConfig
from mmjax.train import build
from mmjax.train.optim import OptimizerConfig, make_optimizer
from mmjax.train.state import TrainState, state_shardings

MESHES = {
    "fsdp": [(1, 2, 1), (1, 8, 1), (2, 4, 1), (1, 16, 1), (4, 16, 1), (1, 64, 1)],
    "fsdp_tp": [(1, 4, 2), (2, 2, 2), (1, 8, 8), (2, 16, 2), (1, 32, 2), (8, 2, 4)],
}
PUBLISHED = {
    "lmeye": "llama-7b llama-13b vicuna-7b vicuna-13b opt-iml-1.3b bloomz-7b1 mpt-7b",
    "lmeye_blip2": "blip2-flan-t5-xl blip2-flan-t5-xxl blip2-chatglm2-6b blip2-opt-2.7b",
    "visual_llama": "7b 13b",
    "minigpt4": "vicuna-7b vicuna-13b",
    "mplug_owl": "llama-7b",
    "cheetor": "vicuna-7b vicuna-13b llama2-7b",
    "lynx": "7b 7b-224 7b-cross-attention",
}
VARIED = {  # the other kind of a part that these have in two
    "visual_llama": dict(connector=ConnectorConfig(kind="transformer")),
    "cheetor": dict(vpg="linear"),
}
CASES = [(preset, sizes) for preset, meshes in MESHES.items() for sizes in meshes]


def axes_of(sharding) -> set[str]:
    entries = [entry for entry in sharding.spec if entry is not None]
    return {axis for entry in entries for axis in (entry if isinstance(entry, tuple) else (entry,))}


@pytest.mark.parametrize("system", PUBLISHED)
def test_nothing_over_4_mib_is_whole_under_fsdp(system):
    """Parameters of every published size, on every mesh."""
    make = SYSTEMS[system]
    configs = [make.Config.named(variant) for variant in PUBLISHED[system].split()]
    configs += [dataclasses.replace(configs[0], **VARIED[system])] if system in VARIED else []
    for config in configs:
        wanted = specs(make(config))
        size = {path: spec.size * spec.dtype.itemsize for path, spec in wanted.items()}
        assert sum(size.values()) > 2**30
        for preset, sizes in CASES:
            shardings = resolve(wanted, make_abstract_mesh(64, *sizes), preset)
            for path in (path for path in wanted if size[path] > 4 * 2**20):
                where, shape = shardings[path], wanted[path].shape
                assert "fsdp" in axes_of(where), (path, where.spec)
                assert np.prod(where.shard_shape(shape)) * sizes[1] <= np.prod(shape), path


@pytest.mark.parametrize(("preset", "sizes"), CASES, ids=str)
def test_moments_lie_as_their_parameters(preset, sizes):
    """If all were trained."""
    wanted = specs(LMEye(LMEyeConfig.named("llama-7b")))
    mesh = make_abstract_mesh(64, *sizes)
    shardings = resolve(wanted, mesh, preset)
    params = {path: jax.ShapeDtypeStruct(spec.shape, jnp.float32) for path, spec in wanted.items()}
    optimizer = make_optimizer(OptimizerConfig(), dict.fromkeys(wanted, 1.0), 10)
    state = jax.eval_shape(lambda p: TrainState.start(p, optimizer), params)
    places = state_shardings(state, shardings, replicated(mesh))
    seen = 0
    for x, where in zip(jax.tree.leaves(state), jax.tree.leaves(places), strict=True):
        if x.size * 4 > 4 * 2**20:
            seen += 1
            assert "fsdp" in axes_of(where), (x.shape, where.spec)
            assert np.prod(where.shard_shape(x.shape)) * sizes[1] <= x.size
    assert seen > 3 * 25, "each with its two moments"


def test_an_axis_that_does_not_divide_moves():
    wanted = specs(LMEye(LMEyeConfig.named("llama-7b")))
    odd = {
        "language.embedding.table": (32001, 4096),
        "language.head.kernel": (4096, 32001),
    }
    wanted |= {p: ParamSpec(s, wanted[p].dtype, wanted[p].axes, None) for p, s in odd.items()}
    placed = resolve(wanted, make_abstract_mesh(8, 1, 4, 2), "fsdp_tp")
    assert placed["language.embedding.table"].shard_shape((32001, 4096)) == (32001, 512)
    assert placed["language.head.kernel"].shard_shape((4096, 32001)) == (512, 32001)
    with pytest.raises(ValueError, match=r"embed = 4096 does not divide by fsdp = 3, nor does"):
        resolve(wanted, make_abstract_mesh(3, 1, 3, 1), "fsdp")


def test_a_device_receives_its_slice_alone():
    mesh = make_mesh(1, 4, 2)
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp", "tensor"))
    asked = []

    class Watched:
        """A host's array that notes what is read of it."""

        shape, dtype = (8, 6), np.dtype(np.float64)
        whole = np.arange(48.0).reshape(8, 6)

        def __getitem__(self, index):
            asked.append(self.whole[index].shape)
            return self.whole[index]

    placed = place(Watched(), sharding, jnp.bfloat16)
    assert set(asked) == {(2, 3)} and placed.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(placed, np.float64), Watched.whole)


def test_weights_are_imported_into_their_shards(monkeypatch):
    """What jax is given of a leaf, on its way in, is never more than a shard of it."""
    wanted = specs(LMEye(LMEyeConfig.named("tiny")))
    mesh = make_mesh(1, 4, 2)
    shardings = resolve(wanted, mesh, "fsdp_tp")
    make, given = jax.make_array_from_callback, {}

    def watched(shape, sharding, callback, dtype):
        def noted(index):
            piece = callback(index)
            given.setdefault((shape, sharding), []).append(piece.shape)
            return piece

        return make(shape, sharding, noted, dtype=dtype)

    monkeypatch.setattr(jax, "make_array_from_callback", watched)
    monkeypatch.setattr(jax, "device_put", lambda *_, **__: pytest.fail("a whole leaf is put"))
    config = dict(
        stages=["s"],
        s=dict(train=[("response_linear.*", "train", 1.0), (".*", "freeze", 1.0)]),
        frozen_dtype="bfloat16",
        weights=dict(language="asset:tiny/llama", clip="asset:tiny/clip"),
        preset="fsdp_tp",
        seed=0,
    )
    params = build.create_params(config, wanted, mesh)
    assert len(given) > 10
    for (shape, sharding), pieces in given.items():
        assert set(pieces) == {sharding.shard_shape(shape)}
    for path, x in params.items():
        assert x.sharding == shardings[path], path
        assert {s.data.shape for s in x.addressable_shards} == {
            shardings[path].shard_shape(x.shape)
        }
        assert x.dtype == (jnp.float32 if path.startswith("response_linear") else jnp.bfloat16)
    monkeypatch.undo()
    expected = load_weights(dict(language="asset:tiny/llama"), wanted)
    for path, x in expected.items():
        np.testing.assert_array_equal(params[path], x.astype(jnp.bfloat16), err_msg=path)


def test_weights_are_created_in_their_shards(quick_compile):
    """The program that creates them never holds a whole large leaf on any device."""
    mesh = make_mesh(1, 8, 1)
    spec = ParamSpec((2, 512, 1280), jnp.dtype("float32"), ("layers", "embed", "mlp"), normal())
    wanted = {"gate": spec, "up": spec}
    shardings = resolve(wanted, mesh, "fsdp")
    create = jax.jit(lambda: init_params(wanted, 0), out_shardings=shardings)
    memory = create.lower().compile().memory_analysis()
    leaf = 4 * spec.size
    assert leaf > REPLICATE_BELOW
    assert memory.output_size_in_bytes < 2 * leaf / 8 * 1.1
    assert memory.temp_size_in_bytes < leaf
    created = create()
    expected = init_params(wanted, 0)
    for path, x in created.items():
        np.testing.assert_allclose(x, expected[path], rtol=1e-6, err_msg=path)
