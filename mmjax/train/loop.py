"""Training, top to bottom: build, load, then stage by stage (restore; step, log, save, evaluate),
then the final test.

A run directory tells the story: ``config.json``, ``tokenizer/``, ``metrics.jsonl``,
``tensorboard/``, ``checkpoints/<stage>/``, ``features/``, ``curves.png``, ``samples.html``,
``bad_samples.jsonl``. The same command started again goes on where it stopped and ends as if it
never had: the data position is the step, and what the next log line is the mean of is saved too.
"""

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from mmjax.data.batch import Batch
from mmjax.data.features import FeatureStore
from mmjax.data.in_words import describe
from mmjax.data.pipeline import Pipeline
from mmjax.kernels.attention import noted
from mmjax.nn.param import Params
from mmjax.parallel.distributed import first_says, gather, is_first, story_folder, wait_for_all
from mmjax.parallel.sharding import gather_rows, place, put_rows, replicated
from mmjax.train.build import Run, build
from mmjax.train.check import open_sources
from mmjax.train.checkpoint import Checkpointer, read_trainable
from mmjax.train.contributions import Contributions
from mmjax.train.evaluation import evaluate
from mmjax.train.features import picture_features
from mmjax.train.final import final_test
from mmjax.train.interrupt import Interruption
from mmjax.train.metrics import Meter, MetricsWriter, Progress, tree_bytes
from mmjax.train.optim import OptimizerConfig, Schedule, Selection, learning_rate, make_optimizer
from mmjax.train.quarantine import BadSamples
from mmjax.train.report import parameter_table, params_hash, plot_curves
from mmjax.train.state import TrainState, state_shardings
from mmjax.train.step import Step, jit_step, make_step
from mmjax.train.tower import Tower
from mmjax.train.workdir import check_claim, claim, stage_directory

_EVALUATED = "dev/accuracy"


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
      FloatingPointError: too many steps in a row had a loss or updates that were not finite.
      OSError: a checkpoint or a log could not be written.
      Stopped: the process was told to stop (SIGTERM, Ctrl-C); the steps taken are saved.
    """
    workdir = Path(workdir).resolve()
    check_claim(workdir, config)
    open_sources(config)
    with Interruption().watch() as interruption, story_folder(workdir) as story:
        return _train(config, workdir, story, interruption)


def _train(
    config: dict, workdir: Path, story: Path, interruption: Interruption
) -> dict[str, float]:
    """`train`; what people read goes to ``story``."""
    run = build(config)
    claim(workdir, config)
    run.tokenizer.save(story / "tokenizer")
    with MetricsWriter(story) as writer, jax.set_mesh(run.mesh), noted() as kernels:
        bad_samples = BadSamples(story)
        features = picture_features(run, workdir, interruption)
        params = run.params
        for index, name in enumerate(config["stages"]):
            stage = _Stage(
                run,
                name,
                index,
                config[name],
                directory=str(stage_directory(workdir, name)),
                writer=writer,
                bad_samples=bad_samples,
                features=features,
                interruption=interruption,
                kernels=kernels,
            )
            params = _train_stage(stage, params)
        final = {}
        if config.get("test"):
            final = final_test(run, params, writer, bad_samples, features)
    if is_first():  # the others' files lack what was measured before a restart
        plot_curves(story / "metrics.jsonl", story / "curves.png")
    wait_for_all("the end of the run")
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
      writer, bad_samples: of the run directory; in all processes but the first, of a folder that
        vanishes.
      kernels: of attention, traced so far in the run, see `mmjax.kernels.attention.noted`.
    """

    run: Run
    name: str
    index: int
    config: dict
    directory: str
    writer: MetricsWriter
    bad_samples: BadSamples
    features: FeatureStore | None
    interruption: Interruption
    kernels: Mapping[str, None]

    def is_due(self, what: Literal["log", "save", "eval"], step: int) -> bool:
        """Every so many steps, as the config says. The last step is always logged and saved; the
        config says whether it is evaluated."""
        if step == self.config["steps"] and (what != "eval" or self.config["eval_at_end"]):
            return True
        every = self.config[f"{what}_every"]
        return bool(every) and step % every == 0


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
            params = params | {path: place(x, params[path].sharding) for path, x in trained.items()}
            _evaluate_if_missed(stage, params, steps)
            return params
        selection = run.selection(stage.name)
        frozen = {path: params[path] for path in selection.frozen}
        settings = OptimizerConfig(**stage.config["optimizer"])
        optimizer = make_optimizer(settings, selection.multiplier, steps)
        trainable = {path: params[path] for path in selection.trainable}
        state = _start(trainable, optimizer, run.mesh, settings.loss_scale)
        step_fn = make_step(
            run.system,
            optimizer,
            seed=run.config["seed"],
            accumulation=stage.config["accumulation"],
            label_smoothing=stage.config.get("label_smoothing", 0.0),
        )
        step_fn = jit_step(step_fn, state, frozen, run.mesh)
        pipeline = run.pipeline(
            stage.config["data"],
            stage.config["template"],
            batch_size=stage.config["batch_size"],
            features=stage.features,
        )
        stage.writer.truncate_after(stage.index, first)
        meta, rate = {"since_log": []}, learning_rate(settings, steps)
        pipeline.recall(stage.bad_samples.recall(stage.name, first))
        try:
            _introduce(stage, selection, state, frozen, pipeline)
            if first:
                state, meta = _restore(checkpointer, state)
                print(f"Stage {stage.name} goes on after step {first}")
                _evaluate_if_missed(stage, frozen | state.trainable, first)
            meter, given = Meter(meta["since_log"]), Contributions(pipeline, meta.get("rows", {}))
            state = _steps(
                stage, state, frozen, step_fn, pipeline, checkpointer, meter, given, rate
            )
            checkpointer.wait()
            if pipeline.weights:
                print(f"\nWhat stage {stage.name} was trained on\n\n{given.table()}")
        except ValueError:  # there may be too many: then all of them are worth a look
            stage.bad_samples.note(stage.name, steps, pipeline.quarantine)
            raise
    params = frozen | state.trainable
    print(f"\nhash of the parameters after stage {stage.name}: {params_hash(state.trainable)[:16]}")
    return params


