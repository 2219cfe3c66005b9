"""The frozen tower's features of all pictures that a config uses: computed once, kept on disk."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.data.features import FeatureStore, FeatureWriter, compute_features, media_of
from mmjax.data.images import prepare
from mmjax.data.sources import make_source
from mmjax.data.video import prepare_video
from mmjax.nn.param import Params, specs
from mmjax.parallel.distributed import first_says, story_folder, wait_for_all
from mmjax.parallel.mesh import make_mesh
from mmjax.parallel.sharding import place, resolve
from mmjax.systems.registry import make_system
from mmjax.train.build import Run
from mmjax.train.config import data_sections
from mmjax.train.interrupt import Interruption
from mmjax.train.optim import TrainRule, select
from mmjax.train.origin import starting_weights
from mmjax.train.report import params_hash
from mmjax.train.tower import Tower


def picture_features(
    run: Run, workdir: Path, interruption: Interruption | None = None
) -> FeatureStore | None:
    """The frozen tower's features of the pictures in the config's sources.

    As ``config.features`` says: ``step`` gives None, the tower then runs before each step; ``once``
    computes them at the first start and keeps them in ``workdir``; a folder is one that was made
    before (`prepare_features`, or ``python -m conversion features``).

    Raises:
      ValueError: the tower is to be trained, the sections ask for different pictures, or the
        features come from other weights or other preparation.
      FileNotFoundError: there is nothing in the folder.
      Stopped: while they were computed, there was an ``interruption``; what there is of them is
        deleted.
    """
    where = run.config["features"]
    if where == "step":
        return None
    tower = Tower(run.system, run.mesh, run.config)
    folder = Path(workdir) / "features" if where == "once" else Path(where)
    if where == "once" and first_says(not folder.exists()):
        _compute(tower, run.params, run.config, folder, interruption)
    store = FeatureStore(folder)
    store.check(_fingerprint(tower, run.params, run.config))
    shape = tower.row_shape(run.params, _pictures(run.config)[0])
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
    everything = specs(tower.system)
    wanted = {path: everything[path] for path in tower.paths}
    shardings = resolve(wanted, tower.mesh, config["preset"])
    dtype = jnp.dtype(config["frozen_dtype"])

    def put(path: str, array) -> jax.Array | None:
        return place(array, shardings[path], dtype) if path in wanted else None

    loaded = starting_weights(config, everything, put=put, only=wanted)
    if missing := sorted(wanted.keys() - loaded.keys()):
        raise ValueError(
            f"config.weights names no source for {len(missing)} parameters of the tower, "
            f"e.g. {missing[0]}: features of random weights are of no use"
        )
    return {path: loaded[path] for path in wanted}


def _compute(
    tower: Tower,
    params: Params,
    config: dict,
    folder: Path,
    interruption: Interruption | None = None,
) -> None:
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
    size, preparation, num_frames = _pictures(config)
    sources = [
        make_source(data["source"], data["split"], **data.get("options", {}))
        for data in _data(config).values()
    ]

    def features(frames: np.ndarray) -> np.ndarray:
        if interruption is not None:
            interruption.stop_if_requested()
        return tower.features(params, frames)

    # Every process runs the tower, which may be spread over all of them; the first one writes.
    print(f"Computing the frozen tower's features of all pictures, once: {folder}", flush=True)
    fingerprint, made_by = _fingerprint(tower, params, config), _made_by(tower)
    with (
        story_folder(folder.parent) as story,
        FeatureWriter(story / folder.name, fingerprint=fingerprint, made_by=made_by) as writer,
    ):
        compute_features(
            itertools.chain.from_iterable(media_of(source) for source in sources),
            lambda item: (
                prepare_video(item, size, preparation, count=num_frames)
                if item.is_video
                else prepare(item, size, preparation)
            ),
            features,
            writer,
            batch_size=tower.batch_size,
            num_frames=num_frames,
        )
    wait_for_all("the features")


def _fingerprint(tower: Tower, params: Params, config: dict) -> dict[str, str]:
    """All that a picture's features depend on, but for rounding."""
    size, preparation, num_frames = _pictures(config)
    said = {"clip": "CLIP's preparation", "center": "center crop", "squash": "squashed"}
    videos = {"videos": f"{num_frames} frames"} if num_frames else {}
    return videos | {
        "weights": params_hash({path: params[path] for path in tower.paths}),
        "computation": str(tower.system.dtype),
        "pictures": f"{said[preparation]}, {size}x{size}",
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


def _pictures(config: dict) -> tuple[int, str, int]:
    """(size, preparation, frames of a video), which must be the same ones in all sections."""
    found = {
        name: (data["image_size"], data.get("preparation", "clip"), data.get("num_frames", 0))
        for name, data in _data(config).items()
    }
    if len(set(found.values())) != 1:
        raise ValueError(
            "stored features need one image_size, preparation and num_frames in all data sections, "
            f"they have {found}; set them alike, or config.features = 'step'"
        )
    return next(iter(found.values()))


def _data(config: dict) -> dict[str, dict]:
    return {name: section["data"] for name, section in data_sections(config).items()}
