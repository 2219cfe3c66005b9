"""Training, top to bottom: build, load, then stage by stage (restore; step, log, evaluate, save),
then the final test.

A run directory tells the story: ``config.json``, ``tokenizer/``, ``metrics.jsonl``,
  ``checkpoints/<stage>/``,
``features/``, ``curves.png``, ``samples.html``, ``bad_samples.jsonl``. The same command started
again goes on where
it stopped: the data position is the step, so nothing else needs to be remembered.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np

from mmjax.data.batch import Batch
from mmjax.data.features import FeatureStore
from mmjax.data.pipeline import Pipeline, describe
from mmjax.evaluate.accuracy import is_right
from mmjax.evaluate.runner import Prediction
from mmjax.nn.param import Params
from mmjax.parallel.sharding import put_rows
from mmjax.train.build import Run, build, stage_directory
from mmjax.train.check import open_sources
from mmjax.train.checkpoint import Checkpointer, read_trainable
from mmjax.train.evaluation import evaluate
from mmjax.train.features import picture_features
from mmjax.train.metrics import Meter, MetricsWriter, Progress
from mmjax.train.optim import OptimizerConfig, Schedule, Selection, learning_rate, make_optimizer
from mmjax.train.report import (
    accuracy_table,
    note_bad,
    parameter_table,
    params_hash,
    picture_of,
    plot_curves,
    tree_bytes,
    write_samples,
)
from mmjax.train.state import TrainState
from mmjax.train.step import Step, jit_step, make_step
from mmjax.train.tower import Tower


def train(config: dict, workdir: Path) -> dict[str, float]:
    """Runs all stages of ``config`` in ``workdir``.

    Args:
      config: resolved and plain, see ``configs/``.
      workdir: new, or of a run with the same config.

    Returns:
      The final test's metrics; empty where the config has no ``test`` section.

    Raises:
      ValueError: ``workdir`` belongs to a run with another config, the config does not fit
        together, a source has bad records, or too many pictures or rows cannot be used.
      FloatingPointError: too many steps in a row had a loss or gradients that were not finite.
    """
    workdir = Path(workdir).resolve()
    open_sources(config)
    _claim(workdir, config)
    run = build(config)
    run.tokenizer.save(workdir / "tokenizer")
    writer = MetricsWriter(workdir)
    with jax.set_mesh(run.mesh):
        features = picture_features(run, workdir)
        params = run.params
        for index, name in enumerate(config["stages"]):
            directory = str(stage_directory(workdir, name))
            stage = _Stage(run, name, index, config[name], directory, writer, features)
            params = _train_stage(stage, params)
        final = _test(run, params, workdir, writer, features) if config.get("test") else {}
    plot_curves(workdir / "metrics.jsonl", workdir / "curves.png")
    print(
        f"\nThe run is in {workdir}: curves.png, metrics.jsonl"
        + (", samples.html" if final else "")
    )
    if final:
        print(
            "Ask it something:\n  python scripts/generate.py "
            f"--run {workdir} --image FILE --question '...'"
        )
    return final


@dataclasses.dataclass(frozen=True)
class _Stage:
    """One stage of the run.

    Attributes:
      index: its place among the stages.
      config: its section of the config.
      directory: of its checkpoints.
      features: stored picture features, or None.
    """

    run: Run
    name: str
    index: int
    config: dict
    directory: str
    writer: MetricsWriter
    features: FeatureStore | None

    @property
    def workdir(self) -> Path:
        return Path(self.directory).parents[1]

    def is_due(self, every: str, step: int) -> bool:
        return bool(self.config[every]) and step % self.config[every] == 0


def _train_stage(stage: _Stage, params: Params) -> Params:
    """Trains ``stage`` from ``params``, or what is left of it; returns all parameters as they are
    after it."""
    run, steps = stage.run, stage.config["steps"]
    with contextlib.closing(
        Checkpointer(stage.directory, stage.config["keep_checkpoints"])
    ) as checkpointer:
        first = checkpointer.latest_step() or 0
        if first == steps:
            print(f"\nStage {stage.name} is done: {steps} steps, in {stage.directory}")
            trained, _ = read_trainable(stage.directory, steps)
            return params | {
                path: jax.device_put(x, params[path].sharding) for path, x in trained.items()
            }
        selection = run.selection(stage.name)
        frozen = {path: params[path] for path in selection.frozen}
        settings = OptimizerConfig(**stage.config["optimizer"])
        optimizer = make_optimizer(settings, selection.multiplier, steps)
        state = _start({path: params[path] for path in selection.trainable}, optimizer, run.mesh)
        step_fn = make_step(
            run.system,
            optimizer,
            seed=run.config["seed"],
            accumulation=stage.config["accumulation"],
        )
        step_fn = jit_step(step_fn, state, frozen, run.mesh)
        pipeline = run.pipeline(
            stage.config["data"],
            stage.config["template"],
            batch_size=stage.config["batch_size"],
            features=stage.features,
        )
        rate = learning_rate(settings, steps)
        try:
            _introduce(stage, selection, state, frozen, pipeline)
            if first:
                state = _restore(checkpointer, state)
                print(f"Stage {stage.name} goes on after step {first}")
            stage.writer.truncate_after(stage.index, first)
            state = _steps(stage, state, frozen, step_fn, pipeline, checkpointer, rate)
        finally:  # also when there are too many
            note_bad(stage.workdir, pipeline.quarantine)
    return frozen | state.trainable


def _steps(
    stage: _Stage,
    state: TrainState,
    frozen: Params,
    step_fn: Step,
    pipeline: Pipeline,
    checkpointer: Checkpointer,
    rate: Schedule,
) -> TrainState:
    """From the state's step to the stage's last: step, log, evaluate, save."""
    run, config, first = stage.run, stage.config, int(state.step)
    steps, meter = config["steps"], Meter()
    see = _frozen_tower(run, frozen)
    batches = pipeline.iterate(first, steps - first)
    with Progress(
        f"{stage.index + 1}/{len(run.config['stages'])} {stage.name}", steps, start=first
    ) as progress:
        for step in range(first + 1, steps + 1):
            with meter.waiting():
                batch = next(batches)
            seen = see(frozen | state.trainable, put_rows(batch, run.mesh))
            state, metrics = step_fn(state, frozen, seen)
            meter.add(metrics, samples=config["batch_size"], tokens=_num_tokens(batch))
            values, last = None, step == steps
            if stage.is_due("log_every", step) or last:
                values = meter.read() | {"learning_rate": float(rate(step - 1))}
                values |= {
                    "skipped_steps": int(state.bad_steps),
                    "bad_samples": len(pipeline.quarantine),
                }
                _stop_if_not_finite(state, batch, run.config["max_bad_steps"])
                stage.writer.write(values, stage_index=stage.index, stage=stage.name, step=step)
            progress.update(step, values)
            with meter.paused():
                if stage.is_due("eval_every", step) or (last and config["eval_at_end"]):
                    progress.say(_evaluate(stage, frozen | state.trainable, step))
                if stage.is_due("save_every", step) or last:
                    _save(checkpointer, step, state, stage)
                    note_bad(stage.workdir, pipeline.quarantine)
    return state


def _frozen_tower(run: Run, frozen: Params) -> Callable[[Params, Batch], Batch]:
    """Puts features in the place of a batch's pictures, unless the tower trains with the rest."""
    tower = Tower(run.system, run.mesh, run.config)
    return tower.see if frozen.keys() >= set(tower.paths) else lambda _, batch: batch


