"""Answers beside transformers': the counterpart computes the same, and the page is made."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from end_to_end.short import load_config

from mmjax.benchmark import decode, precision
from mmjax.benchmark.measure import Ceiling
from mmjax.benchmark.torch_answers import NoCounterpart, TorchAnswers
from mmjax.models.chatglm import ChatGLM
from mmjax.models.language import LANGUAGE_MODELS
from mmjax.nn.apart import take_apart
from mmjax.nn.cache import Cache
from mmjax.nn.param import merge, specs
from mmjax.train.config import check

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(autouse=True)
def known_ceiling(monkeypatch):
    """Measuring it would take longer than the rest."""
    monkeypatch.setattr(decode, "ceiling", lambda dtype: Ceiling(1e11, 1e10))


def config() -> dict:
    return check(load_config("lmeye.py"))[0]


@pytest.mark.parametrize("make", [tiny.llama_config, tiny.opt_config], ids=["llama", "opt"])
def test_the_counterpart_says_what_our_language_model_says(make):
    sizes = make(added_rows=2)
    model = LANGUAGE_MODELS[type(sizes)](sizes)
    wanted = specs(model)
    params = tiny.random_params(wanted)
    take_apart(params, wanted, "")
    sizes_of = dict(dtype="float32", device="cpu", rows=2, places=5, beams=1)
    theirs = TorchAnswers(sizes, params, **sizes_of)
    assert "embedding" in theirs.notice  # the rows that a system added
    ours, x = merge(model, params), jnp.asarray(theirs.prompts.numpy())
    ones, places = np.ones((2, 5), np.int32), np.tile(np.arange(5), (2, 1))
    states, kept = ours(x, positions=places, segments=ones, keep=True)
    cache = Cache.start([kept], position=np.full(2, 5), room=3)
    said, words = [], sizes.vocab_size
    for _ in range(3):
        said.append(ours.logits(states[:, -1:])[:, 0, :words].argmax(axis=1))
        states, cache = ours.decode(ours.embed(said[-1][:, None], jnp.float32), cache)
    np.testing.assert_array_equal(theirs.eager(3)(), np.stack(said, axis=1))


def test_no_counterpart_is_said():
    sizes = tiny.chatglm_config()
    params = jax.eval_shape(lambda: tiny.random_params(specs(ChatGLM(sizes))))
    asked = dict(dtype="float32", device="cpu", rows=1, places=2, beams=1)
    with pytest.raises(NoCounterpart, match="transformers has no chatglm"):
        TorchAnswers(sizes, params, **asked)


def test_pages_of_answers(tmp_path, capsys):
    file = tmp_path / "lines.jsonl"
    asked = dict(rows=2, compiles=False, rounds=3, file=file)
    ours, theirs = decode.measure("decode", config(), tokens=3, beams=2, **asked)
    assert ours.floor > 0 and theirs.seconds > 0
    page = capsys.readouterr().out
    assert "2 prompts of" in page and "2 beams" in page and "transformers, generate" in page
    first, _ = decode.measure("prefill", config(), **asked)
    assert first.floor > 0
    kinds = [json.loads(line)["kind"] for line in file.read_text().splitlines()]
    assert kinds == ["decode", "prefill"]
    with pytest.raises(ValueError, match="decoding needs two"):
        decode.measure("decode", config(), tokens=1)
    for measure in (decode.measure, precision.measure):
        kind = ("decode",) if measure is decode.measure else ()
        with pytest.raises(ValueError, match="stage 'x' is none of align, instruct"):
            measure(*kind, config(), stage="x")


def test_half_precision_is_compared(capsys):
    brain, half = precision.measure(config(), rows=4)
    assert 0 < half.gap < brain.gap < brain.spread
    assert brain.places == half.places and half.same >= 0.9
    assert "bfloat16" in capsys.readouterr().out
