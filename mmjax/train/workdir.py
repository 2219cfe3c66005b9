"""A run directory belongs to one config, ``config.json``, and has a folder for each stage."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import jax

from mmjax.parallel.distributed import is_first, wait_for_all

_FREE = {"weights.any_template", "num_workers", "patience"}  # change nothing of what is trained


def stage_directory(workdir: Path, stage: str) -> Path:
    """Of the stage's checkpoints."""
    return Path(workdir).resolve() / "checkpoints" / stage


def check_claim(workdir: Path, config: Mapping) -> None:
    """Raises ValueError if ``workdir`` has a run with another config."""
    file = workdir / "config.json"
    if not file.is_file():
        return
    old, new = (_flat(c) for c in (json.loads(file.read_text()), json.loads(json.dumps(config))))
    keys = (old.keys() | new.keys()) - _FREE
    if changed := sorted(key for key in keys if old.get(key) != new.get(key)):
        lines = "\n  ".join(f"{key}: {old.get(key)!r} -> {new.get(key)!r}" for key in changed)
        raise ValueError(
            f"{workdir} holds a run with another config; give another --workdir, or delete it:"
            f"\n  {lines}"
        )


def is_finished(workdir: Path, config: Mapping) -> bool:
    """Whether ``workdir`` has the last checkpoint of the last stage of ``config``.

    Raises:
      ValueError: it has a run with another config.
    """
    check_claim(workdir, config)
    last = config["stages"][-1]
    return (stage_directory(workdir, last) / str(config[last]["steps"])).is_dir()


def claim(workdir: Path, config: Mapping) -> None:
    """Writes ``config.json``, once everything that the config names has been found to fit.

    Raises:
      FileNotFoundError: a process does not see what the first one has written.
    """
    file = workdir / "config.json"
    if is_first():
        workdir.mkdir(parents=True, exist_ok=True)
        partial = file.with_name("config.json.partial")
        partial.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        os.replace(partial, file)
    wait_for_all("config.json")
    if not file.is_file():
        raise FileNotFoundError(
            f"process {jax.process_index()} does not see {file}, which the first process wrote: "
            "give a --workdir that all processes share"
        )


def _flat(value, prefix: str = "") -> dict:
    if not isinstance(value, dict):
        return {prefix.removesuffix("."): value}
    return {
        k: v for key, below in value.items() for k, v in _flat(below, f"{prefix}{key}.").items()
    }
