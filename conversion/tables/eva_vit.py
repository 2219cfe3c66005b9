"""EVA ViT as its own files and LAVIS name it, and as transformers' BLIP-2 does (MiniGPT-4
reference, section 2; LMEye reference, section 4).

Both keep queries, keys and values in one matrix. `EVA` has no bias for the keys; `HF` has one, zero
in published files.
"""

from conversion.ops import Conv, FusedBiases, FusedKernels, Positions, Squeeze
from conversion.rules import Ignore, Rule, Table
from conversion.tables.torch_layers import linear, norm

_KERNELS = ("attention.q.kernel", "attention.k.kernel", "attention.v.kernel")
_BIASES = ("attention.q.bias", "attention.k.bias", "attention.v.bias")

_EVA_BLOCK = Table(
    rules=(
        *norm("norm1", "attention_norm"),
        Rule("attn.qkv.weight", _KERNELS, FusedKernels()),
        Rule("attn.q_bias", "attention.q.bias"),
        Rule("attn.v_bias", "attention.v.bias"),
        *linear("attn.proj", "attention.o"),
        *norm("norm2", "mlp_norm"),
        *linear("mlp.fc1", "mlp.up"),
        *linear("mlp.fc2", "mlp.down"),
    )
)

EVA = Table(
    rules=(
        Rule("cls_token", "class_embedding", Squeeze(2)),
        Rule("pos_embed", "position", Positions()),
        Rule("patch_embed.proj.weight", "patch.kernel", Conv()),
        Rule("patch_embed.proj.bias", "patch.bias"),
    )
) + _EVA_BLOCK.under(source_prefix="blocks.{layer}.", path_prefix="layers.")

# eva_vit_g.pth and EVA01_g_psz14.pt hold more than is used; a table to add where they are read.
EVA_FILE_REST = Table(
    ignore=(
        Ignore(r"blocks\.39\..*", "the 40th block, which BLIP-2 and Lynx leave out"),
        Ignore(r"(norm|fc_norm|head|lm_head)\..*", "what follows the last block in EVA alone"),
        Ignore(r"mask_token", "EVA's pretraining"),
    )
)

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
