"""The foundations' losses, and their configs; their networks: ``tests/models``."""

import json

import jax
import numpy as np
import pytest
import tiny
from end_to_end.short import load_config

from mmjax.data.batch import Batch, Sequence
from mmjax.nn.param import merge, specs
from mmjax.parallel.mesh import make_mesh
from mmjax.systems.foundation import (
    Contrastive,
    ContrastiveConfig,
    LanguageModel,
    LanguageModelConfig,
)
from mmjax.train import build, loop
from mmjax.train.config import resolve

pytestmark = pytest.mark.usefixtures("quick_compile")


def text(tokens) -> Sequence:
    tokens = np.asarray(tokens, np.int32)
    none = np.zeros_like(tokens)
    return Sequence(tokens, none, np.ones_like(tokens), none, none.astype(np.float32), {})


def test_pictures_with_the_same_caption_share_it():
    system = Contrastive(ContrastiveConfig(tiny.clip_config()))
    params = tiny.random_params(specs(system))
    params["clip.logit_scale"] = np.float32(np.log(5.0))
    rng = np.random.default_rng(0)
    v = rng.normal(size=(4, 10)).astype(np.float32)
    first = [[9, 3, 4, 10], [9, 5, 5, 10], [9, 3, 4, 10], [9, 6, 7, 10]]
    second = [[9, 1, 1, 10], [9, 2, 2, 10], [9, 3, 3, 10], [9, 4, 4, 10]]
    batch = Batch(np.arange(4), text(first), request=text(second), features=v[:, None])

    @jax.jit
    def compute(batch):
        model = merge(system, params)
        embeds = [
            model.clip.text_features(t.tokens, None, np.float32)
            for t in (batch.target, batch.request)
        ]
        return model.loss(batch), embeds

    (loss, weight, further), embeds = compute(batch)
    assert float(weight) == 4
    unit = lambda x: np.asarray(x) / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    total, right = 0.0, 0
    for embed, partners in zip(
        embeds, ([{0, 2}, {1}, {0, 2}, {3}], [{0}, {1}, {2}, {3}]), strict=True
    ):
        logits = 5 * unit(v) @ unit(embed).T
        for square in (logits, logits.T):
            log_p = square - np.log(np.exp(square).sum(1, keepdims=True))
            total -= sum(np.mean([log_p[i, j] for j in partners[i]]) for i in range(4))
        right += sum(int(logits[i].argmax()) in partners[i] for i in range(4))
    np.testing.assert_allclose(loss, total / 4, rtol=1e-4)
    assert float(further["retrieval"]) == right / 2
    huge = merge(system, params | {"clip.logit_scale": np.float32(50.0)}).loss(batch)[0]
    assert np.isfinite(huge)  # the temperature is bounded, as in the paper


def test_a_language_model_that_knows_nothing():
    """Without weights in its head every token is as likely as any other."""
    config = tiny.llama_config()
    system = LanguageModel(LanguageModelConfig(config))
    params = tiny.random_params(specs(system))
    params["language.head.kernel"] = 0 * params["language.head.kernel"]
    target = tiny.lmeye_batch(tiny.lmeye_config(), 3).target
    tokens = np.minimum(target.tokens, 23)
    plain = Sequence(tokens, target.positions, target.segments, tokens, 0.5 * target.weights, {})
    loss, weight, _ = jax.jit(lambda b: merge(system, params).loss(b))(Batch(np.arange(3), plain))
    assert float(weight) == 0.5 * target.weights.sum()
    np.testing.assert_allclose(loss / weight, np.log(24), rtol=1e-5)


@pytest.mark.parametrize("variant", ["llama", "clip"])
def test_the_config_trains(variant, tmp_path, monkeypatch):
    """Without a test, and without pretrained weights."""
    config = load_config(f"foundation.py:{variant}")
    config.stages = config.stages[:1]
    stage = config[config.stages[0]]
    stage.update(steps=1, batch_size=4, log_every=1)
    stage.optimizer.warmup_steps = 0
    if variant == "llama":
        stage.data.options = {"num_documents": 50}
        del config.words
    monkeypatch.setattr(build, "make_mesh", lambda **_: make_mesh(devices=jax.devices()[:1]))
    assert loop.train(resolve(config), tmp_path) == {}
    assert "loss" in json.loads((tmp_path / "metrics.jsonl").read_text())
