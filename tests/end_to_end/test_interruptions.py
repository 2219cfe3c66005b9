"""Runs in processes of their own that are killed, told to stop, or run out of disk; then go on.

A hundred random SIGKILLs, in about a quarter of an hour:

    KILLS=100 python -m pytest -m slow -s tests/end_to_end/test_interruptions.py -k random
"""

import multiprocessing
import os
import random
import resource
import runpy
import signal
import sys
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
from end_to_end.short import PACE, ROOT, measured
from train.test_metrics import events

CONFIG = ROOT / "tests" / "end_to_end" / "short.py"
STEPS = {"align": 4, "instruct": 16}

# Runs are forks of a process that has done their imports, which take longer than they do.
START = multiprocessing.get_context("forkserver")
START.set_forkserver_preload(["end_to_end.preloaded"])


def start(workdir: Path, output: Path | None = None, **settings) -> multiprocessing.Process:
    """Its output goes to ``output``, by default ``output.txt`` in the run directory."""
    workdir.mkdir(exist_ok=True)
    arguments = [f"--config={CONFIG}:saving", f"--workdir={workdir}"]
    arguments += [f"--config.{key}={value}" for key, value in settings.items()]
    run = START.Process(target=script, args=(arguments, output or workdir / "output.txt"))
    run.start()
    return run


def script(arguments: list[str], output: Path) -> None:
    """scripts/train.py, on one device."""
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1), os.dup2(file, 2)
    sys.stdout = sys.stderr = open(1, "w", buffering=1)
    sys.argv = ["scripts/train.py", *arguments]
    os.environ["XLA_FLAGS"] = ""
    runpy.run_path(str(ROOT / "scripts" / "train.py"), run_name="__main__")


def end_of(run: multiprocessing.Process, *, within: float = 300) -> int:
    """Its exit code."""
    run.join(within)
    assert run.exitcode is not None, "it does not end"
    return run.exitcode


def finish(workdir: Path, **settings) -> str:
    """Runs to the end; returns what was printed."""
    # A second for each step that it saves: many on a busy machine.
    within = max(300, settings.get("instruct.steps", 0))
    code = end_of(start(workdir, **settings), within=within)
    output = (workdir / "output.txt").read_text()
    assert code == 0, output
    return output


def wait_for(run: multiprocessing.Process, happens) -> None:
    """Until ``happens()``, looking every millisecond."""
    deadline = time.monotonic() + 300
    while not happens():
        assert run.exitcode is None, "the run ended before it could be disturbed"
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


def result(workdir: Path, last_steps: int = STEPS["instruct"]) -> dict:
    """All that a run leaves behind: weights and optimizer of both stages, metrics without pace."""
    arrays = {}
    for stage, steps in (STEPS | {"instruct": last_steps}).items():
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


def kill(run: multiprocessing.Process) -> None:
    run.kill()
    assert end_of(run, within=60) == -signal.SIGKILL


def test_killed_stopped_and_out_of_disk_it_ends_as_if_nothing_had_happened(tmp_path):
    undisturbed, workdir = tmp_path / "undisturbed", tmp_path / "disturbed"
    finish(undisturbed)
    reached = lambda: max(saved_steps(workdir, "instruct"), default=0)  # noqa: E731

    run = start(workdir)
    wait_for(run, lambda: half_saved(workdir, "align"))
    kill(run)  # while it saves

    run, delay = start(workdir), random.Random(0).uniform(0, 0.2)
    wait_for(run, lambda: reached() >= 2)
    time.sleep(delay)
    kill(run)  # at any moment
    killed_at = reached()

    run = start(workdir)
    wait_for(run, lambda: reached() > killed_at)
    run.terminate()
    assert end_of(run, within=60) == 0
    stopped_at, output = reached(), (workdir / "output.txt").read_text()
    assert f"Stage instruct goes on after step {killed_at}" in output
    assert f"instruct is saved at step {stopped_at}; the same command goes on" in output
    assert killed_at < stopped_at and not half_saved(workdir, "instruct")

    run = start(workdir, tmp_path / "last_words.txt")
    wait_for(run, lambda: reached() > stopped_at)
    resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (99_000, 99_000))  # files cannot grow
    assert end_of(run, within=120) == 1
    last_words = (tmp_path / "last_words.txt").read_text()
    assert stopped_at < reached() < STEPS["instruct"], "it was too fast to be disturbed"
    assert f"cannot be written; step {reached()} is whole" in last_words

    output = finish(workdir)
    assert "Traceback" not in output
    assert result(workdir) == result(undisturbed)
    last = measured(workdir)[-1]  # each source gave what was asked for, counted over all starts
    assert {"held_out": last["rows/held_out"], "seen": last["rows/seen"]} == {
        "held_out": STEPS["instruct"] * 8 // 4, "seen": STEPS["instruct"] * 8 * 3 // 4,
    }  # fmt: skip


@pytest.mark.slow
def test_random_kills_leave_no_trace(tmp_path):
    """``KILLS`` of them (10), each at a moment drawn by ``SEED`` (0): in a start, or after up to
    three checkpoints, which is why there are four steps for each."""
    kills, seed = (int(os.environ.get(name, x)) for name, x in (("KILLS", 10), ("SEED", 0)))
    steps, draw = 16 + 4 * kills, random.Random(seed)
    undisturbed, workdir = tmp_path / "undisturbed", tmp_path / "disturbed"
    began = time.monotonic()
    finish(undisturbed, **{"instruct.steps": steps})
    whole = time.monotonic() - began
    print(f"\nundisturbed: {steps} steps in {whole:.0f} s; now {kills} kills, seed {seed}")
    reached = lambda: sum(max(saved_steps(workdir, stage), default=0) for stage in STEPS)  # noqa: E731
    longest_start = 1.0
    for number in range(1, kills + 1):
        before, began, further = reached(), time.monotonic(), draw.randint(0, 3)
        run = start(workdir, **{"instruct.steps": steps})
        if further:
            wait_for(run, lambda n=before + further: reached() >= n)
            longest_start = max(longest_start, time.monotonic() - began)
        delay = draw.uniform(0, 0.2 if further else longest_start)
        time.sleep(delay)
        assert run.exitcode is None, "it was too fast to be killed"
        kill(run)
        half = [stage for stage in STEPS if half_saved(workdir, stage)]
        print(
            f"kill {number}: {time.monotonic() - began:.2f} s after its start, at step "
            f"{reached()} of {steps + STEPS['align']}{', while it saved' if half else ''}"
        )
    finish(workdir, **{"instruct.steps": steps})
    assert result(workdir, steps) == result(undisturbed, steps)
    print(f"{kills} kills, seed {seed}: weights, optimizer, metrics equal to the last bit")
