"""Questions in, answers out: runs a model over every record of a source, in order."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np

from mmjax.data.batch import Batch
from mmjax.data.example import Example
from mmjax.data.sources import Source
from mmjax.nn.param import Params
from mmjax.parallel.distributed import fetch
from mmjax.parallel.sharding import put_rows

Words = Callable[[np.ndarray], str]  # i32[t] -> the answer


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What the model said (``answer``) to ``example``."""

    example: Example
    answer: str


def predict(
    generate: Callable[[Params, Batch], jax.Array],
    params: Params,
    batches: Iterable[tuple[Batch, list[Example | None]]],
    source: Source,
    words: Words,
    *,
    mesh: jax.sharding.Mesh,
) -> Iterator[Prediction]:
    """A prediction for every example of ``batches`` (`Pipeline.epoch` of ``source``), in order.

    Several processes each read their own rows, and all of them get all predictions. The device
    works on a batch while the next one is prepared.
    """
    waiting = None
    for batch, examples in batches:
        batch = put_rows(batch, mesh)
        is_record = put_rows(np.array([example is not None for example in examples]), mesh)
        made = (generate(params, batch), batch.row_id, is_record)
        if waiting is not None:
            yield from _decode(*waiting, source, words)
        waiting = (made, examples)
    if waiting is not None:
        yield from _decode(*waiting, source, words)


def _decode(
    made: tuple[jax.Array, jax.Array, jax.Array],
    examples: list[Example | None],
    source: Source,
    words: Words,
) -> Iterator[Prediction]:
    tokens, records, is_record = (fetch(x) for x in made)
    if jax.process_count() > 1:  # other processes' rows are among them, perhaps in another order
        order = np.argsort(records, kind="stable")
        tokens, is_record = tokens[order], is_record[order]
        examples = [source[record] for record in records[order].tolist()]
    for row, example, wanted in zip(tokens, examples, is_record, strict=True):
        if wanted:
            yield Prediction(example, words(row))
