"""LoRA on stacks of every kind: what it adds, where it starts, and whose its dropout is."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mmjax.data.batch import Batch
from mmjax.data.segments import Encoded, Segment
from mmjax.data.sequence import Lengths, assemble
from mmjax.models.llama import Llama
from mmjax.nn.lora import LoraConfig, added, is_lora, target_of, with_dropout, with_lora
from mmjax.nn.param import init_params, merge, specs
from mmjax.parallel.mesh import make_abstract_mesh, make_mesh
from mmjax.parallel.sharding import PRESETS, put_rows, resolve
from mmjax.systems.cheetor import CheetorConfig
from mmjax.systems.foundation import LanguageModelConfig
from mmjax.systems.mplug_owl import MplugOwl, MplugOwlConfig
from mmjax.systems.registry import make_system
from mmjax.systems.system import config_to_dict
from mmjax.train.optim import OptimizerConfig
from mmjax.train.step import jit_step, make_step

pytestmark = pytest.mark.usefixtures("quick_compile")

LORA = LoraConfig(r"layers\.(attention\.(q|v)|mlp\.down)", rank=3, alpha=6.0, dropout=0.5)
TOKENS = np.random.default_rng(0).integers(3, 24, (4, 6), np.int32)
ROWS = np.arange(4)
STACKS = {
    "plain": dict(num_layers=3),
    "split": dict(num_layers=3, splits=(1,)),
    "period": dict(num_layers=3, adapter_every=2, adapter_dim=4),
}


def reader(model):
    """(params, key or None, row ids i64[4]) -> logits; compiled once for each of the two."""

    @jax.jit
    def read(params, key, row_id):
        made = merge(model, params)
        if key is not None:
            made = with_dropout(made, key, row_id)
        x = made.embed(jnp.asarray(TOKENS)[row_id % 4], jnp.float32)
        places = np.tile(np.arange(TOKENS.shape[1]), (len(TOKENS), 1))
        return made.logits(made(x, positions=places, segments=np.ones_like(TOKENS))[0])

    return lambda params, key=None, row_id=ROWS: np.asarray(read(params, key, row_id))


@pytest.mark.parametrize("kind", STACKS)
def test_it_is_what_the_kernel_would_be_with_it_added(kind):
    """And what is dropped in training is a row's and a step's own."""
    sizes = tiny.llama_config(**STACKS[kind])
    model = with_lora(Llama(sizes), LORA)
    params, read, read_plain = tiny.random_params(specs(model)), reader(model), reader(Llama(sizes))
    low = {path for path in params if is_lora(path)}
    assert len(low) == 6 * (2 if kind == "split" else 1)
    plain = {path: x for path, x in params.items() if path not in low}
    base = read_plain(plain)
    for layer in {path.rpartition(".")[0] for path in low}:
        plain[f"{layer}.kernel"] = plain[f"{layer}.kernel"] + added(params, layer, 2.0)
    with_it = read(params)
    np.testing.assert_allclose(with_it, read_plain(plain), atol=2e-4)
    assert np.abs(with_it - base).max() > 0.1
    assert target_of(params) == r"layers\.attention\.(q|v)|layers\.mlp\.down"
    again = specs(with_lora(Llama(sizes), dataclasses.replace(LORA, target=target_of(params))))
    assert again.keys() == params.keys()

    key = jax.random.key(1)
    dropped = read(params, key)
    assert np.abs(dropped - with_it).max() > 0.05
    order = np.array([2, 0, 3, 2])
    np.testing.assert_allclose(read(params, key, ROWS[order]), dropped[order], atol=1e-4)
    assert np.abs(read(params, key, ROWS + 4) - dropped).max() > 0.05, "the same text, other rows"
    assert np.abs(read(params, jax.random.key(2)) - dropped).max() > 0.05


def test_it_starts_as_pefts():
    wanted = specs(with_lora(Llama(tiny.llama_config(num_layers=2)), LORA))
    assert wanted["layers.attention.v.lora_b"].shape == (2, 3, 8)
    assert wanted["layers.mlp.down.lora_a"].axes == ("layers", "mlp", None)
    made = init_params({path: spec for path, spec in wanted.items() if is_lora(path)}, seed=0)
    for path, x in made.items():
        if path.endswith("_b"):
            assert not np.asarray(x).any(), "the model starts as the one without"
        else:  # kaiming-uniform with a = sqrt(5)
            bound = x.shape[1] ** -0.5
            assert 0.9 * bound < np.abs(x).max() <= bound and np.abs(np.mean(x)) < 0.2 * bound


def test_layers_do_not_share_what_is_dropped():
    model = with_lora(Llama(tiny.llama_config(num_layers=2)), LORA)
    params = tiny.random_params(specs(model))
    made = with_dropout(merge(model, params), jax.random.key(0), np.array([3, 4]))
    keys = [
        jax.random.key_data(getattr(made.layers.attention, name).dropout_keys[...]).reshape(4, -1)
        for name in ("q", "v")
    ]
    assert len(np.unique(np.concatenate(keys), axis=0)) == 8, "2 layers, 2 rows, 2 places"
    with_none = with_lora(Llama(tiny.llama_config()), dataclasses.replace(LORA, dropout=0.0))
    still = merge(with_none, tiny.random_params(specs(with_none)))
    assert with_dropout(still, jax.random.key(0), np.array([3])) is still


def test_any_system_trains_it_alone():
    """The frozen rest stays as it is; accumulation does not change what is dropped."""
    lora = dict(target=r"language\.layers\.attention\.(q|v)", rank=2, dropout=0.3)
    config = config_to_dict(LanguageModelConfig(tiny.llama_config()))
    system = make_system("language_model", config | {"lora": lora})
    rng = np.random.default_rng(0)
    texts = [tuple(int(i) for i in rng.integers(3, 20, 2 + row)) for row in range(4)]
    rows = [Encoded([Segment((1,)), Segment((*text, 2), is_target=True)]) for text in texts]
    batch = Batch(np.arange(4), assemble(rows, Lengths(target=8), tiny.PAD)[2])
    mesh, losses = make_mesh(devices=jax.devices()[:1]), []
    settings = OptimizerConfig(learning_rate=0.01, schedule="constant")
    for accumulation in (1, 2):
        with jax.set_mesh(mesh):
            start = tiny.start(system, mesh, "dp", r"(?!.*\.lora_[ab]).*", settings)
            state, frozen, optimizer = start
            assert all(is_lora(path) for path in state.trainable) and len(state.trainable) == 4
            before = {path: np.asarray(x) for path, x in state.trainable.items()}
            made = make_step(system, optimizer, seed=0, accumulation=accumulation)
            state, metrics = jit_step(made, state, frozen, mesh)(
                state, frozen, put_rows(batch, mesh)
            )
        losses.append((float(metrics["loss"]), float(metrics["grad_norm"])))
        for path, x in state.trainable.items():
            assert not np.array_equal(x, before[path]), f"{path} has no gradient"
    np.testing.assert_allclose(*losses, rtol=1e-4)
    total, weight, _ = jax.jit(lambda p: merge(system, p).loss(batch))(frozen | before)
    assert abs(float(total / weight) - losses[0][0]) > 1e-3, "some of it was dropped"


def test_paths_of_a_system():
    config = CheetorConfig(tiny.llama_config(num_layers=4), tiny.blip2_config(), update_layer=2)
    lora = dict(target=r"language\.layers\.mlp\.up|projection", rank=2)
    system = make_system("cheetor", config_to_dict(config) | {"lora": lora})
    low = {path: spec.shape for path, spec in specs(system).items() if is_lora(path)}
    assert low["language.layers.1.mlp.up.lora_a"] == (2, 16, 2)
    assert low["projection.lora_b"] == (2, 16) and len(low) == 6


def test_published_size_has_a_place_under_every_preset():
    """LRV V2's 4,194,304 parameters."""
    system = with_lora(
        MplugOwl(MplugOwlConfig.named("llama-7b")),
        LoraConfig(r"language\.layers\.attention\.(q|v)"),
    )
    wanted = specs(system)
    assert sum(spec.size for path, spec in wanted.items() if is_lora(path)) == 4_194_304
    for preset in PRESETS:
        resolve(wanted, make_abstract_mesh(8, 1, 4, 2), preset)


def test_wrong_settings_are_told_at_once():
    with pytest.raises(ValueError, match=r"rank is 0") as error:
        LoraConfig("(", rank=0, alpha=0.0, dropout=1.0)
    for told in ("alpha is 0.0", "dropout is 1.0", "is not a regular expression"):
        assert told in str(error.value)
    with pytest.raises(ValueError, match=r"matches no dense layer; there are") as error:
        with_lora(Llama(tiny.llama_config()), LoraConfig(r"layers\.attn\.q"))
    assert "\n  layers.attention.q\n" in str(error.value)
    clip = {"clip": dataclasses.asdict(tiny.clip_config())}
    with pytest.raises(ValueError, match="a loss of its own, which knows no dropout"):
        make_system("clip", clip | {"lora": {"target": r"clip\.visual_projection"}})
