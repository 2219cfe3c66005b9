"""One short run of the main job, looked at from many sides."""

import contextlib
import dataclasses
import importlib.util
import io
from pathlib import Path

import numpy as np
import pytest

from mmjax.train import loop
from mmjax.train.config import resolve

ROOT = Path(__file__).parents[2]


def get_config(name: str):
    """``lmeye.py[:variant]`` from the folder of configs."""
    file, _, variant = name.partition(":")
    spec = importlib.util.spec_from_file_location("config", ROOT / "configs" / file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant) if variant else module.get_config()


def short_config() -> dict:
    """The default config at a hundredth of its length."""
    config = get_config("lmeye.py")
    config.align.steps, config.instruct.steps = 4, 6
    for stage in (config.align, config.instruct):
        stage.update(batch_size=8, log_every=1, save_every=2)
        stage.optimizer.warmup_steps = 1
        stage.eval.batch_size = 32
        stage.eval.data.options = {"limit": 32}
    del config.instruct.data["weights"]
    config.instruct.data.options = {"limit": 400}
    config.align.data.options.limit = 400
    config.test.data.options = {"limit": 32}
    config.test.batch_size = 32
    return resolve(config)


@dataclasses.dataclass(frozen=True)
class Finished:
    """A run, and what was seen of it: compiled steps, parameters after each stage, its output."""

    workdir: Path
    config: dict
    metrics: dict
    steps: list
    stages: list
    output: str


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Finished:
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    steps, stages, output = [], [], io.StringIO()
    jit_step, train_stage = loop.jit_step, loop._train_stage

    def watched(*arguments):
        params = train_stage(*arguments)
        stages.append(
            {path: np.array(x) for path, x in params.items()}
        )  # the next stage donates them
        return params

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        patch.setattr(loop, "jit_step", lambda *a: steps.append(jit_step(*a)) or steps[-1])
        patch.setattr(loop, "_train_stage", watched)
        metrics = loop.train(short_config(), workdir)
    return Finished(workdir, short_config(), metrics, steps, stages, output.getvalue())
