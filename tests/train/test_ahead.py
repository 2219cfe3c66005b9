"""Programs for TPUs that are not here."""

import copy
import subprocess
import sys

import jax
import pytest
from end_to_end.short import ROOT, load_config

from mmjax.parallel.chips import chip_of, devices_of
from mmjax.parallel.collectives import Traffic
from mmjax.parallel.sharding import replicated
from mmjax.train import ahead, ahead_report
from mmjax.train.ahead import Ahead, Compiled, compiled
from mmjax.train.config import check
from mmjax.train.costs import Cost, cost
from mmjax.train.memory import device_memory, shard_bytes

GIB = 2**30


def config_of(name: str) -> dict:
    plain, _ = check(load_config(name))
    plain = copy.deepcopy(plain)
    plain["preset"], plain["mesh"] = "fsdp", dict(data=1, fsdp=-1, tensor=1)
    return plain


@pytest.mark.filterwarnings("ignore:Error reading persistent")  # programs for devices elsewhere
def test_a_step_on_a_slice(monkeypatch):
    """Its arguments are what the dry run counts, its collectives those of sharded weights."""
    pytest.importorskip("libtpu", reason="needs a compiler for TPUs: pip install 'mmjax[aot]'")
    config, devices = config_of("lmeye.py"), devices_of("v5e:2x2")
    in_the_open = []

    def counted_outside(jaxpr):
        in_the_open.append(jax.sharding.get_abstract_mesh().empty)
        return cost(jaxpr)

    monkeypatch.setattr(ahead, "cost", counted_outside)
    (step,), problem = compiled(
        config, "align", devices, names=("step",), rows=4, max_new_tokens=2, memory=16 * GIB
    )
    assert problem is None and (step.name, step.rows) == ("step", 64)
    assert in_the_open == [True, True], "on a TPU's mesh kernels would hide the products"
    stage = Ahead(config, "align", devices).stage
    counted = device_memory(
        stage.system, stage.wanted, stage.dtypes, stage.selection.trainable, stage.optimizer,
        stage.shardings, stage.batch(), accumulation=1,
    )  # fmt: skip
    held = sum(counted[kind] for kind in ("weights", "optimizer", "batch"))
    assert held <= step.held < held + 1000, "a few counters more"
    assert step.traffic["all-gather"].size > counted["weights"]
    assert step.useful.flops == step.cost.flops > 1e7, "the tiny one computes nothing again"
    page = ahead_report.page([step], chip_of("v5e:2x2"))
    assert "of 16 GiB" in page and "all-gather" in page
    line = ahead_report.facts("x", config, "align", "v5e:2x2", [step], None)
    assert "| `x`, align | v5e:2x2 | fsdp fsdp=-1 | 64 in 1 |" in ahead_report.overview([line])


def test_keys_are_counted_among_what_is_held():
    """The state of decoding has one."""
    mesh = Ahead(config_of("lmeye.py"), "align", jax.devices()[:2]).mesh
    key = jax.eval_shape(lambda: jax.random.key(0))
    assert shard_bytes(key, replicated(mesh)) == 8


def test_wrong_requests():
    wrong = {"h300:8": "none of v4, v5e", "v5e": "each side. e.g. v5e:2x2", "v5e:4xa": "each side"}
    for topology, said in (wrong | {"h100": "how many GPUs"}).items():
        with pytest.raises(ValueError, match=said):
            devices_of(topology)
    with pytest.raises(ValueError, match="stage 'x' is none of align, instruct; program 'y'"):
        compiled(config_of("lmeye.py"), "x", [], names=("y",), rows=1, max_new_tokens=1, memory=1)
    done = subprocess.run(
        [sys.executable, "scripts/compile.py"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1 and "--config and --topology must be given" in done.stderr


def test_bounds_by_hand():
    chip = chip_of("v5e:4x4")
    traffic = {"all-gather": Traffic(3, 90 * 10**9), "all-reduce": Traffic(1, 45 * 10**9)}
    one = Compiled("step", 16, 1.0, 0, 0, Cost(197e12, 819e9 / 2), Cost(98.5e12, 0), traffic)
    assert one.bounds(chip) == {"products": 1.0, "memory": 0.5, "links": 2.0}
    assert one.utilisation(chip) == (0.5 / 3.5, 0.25)


def test_what_would_make_it_fit(monkeypatch):
    """The cheapest change that the compiler takes; what cannot be, is passed over."""
    config = config_of("lmeye.py")
    config["preset"], config["mesh"] = "dp", dict(data=-1, fsdp=1, tensor=1)
    flags = [given for given, _ in ahead_report.changes(config, "instruct", 4)]
    assert flags[0][0] == "--config.preset=fsdp" and "--config.mesh.fsdp=-1" in flags[0]
    assert "--config.model.language.remat=full" in flags[1]
    assert [given[-1] for given in flags[2:6]] == [
        f"--config.instruct.accumulation={slices}" for slices in (2, 4, 8, 16)
    ]
    assert "--config.mesh.tensor=4" in flags[-1] and "--config.preset=fsdp_tp" in flags[-1]
    seen = []

    def compiler(config, stage, devices, **asked):
        seen.append(config)
        if len(seen) == 1:
            raise ValueError("such a mesh does not fit")
        fits = config["instruct"]["accumulation"] >= 4
        made = Compiled("step", 64, 1.0, GIB, GIB, Cost(), Cost(), {})
        return [made], None if fits else "step: too large"

    monkeypatch.setattr(ahead_report, "compiled", compiler)
    said = ahead_report.suggestion(config, "instruct", [None] * 4)
    assert said.startswith("It fits (2 GiB of a device) with --config.preset=fsdp")
    assert "--config.instruct.accumulation=4" in said and len(seen) == 4
    assert config["preset"] == "dp", "what was asked for is left alone"
    monkeypatch.setattr(ahead_report, "compiled", lambda *a, **k: ([], "no"))
    assert "larger slice" in ahead_report.suggestion(config, "instruct", [None] * 4)
