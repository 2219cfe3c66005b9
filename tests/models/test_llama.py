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