def _evaluate(stage: _Stage, params: Params, step: int) -> str:
    """On questions about training pictures that were held out; returns a line for the terminal."""
    accuracy, _ = evaluate(
        stage.run, params, stage.config["eval"], stage.features, workdir=stage.workdir
    )
    stage.writer.write(
        accuracy.metrics("dev"), stage_index=stage.index, stage=stage.name, step=step
    )
    return (
        f"{stage.name} step {step}, {stage.config['eval']['data']['split']} pictures: "
        f"{100 * accuracy.overall:.1f} % of {accuracy.count} questions, "
        f"mean of kinds {100 * accuracy.mean_of_kinds:.1f} %"
    )


def _start(trainable: Params, optimizer, mesh: jax.sharding.Mesh) -> TrainState:
    """The state before step 1, optimizer moments sharded as their parameters."""
    shardings = {path: x.sharding for path, x in trainable.items()}
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    abstract = jax.eval_shape(lambda params: TrainState.start(params, optimizer), trainable)

    def sharding(path, _) -> jax.sharding.Sharding:
        return next(
            (shardings[key.key] for key in path if getattr(key, "key", None) in shardings), whole
        )

    out = jax.tree_util.tree_map_with_path(sharding, abstract)
    return jax.jit(
        lambda params: TrainState.start(params, optimizer), out_shardings=out, donate_argnums=0
    )(trainable)


