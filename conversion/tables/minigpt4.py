"""MiniGPT-4 and LRV-Instruction V1 (MiniGPT-4 reference, sections 4 and 8; LRV reference,
section 2).

`TRAINED` is what their trainer saves: parameters that train, and all buffers. `FULL` is the state
of the whole model.
"""

from conversion.rules import Ignore, Table
from conversion.tables import blip2
from conversion.tables.llama import LLAMA
from conversion.tables.qformer import CROSS_EVERY
from conversion.tables.torch_layers import linear

PROJECTION = Table(rules=linear("llama_proj", "projection"))

BUFFERS = Table(
    ignore=(
        Ignore(r"Qformer\.bert\.embeddings\.position_ids", "a buffer: 0, 1, 2, ..."),
        Ignore(
            r"llama_model\.model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
            "a buffer: follows from the head's width",
        ),
    )
)

TRAINED = PROJECTION + BUFFERS


def full(cross_every: int = CROSS_EVERY) -> Table:
    return (
        blip2.lavis(cross_every).under(path_prefix="blip2.")
        + LLAMA.under(source_prefix="llama_model.", path_prefix="language.")
        + PROJECTION
    )


FULL = full()

# As `Blip2ForConditionalGeneration` of transformers on a LLaMA has the whole model.
HF = (
    blip2.HF_SEEING.under(path_prefix="blip2.")
    + LLAMA.under(source_prefix="language_model.", path_prefix="language.")
    + Table(rules=linear("language_projection", "projection"))
)
