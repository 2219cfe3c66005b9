"""From a config to live objects: system, tokenizer, parameters on their devices, pipelines.

Also the way back from a run directory, for evaluation and generation: `load_run`.
"""

import dataclasses
import json
import tempfile
import types
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mmjax.data import templates
from mmjax.data.example import Text
from mmjax.data.features import FeatureStore
from mmjax.data.pipeline import Pipeline
from mmjax.data.sequence import Lengths
from mmjax.data.sources import make_source
from mmjax.data.sources.mixture import Mixture, named
from mmjax.data.tokenizer import Tokenizer, build_word_tokenizer
from mmjax.nn.int8 import SCALE, is_scale
from mmjax.nn.param import Params, ParamSpec, init_params, specs
from mmjax.parallel.mesh import make_mesh
from mmjax.parallel.sharding import num_row_shards, place, resolve, row_share
from mmjax.systems.registry import make_system
from mmjax.systems.system import System
from mmjax.train.checkpoint import read_trainable
from mmjax.train.optim import Selection, TrainRule, select
from mmjax.train.origin import starting_weights
from mmjax.train.workdir import stage_directory


@dataclasses.dataclass(frozen=True)
class Run:
    """A config come alive.

    Attributes:
      config: the resolved config, plain values.
      system: declared, holding no arrays.
      specs: its parameters.
      params: path -> array on the mesh, all of them.
      tokenizer: the language model's.
      mesh: where it runs.
    """

    config: dict
    system: System
    specs: dict[str, ParamSpec]
    params: Params
    tokenizer: Tokenizer
    mesh: Mesh

    def selection(self, stage: str) -> Selection:
        return stage_selection(self.config, stage, self.specs)

    def pipeline(
        self,
        data: dict,
        template: dict,
        *,
        batch_size: int,
        features: FeatureStore | None = None,
        generating: bool = False,
    ) -> Pipeline:
        """The pipeline of a ``data`` section and a template of the config: this process's share
        of each batch."""
        if batch_size % num_row_shards(self.mesh):
            raise ValueError(
                f"a batch of {batch_size} rows from {named(data['source'])} does not divide by "
                f"data x fsdp = {num_row_shards(self.mesh)}: change its batch_size, or the mesh"
            )
        return make_pipeline(
            data,
            template,
            self.tokenizer,
            batch_size=batch_size,
            seed=self.config["seed"],
            features=features,
            max_bad_fraction=self.config.get("max_bad_fraction", 1e-3),
            generating=generating,
            num_workers=self.config.get("num_workers"),
            patience=self.config.get("patience", 60.0),
            host=row_share(self.mesh.devices, jax.process_index()),
        )


def make_pipeline(data: dict, template: dict, tokenizer: Tokenizer, **settings) -> Pipeline:
    """The pipeline of a ``data`` section and a template of the config; ``settings`` are
    `Pipeline`'s."""
    return Pipeline(
        make_source(data["source"], data["split"], **data.get("options", {})),
        templates.from_json(template),
        tokenizer,
        Lengths(**data["lengths"]),
        image_size=data.get("image_size"),
        pictures=data.get("pictures", 1),
        preparation=data.get("preparation", "clip"),
        num_frames=data.get("num_frames", 0),
        frame_choice=data.get("frame_choice"),
        weights=data.get("weights"),
        overlong=data.get("overlong", "drop"),
        pack=data.get("pack", False) and not settings.get("generating", False),
        buckets=[] if settings.get("generating") else _buckets(data),
        **settings,
    )


def _buckets(data: dict) -> list[Lengths]:
    """Those of ``data.buckets``: of each the lengths that differ from ``data.lengths``."""
    return [Lengths(**data["lengths"] | shorter) for shorter in data.get("buckets", ())]


def build(config: dict) -> Run:
    """Everything that ``config`` names, weights loaded or created in their shards."""
    mesh = make_mesh(**config["mesh"])
    system = make_system(config["system"], config["model"])
    wanted = specs(system)
    tokenizer = load_tokenizer(config)
    params = create_params(config, wanted, mesh, system.copies)
    return Run(config, system, wanted, params, tokenizer, mesh)


def create_params(
    config: dict,
    wanted: dict[str, ParamSpec],
    mesh: Mesh,
    copies: Mapping[str, str] = types.MappingProxyType({}),
) -> Params:
    """What ``config.weights`` gives (see `mmjax.train.origin`), the rest created from the seed.

    What trains in some stage is kept in float32, what is declared as int8 so, and the rest in
    ``config.frozen_dtype``. What is not given starts as the copy of a parameter that is
    (``copies``: path -> path), if it has one.
    """
    from conversion.weights import in_int8

    shardings = resolve(wanted, mesh, config["preset"])
    dtypes = held_dtypes(config, wanted)

    copied: Params = {}

    def put(path: str, array) -> jax.Array:
        if wanted[path].dtype == jnp.int8:
            array, scale = in_int8(array)
            at = path.removesuffix("kernel") + SCALE
            copied[at] = place(scale, shardings[at], dtypes[at])
        for copy, original in copies.items():
            if original == path and copy in wanted:
                copied[copy] = place(array, shardings[copy], dtypes[copy])
        return place(array, shardings[path], dtypes[path])

    given = starting_weights(config, wanted, put=put)
    params = copied | given
    rest = {path: spec for path, spec in wanted.items() if path not in params}

    def create() -> Params:
        return {
            path: x.astype(dtypes[path]) for path, x in init_params(rest, config["seed"]).items()
        }

    params |= jax.jit(create, out_shardings={path: shardings[path] for path in rest})()
    return dict(sorted(params.items()))