def _introduce(
    stage: _Stage, selection: Selection, state: TrainState, frozen: Params, pipeline: Pipeline
) -> None:
    """What one wants to know before step 1: what trains, what it costs, what a sample looks
    like."""
    dtypes = {path: x.dtype for path, x in (frozen | state.trainable).items()}
    print(f"\nStage {stage.name}\n")
    print(parameter_table(stage.run.specs, selection, dtypes, tree_bytes(state.opt_state)))
    for notice in getattr(pipeline.source, "notices", ()):
        print(f"\n{pipeline.source.name}: {notice}")
    batch = pipeline.batch_at(0)
    print("\nOne sample, the predicted tokens in brackets:\n")
    print(describe(batch, 0, stage.run.tokenizer))
    print(f"\ndata {_batch_hash(batch)}  parameters {params_hash(state.trainable)[:16]}\n")


def _restore(checkpointer: Checkpointer, state: TrainState) -> TrainState:
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    rest = _rest(abstract)
    trainable, rest, _ = checkpointer.restore(None, abstract.trainable, rest)
    return TrainState(trainable=trainable, **rest)


def _rest(state: TrainState) -> dict:
    """All of the state but the parameters."""
    return {
        field.name: getattr(state, field.name)
        for field in dataclasses.fields(state)
        if field.name != "trainable"
    }


def _save(checkpointer: Checkpointer, step: int, state: TrainState, stage: _Stage) -> None:
    config = stage.run.config
    meta = {
        "system": config["system"],
        "variant": config["variant"],
        "stage": stage.name,
        "config": config,
    }
    checkpointer.save(step, state.trainable, _rest(state), meta)


def _test(
    run: Run, params: Params, workdir: Path, writer: MetricsWriter, features: FeatureStore | None
) -> dict[str, float]:
    """The held-out questions, all of them: the table, and a page of samples."""
    section, stages = run.config["test"], run.config["stages"]
    accuracy, predictions = evaluate(run, params, section, features, workdir=workdir)
    metrics, steps = accuracy.metrics("eval"), run.config[stages[-1]]["steps"]
    writer.truncate_after(len(stages) - 1, steps)
    writer.write(metrics, stage_index=len(stages), stage="test", step=steps)
    print(f"\nHeld-out questions ({section['data']['source']}, {section['data']['split']})\n")
    print(accuracy_table(accuracy.kinds))
    shown = predictions[:: max(1, len(predictions) // 60)]
    write_samples(workdir / "samples.html", [_sample(prediction) for prediction in shown])
    return metrics


def _sample(prediction: Prediction) -> dict:
    example = prediction.example
    return dict(
        image=picture_of(example),
        question=example.text("user"),
        answer=prediction.answer,
        truth=example.info["answer"],
        kind=example.info.get("kind", ""),
        correct=is_right(prediction),
    )


def _stop_if_not_finite(state: TrainState, batch: Batch, limit: int) -> None:
    if int(state.bad_in_a_row) >= limit:
        raise FloatingPointError(
            f"loss or gradients of the last {int(state.bad_in_a_row)} steps were not finite (they "
            "changed nothing). Lower the learning rate, or look at the rows "
            f"{np.asarray(batch.row_id).tolist()}"
        )


def _num_tokens(batch: Batch) -> int:
    parts = (batch.prefix, batch.request, batch.target)
    return int(sum((part.segments > 0).sum() for part in parts if part is not None))


def _batch_hash(batch: Batch) -> str:
    """Of the first batch: equal data, seed and template give equal hashes."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(batch):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def _claim(workdir: Path, config: Mapping) -> None:
    """Writes ``config.json``, or checks that the one there says the same."""
    file, text = workdir / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n"
    if file.is_file():
        old, new = (_flat(c) for c in (json.loads(file.read_text()), json.loads(text)))
        changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
        if changed:
            lines = "\n  ".join(f"{key}: {old.get(key)!r} -> {new.get(key)!r}" for key in changed)
            raise ValueError(
                f"{workdir} holds a run with another config; give another --workdir, or delete it:"
                f"\n  {lines}"
            )
        return
    workdir.mkdir(parents=True, exist_ok=True)
    partial = file.with_name("config.json.partial")
    partial.write_text(text)
    os.replace(partial, file)


def _flat(value, prefix: str = "") -> dict:
    if not isinstance(value, dict):
        return {prefix.removesuffix("."): value}
    return {
        k: v for key, below in value.items() for k, v in _flat(below, f"{prefix}{key}.").items()
    }
