"""Checkpoints of a run, over Orbax: the trainable part, the optimizer's state, a description.

    DIRECTORY/<step>/trainable   flat dict path -> array
    DIRECTORY/<step>/optimizer   flat dict path in the optax tree -> array
    DIRECTORY/<step>/meta        JSON: system, variant, config ..., plus format_version and step

Frozen weights are not copied: ``meta`` says where they came from. Steps are written in the
background under a temporary name and renamed when complete, so a killed run leaves whole
checkpoints only. One item is one flat dict: Orbax restores wrong arrays when dotted and nested keys
meet in one item.
"""

import contextlib
import json
import logging
import math
import shutil
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from mmjax.train.metrics import human_bytes, tree_bytes

FORMAT_VERSION = 1
_ITEMS = ("trainable", "optimizer", "meta")
_LOG = logging.getLogger(__name__)
_TEMPORARY = ".orbax-checkpoint-tmp"


class Checkpointer:
    """Saves and restores the checkpoints of one run; the only writer of its directory."""

    def __init__(
        self,
        directory: str,
        keep: int,
        *,
        best_metric: str | None = None,
        best_mode: Literal["max", "min"] = "max",
    ):
        """Opens or creates ``directory``, and removes what a killed save has left there.

        Args:
          directory: holds nothing but checkpoints.
          keep: how many of the latest checkpoints stay.
          best_metric: key of `save`'s ``metrics``; the best checkpoint by it stays too.
          best_mode: whether more or less of it is better.

        Raises:
          ValueError: if the directory holds other things, or its newest checkpoint is incomplete.
        """
        if keep < 1:
            raise ValueError(
                f"keep={keep}: at least 1 checkpoint must stay, or the run cannot resume"
            )
        self._directory = epath.Path(directory).resolve()
        self._best_metric = best_metric
        _complete_steps(self._directory)

        def quality(metrics: Mapping[str, float]) -> float:
            worst = -math.inf if best_mode == "max" else math.inf
            value = metrics.get(best_metric, worst)
            return worst if math.isnan(value) else value

        policies = ocp.checkpoint_managers
        policy = policies.LatestN(keep)
        if best_metric:
            best = policies.BestN(
                get_metric_fn=quality,
                reverse=best_mode == "min",
                n=1,
                keep_checkpoints_without_metrics=False,
            )
            policy = policies.AnyPreservationPolicy([policy, best])
        self._manager = _Manager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy,
                best_fn=quality
                if best_metric
                else None,  # without it Orbax does not write the metrics
                best_mode=best_mode,
                cleanup_tmp_directories=True,
            ),
        )

    def save(
        self,
        step: int,
        trainable: Mapping[str, jax.Array],
        opt_state: Any,
        meta: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> bool:
        """Starts to save; the arrays may be donated or changed as soon as this returns.

        Args:
          step: later than the steps already saved.
          trainable: path -> array.
          opt_state: optax tree.
          meta: JSON-able; ``system`` and ``variant`` are quoted in error messages.
          metrics: evaluation results at this step, for ``best_metric``; None if there are none.

        Returns:
          False if ``step`` is the newest checkpoint already, which is then left as it is.

        Raises:
          ValueError: if ``step`` is older than the newest checkpoint, or ``meta`` or ``metrics``
            will not do.
          OSError: this save, or the previous one in the background, has failed.
        """
        latest = self._manager.latest_step()
        if latest == step:
            return False
        if latest is not None and latest > step:
            raise ValueError(
                f"cannot save step {step}: {self._directory} already holds step {latest}; a "
                "run that starts again from an earlier step needs another directory, or the "
                "later checkpoints deleted"
            )
        if metrics is not None and self._best_metric and self._best_metric not in metrics:
            raise ValueError(
                f"the best checkpoint is chosen by {self._best_metric!r}, which is not among the "
                f"metrics of step {step}: {', '.join(sorted(metrics)) or 'none'}"
            )
        description = {**meta, "format_version": FORMAT_VERSION, "step": step}
        _check_json(description)
        self.wait()
        self._check_space(tree_bytes((trainable, opt_state)))
        with self._told_plainly():
            return self._manager.save(
                step,
                args=ocp.args.Composite(
                    trainable=ocp.args.StandardSave(dict(trainable)),
                    optimizer=ocp.args.StandardSave(flatten(opt_state)),
                    meta=ocp.args.JsonSave(description),
                ),
                metrics={key: float(value) for key, value in (metrics or {}).items()},
            )

    def latest_step(self) -> int | None:
        """The newest checkpoint (a save in progress counts), or None."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The best checkpoint by ``best_metric``, or None if none has been measured."""
        step = self._manager.best_step() if self._best_metric else None
        return (
            step if step is not None and self._best_metric in self._manager.metrics(step) else None
        )

    def restore(
        self,
        step: int | None,
        abstract_trainable: Mapping[str, jax.ShapeDtypeStruct],
        abstract_opt_state: Any,
    ) -> tuple[dict[str, jax.Array], Any, dict[str, Any]]:
        """Reads a checkpoint, bit for bit, onto the shardings asked for.

        Args:
          step: which one; None for the latest.
          abstract_trainable: path -> `jax.ShapeDtypeStruct` with its sharding (without one: the
            default device, uncommitted).
          abstract_opt_state: the optax tree of such leaves.

        Returns:
          (trainable, opt_state, meta).

        Raises:
          FileNotFoundError: if there is no such checkpoint.
          ValueError: lists every path, shape and dtype by which the checkpoint differs from what is
            asked for.
        """
        self.wait()
        step = _find_step(self._directory, step)
        meta = _read_meta(self._directory, step)
        wanted = {"trainable": dict(abstract_trainable), "optimizer": flatten(abstract_opt_state)}
        folder = self._directory / str(step)
        problems = [
            problem
            for item in wanted
            for problem in _differences(item, _stored(folder / item), wanted[item])
        ]
        if problems:
            raise ValueError(
                f"{len(problems)} arrays of {folder} do not fit. This checkpoint was written "
                f"by {_origin(meta)}; resume with the configuration it was written with, or train "
                "into another directory\n  " + "\n  ".join(problems)
            )
        trainable, state = (_read_arrays(folder / item, wanted[item]) for item in wanted)
        treedef = jax.tree.structure(abstract_opt_state)
        return trainable, jax.tree.unflatten(treedef, state.values()), meta

    def wait(self) -> None:
        """Blocks until the save in progress is on disk; OSError if it has failed."""
        with self._told_plainly():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _told_plainly(self) -> Iterator[None]:
        """Whatever Orbax and its storage layer raise for a full disk or a missing permission."""
        try:
            yield
        except Exception as error:
            raise self._cannot_write(f"{type(error).__name__}: {str(error)[:1000]}") from error

    def _check_space(self, num_bytes: int) -> None:
        """Before anything is written: it is better to know now than in a thread, half way."""
        if "://" in str(self._directory):  # buckets do not fill up
            return
        free = shutil.disk_usage(self._directory).free
        if free < num_bytes:
            raise self._cannot_write(
                f"it needs {human_bytes(num_bytes)}, the disk has {human_bytes(free)} left"
            )

    def _cannot_write(self, why: str) -> OSError:
        whole = _complete_steps(self._directory)
        left = f"step {whole[-1]} is whole" if whole else "there is no earlier one"
        return OSError(
            f"a checkpoint in {self._directory} cannot be written; {left}. Make room, or the "
            f"folder writable, and start the same command again.\n  {why}"
        )

    def close(self) -> None:
        """Waits, then releases the directory."""
        self.wait()
        self._manager.close()


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """Left to `mmjax.train.interrupt`: processes agree on a step by all asking with the same
        count, and Orbax would ask with a stage's steps."""
        return False


def read_trainable(
    directory: str, step: int | None = None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(trainable part in host memory, meta) of a checkpoint; needs no optimizer, writes nothing.

    Args:
      directory: of a `Checkpointer`, which may be writing to it.
      step: which checkpoint; None for the latest.

    Raises:
      FileNotFoundError: if there is no such checkpoint.
      ValueError: if the directory is not one of checkpoints, or of a version that this code cannot
        read.
    """
    path = epath.Path(directory).resolve()
    step = _find_step(path, step)
    meta = _read_meta(path, step)
    item = path / str(step) / "trainable"
    leaves = {name: np.empty(leaf.shape, leaf.dtype) for name, leaf in _stored(item).items()}
    return ocp.StandardCheckpointHandler().restore(
        item, args=ocp.args.StandardRestore(leaves)
    ), meta


def latest_trainable(directory: str) -> tuple[int | None, dict[str, tuple[int, ...]]]:
    """(step, path -> shape of the trainable part) of the latest checkpoint; (None, {}) if there is
    none. Reads no array."""
    path = epath.Path(directory).resolve()
    step = next(reversed(_complete_steps(path)), None)
    if step is None:
        return None, {}
    _read_meta(path, step)  # for the version
    stored = _stored(path / str(step) / "trainable")
    return step, {name: tuple(leaf.shape) for name, leaf in stored.items()}


def flatten(tree: Any) -> dict[str, Any]:
    """Tree -> flat dict with dotted paths, in leaf order: ``adam.mu.image_linear.kernel``."""
    leaves = jax.tree.leaves_with_path(tree)
    flat = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
    if len(flat) != len(leaves):
        raise ValueError(f"{len(leaves)} leaves of the tree have only {len(flat)} different paths")
    return flat


def _complete_steps(directory: epath.Path) -> list[int]:
    """Complete checkpoints, ascending; ValueError if ``directory`` is not one of checkpoints."""
    if not directory.exists():
        return []
    if not directory.is_dir():
        raise ValueError(f"{directory} is a file, not a directory of checkpoints")
    names = [entry.name for entry in directory.iterdir() if not entry.name.startswith(".")]
    foreign = sorted(name for name in names if not name.isdecimal() and _TEMPORARY not in name)
    if foreign:
        if "checkpoints" in foreign:
            remedy = f"did you mean {directory / 'checkpoints'}?"
        elif set(_ITEMS) <= set(foreign):
            remedy = f"it is a single step: pass {directory.parent} and step={directory.name}"
        else:
            remedy = "weights of other programs are imported with `python -m conversion import`"
        raise ValueError(
            f"{directory} is not a directory of mmjax checkpoints: it holds "
            f"{', '.join(foreign[:5])}{' ...' if len(foreign) > 5 else ''}; {remedy}"
        )
    steps = sorted(int(name) for name in names if name.isdecimal())
    missing = {step: _missing_items(directory / str(step)) for step in steps}
    if steps and missing[steps[-1]]:
        raise ValueError(
            f"the newest checkpoint, {directory / str(steps[-1])}, is incomplete: "
            f"{', '.join(missing[steps[-1]])} missing. Saving is atomic, so it was copied in part "
            "or comes from another program; copy it again, or delete it to go on from "
            + (f"step {steps[-2]}" if steps[:-1] else "the start")
        )
    for step in steps:
        if missing[step]:  # an older one: the run was killed while it was being deleted
            _LOG.warning(
                "ignored incomplete checkpoint %s: no %s",
                directory / str(step),
                ", ".join(missing[step]),
            )
    return [step for step in steps if not missing[step]]


def _missing_items(step_directory: epath.Path) -> list[str]:
    contents = {"trainable": "_METADATA", "optimizer": "_METADATA", "meta": "metadata"}
    return [item for item in _ITEMS if not (step_directory / item / contents[item]).exists()]


def _find_step(directory: epath.Path, step: int | None) -> int:
    steps = _complete_steps(directory)
    if not steps:
        raise FileNotFoundError(
            f"there is no checkpoint in {directory}; was nothing saved yet, or is the path wrong?"
        )
    if step is None:
        return steps[-1]
    if step not in steps:
        raise FileNotFoundError(
            f"there is no checkpoint of step {step} in {directory}, only of {steps}"
        )
    return step


def _read_meta(directory: epath.Path, step: int) -> dict[str, Any]:
    meta = json.loads((directory / str(step) / "meta" / "metadata").read_text())
    version = meta.get("format_version")
    if version is None:
        raise ValueError(
            f"step {step} in {directory} was not written by mmjax: its meta has no format_version"
        )
    if version > FORMAT_VERSION:
        raise ValueError(
            f"step {step} in {directory} has format version {version}, this mmjax reads up to "
            f"{FORMAT_VERSION}; it was written by a newer one ({_origin(meta)}): upgrade mmjax"
        )
    return meta


def _origin(meta: Mapping[str, Any]) -> str:
    return f"system {meta.get('system', 'unknown')} variant {meta.get('variant', 'unknown')}"


def _differences(item: str, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    def describe(leaf: Any) -> str:
        return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"

    problems = [
        f"{item}: not in the checkpoint: {k} {describe(wanted[k])}"
        for k in sorted(wanted.keys() - stored)
    ]
    problems += [
        f"{item}: only in the checkpoint: {k} {describe(stored[k])}"
        for k in sorted(stored.keys() - wanted)
    ]
    for name in sorted(wanted.keys() & stored.keys()):
        have, want = describe(stored[name]), describe(wanted[name])
        if have != want:
            problems.append(f"{item}: {name} is {have} in the checkpoint, {want} is wanted")
    return problems


def _stored(item: epath.Path) -> dict[str, Any]:
    """Path -> what is stored there (with shape and dtype)."""
    return dict(ocp.StandardCheckpointHandler().metadata(item).tree)


def _read_arrays(
    item: epath.Path, leaves: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
    """Reads ``leaves``, in their order."""
    # Without a sharding Orbax would take that of the run that wrote them: ask for numpy instead,
    # which is done by `np.empty` (it only reserves).
    targets = {
        path: np.empty(leaf.shape, leaf.dtype) if leaf.sharding is None else leaf
        for path, leaf in leaves.items()
    }
    arrays = ocp.StandardCheckpointHandler().restore(item, args=ocp.args.StandardRestore(targets))
    return {path: jnp.asarray(arrays[path]) for path in leaves}


def _check_json(meta: Mapping[str, Any]) -> None:
    problems = []
    for key, value in meta.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            problems.append(f"{key}: {error}")
    if problems:
        raise ValueError(
            "these entries of meta cannot be written as JSON:\n  " + "\n  ".join(problems)
        )
