"""Asking a run's model its questions: stored picture features, greedy answers, accuracy by kind."""

import dataclasses
import functools
import re
from pathlib import Path

import jax
import numpy as np

from mmjax.data.batch import Batch
from mmjax.data.features import FeatureStore, media_of
from mmjax.data.images import clip_preprocess, load_image
from mmjax.data.sources import make_source
from mmjax.evaluate.accuracy import Accuracy, score
from mmjax.evaluate.runner import Prediction, predict
from mmjax.generate.greedy import GreedySettings, make_greedy
from mmjax.nn.param import Params, merge
from mmjax.parallel.distributed import fetch, first_says, gather, is_first, wait_for_all
from mmjax.parallel.sharding import place, rows_sharding
from mmjax.systems.system import System
from mmjax.train.build import Run
from mmjax.train.report import params_hash


def picture_features(run: Run, file: Path) -> FeatureStore | None:
    """The frozen tower's features of every picture in the config's sources, computed once, kept in
    ``file``.

    None where ``config.features`` is ``step``: the tower then runs in each step.

    Raises:
      ValueError: the tower is to be trained, or the sections ask for different picture sizes.
    """
    if run.config["features"] == "step":
        return None
    trained = {path for stage in run.config["stages"] for path in run.selection(stage).trainable}
    if moving := sorted(path for path in trained if re.match(run.system.tower, path)):
        raise ValueError(
            f"features = 'once' needs a frozen tower, but {moving} train; "
            "set config.features = 'step'"
        )
    fingerprint = params_hash(
        {p: x for p, x in run.params.items() if re.match(run.system.tower, p)}
    )
    if first_says(file.exists()):
        return FeatureStore.load(file, fingerprint)
    sections = _data_sections(run.config)
    sizes = {data["image_size"] for data in sections}
    if len(sizes) != 1:
        raise ValueError(
            f"features = 'once' needs one image_size in all data sections, they have {sizes}"
        )
    (size,), media = sizes, {}
    for data in sections:
        source = make_source(data["source"], data["split"], **data.get("options", {}))
        media |= {item.key: item for item in media_of(source)}

    @jax.jit
    def tower(params: Params, frames: jax.Array) -> jax.Array:
        return merge(run.system, params).media_features(frames)

    print(f"Computing the frozen tower's features of {len(media)} pictures, once")
    store = FeatureStore.compute(
        media.values(),
        lambda item: clip_preprocess(load_image(item), size),
        lambda frames: fetch(tower(run.params, place(frames, rows_sharding(run.mesh)))),
        batch_size=64,
        fingerprint=fingerprint,
    )
    if is_first():
        store.save(file)
    wait_for_all("the features")
    return store


def _data_sections(config: dict) -> list[dict]:
    stages = [config[stage] for stage in config["stages"]]
    asked = [stage["eval"] for stage in stages] + [config["test"]]
    return [stage["data"] for stage in stages] + [section["data"] for section in asked if section]


def evaluate(
    run: Run,
    params: Params,
    section: dict,
    features: FeatureStore | None,
    *,
    without_picture: bool = False,
) -> tuple[Accuracy, list[Prediction]]:
    """Asks every question of an ``eval`` or ``test`` section: greedy answers, exact match.

    ``without_picture`` hands the model zeros in place of what it would see: what remains is
      guessing.
    """
    size = section["batch_size"]
    pipeline = run.pipeline(
        section["data"], section["template"], batch_size=size, features=features, generating=True
    )
    tokenizer = run.tokenizer
    settings = GreedySettings(section["max_new_tokens"], (tokenizer.eos_id,), tokenizer.pad_id)
    generate = _generate(run.system, settings)
    batches = pipeline.epoch(size)
    if without_picture:
        batches = ((_blank(batch), examples) for batch, examples in batches)
    predictions = list(
        predict(generate, params, batches, pipeline.source, tokenizer, mesh=run.mesh)
    )
    if bad := gather(pipeline.quarantine):
        print(f"{len(bad)} records cannot be used and are not scored, e.g. {bad[0]}")
    return score(predictions), predictions


def question_section(config: dict, stage: str) -> dict:
    """How the model is tested as it stands after ``stage``: the last stage has the ``test``
    section, an earlier one is asked the same questions in the way of its own ``eval`` section."""
    if stage == config["stages"][-1]:
        return config["test"]
    section = config[stage]["eval"]
    return section | {"data": section["data"] | {"split": config["test"]["data"]["split"]}}


@functools.cache
def _generate(system: System, settings: GreedySettings):
    return make_greedy(system, settings)  # compiled once per shape, however often it is asked for


def _blank(batch: Batch) -> Batch:
    zeros = {
        name: np.zeros_like(x)
        for name in ("features", "frames")
        if (x := getattr(batch, name)) is not None
    }
    return dataclasses.replace(batch, **zeros)