def _steps(
    stage: _Stage,
    state: TrainState,
    frozen: Params,
    step_fn: Step,
    pipeline: Pipeline,
    checkpointer: Checkpointer,
    meter: Meter,
    given: Contributions,
    rate: Schedule,
) -> TrainState:
    """From the state's step to the stage's last: step, log, save, evaluate."""
    run, config, first = stage.run, stage.config, int(state.step)
    steps, see = config["steps"], _frozen_tower(run, frozen)
    batches = pipeline.iterate(first, steps - first)
    with Progress(
        f"{stage.index + 1}/{len(run.config['stages'])} {stage.name}", steps, start=first
    ) as progress:
        for step in range(first + 1, steps + 1):
            with stage.interruption.deferred():
                with meter.waiting():
                    batch = next(batches)
                seen = see(frozen | state.trainable, batch)
                state, metrics = step_fn(state, frozen, seen)
                if step == first + 1:
                    progress.say("attention: " + "; ".join(stage.kernels))
                share = config["batch_size"] / len(batch.row_id)  # other processes' are as long
                tokens = round(share * _num_tokens(batch))
                meter.add(metrics, samples=config["batch_size"], tokens=tokens)
                given.add(step)
                values = None
                if stage.is_due("log", step):
                    values = _log(stage, meter, given, state, rate, pipeline)
                    _stop_if_not_finite(state, batch, run.config["max_bad_steps"])
                progress.update(step, values)
                stops = stage.interruption.requested()
                if stage.is_due("save", step) or stops:
                    with meter.paused():
                        stage.bad_samples.note(stage.name, step, gather(pipeline.quarantine))
                        _save(checkpointer, step, state, stage, meter, given)
            if stops:
                progress.say(f"{stage.name} is saved at step {step}; the same command goes on")
                stage.interruption.stop()
            if stage.is_due("eval", step):
                with meter.paused():
                    progress.say(_evaluate(stage, frozen | state.trainable, step))
    return state


def _log(
    stage: _Stage,
    meter: Meter,
    given: Contributions,
    state: TrainState,
    rate: Schedule,
    pipeline: Pipeline,
) -> dict[str, float]:
    """Writes a line of metrics; the learning rate is that of the last step that counted."""
    step, skipped = int(state.step), int(state.bad_steps)
    values = meter.read() | {"learning_rate": float(rate(max(step - skipped - 1, 0)))}
    bad = stage.bad_samples.note(stage.name, step, gather(pipeline.quarantine))
    values |= {"skipped_steps": skipped, "bad_samples": bad}
    values |= {f"rows/{name}": count for name, count in given.read().items()}
    if state.loss_scale is not None:
        values |= {"loss_scale": float(state.loss_scale.value)}
    stage.writer.write(values, stage_index=stage.index, stage=stage.name, step=step)
    return values


