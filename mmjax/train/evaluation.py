"""Asking a run's model its questions: answers, accuracy by kind."""

import dataclasses
import functools

import jax
import numpy as np

from mmjax.data.batch import Batch
from mmjax.data.features import FeatureStore
from mmjax.data.templates import from_json
from mmjax.evaluate.accuracy import Accuracy, score
from mmjax.evaluate.runner import Prediction, predict
from mmjax.generate.config import GenerationConfig
from mmjax.generate.ending import Ending
from mmjax.generate.generator import Generator
from mmjax.nn.param import Params
from mmjax.parallel.distributed import gather
from mmjax.systems.system import System
from mmjax.train.build import Run
from mmjax.train.tower import Tower


def evaluate(
    run: Run,
    params: Params,
    section: dict,
    features: FeatureStore | None,
    *,
    without_picture: bool = False,
    decoding: GenerationConfig | None = None,
) -> tuple[Accuracy, list[Prediction], list[dict]]:
    """Asks every question of an ``eval`` or ``test`` section: exact match, greedy answers unless
    ``decoding`` says otherwise (of several answers the first counts).

    ``without_picture`` hands the model zeros in place of what it would see: what remains is
    guessing.

    Returns:
      (accuracy, predictions, the records that cannot be used and are not scored).
    """
    size = section["batch_size"]
    pipeline = run.pipeline(
        section["data"], section["template"], batch_size=size, features=features, generating=True
    )
    ending = Ending(run.tokenizer, from_json(section["template"]))
    settings = ending.applied(decoding or greedy(section))
    tower, generator = Tower(run.system, run.mesh, run.config), _generator(run.system, settings)

    def generate(params: Params, batch: Batch) -> jax.Array:
        return generator(params, tower.see(params, batch)).tokens[:, 0]

    batches = pipeline.epoch(size)
    if without_picture:
        batches = ((_blank(batch), examples) for batch, examples in batches)
    predictions = list(
        predict(generate, params, batches, pipeline.source, ending.words, mesh=run.mesh)
    )
    if bad := gather(pipeline.quarantine):
        print(f"{len(bad)} records cannot be used and are not scored, e.g. {bad[0]}")
    return score(predictions), predictions, bad


def greedy(section: dict) -> GenerationConfig:
    """How the questions of a section are answered by default."""
    return GenerationConfig(max_new_tokens=section["max_new_tokens"])


def question_section(config: dict, stage: str) -> dict:
    """How the model is tested as it stands after ``stage``: the last stage has the ``test``
    section, an earlier one is asked the same questions in the way of its own ``eval`` section."""
    if stage == config["stages"][-1]:
        return config["test"]
    section = config[stage]["eval"]
    if isinstance(parts := section["data"]["source"], dict):
        if fixed := [name for name, part in parts.items() if "split" in part]:
            raise ValueError(
                f"{stage}.eval.data.source: {', '.join(fixed)} of the mixture have splits of their "
                "own, so the stage cannot be tested on another one: leave out --stage"
            )
    return section | {"data": section["data"] | {"split": config["test"]["data"]["split"]}}


@functools.cache
def _generator(system: System, config: GenerationConfig) -> Generator:
    return Generator(system, config)  # compiled once per shape, however often it is asked for


def _blank(batch: Batch) -> Batch:
    zeros = {
        name: np.zeros_like(x)
        for name in ("features", "frames")
        if (x := getattr(batch, name)) is not None
    }
    return dataclasses.replace(batch, **zeros)
