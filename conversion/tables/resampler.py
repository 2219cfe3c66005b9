"""Lynx's resampler, its "bridge" (Lynx reference, section 1.2): one matrix for keys and values."""

from conversion.ops import FusedKernels
from conversion.rules import Rule, Table
from conversion.tables.torch_layers import linear, norm

_LAYER = Table(
    rules=(
        *norm("0.norm_media", "media_norm"),
        *norm("0.norm_latents", "attention_norm"),
        *linear("0.to_q", "attention.q", bias=False),
        Rule("0.to_kv.weight", ("attention.k.kernel", "attention.v.kernel"), FusedKernels(2)),
        *linear("0.to_out", "attention.o", bias=False),
        *norm("1.0", "mlp_norm"),
        *linear("1.1", "mlp.up", bias=False),
        *linear("1.3", "mlp.down", bias=False),
    )
)

RESAMPLER = Table(rules=(Rule("latents", "latents"), *norm("norm", "norm"))) + _LAYER.under(
    source_prefix="layers.{layer}.", path_prefix="layers."
)