def _evaluate_if_missed(stage: _Stage, params: Params, step: int) -> None:
    """Makes up for the evaluation at ``step``, if the run ended after saving and before it."""
    done = [
        (line["stage_index"], line["step"]) for line in stage.writer.records() if _EVALUATED in line
    ]
    if first_says(stage.is_due("eval", step) and (stage.index, step) not in done):
        print(_evaluate(stage, params, step))


def _frozen_tower(run: Run, frozen: Params) -> Callable[[Params, Batch], Batch]:
    """Puts a batch on the mesh, features in the place of its pictures unless the tower trains with
    the rest."""
    tower = Tower(run.system, run.mesh, run.config)
    if not frozen.keys() >= set(tower.paths):
        return lambda _, batch: put_rows(batch, run.mesh)
    return lambda params, batch: tower.see(
        params, put_rows(batch, run.mesh), most=tower.most(batch)
    )


def _evaluate(stage: _Stage, params: Params, step: int) -> str:
    """On questions about training pictures that were held out; returns a line for the terminal."""
    accuracy, _, bad = evaluate(stage.run, params, stage.config["eval"], stage.features)
    stage.bad_samples.note(f"{stage.name}.eval", step, bad)
    stage.writer.write(
        accuracy.metrics("dev"), stage_index=stage.index, stage=stage.name, step=step
    )
    means = {"": accuracy.mean_of_kinds} | {
        f" ({part})": each.mean_of_kinds for part, each in accuracy.parts.items()
    }
    return (
        f"{stage.name} step {step}, {stage.config['eval']['data']['split']} pictures: "
        f"{100 * accuracy.overall:.1f} % of {accuracy.count} questions, mean of kinds "
        + ", ".join(f"{100 * mean:.1f} %{part}" for part, mean in means.items())
    )


def _start(
    trainable: Params, optimizer, mesh: jax.sharding.Mesh, loss_scale: float | None = None
) -> TrainState:
    """The state before step 1, optimizer moments sharded as their parameters."""
    start = lambda params: TrainState.start(params, optimizer, loss_scale)  # noqa: E731
    shardings = {path: x.sharding for path, x in trainable.items()}
    out = state_shardings(jax.eval_shape(start, trainable), shardings, replicated(mesh))
    return jax.jit(start, out_shardings=out, donate_argnums=0)(trainable)


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
    batch = gather_rows(pipeline.batch_at(0), stage.run.mesh)
    print("\nOne sample, the predicted tokens in brackets:\n")
    print(describe(batch, 0, stage.run.tokenizer))
    order = pipeline.order_hash(stage.config["steps"])
    print(
        f"\nhashes: first batch {_batch_hash(batch)}  data order {order}  "
        f"parameters {params_hash(state.trainable)[:16]}\n"
    )


def _restore(checkpointer: Checkpointer, state: TrainState) -> tuple[TrainState, dict]:
    """(the latest saved state, what `_save` said about it)."""
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    rest = _rest(abstract)
    trainable, rest, meta = checkpointer.restore(None, abstract.trainable, rest)
    return TrainState(trainable=trainable, **rest), meta


def _rest(state: TrainState) -> dict:
    """All of the state but the parameters."""
    return {
        field.name: getattr(state, field.name)
        for field in dataclasses.fields(state)
        if field.name != "trainable"
    }


def _save(
    checkpointer: Checkpointer,
    step: int,
    state: TrainState,
    stage: _Stage,
    meter: Meter,
    given: Contributions,
) -> None:
    config = stage.run.config
    meta = {
        "system": config["system"],
        "variant": config["variant"],
        "stage": stage.name,
        "config": config,
        "since_log": meter.pending(),
        "rows": given.read(),
    }
    checkpointer.save(step, state.trainable, _rest(state), meta)


def _stop_if_not_finite(state: TrainState, batch: Batch, limit: int) -> None:
    if int(state.bad_in_a_row) >= limit:
        remedy = "Lower the learning rate"
        if state.loss_scale is not None:
            remedy += (
                ", compute in bfloat16 or float32 (model.dtype is float16, the loss scale "
                f"{float(state.loss_scale.value):g} by now)"
            )
        raise FloatingPointError(
            f"loss or updates of the last {int(state.bad_in_a_row)} steps were not finite (they "
            f"changed nothing). {remedy}, or look at the rows "
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
