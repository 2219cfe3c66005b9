"""Several processes: two real ones on this machine train what one process trains."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from end_to_end.short import ROOT, get_config

from mmjax.data.features import FeatureStore
from mmjax.parallel import distributed
from mmjax.parallel.mesh import make_mesh
from mmjax.parallel.sharding import row_share
from mmjax.train import build, loop
from mmjax.train.checkpoint import read_trainable
from mmjax.train.config import resolve
from mmjax.train.metrics import read_metrics

SHORT = "tests/end_to_end/short.py"


def train_here(workdir, num_devices: int, monkeypatch) -> None:
    """In this process, on some of its devices."""
    mesh = make_mesh(fsdp=num_devices, devices=jax.devices()[:num_devices])
    with monkeypatch.context() as patch:
        patch.setattr(build, "make_mesh", lambda **sizes: mesh)
        loop.train(resolve(get_config("spread")), workdir)


def start_two_processes(*arguments: str) -> list[subprocess.Popen]:
    """scripts/train.py, each process with two devices."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": "2",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        # The first process alone would find its programs there, and Gloo waits 30 s for the other.
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "PYTHONPATH": str(ROOT),
    }
    return [
        subprocess.Popen(
            [sys.executable, "scripts/train.py", *arguments],
            cwd=ROOT,
            env=environment | {"JAX_PROCESS_ID": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]


def wait_for(processes: list[subprocess.Popen]) -> list[str]:
    """What each printed (Gloo, which connects them, prints in all)."""
    try:
        outputs = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors
    lines = [output.splitlines(keepends=True) for output, _ in outputs]
    return ["".join(line for line in each if "[Gloo]" not in line) for each in lines]


def metrics(workdir) -> dict[tuple[str, int], dict]:
    """Measured values, of lines of the same stage and step together."""
    lines: dict[tuple[str, int], dict] = {}
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        key = record.pop("stage"), record.pop("step")
        lines[key] = lines.get(key, {}) | record
    pace = {"time", "samples_per_second", "tokens_per_second", "seconds_per_step", "data_wait"}
    return {key: {k: v for k, v in line.items() if k not in pace} for key, line in lines.items()}


def assert_same_run(workdir, other) -> None:
    """Losses and weights to rounding, and every answer."""
    mine, theirs = metrics(workdir), metrics(other)
    assert mine.keys() == theirs.keys()
    for key, line in mine.items():
        assert line == pytest.approx(theirs[key], rel=1e-4), key
    assert (workdir / "samples.html").read_text() == (other / "samples.html").read_text()
    for stage in get_config("spread").stages:
        mine, theirs = (read_trainable(str(w / "checkpoints" / stage))[0] for w in (workdir, other))
        for path, value in mine.items():
            np.testing.assert_allclose(value, theirs[path], atol=2e-5, err_msg=path)


def rewind(workdir, other, *, after: int) -> None:
    """Makes ``other`` what ``workdir`` was when the last stage had taken ``after`` steps."""
    shutil.copytree(workdir, other)
    for folder in (other / "checkpoints" / "instruct").iterdir():
        if int(folder.name) > after:
            shutil.rmtree(folder)
    shutil.rmtree(other / "features")
    for name in ("curves.png", "samples.html"):
        (other / name).unlink()


def test_two_processes_train_what_one_trains(tmp_path, monkeypatch, quick_compile):
    """One device; then two processes with two devices each, and one with four, each going on where
    the one before was two steps, or one, from its end."""
    alone, shared, back = tmp_path / "alone", tmp_path / "shared", tmp_path / "back"
    train_here(alone, 1, monkeypatch)

    rewind(alone, shared, after=2)
    first, second = wait_for(start_two_processes(f"--config={SHORT}:spread", f"--workdir={shared}"))
    assert "Stage align is done" in first and "Stage instruct goes on after step 2" in first
    assert second == ""
    assert_same_run(shared, alone)
    assert {path.name for path in shared.iterdir()} == {path.name for path in alone.iterdir()}
    assert len(read_metrics(shared / "metrics.jsonl")) == len(read_metrics(alone / "metrics.jsonl"))
    keys = (alone / "features" / "keys.jsonl").read_text()
    assert (shared / "features" / "keys.jsonl").read_text() == keys
    features, expected = (FeatureStore(w / "features") for w in (shared, alone))
    keys = [json.loads(key) for key in keys.splitlines()]
    np.testing.assert_allclose(features[keys], expected[keys], atol=1e-5)

    rewind(shared, back, after=4)
    train_here(back, 4, monkeypatch)
    assert_same_run(back, alone)


@pytest.mark.slow
def test_one_of_two_processes_is_told_to_stop_and_both_do(tmp_path):
    options = ["--config.preset=fsdp", "--config.mesh.data=1", "--config.mesh.fsdp=-1"]
    options += ["--config.instruct.steps=200"]
    processes = start_two_processes(f"--config={SHORT}:saving", f"--workdir={tmp_path}", *options)
    folder = tmp_path / "checkpoints" / "instruct"
    while not (folder / "2").is_dir() and all(p.poll() is None for p in processes):
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)
    first, _ = wait_for(processes)
    last = max(int(path.name) for path in folder.iterdir())
    assert last < 100 and f"instruct is saved at step {last}" in first


def test_variables_of_a_start_by_hand(monkeypatch):
    for name in (*distributed.BY_HAND, "SLURM_NTASKS", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    distributed.initialize()  # one process needs nothing
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    with pytest.raises(ValueError) as error:
        distributed.initialize()
    assert "JAX_COORDINATOR_ADDRESS is not set" in str(error.value)
    assert "JAX_PROCESS_ID is not set" in str(error.value)
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "somewhere")
    monkeypatch.setenv("JAX_PROCESS_ID", "2")
    with pytest.raises(ValueError) as error:
        distributed.initialize()
    assert "'somewhere', it must be host:port" in str(error.value)
    assert "is 2 of 2 processes: give 0 to 1" in str(error.value)
    monkeypatch.setenv("JAX_PROCESS_ID", "first")
    with pytest.raises(ValueError, match="'first', it must be a whole number"):
        distributed.initialize()


class Device:
    def __init__(self, process_index: int):
        self.process_index = process_index


def shares(processes) -> list[tuple[int, int]]:
    """Of the processes of a mesh that is given by its devices' processes."""
    devices = np.vectorize(Device)(np.array(processes))
    return [row_share(devices, process) for process in range(np.max(processes) + 1)]


def test_every_process_has_its_share_of_the_rows():
    assert shares([[[0], [0]], [[1], [1]]]) == [(0, 2), (1, 2)]
    assert shares([[[0, 0]], [[1, 1]]]) == [(0, 2), (1, 2)]
    assert shares([[[0, 1]], [[0, 1]]]) == [(0, 1), (0, 1)], "tensor over both: the same rows"
    assert shares([[[0, 1], [2, 3]]]) == [(0, 2), (0, 2), (1, 2), (1, 2)]
    assert shares([[[0], [1], [1], [0]]]) == [(0, 2), (1, 2)], "rings are not in order"
    with pytest.raises(ValueError, match="cuts rows across 2 processes"):
        shares([[[0, 0], [0, 1]], [[1, 1], [1, 1]]])
