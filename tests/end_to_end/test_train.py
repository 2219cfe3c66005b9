"""The main job, shortened: both stages on real pictures with the shipped towers."""

import copy
import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from mmjax.train import loop
from mmjax.train.build import build, load_run
from mmjax.train.checkpoint import read_trainable
from mmjax.train.config import resolve
from mmjax.train.evaluation import evaluate, picture_features, question_section

ROOT = Path(__file__).parents[2]


def get_config(name: str):
    file, _, variant = name.partition(":")
    spec = importlib.util.spec_from_file_location("config", ROOT / "configs" / file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant) if variant else module.get_config()


@pytest.fixture
def config() -> dict:
    """The default config at a hundredth of its length."""
    config = get_config("lmeye.py")
    config.align.steps, config.instruct.steps = 4, 6
    for stage in (config.align, config.instruct):
        stage.update(batch_size=8, log_every=1, save_every=2)
        stage.optimizer.warmup_steps = 1
        stage.eval.update(batch_size=32)
        stage.eval.data.options = {"limit": 32}
    del config.instruct.data["weights"]
    config.instruct.data.options = {"limit": 400}
    config.align.data.options.limit = 400
    config.test.data.options = {"limit": 32}
    config.test.batch_size = 32
    return resolve(config)


def trained(workdir: Path, stage: str) -> dict[str, np.ndarray]:
    return read_trainable(str(workdir / "checkpoints" / stage))[0]


def losses(workdir: Path) -> list[tuple[str, int, float]]:
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [(line["stage"], line["step"], line["loss"]) for line in lines if "loss" in line]


def test_run_resume_and_freeze(config, tmp_path, monkeypatch, capsys):
    """An undisturbed run against one that is stopped twice and started again; what it leaves
    behind."""
    steps, stages = [], []
    jit_step, train_stage = loop.jit_step, loop._train_stage
    monkeypatch.setattr(loop, "jit_step", lambda *a: steps.append(jit_step(*a)) or steps[-1])
    monkeypatch.setattr(
        loop, "_train_stage", lambda s, p: stages.append(train_stage(s, p)) or stages[-1]
    )
    metrics = loop.train(config, tmp_path / "whole")

    assert [step._cache_size() for step in steps] == [1, 1], "a step compiled more than once"
    run = build(config)
    for stage, params in zip(config["stages"], stages, strict=True):
        for path in run.selection(stage).frozen:
            before = run.params[path] if stage == "align" else stages[0][path]
            assert np.array_equal(np.asarray(before), np.asarray(params[path])), path
        moved = [
            p
            for p in run.selection(stage).trainable
            if not np.array_equal(params[p], run.params[p])
        ]
        assert set(moved) == set(run.selection(stage).trainable)
    out = capsys.readouterr().out
    assert "[" in out and "<media 0>" in out and "<response 4>" in out, (
        "no decoded sample was shown"
    )
    last = json.loads((tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"eval/accuracy", "eval/accuracy_mean_of_kinds"} <= last.keys()
    assert last["eval/accuracy"] == metrics["eval/accuracy"]
    for name in ("config.json", "curves.png", "samples.html", "tokenizer/tokenizer.json"):
        assert (tmp_path / "whole" / name).stat().st_size > 100

    put_rows, calls = loop.put_rows, []

    def stops(batch, mesh):
        calls.append(1)
        if len(calls) in (4, 4 + 2 + 4):  # in align's step 4, then in instruct's fourth step
            raise KeyboardInterrupt
        return put_rows(batch, mesh)

    monkeypatch.setattr(loop, "put_rows", stops)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            loop.train(copy.deepcopy(config), tmp_path / "stopped")
    loop.train(config, tmp_path / "stopped")
    for stage in config["stages"]:
        whole, stopped = trained(tmp_path / "whole", stage), trained(tmp_path / "stopped", stage)
        assert whole.keys() == stopped.keys()
        assert all(np.array_equal(whole[path], stopped[path]) for path in whole), stage
    assert losses(tmp_path / "whole") == losses(tmp_path / "stopped")

    run, stage = load_run(tmp_path / "whole")
    assert stage == "instruct"
    with jax.set_mesh(run.mesh):
        features = picture_features(run, tmp_path / "whole" / "features.npz")
        again, _ = evaluate(run, run.params, question_section(run.config, stage), features)
        from_frames, _ = evaluate(run, run.params, question_section(run.config, stage), None)
        blind, _ = evaluate(run, run.params, config["test"], features, without_picture=True)
    assert again.overall == metrics["eval/accuracy"]
    assert from_frames.kinds == again.kinds, "stored features and the tower in the step disagree"
    assert blind.count == again.count

    changed = copy.deepcopy(config)
    changed["seed"] = 1
    with pytest.raises(ValueError, match="seed: 0 -> 1"):
        loop.train(changed, tmp_path / "whole")


def test_resolve_reports_everything_at_once(config):
    wrong = get_config("lmeye.py:vicuna-7b")
    with pytest.raises(ValueError) as error:
        resolve(wrong)
    for name in (
        "tokenizer",
        "weights.language",
        "weights.clip",
        "align.data.source",
        "instruct.data.source",
    ):
        assert name in str(error.value)
    wrong = get_config("lmeye.py")
    wrong.unlock()
    wrong.instruct.stepz = 3
    wrong.instruct.accumulation = 7
    with pytest.raises(ValueError, match=r"(?s)instruct\.stepz.*does not divide into 7"):
        resolve(wrong)


@pytest.mark.parametrize("variant", ["llama-7b", "llama-13b", "vicuna-7b", "vicuna-13b"])
def test_full_size_variants_declare_the_published_sizes(variant):
    from mmjax.nn.param import specs
    from mmjax.systems.registry import make_system

    config = get_config(f"lmeye.py:{variant}").to_dict()
    wanted = specs(make_system("lmeye", config["model"]))
    sizes = {"7b": 6_738_415_616, "13b": 13_015_864_320}
    language = sum(
        s.size for p, s in wanted.items() if p.startswith("language.") and "added" not in p
    )
    assert language == sizes[variant.split("-")[1]]
    assert sum(s.size for p, s in wanted.items() if p.startswith("clip.")) == 427_616_513
    own = sum(s.size for p, s in wanted.items() if not p.startswith(("clip.", "language.")))
    assert own == {"7b": 25_006_592, "13b": 30_519_808}[variant.split("-")[1]]


def test_unknown_variant():
    with pytest.raises(ValueError, match="llama-7b"):
        get_config("lmeye.py:llama-70b")
