"""Cheetor with VPG-C (Cheetor reference, section 9).

`TRAINED` is what no other checkpoint has: seven tensors. `SAVED` is what LAVIS's trainer makes of
them: it also saves all buffers, and the Q-Former, frozen though it is, under its second name in the
language model. `FULL` is the state of the whole model, with the Q-Former under one name or both.
"""

from conversion.ops import Squeeze
from conversion.rules import Ignore, Rule, Table
from conversion.tables import minigpt4, qformer
from conversion.tables.torch_layers import linear

_INSIDE = "llama_model.model."

VPGC = Table(
    rules=(
        Rule(f"{_INSIDE}query_tokens", "vpgc.queries", Squeeze()),
        *linear(f"{_INSIDE}qformer_proj", "vpgc.query_projection"),
        *linear(f"{_INSIDE}llm_proj", "vpgc.language_projection"),
    )
)


def _second_name(cross_every: int = qformer.CROSS_EVERY) -> Table:
    return qformer.lavis(cross_every).under(
        source_prefix=f"{_INSIDE}Qformer.", path_prefix="blip2.qformer."
    )


TRAINED = (
    VPGC
    + minigpt4.TRAINED
    + Table(
        ignore=(
            Ignore(
                r"llama_model\.model\.Qformer\.bert\.embeddings\.position_ids",
                "a buffer: 0, 1, 2, ...",
            ),
        )
    )
)

SAVED = TRAINED + _second_name()


def full(cross_every: int = qformer.CROSS_EVERY) -> Table:
    return minigpt4.full(cross_every) + _second_name(cross_every) + VPGC


FULL = full()
