"""Q-Former as LAVIS names it (below ``Qformer.``), and as transformers does (below ``qformer.``).

The text branch is read where the model has one (MiniGPT-4 reference, section 3).
"""

import dataclasses

from conversion.rules import Ignore, Rule, Table, Tie
from conversion.tables.torch_layers import linear, norm

CROSS_EVERY = 2  # in every published Q-Former


def _attention(inner: str) -> Table:
    return Table(
        rules=(
            *linear(f"{inner}.query", "attention.q"),
            *linear(f"{inner}.key", "attention.k"),
            *linear(f"{inner}.value", "attention.v"),
            *linear("output.dense", "attention.o"),
        )
    )


def _feed_forward(suffix: str, path: str) -> tuple[Rule, ...]:
    return (
        *linear(f"intermediate{suffix}.dense", f"{path}.mlp.up"),
        *linear(f"output{suffix}.dense", f"{path}.mlp.down"),
        *norm(f"output{suffix}.LayerNorm", f"{path}.norm"),
    )


def _encoder(inner: str, cross_every: int) -> Table:
    """``inner``: what the projections of an attention are below."""
    attention = _attention(inner)
    layer = (
        attention.under(source_prefix="attention.")
        + Table(rules=norm("attention.output.LayerNorm", "attention_norm"))
        + Table(rules=(*_feed_forward("_query", "query"), *_feed_forward("", "text")))
    ).under(path_prefix="layers.")
    cross = (attention + Table(rules=norm("output.LayerNorm", "norm"))).under(
        source_prefix="crossattention.", path_prefix="cross."
    )
    every = tuple(dataclasses.replace(rule, every=cross_every) for rule in cross.rules)
    return (layer + Table(rules=every)).under(source_prefix="encoder.layer.{layer}.")


def lavis(cross_every: int = CROSS_EVERY) -> Table:
    bert = (
        Table(
            rules=(
                Rule("embeddings.word_embeddings.weight", "embedding.table"),
                Rule("embeddings.position_embeddings.weight", "position"),
                *norm("embeddings.LayerNorm", "embedding_norm"),
            ),
            ignore=(Ignore(r"embeddings\.position_ids", "a buffer: 0, 1, 2, ..."),),
        )
        + _encoder("self", cross_every)
    ).under(source_prefix="bert.")
    head = Table(
        rules=(
            *linear("transform.dense", "dense"),
            *norm("transform.LayerNorm", "norm"),
            Rule("bias", "bias"),
        ),
        ties=(Tie("decoder.bias", equals="bias"),),
    ).under(source_prefix="cls.predictions.", path_prefix="head.")
    words = Tie("cls.predictions.decoder.weight", equals="bert.embeddings.word_embeddings.weight")
    return bert + head + Table(ties=(words,))


def hf(cross_every: int = CROSS_EVERY) -> Table:
    return Table(rules=norm("layernorm", "embedding_norm")) + _encoder("attention", cross_every)


LAVIS, HF = lavis(), hf()

# transformers keeps the text branch's embeddings beside the Q-Former.
HF_TEXT = Table(
    rules=(
        Rule("embeddings.word_embeddings.weight", "embedding.table"),
        Rule("embeddings.position_embeddings.weight", "position"),
    ),
    ignore=(Ignore(r"embeddings\.position_ids", "a buffer: 0, 1, 2, ..."),),
)
