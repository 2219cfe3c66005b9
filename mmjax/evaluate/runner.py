"""Questions in, answers out: runs a model over every record of a source, in order."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np

from mmjax.data.batch import Batch
from mmjax.data.example import Example
from mmjax.data.tokenizer import Tokenizer
from mmjax.nn.param import Params
from mmjax.parallel.sharding import put_rows


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What the model said (``answer``, special tokens left out) to ``example``."""

    example: Example
    answer: str


def predict(
    generate: Callable[[Params, Batch], jax.Array],
    params: Params,
    batches: Iterable[tuple[Batch, list[Example | None]]],
    tokenizer: Tokenizer,
    *,
    mesh: jax.sharding.Mesh,
) -> Iterator[Prediction]:
    """A prediction for every example of ``batches`` (`Pipeline.epoch`), in order.

    The device works on a batch while the next one is prepared.
    """
    waiting = None
    for batch, examples in batches:
        tokens = generate(params, put_rows(batch, mesh))
        if waiting is not None:
            yield from _decode(*waiting, tokenizer)
        waiting = (tokens, examples)
    if waiting is not None:
        yield from _decode(*waiting, tokenizer)


def _decode(
    tokens: jax.Array, examples: list[Example | None], tokenizer: Tokenizer
) -> Iterator[Prediction]:
    for row, example in zip(np.asarray(tokens), examples, strict=True):
        if example is not None:
            yield Prediction(example, tokenizer.decode(row).strip())
