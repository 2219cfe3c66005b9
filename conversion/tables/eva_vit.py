"""EVA ViT as its own files and LAVIS name it, as Lynx does, and as transformers' BLIP-2 (MiniGPT-4
reference, section 2; Lynx reference, section 1.1; LMEye reference, section 4).

`EVA` and `HF` keep queries, keys and values in one matrix, `LYNX` apart. `HF` has a bias for the
keys, zero in published files; the others have none.
"""

from conversion.ops import Conv, FusedBiases, FusedKernels, Positions, Squeeze
from conversion.rules import Ignore, Rule, Table
from conversion.tables.torch_layers import linear, norm

_KERNELS = ("attention.q.kernel", "attention.k.kernel", "attention.v.kernel")
_BIASES = ("attention.q.bias", "attention.k.bias", "attention.v.bias")

_INDEX = "a buffer: follows from the grid"

# The last three: BEiT's options, which published towers leave off.
_BLOCK = Table(
    rules=(
        *norm("norm1", "attention_norm"),
        *linear("attn.proj", "attention.o"),
        *norm("norm2", "mlp_norm"),
        *linear("mlp.fc1", "mlp.up"),
        *linear("mlp.fc2", "mlp.down"),
        Rule("attn.relative_position_bias_table", "relative.table"),
        Rule("gamma_1", "attention_scale"),
        Rule("gamma_2", "mlp_scale"),
    )
)

_EVA_BLOCK = _BLOCK + Table(
    rules=(
        Rule("attn.qkv.weight", _KERNELS, FusedKernels()),
        Rule("attn.q_bias", "attention.q.bias"),
        Rule("attn.v_bias", "attention.v.bias"),
    )
)

_LYNX_BLOCK = _BLOCK + Table(
    rules=(
        *linear("attn.q_proj", "attention.q"),
        *linear("attn.k_proj", "attention.k", bias=False),
        *linear("attn.v_proj", "attention.v"),
    )
)

_STEM = Table(
    rules=(
        Rule("cls_token", "class_embedding", Squeeze(2)),
        Rule("pos_embed", "position", Positions()),
        Rule("patch_embed.proj.weight", "patch.kernel", Conv()),
        Rule("patch_embed.proj.bias", "patch.bias"),
        Rule("rel_pos_bias.relative_position_bias_table", "relative.table"),
    ),
    ignore=(Ignore(r"(rel_pos_bias|blocks\.\d+\.attn)\.relative_position_index", _INDEX),),
)

EVA = _STEM + _EVA_BLOCK.under(source_prefix="blocks.{layer}.", path_prefix="layers.")
LYNX = _STEM + _LYNX_BLOCK.under(source_prefix="blocks.{layer}.", path_prefix="layers.")


def file_rest(num_layers: int = 39) -> Table:
    """eva_vit_g.pth and EVA01_g_psz14.pt hold more than is used; a table to add where they are read
    for a tower of ``num_layers`` blocks."""
    last = "EVA's last block, which BLIP-2 and Lynx leave out (the 40th of ViT-g)"
    return Table(
        ignore=(
            Ignore(rf"blocks\.{num_layers}\..*", last),
            Ignore(r"(norm|fc_norm|head|lm_head)\..*", "what follows the last block in EVA alone"),
            Ignore(r"mask_token", "EVA's pretraining"),
        )
    )


EVA_FILE_REST = file_rest()

_HF_BLOCK = Table(
    rules=(
        *norm("layer_norm1", "attention_norm"),
        Rule("self_attn.qkv.weight", _KERNELS, FusedKernels()),
        Rule("self_attn.qkv.bias", _BIASES, FusedBiases()),
        *linear("self_attn.projection", "attention.o"),
        *norm("layer_norm2", "mlp_norm"),
        *linear("mlp.fc1", "mlp.up"),
        *linear("mlp.fc2", "mlp.down"),
    )
)

# Without `post_layernorm`, which is BLIP-2's norm behind the tower.
HF = Table(
    rules=(
        Rule("embeddings.class_embedding", "class_embedding", Squeeze(2)),
        Rule("embeddings.position_embedding", "position", Positions()),
        Rule("embeddings.patch_embedding.weight", "patch.kernel", Conv()),
        Rule("embeddings.patch_embedding.bias", "patch.bias"),
    )
) + _HF_BLOCK.under(source_prefix="encoder.layers.{layer}.", path_prefix="layers.")
