"""Asking a run's model its questions: stored picture features, greedy answers, accuracy by kind."""

import dataclasses
import functools
import itertools
import shutil
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from mmjax.data.batch import Batch
from mmjax.data.features import FeatureStore, FeatureWriter, compute_features, media_of
from mmjax.data.images import clip_preprocess, load_image
from mmjax.data.sources import make_source
from mmjax.evaluate.accuracy import Accuracy, score
from mmjax.evaluate.runner import Prediction, predict
from mmjax.generate.greedy import GreedySettings, make_greedy
from mmjax.nn.param import Params, specs
from mmjax.parallel.mesh import make_mesh
from mmjax.parallel.sharding import resolve
from mmjax.systems.registry import make_system
from mmjax.systems.system import System
from mmjax.train.build import Run, weight_sources
from mmjax.train.optim import TrainRule, select
from mmjax.train.report import params_hash
from mmjax.train.tower import Tower


def picture_features(run: Run, workdir: Path) -> FeatureStore | None:
    """The frozen tower's features of the pictures in the config's sources.

    As ``config.features`` says: ``step`` gives None, the tower then runs before each step; ``once``
    computes them at the first start and keeps them in ``workdir``; a folder is one that was made
    before (`prepare_features`, or ``python -m conversion features``).

    Raises:
      ValueError: the tower is to be trained, the sections ask for different picture sizes, or the
        features come from other weights or other preparation.
      FileNotFoundError: there is nothing in the folder.
    """
    where = run.config["features"]
    if where == "step":
        return None
    tower = Tower(run.system, run.mesh, run.config)
    folder = Path(workdir) / "features" if where == "once" else Path(where)
    if where == "once" and not folder.exists():
        _compute(tower, run.params, run.config, folder)
    store = FeatureStore(folder)
    store.check(_fingerprint(tower, run.params, run.config))
    shape = tower.row_shape(run.params, _image_size(run.config))
    if store.shape != shape:
        raise ValueError(
            f"a row of the features in {folder} has shape {store.shape}, the tower gives {shape}: "
            "they come from another tower"
        )
    if store.fingerprint is None:
        print(f"{folder} was imported: that its features are those of this tower is not checked")
    elif where != "once" and store.made_by != (here := _made_by(tower)):
        print(
            f"The features in {folder} were made with {store.made_by}, here it is {here}: "
            "they equal those of this tower up to rounding"
        )
    return store


def prepare_features(config: dict, folder: Path) -> FeatureStore:
    """Computes the features of all pictures in the sources of ``config`` and stores them in
    ``folder``, which must not exist; loads nothing but the tower."""
    mesh = make_mesh(**config["mesh"])
    tower = Tower(make_system(config["system"], config["model"]), mesh, config)
    with jax.set_mesh(mesh):
        _compute(tower, _load_tower(tower, config), config, Path(folder))
    return FeatureStore(folder)


def _load_tower(tower: Tower, config: dict) -> Params:
    """As `create_params` would, but the tower alone."""
    from conversion.engine import load_weights

    everything = specs(tower.system)
    wanted = {path: everything[path] for path in tower.paths}
    shardings = resolve(wanted, tower.mesh, config["preset"])
    dtype = jnp.dtype(config["frozen_dtype"])

    def put(path: str, array) -> jax.Array | None:
        return jax.device_put(array.astype(dtype), shardings[path]) if path in wanted else None

    parts = {
        module: where
        for module, where in weight_sources(config).items()
        if any(path.startswith(f"{module}." if module else "") for path in wanted)
    }
    loaded = load_weights(parts, everything, put=put)
    if missing := sorted(wanted.keys() - loaded.keys()):
        raise ValueError(
            f"config.weights names no source for {len(missing)} parameters of the tower, "
            f"e.g. {missing[0]}: features of random weights are of no use"
        )
    return {path: loaded[path] for path in wanted}


def _compute(tower: Tower, params: Params, config: dict, folder: Path) -> None:
    everything = specs(tower.system)
    rules = [[TrainRule(*rule) for rule in config[stage]["train"]] for stage in config["stages"]]
    trained = {path for each in rules for path in select(each, everything).trainable}
    if moving := sorted(trained & set(tower.paths)):
        raise ValueError(
            f"stored features need a frozen tower, but {moving} train; set config.features = 'step'"
        )
    if not tower.paths:
        raise ValueError(
            f"{config['system']} has no frozen tower to store features of; "
            "set config.features = 'step'"
        )
    size = _image_size(config)
    sources = [
        make_source(data["source"], data["split"], **data.get("options", {}))
        for data in data_sections(config).values()
    ]
    # Every process runs the tower, which may be spread over all of them; the first one writes.
    is_writer = jax.process_index() == 0
    target = folder if is_writer else Path(tempfile.mkdtemp()) / "features"
    writer = FeatureWriter(
        target, fingerprint=_fingerprint(tower, params, config), made_by=_made_by(tower)
    )
    print(f"Computing the frozen tower's features of all pictures, once: {folder}", flush=True)
    with writer:
        compute_features(
            itertools.chain.from_iterable(media_of(source) for source in sources),
            lambda item: clip_preprocess(load_image(item), size),
            lambda frames: tower.features(params, frames),
            writer,
            batch_size=tower.batch_size,
        )
    if not is_writer:
        shutil.rmtree(target.parent)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("features are written")


def _fingerprint(tower: Tower, params: Params, config: dict) -> dict[str, str]:
    """All that a picture's features depend on, but for rounding."""
    size = _image_size(config)
    return {
        "weights": params_hash({path: params[path] for path in tower.paths}),
        "computation": str(tower.system.dtype),
        "pictures": f"CLIP's preparation, {size}x{size}",
    }


def _made_by(tower: Tower) -> dict[str, str | int]:
    """What decides about the last bits."""
    device = jax.devices()[0].device_kind
    return dict(
        jax=jax.__version__,
        device=device,
        devices=tower.mesh.size,
        pictures_per_call=tower.batch_size,
    )


def _image_size(config: dict) -> int:
    sizes = {name: data["image_size"] for name, data in data_sections(config).items()}
    if len(set(sizes.values())) != 1:
        raise ValueError(
            f"stored features need one image_size in all data sections, they have {sizes}"
        )
    return next(iter(sizes.values()))


def data_sections(config: dict) -> dict[str, dict]:
    """Name -> each ``data`` section of the config: stages, their ``eval``, ``test``."""
    sections = {name: config[name] for name in config["stages"]}
    sections |= {f"{name}.eval": config[name]["eval"] for name in config["stages"]}
    sections["test"] = config["test"]
    return {f"{name}.data": section["data"] for name, section in sections.items() if section}


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
    tower, greedy = Tower(run.system, run.mesh, run.config), _generate(run.system, settings)

    def generate(params: Params, batch: Batch) -> jax.Array:
        return greedy(params, tower.see(params, batch))

    batches = pipeline.epoch(size)
    if without_picture:
        batches = ((_blank(batch), examples) for batch, examples in batches)
    predictions = list(predict(generate, params, batches, tokenizer, mesh=run.mesh))
    if pipeline.quarantine:
        print(
            f"{len(pipeline.quarantine)} records cannot be used and are not scored, "
            f"e.g. {pipeline.quarantine[0]}"
        )
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
