"""Runs in processes of their own that are killed, told to stop, or run out of disk; then go on."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
from end_to_end.short import PACE, ROOT, measured
from train.test_metrics import events

CONFIG = ROOT / "tests" / "end_to_end" / "short.py"
STEPS = {"align": 4, "instruct": 16}


def start(workdir: Path, output: int | None = None) -> subprocess.Popen:
    """Its output goes to ``output.txt``, or to ``output``."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    workdir.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "scripts/train.py", f"--config={CONFIG}:saving", f"--workdir={workdir}"],
        cwd=ROOT,
        stdout=output or (workdir / "output.txt").open("a"),
        stderr=subprocess.STDOUT,
        env=environment | {"XLA_FLAGS": ""},
    )


def finish(workdir: Path) -> str:
    """Runs to the end; returns what was printed."""
    code = start(workdir).wait(timeout=300)
    output = (workdir / "output.txt").read_text()
    assert code == 0, output
    return output


def wait_for(process: subprocess.Popen, happens) -> None:
    """Until ``happens()``, looking every millisecond."""
    deadline = time.monotonic() + 300
    while not happens():
        assert process.poll() is None, "the run ended before it could be disturbed"
        assert time.monotonic() < deadline
        time.sleep(0.001)


def saved_steps(workdir: Path, stage: str) -> list[int]:
    folder = workdir / "checkpoints" / stage
    return (
        sorted(int(name) for name in os.listdir(folder) if name.isdecimal())
        if folder.is_dir()
        else []
    )


def half_saved(workdir: Path, stage: str) -> bool:
    folder = workdir / "checkpoints" / stage
    return folder.is_dir() and any("tmp" in name for name in os.listdir(folder))


def result(workdir: Path) -> dict:
    """All that a run leaves behind: weights and optimizer of both stages, metrics without pace."""
    arrays = {}
    for stage, steps in STEPS.items():
        for item in ("trainable", "optimizer"):
            folder = workdir / "checkpoints" / stage / str(steps) / item
            stored = ocp.StandardCheckpointHandler().metadata(folder).tree
            leaves = {path: np.empty(leaf.shape, leaf.dtype) for path, leaf in stored.items()}
            read = ocp.StandardCheckpointHandler().restore(
                folder, args=ocp.args.StandardRestore(leaves)
            )
            arrays |= {f"{stage}/{item}/{path}": x.tobytes() for path, x in read.items()}
    shown = [
        event[:2] + event[3:] for event in events(workdir) if event[0].split("/")[1] not in PACE
    ]
    return {"arrays": arrays, "metrics": measured(workdir), "events": shown}


def test_killed_stopped_and_out_of_disk_it_ends_as_if_nothing_had_happened(tmp_path):
    undisturbed, workdir = tmp_path / "undisturbed", tmp_path / "disturbed"
    finish(undisturbed)
    reached = lambda: max(saved_steps(workdir, "instruct"), default=0)  # noqa: E731

    run = start(workdir)
    wait_for(run, lambda: half_saved(workdir, "align"))
    run.kill()  # while it saves
    run.wait()

    run, delay = start(workdir), random.Random(0).uniform(0, 0.2)
    wait_for(run, lambda: reached() >= 2)
    time.sleep(delay)
    run.kill()  # at any moment
    run.wait()
    killed_at = reached()

    run = start(workdir)
    wait_for(run, lambda: reached() > killed_at)
    run.send_signal(signal.SIGTERM)
    assert run.wait(timeout=60) == 0
    stopped_at, output = reached(), (workdir / "output.txt").read_text()
    assert f"Stage instruct goes on after step {killed_at}" in output
    assert f"instruct is saved at step {stopped_at}; the same command goes on" in output
    assert killed_at < stopped_at and not half_saved(workdir, "instruct")

    run = start(workdir, subprocess.PIPE)
    wait_for(run, lambda: reached() > stopped_at)
    resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (20_000, 20_000))  # files cannot grow
    last_words = run.communicate(timeout=120)[0].decode()
    assert run.returncode == 1
    assert stopped_at < reached() < STEPS["instruct"], "it was too fast to be disturbed"
    assert f"cannot be written; step {reached()} is whole" in last_words

    output = finish(workdir)
    assert "Traceback" not in output
    assert result(workdir) == result(undisturbed)
    last = measured(workdir)[-1]  # each source gave what was asked for, counted over all starts
    assert {"held_out": last["rows/held_out"], "seen": last["rows/seen"]} == {
        "held_out": STEPS["instruct"] * 8 // 4, "seen": STEPS["instruct"] * 8 * 3 // 4,
    }  # fmt: skip
