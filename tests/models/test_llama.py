"""LLaMA against transformers' `LlamaForCausalLM`: every layer, logits, loss."""

import jax
import numpy as np
import pytest
import tiny
import torch
import transformers

from conversion.engine import load
from conversion.huggingface import config_from_hf
from conversion.io import read
from conversion.tables.llama import LLAMA
from mmjax.data.batch import Batch, Sequence
from mmjax.kernels.attention import attention
from mmjax.models.llama import Llama, LlamaConfig
from mmjax.nn.cache import Cache
from mmjax.nn.param import merge, specs
from mmjax.nn.stack import run
from mmjax.systems.foundation import LanguageModel, LanguageModelConfig

pytestmark = pytest.mark.usefixtures("quick_compile")

SIZES = dict(
    vocab_size=37, hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4
)
VARIANTS = {
    "llama 1": dict(),
    "grouped key heads, other rope base": dict(
        num_key_value_heads=2, rope_theta=50000.0, rms_norm_eps=1e-3
    ),
    "tied head, wider heads, one key head": dict(
        num_key_value_heads=1, head_dim=10, tie_word_embeddings=True
    ),
}
LENGTHS = np.array([9, 5])
TOKENS = np.random.default_rng(0).integers(3, 37, (2, 9)).astype(np.int32)
SEGMENTS = (np.arange(9) < LENGTHS[:, None]).astype(np.int32)
POSITIONS = np.tile(np.arange(9, dtype=np.int32), (2, 1))
REAL = SEGMENTS > 0


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request, tmp_path_factory):
    """(their model, our config and parameters, read from the folder that theirs was saved in)."""
    config = transformers.LlamaConfig(
        **SIZES | VARIANTS[request.param], attn_implementation="eager"
    )
    theirs = transformers.LlamaForCausalLM(config).eval()
    tiny.randomise(theirs)
    folder = tmp_path_factory.mktemp("llama")
    theirs.save_pretrained(folder)
    config = config_from_hf(folder)
    return theirs, config, load(LLAMA, read(folder), specs(Llama(config)))


def test_every_layer(pair):
    theirs, config, params = pair
    wanted = []
    hooks = [
        module.register_forward_hook(
            lambda _, __, out: wanted.append(out[0] if isinstance(out, tuple) else out)
        )
        for module in (theirs.model.embed_tokens, *theirs.model.layers, theirs.model.norm)
    ]
    with torch.no_grad():
        theirs(torch.tensor(TOKENS).long(), attention_mask=torch.tensor(SEGMENTS))
    for hook in hooks:
        hook.remove()

    def attend(query, key, value):
        return attention(
            query, key, value, causal=True, query_segments=SEGMENTS, key_segments=SEGMENTS
        ), None

    @jax.jit
    def compute(params):
        model = merge(Llama(config), params)
        x = model.embed(TOKENS, np.float32)
        layer = lambda block, x, *_: (block(x, POSITIONS, attend)[0], None)  # noqa: E731
        last, _, tapped = run(model.layers, layer, x, taps=(0, 1, 2))
        return x, *tapped, model.norm(last)

    for number, (mine, other) in enumerate(zip(compute(params), wanted, strict=True)):
        np.testing.assert_allclose(
            mine[REAL], other.numpy()[REAL], atol=1e-4, err_msg=f"output {number}"
        )


def test_logits_and_loss(pair):
    theirs, config, params = pair
    with torch.no_grad():
        wanted = theirs(
            torch.tensor(TOKENS).long(),
            attention_mask=torch.tensor(SEGMENTS),
            labels=torch.tensor(np.where(REAL, TOKENS, -100)).long(),
        )
    targets = np.roll(TOKENS, -1, axis=1)
    weights = (POSITIONS < LENGTHS[:, None] - 1).astype(np.float32)
    batch = Batch(np.arange(2), Sequence(TOKENS, POSITIONS, SEGMENTS, targets, weights, {}))

    @jax.jit
    def compute(params):
        model = merge(LanguageModel(LanguageModelConfig(config)), params)
        return model.logits(model.hidden(batch).states), model.loss(batch)

    logits, (loss, weight, further) = compute(
        {f"language.{path}": value for path, value in params.items()}
    )
    np.testing.assert_allclose(logits[REAL], wanted.logits.numpy()[REAL], atol=1e-4)
    assert float(weight) == (LENGTHS - 1).sum()
    np.testing.assert_allclose(loss / weight, wanted.loss, atol=1e-4)
    right = (wanted.logits.argmax(-1).numpy() == targets) & (weights > 0)
    assert float(further["token_accuracy"]) == right.sum()


def test_published_sizes():
    """Numbers of parameters: arXiv 2302.13971, table 2 (6.7B, 13.0B)."""
    size = lambda config: sum(spec.size for spec in specs(Llama(config)).values())  # noqa: E731
    assert size(LlamaConfig.llama_7b()) == 6_738_415_616
    assert size(LlamaConfig.llama_13b()) == 13_015_864_320
    assert size(LlamaConfig.llama_7b(added_rows=2)) == 6_738_415_616 + 2 * 4096
    assert size(LlamaConfig.llama_7b(tied_head=True)) == 6_738_415_616 - 32000 * 4096


@pytest.mark.parametrize("extras", [dict(adapter_every=2, adapter_dim=5), dict(cross_every=2)])
def test_the_program_does_not_grow_with_depth(extras):
    """Nor does that of decoding; whatever some layers have besides."""

    def lengths(num_layers: int) -> tuple[int, int]:
        config = tiny.llama_config(num_layers=num_layers, **extras)
        shapes = {
            p: jax.ShapeDtypeStruct(s.shape, s.dtype) for p, s in specs(Llama(config)).items()
        }
        x, ones = np.zeros((2, 5, 16), np.float32), np.ones((2, 5), np.int32)

        def read(params):
            model = merge(Llama(config), params)
            seen = model.look(x, ones) if config.cross_every else None
            states, kept = model(x, positions=ones, segments=ones, keep=True, seen=seen)
            cache = Cache.start([kept], position=ones[:, 0], room=1, seen=seen)
            return states, model.decode(x[:, :1], cache)

        reading = jax.make_jaxpr(lambda params: read(params)[0])(shapes)
        return tuple(len(str(j).splitlines()) for j in (reading, jax.make_jaxpr(read)(shapes)))

    assert lengths(24) == lengths(40)


def test_settings_that_do_not_go_together():
    for changes, told in (
        (dict(adapter_every=3, adapter_dim=4), "adapter_every is 3, it must be 0"),
        (dict(adapter_every=1, adapter_dim=4, cross_every=1), "one kind of extra"),
        (dict(adapter_every=1), "adapter_dim 0: both are 0, or neither"),
    ):
        with pytest.raises(ValueError, match=told):
            tiny.llama_config(**changes)
    model = merge(
        Llama(config := tiny.llama_config(cross_every=1)), tiny.random_params(specs(Llama(config)))
    )
    ones = np.ones((1, 2), np.int32)
    with pytest.raises(ValueError, match="cross-attention every 1 layers: give what it looks at"):
        model(np.zeros((1, 2, 16), np.float32), positions=ones, segments=ones)
