"""One short run of the main job, looked at from many sides."""

import contextlib
import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from end_to_end import short

from mmjax.train import loop
from mmjax.train.config import resolve


def short_config() -> dict:
    """The default config at a hundredth of its length."""
    return resolve(short.get_config())


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
