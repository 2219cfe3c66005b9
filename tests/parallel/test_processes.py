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
from end_to_end.short import ROOT, get_config, measured

from conversion.store import save_imported
from mmjax.data.features import FeatureStore
from mmjax.models.t5 import T5Config
from mmjax.nn.param import init_params, specs
from mmjax.parallel import distributed
from mmjax.parallel.mesh import make_mesh
from mmjax.parallel.sharding import row_share
from mmjax.systems.foundation import LanguageModelConfig
from mmjax.systems.registry import make_system
from mmjax.systems.system import config_to_dict
from mmjax.train import build, loop
from mmjax.train.checkpoint import read_trainable
from mmjax.train.config import resolve

SHORT = "tests/end_to_end/short.py"


def train_here(config, workdir, num_devices: int, monkeypatch) -> None:
    """In this process, on some of its devices."""
    mesh = make_mesh(fsdp=num_devices, devices=jax.devices()[:num_devices])
    with monkeypatch.context() as patch:
        patch.setattr(build, "make_mesh", lambda **sizes: mesh)
        loop.train(resolve(config), workdir)


def start_two_processes(*arguments: str, **variables: str) -> list[subprocess.Popen]:
    """scripts/train.py, each process with two devices; and with these variables besides."""
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
    environment |= variables
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
    is_gloo = lambda line: "[Gloo]" in line or "peer ranks" in line  # its threads cut lines in two  # noqa: E731
    return ["".join(line for line in each if not is_gloo(line)) for each in lines]


def metrics(workdir) -> dict[tuple[str, int], dict]:
    """Measured values, of lines of the same stage and step together."""
    lines: dict[tuple[str, int], dict] = {}
    for record in measured(workdir):
        key = record.pop("stage"), record.pop("step")
        lines[key] = lines.get(key, {}) | record
    return lines


def assert_same_run(workdir, other) -> None:
    """The same files; losses, weights and features to rounding, and every answer."""

    def both(read):
        return read(workdir), read(other)

    names, expected = both(lambda run: {path.name for path in run.iterdir()})
    assert names == expected
    lines, expected = both(measured)
    assert len(lines) == len(expected)
    lines, expected = both(metrics)
    assert lines.keys() == expected.keys()
    for key, line in lines.items():
        assert line == pytest.approx(expected[key], rel=1e-4), key
    page, expected = both(lambda run: (run / "samples.html").read_text())
    assert page == expected
    for stage in json.loads((workdir / "config.json").read_text())["stages"]:
        weights, expected = both(lambda run, s=stage: read_trainable(run / "checkpoints" / s)[0])
        for path, value in weights.items():
            np.testing.assert_allclose(value, expected[path], atol=2e-5, err_msg=path)
    keys, expected = both(lambda run: (run / "features" / "keys.jsonl").read_text())
    assert keys == expected
    keys = [json.loads(key) for key in keys.splitlines()]
    features, expected = both(lambda run: FeatureStore(run / "features")[keys])
    np.testing.assert_allclose(features, expected, atol=1e-5)


def rewind(workdir, other, last: str, *, after: int) -> None:
    """Makes ``other`` what ``workdir`` was when the ``last`` stage had taken ``after`` steps."""
    shutil.copytree(workdir, other)
    for folder in (other / "checkpoints" / last).iterdir():
        if int(folder.name) > after:
            shutil.rmtree(folder)
    shutil.rmtree(other / "features")
    for name in ("curves.png", "samples.html"):
        (other / name).unlink()


def untrained_language(folder) -> str:
    """A T5, which is not shipped, as it is before its training."""
    model = config_to_dict(LanguageModelConfig(T5Config.tiny()))
    params = init_params(specs(make_system("language_model", model)), 0)
    header = {"system": "language_model", "variant": None, "model": model}
    save_imported(folder, header, {path: np.asarray(x) for path, x in params.items()}, {})
    return str(folder)


@pytest.mark.parametrize(
    "system",
    [
        "lmeye",
        pytest.param("lmeye_blip2", marks=pytest.mark.slow, id="lmeye_blip2, on T5"),
        pytest.param("mplug_owl", marks=pytest.mark.slow, id="mplug_owl, with LoRA"),
        pytest.param("lynx", marks=pytest.mark.slow, id="lynx, clips and adapters"),
        pytest.param("cheetor", marks=pytest.mark.slow, id="cheetor, two stacks"),
    ],
)
def test_two_processes_train_what_one_trains(system, tmp_path, monkeypatch, quick_compile):
    """One device; then two processes with two devices each, and one with four, each going on where
    the one before was two steps, or one, from its end."""
    config, options = get_config(f"spread-{system}"), []
    if system == "lmeye_blip2":
        config.weights.language = untrained_language(tmp_path / "t5")
        options = [f"--config.weights.language={config.weights.language}"]
    first_stage, last = config.stages[0], config.stages[-1]
    alone, shared, back = tmp_path / "alone", tmp_path / "shared", tmp_path / "back"
    train_here(config, alone, 1, monkeypatch)

    rewind(alone, shared, last, after=2)
    start = [f"--config={SHORT}:spread-{system}", f"--workdir={shared}", *options]
    first, second = wait_for(start_two_processes(*start))
    assert f"Stage {first_stage} is done" in first and f"Stage {last} goes on after step 2" in first
    assert second == ""
    assert_same_run(shared, alone)

    rewind(shared, back, last, after=4)
    train_here(config, back, 4, monkeypatch)
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


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1], ids=["the first", "the second"])
def test_when_one_process_is_killed_the_other_ends_and_a_new_start_goes_on(tmp_path, lost):
    """Within the silence that it is given (10 seconds, and as many to notice and to end)."""
    options = ["--config.preset=fsdp", "--config.mesh.data=1", "--config.mesh.fsdp=-1"]
    options = [f"--config={SHORT}:saving", f"--workdir={tmp_path}", *options]
    folder = tmp_path / "checkpoints" / "instruct"
    longer = [*options, "--config.instruct.steps=24"]
    processes = start_two_processes(*longer, MMJAX_HEARTBEAT_SECONDS="10")
    while not (folder / "2").is_dir() and all(p.poll() is None for p in processes):
        time.sleep(0.05)
    processes[lost].kill()
    _, errors = processes[1 - lost].communicate(timeout=30)
    assert processes[1 - lost].returncode not in (0, None), errors
    processes[lost].communicate()
    whole = max(int(path.name) for path in folder.iterdir() if path.name.isdecimal())
    assert 2 <= whole < 24

    first, _ = wait_for(start_two_processes(*longer))
    assert f"Stage instruct goes on after step {whole}" in first
    assert (folder / "24").is_dir()


def test_variables_of_a_start_by_hand(monkeypatch):
    for name in (*distributed.BY_HAND, "SLURM_NTASKS", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    distributed.initialize()  # one process needs nothing
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="'soon', it must be a wh"):
        patch.setenv("JAX_NUM_PROCESSES", "2")
        patch.setenv("MMJAX_HEARTBEAT_SECONDS", "soon")
        distributed.initialize()
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
