"""Visual-LLaMA (Visual-LLaMA reference, sections 1.2, 2 and 7): `FULL` is what stage 1 saves, all
but CLIP, with either connector. Stage 2 saves `CONNECTOR` and LoRA (`conversion.lora`)."""

from conversion.ops import FusedKernels, Transpose
from conversion.rules import Rule, Table
from conversion.tables.llama import LLAMA
from conversion.tables.torch_layers import linear, norm

_KEYS_AND_VALUES = ("attention.k.kernel", "attention.v.kernel")
_BLOCK = Table(
    rules=(
        *norm("norm1", "attention_norm"),
        Rule("attn.to_queries.weight", "attention.q.kernel", Transpose()),
        Rule("attn.to_keys_values.weight", _KEYS_AND_VALUES, FusedKernels(2)),
        *linear("attn.project", "attention.o"),
        *norm("norm2", "mlp_norm"),
        *linear("mlp.fc1", "mlp.up"),
        *linear("mlp.fc2", "mlp.down"),
    )
)
_MLP = linear("model.0", "hidden") + linear("model.2", "out")
_TRANSFORMER = (*linear("linear", "linear"), Rule("prefix_const", "prefix"))

CONNECTOR = (
    Table(rules=_MLP + _TRANSFORMER)
    + _BLOCK.under(source_prefix="transformer.layers.{layer}.", path_prefix="layers.")
).under(source_prefix="image_project.", path_prefix="connector.")

FULL = LLAMA.under(source_prefix="llm.", path_prefix="language.") + CONNECTOR