def held_dtypes(config: dict, wanted: Mapping[str, ParamSpec]) -> dict[str, jnp.dtype]:
    """What every parameter is kept in: float32 if some stage trains it.

    Raises:
      ValueError: a stage trains what is declared as int8.
    """
    trained = {
        path
        for stage in config["stages"]
        for path in stage_selection(config, stage, wanted).trainable
    }
    frozen = jnp.dtype(config["frozen_dtype"])
    if wrong := sorted(path for path in trained if wanted[path].dtype == jnp.int8):
        raise ValueError(
            f"{len(wrong)} kernels of model.int8 are to be trained, e.g. {wrong[0]}: what is kept "
            "in 8 bits is frozen; train LoRA beside it (model.lora), or leave it out of model.int8"
        )

    def kept(path: str) -> jnp.dtype:
        if wanted[path].dtype == jnp.int8:
            return jnp.dtype(jnp.int8)
        return jnp.dtype(jnp.float32) if path in trained or is_scale(path) else frozen

    return {path: kept(path) for path in wanted}


def stage_selection(config: dict, stage: str, wanted: Mapping[str, ParamSpec]) -> Selection:
    """What trains in ``stage``."""
    return select([TrainRule(*rule) for rule in config[stage]["train"]], wanted)


def load_tokenizer(config: dict) -> Tokenizer:
    """A Hugging Face folder or ``asset:NAME``; or ``words``, which makes one of the words of the
    first stage's source."""
    from conversion.weights import locate

    if config["tokenizer"] != "words":
        return Tokenizer.load(locate(config["tokenizer"]))
    data = config[config["stages"][0]]["data"]
    source = make_source(data["source"], data["split"], **data.get("options", {}))
    parts = source.parts.values() if isinstance(source, Mixture) else [source]
    records = (part[i] for part in parts for i in range(min(len(part), 4000)))
    texts = (
        part.text
        for record in records
        for turn in record.turns
        for part in turn.parts
        if isinstance(part, Text)
    )
    with tempfile.TemporaryDirectory() as folder:
        return build_word_tokenizer(texts, folder)


def load_run(workdir: Path, stage: str | None = None) -> tuple[Run, str]:
    """The model of a run directory, as it stands after ``stage`` (default: the last one that has a
    checkpoint); or of an imported checkpoint, whose one stage is called ``imported``.

    Returns:
      (the run, the stage).

    Raises:
      FileNotFoundError: no run, or no checkpoint, is there.
    """
    config, done = read_config(workdir, stage)
    return restore(config, Path(workdir), done), done[-1]


def read_config(workdir: Path, stage: str | None = None) -> tuple[dict, list[str]]:
    """(config, stages up to the one wanted) of what `load_run` loads."""
    file = Path(workdir) / "config.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{workdir} is neither a run directory nor an imported checkpoint: no config.json"
        )
    config = json.loads(file.read_text())
    if "format_version" in config:
        return _as_run(config, Path(workdir)), ["imported"]
    done = [name for name in config["stages"] if stage_directory(workdir, name).is_dir()]
    if stage is not None and stage not in done:
        raise FileNotFoundError(
            f"{workdir} has no checkpoint of stage {stage!r}, only of {done or 'none'}"
        )
    if not done:
        raise FileNotFoundError(f"{workdir} has no checkpoint yet")
    done = done[: done.index(stage) + 1] if stage else done
    config["tokenizer"] = str(Path(workdir) / "tokenizer")
    return config, done


def restore(config: dict, workdir: Path, stages: Sequence[str]) -> Run:
    """The model that ``config`` names, after these stages of the run in ``workdir``."""
    run = build(config)
    for name in stages if stages != ["imported"] else ():
        trained, _ = read_trainable(str(stage_directory(workdir, name)))
        run.params.update(
            {path: place(x, run.params[path].sharding) for path, x in trained.items()}
        )
    return run


def _as_run(header: dict, folder: Path) -> dict:
    """The config of a run without training, on the weights of an imported checkpoint."""
    if "template" not in header or not (folder / "tokenizer").is_dir():
        raise ValueError(
            f"{folder} cannot be asked anything: it has no template or no tokenizer; import a "
            "whole system, from a language model's folder that has its tokenizer"
        )
    system = make_system(header["system"], header["model"])
    pictures = dict(image_size=system.image_size, preparation=system.preparation)
    question = dict(data=dict(source="", split="", **pictures), template=header["template"])
    return dict(
        system=header["system"],
        variant=header["variant"],
        model=header["model"],
        seed=0,
        weights={"all": str(folder)},
        tokenizer=str(folder / "tokenizer"),
        frozen_dtype=header["model"]["dtype"],
        features="step",
        mesh=dict(data=-1, fsdp=1, tensor=1),
        preset="dp",
        stages=["imported"],
        imported=dict(train=[(".*", "freeze", 1.0)]),
        test=question,
    )
