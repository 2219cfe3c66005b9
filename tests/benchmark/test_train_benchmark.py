"""The benchmark of a training step, end to end at a size that runs in a moment."""

import copy
import dataclasses
import functools
import json

import numpy as np
import pytest
from end_to_end.short import load_config

from mmjax.benchmark import measure as measuring
from mmjax.benchmark import train as benchmark
from mmjax.benchmark.measure import Ceiling
from mmjax.benchmark.operations import count
from mmjax.benchmark.subject import VARIATIONS, drawn_params, subject
from mmjax.benchmark.torch_train import TorchStep
from mmjax.benchmark.train import Ours, measure
from mmjax.train.config import check

pytestmark = pytest.mark.usefixtures("quick_compile")

SMALL = dict(num_layers=1, embed_dim=32, mlp_dim=48, num_heads=2)


@pytest.fixture(autouse=True)
def known_ceiling(monkeypatch):
    """Measuring it would take longer than the rest."""
    monkeypatch.setattr(benchmark, "ceiling", lambda dtype: Ceiling(1e11, 1e10))


def small(name: str, rows: int = 4, **language) -> dict:
    plain, _ = check(load_config(name))
    plain = copy.deepcopy(plain)
    plain["model"]["language"] |= SMALL | language
    if "clip" in plain["model"]:
        plain["model"]["clip"]["text"]["num_layers"] = 1
    for stage in plain["stages"]:
        plain[stage] |= dict(batch_size=rows)
    return plain


def test_lmeye_beside_torch_and_another_way(tmp_path, capsys, monkeypatch):
    real = TorchStep.start

    def start(step):
        if step._forward is not step.model:
            raise RuntimeError("no C compiler\nand more about it")
        real(step)

    monkeypatch.setattr(TorchStep, "start", start)
    file = tmp_path / "lines.jsonl"
    lines = measure(small("lmeye.py"), compare=("one_pass",), rounds=3, file=file)
    page = capsys.readouterr().out
    assert [line.name for line in lines] == ["mmjax", "mmjax, one_pass", "torch, eager, SDPA"]
    assert all(line.seconds > 0 for line in lines)
    assert "torch.compile failed: RuntimeError: no C compiler" in page
    shapes = ("prefix 15, request 1, target 9", "computed in float32")
    for said in (*shapes, "jax 0.", "torch ", "FLOP: 2 b m n k"):
        assert said in page, said
    assert all(float(line.further["TFLOP"]) > 0 for line in lines[:2])
    (saved,) = map(json.loads, file.read_text().splitlines())
    assert saved["kind"] == "train" and saved["lines"][0]["name"] == "mmjax"
    assert saved["ceiling"]["product_flops"] == 1e11
    assert saved["notices"] == ["torch.compile failed: RuntimeError: no C compiler"]


def test_a_system_without_a_counterpart_says_so(capsys):
    config = small("lynx.py", adapter_every=1, adapter_dim=4)
    config["model"]["resampler"] |= dict(embed_dim=32)
    (line,) = measure(config, stage="pretrain", rounds=3)
    assert line.name == "mmjax" and line.seconds > 0
    assert "No PyTorch beside it: lynx has no counterpart" in capsys.readouterr().out


def test_both_train_the_same_number_of_parameters():
    """With LoRA and rows of words among them; and both steps make the loss smaller."""
    config = small("visual_llama.py")
    one = subject(config, "instruct")
    one.stage.section["optimizer"] |= dict(schedule="constant", warmup_steps=0)
    step = TorchStep(one, "cpu", compiles=False)
    wanted = sum(one.stage.wanted[path].size for path in one.trainable)
    assert sum(x.numel() for x in step.model.parameters() if x.requires_grad) == wanted
    ours = Ours(one, drawn_params(one))
    first, last = ([call() for _ in range(6)] for call in (lambda: float(ours()["loss"]), step))
    assert first[-1] < first[0] and last[-1] < last[0]
    assert ours.python_seconds(3) < 60


def test_slices_do_not_change_the_loss():
    config = small("minigpt4.py")
    one = subject(config, "instruct")
    whole = TorchStep(one, "cpu", compiles=False)
    one.stage.section["accumulation"] = 2
    parts = TorchStep(one, "cpu", compiles=False)
    parts.model.load_state_dict(whole.model.state_dict())
    assert parts() == pytest.approx(whole(), rel=1e-5)


def test_operations_are_counted_at_full_size(capsys):
    """Of LLaMA-7B: no array is made."""
    plain, _ = check(load_config("lmeye.py:vicuna-7b"))
    plain["model"]["language"]["remat"] = "full"
    count(plain, compare=("two_full_passes",))
    first, second, tower = (
        line.split()
        for line in capsys.readouterr().out.splitlines()
        if " TFLOP" not in line[:8] and line[:4] in ("step", "froz")
    )
    useful, computed = float(first[1]), float(first[2])
    assert 1.2 < computed / useful < 1.4 and float(second[2]) > 1.6 * useful
    assert 0.1 < float(tower[-1]) < 0.2  # ViT-L/14: 0.16 TFLOP


def test_the_made_up_batch_is_full():
    one = subject(small("lmeye.py"), "instruct")
    batch = one.batch
    assert one.num_tokens == 4 * (15 + 1 + 9)
    assert batch.target.positions[0].tolist() == list(range(15, 24))
    assert batch.request.positions[0].tolist() == [15]
    assert (batch.prefix.slots["media"] == 0).sum() == 4
    assert (batch.target.slots["response"][0] >= 0).sum() == 5
    assert batch.target.weights[0].sum() > 1 and not batch.prefix.weights.any()
    words = one.stage.system.config.image_token + 2
    assert max(x.tokens.max() for x in (batch.prefix, batch.target)) < words
    again = VARIATIONS["two_full_passes"](one).batch
    assert again.prefix is None and again.request.tokens.shape == (4, 16)
    once = VARIATIONS["one_pass"](one).batch
    assert once.request is None and set(once.target.slots) == {"media"}
    np.testing.assert_array_equal(once.target.positions[0], np.arange(24))


def test_wrong_requests(tmp_path):
    config = small("minigpt4.py")
    with pytest.raises(ValueError, match="--compare three: there are one_pass, two_full"):
        measure(config, compare=("three",))
    with pytest.raises(ValueError, match="minigpt4, instruct has no two passes over one prefix"):
        measure(config, compare=("one_pass",))
    with pytest.raises(ValueError, match="stage 'x' is none of align, instruct"):
        measure(config, stage="x")


def test_the_second_call_of_a_turn_counts(monkeypatch):
    now, calls = 0.0, []

    def call(name: str) -> None:
        nonlocal now
        now += 1 if calls[-1:] == [name] else 100
        calls.append(name)

    monkeypatch.setattr(measuring.time, "perf_counter", lambda: now)
    contestants = {name: functools.partial(call, name) for name in "ab"}
    assert measuring.take_turns(contestants, rounds=3) == {"a": (1.0, 1.0), "b": (1.0, 1.0)}
    assert "".join(calls) == "ab" + 3 * "aabb"


def test_a_page_of_lines():
    lines = [measuring.Line("a", 0.5, floor=0.25), measuring.Line("b", 1.0)]
    page = measuring.page(lines)
    assert "50 %" in page and "2.00" in page
    assert dataclasses.asdict(lines[0])["seconds"] == 0.5
