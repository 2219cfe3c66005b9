"""mPLUG-Owl, and LRV-Instruction V2 (mPLUG-Owl reference, section 5).

Its tower is CLIP's under other names, queries, keys and values in one matrix head by head: how many
heads there are does not show in shapes, so tables of it are made for a number.
"""

from conversion.ops import Conv, HeadwiseBiases, HeadwiseKernels, Squeeze
from conversion.rules import Rule, Table
from conversion.tables.llama import LLAMA
from conversion.tables.torch_layers import linear, norm

_QKV = ("attention.q", "attention.k", "attention.v")


def tower(num_heads: int) -> Table:
    fused = "self_attn.query_key_value"
    kernels, biases = (tuple(f"{path}.{kind}" for path in _QKV) for kind in ("kernel", "bias"))
    block = Table(
        rules=(
            *norm("input_layernorm", "attention_norm"),
            Rule(f"{fused}.weight", kernels, HeadwiseKernels(num_heads)),
            Rule(f"{fused}.bias", biases, HeadwiseBiases(num_heads)),
            *linear("self_attn.dense", "attention.o"),
            *norm("post_attention_layernorm", "mlp_norm"),
            *linear("mlp.fc1", "mlp.up"),
            *linear("mlp.fc2", "mlp.down"),
        )
    )
    stem = Table(
        rules=(
            Rule("embeddings.patch_embed.weight", "patch.kernel", Conv()),
            Rule("embeddings.cls_token", "class_embedding", Squeeze(2)),
            Rule("embeddings.position_embedding", "position", Squeeze()),
            *norm("embeddings.pre_layernorm", "pre_norm"),
            *norm("post_layernorm", "post_norm"),
        )
    )
    layers = block.under(source_prefix="encoder.layers.{layer}.", path_prefix="layers.")
    return (stem + layers).under(source_prefix="vision_model.")


_LOOK = Table(
    rules=(
        *norm("norm1", "attention_norm"),
        *norm("normk", "media_norm"),
        *linear("attention.query", "attention.q"),
        *linear("attention.key", "attention.k"),
        *linear("attention.value", "attention.v"),
        *linear("output.out_proj", "attention.o"),
        *norm("output.norm2", "mlp_norm"),
        *linear("output.mlp.w1", "mlp.gate"),
        *linear("output.mlp.w3", "mlp.up"),
        *norm("output.mlp.ffn_ln", "mlp.norm"),
        *linear("output.mlp.w2", "mlp.down"),
    )
)

ABSTRACTOR = Table(
    rules=(
        Rule("query_tokens", "queries", Squeeze()),
        *linear("abstractor.visual_fc", "projection"),
        Rule("abstractor.vit_eos", "end", Squeeze(2)),
    )
) + _LOOK.under(
    source_prefix="abstractor.encoder.layers.{layer}.crossattention.", path_prefix="layers."
)


def full(num_heads: int) -> Table:
    """``num_heads``: the tower's."""
    return (
        tower(num_heads).under(path_prefix="vision.")
        + ABSTRACTOR.under(path_prefix="abstractor.")
        + LLAMA.under(source_prefix="language_model.", path_prefix="language.")
    )
