"""Which parameters train, learning-rate schedules, and AdamW against torch's."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from mmjax.models.blip2 import Blip2, Blip2Config
from mmjax.nn.dense import Linear
from mmjax.nn.param import specs
from mmjax.train.optim import (
    OptimizerConfig,
    TrainRule,
    learning_rate,
    make_optimizer,
    schedule,
    select,
)

PATHS = (
    "language.layers.attention.q.kernel",
    "image_linear.kernel",
    "language.embedding.table",
    "image_linear.bias",
    "language.embedding.added",
)


def test_the_first_matching_rule_decides():
    rules = [
        TrainRule(r"language\.embedding\.added", "train", 0.1),
        TrainRule(r"language\..*", "freeze"),
        TrainRule(".*", "train", 2.0),
    ]
    selection = select(rules, PATHS)
    assert selection.trainable == (
        "image_linear.bias",
        "image_linear.kernel",
        "language.embedding.added",
    )
    assert selection.frozen == ("language.embedding.table", "language.layers.attention.q.kernel")
    assert selection.multiplier == {
        "image_linear.bias": 2.0,
        "image_linear.kernel": 2.0,
        "language.embedding.added": 0.1,
    }


def test_a_pattern_must_match_the_whole_path():
    with pytest.raises(ValueError, match="'image_linear' .*matches no parameter"):
        select([TrainRule("image_linear", "train"), TrainRule(".*", "freeze")], PATHS)


def test_all_problems_are_listed_at_once():
    rules = [
        TrainRule(r"imagelinear\..*", "train"),
        TrainRule(r"language\..*", "freeze"),
        TrainRule(r"language\.embedding\..*", "train"),
        TrainRule(r"xyz", "train"),
    ]
    with pytest.raises(ValueError) as error:
        select(rules, PATHS)
    text = str(error.value)
    assert text.startswith("4 problems")
    assert "did you mean image_linear" in text
    assert "has no effect: its 2 parameters are already taken by 'language\\\\..*'" in text
    assert (
        "'xyz' (train) matches no parameter; the top-level modules are image_linear, language"
        in text
    )
    assert (
        "2 parameters match no rule" in text
        and "\n    image_linear.bias\n    image_linear.kernel" in text
    )


def test_a_default_rule_may_find_nothing_left():
    assert select([TrainRule(r"[il].*", "train"), TrainRule(".*", "freeze")], PATHS).frozen == ()


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ((".*", "lora"), "'train' or 'freeze'"),
        (("(", "train"), "expression"),
        ((".*", "train", 0.0), "multiplier"),
    ],
)
def test_rules_are_checked(rule, message):
    with pytest.raises(ValueError, match=message):
        TrainRule(*rule)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("constant", [0.1, 0.55, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.1, 0.55, 1.0, 0.8, 0.6, 0.4, 0.2, 0.2]),
        (
            "cosine",
            [0.1, 0.55, 1.0, 0.2 + 0.4 * (1 + 0.5**0.5), 0.6, 0.2 + 0.4 * (1 - 0.5**0.5), 0.2, 0.2],
        ),
        (  # cos(pi * t / 6) of t = 2, 3, 4, 5, 6: 1/2, 0, -1/2, -sqrt(3)/2, -1
            "lavis",
            [0.1, 0.55, 0.8, 0.6, 0.4, 0.2 + 0.4 * (1 - 0.75**0.5), 0.2, 0.2],
        ),
    ],
)
def test_schedules(kind, expected):
    rate = schedule(kind, 1.0, steps=6, warmup=2, start=0.1, end=0.2)
    np.testing.assert_allclose(rate(np.array([0, 1, 2, 3, 4, 5, 6, 100])), expected, rtol=1e-6)


def test_schedules_without_warmup_and_with_nothing_else():
    assert schedule("linear", 1.0, steps=4)(0) == 1.0
    rate = schedule("cosine", 1.0, steps=4, warmup=4)
    np.testing.assert_allclose(rate(np.arange(6)), [0, 0.25, 0.5, 0.75, 1.0, 1.0])


def test_lavis_schedule_of_minigpt4():
    """Stage 2 of the paper's recipe, by the formula of `LinearWarmupCosineLRScheduler`."""
    init, least, start, warmup, total = 3e-5, 1e-5, 1e-6, 200, 1000

    def wanted(step: int) -> float:
        if step < warmup:
            return min(init, start + (init - start) * step / warmup)
        return (init - least) * 0.5 * (1 + math.cos(math.pi * step / total)) + least

    rate = schedule("lavis", init, steps=total, warmup=warmup, start=start, end=least)
    steps = [0, 1, 100, 199, 200, 201, 500, 999]
    np.testing.assert_allclose(rate(np.array(steps)), [wanted(s) for s in steps], rtol=2e-6)
    assert rate(200) < rate(199), "the rate falls where the warm-up ends"
    high = schedule("lavis", 1.0, steps=4, warmup=2, start=3.0)
    assert high(0) == high(1) == 1.0, "a warm-up from above the peak stays at the peak"


def test_lavis_decay_is_that_of_parameters_with_two_dimensions():
    """Its rule (fewer than 2 dimensions, or named bias, ln, bn: no decay) by our paths, in which
    layers of a stack have one dimension more."""
    config = OptimizerConfig(
        learning_rate=1.0, schedule="constant", weight_decay=0.5, decay_exclude=".*(bias|scale)"
    )
    wanted = specs(Blip2(Blip2Config.tiny()))
    wanted |= {
        f"projection.{name}": spec for name, spec in specs(Linear(3, 4, axes=2 * (None,))).items()
    }
    assert {"projection.bias", "projection.kernel", "norm.scale", "queries"} <= wanted.keys()
    params = {path: jnp.ones((2,) * len(spec.shape)) for path, spec in wanted.items()}
    optimizer = make_optimizer(config, dict.fromkeys(params, 1.0), 10)
    still = {path: jnp.zeros_like(x) for path, x in params.items()}
    updates, _ = optimizer.update(still, optimizer.init(params), params)
    for path, spec in wanted.items():
        dimensions = len(spec.shape) - (spec.axes[0] == "layers")
        one_by_one = path == "vision.class_embedding"  # in torch [1 1 d]
        assert (updates[path] != 0).all() == (dimensions > 1 or one_by_one), path


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"steps": 10, "warmup": 11}, "warm-up of 11 steps does not fit a run of 10 steps"),
        ({"steps": 0}, "at least 1 step"),
        ({"steps": 10, "end": -1.0}, "negative"),
    ],
)
def test_impossible_schedules_are_refused(numbers, message):
    with pytest.raises(ValueError, match=message):
        schedule("cosine", 1e-3, **numbers)
    with pytest.raises(ValueError, match="one of constant, linear, cosine, lavis"):
        schedule("step", 1e-3, steps=1)


def test_adamw_equals_torch():
    """Ten steps with clipping, decay (one path left out), multipliers and a schedule."""
    rng = np.random.default_rng(0)
    start = {
        "a.kernel": rng.normal(size=(5, 3)),
        "a.bias": rng.normal(size=3),
        "b.kernel": rng.normal(size=(2, 5, 3)),
    }
    start = {path: value.astype(np.float32) for path, value in start.items()}
    multipliers = {"a.kernel": 1.0, "a.bias": 1.0, "b.kernel": 0.25}
    config = OptimizerConfig(
        learning_rate=0.05,
        warmup_steps=3,
        b1=0.8,
        b2=0.95,
        eps=1e-6,
        weight_decay=0.3,
        decay_exclude=r".*\.bias",
    )
    rate = learning_rate(config, 10)
    theirs = {path: torch.nn.Parameter(torch.tensor(value)) for path, value in start.items()}
    groups = [
        {"params": [p], "weight_decay": 0.0 if path == "a.bias" else 0.3}
        for path, p in theirs.items()
    ]
    torch_optimizer = torch.optim.AdamW(groups, betas=(0.8, 0.95), eps=1e-6)
    optimizer = make_optimizer(config, multipliers, 10)
    params = {path: jnp.asarray(value) for path, value in start.items()}
    state = optimizer.init(params)

    @jax.jit
    def update(grads, state, params):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for step in range(10):
        scale = 10.0 if step % 2 else 0.01  # clipped, and not
        grads = {
            path: (scale * rng.normal(size=value.shape)).astype(np.float32)
            for path, value in start.items()
        }
        params, state = update(grads, state, params)
        for path, group in zip(theirs, torch_optimizer.param_groups, strict=True):
            theirs[path].grad = torch.tensor(grads[path])
            group["lr"] = float(rate(step)) * multipliers[path]
        torch.nn.utils.clip_grad_norm_(theirs.values(), 1.0)
        torch_optimizer.step()
    for path in start:
        np.testing.assert_allclose(params[path], theirs[path].detach().numpy(), atol=2e-6)
        assert np.abs(params[path] - start[path]).max() > 0.01


def test_without_clipping_the_gradient_goes_in_whole():
    params = {"a": jnp.ones(2)}
    moment = {}
    for clip in (None, 1.0):
        optimizer = make_optimizer(OptimizerConfig(clip_norm=clip), {"a": 1.0}, 10)
        _, state = optimizer.update({"a": jnp.array([30.0, 40.0])}, optimizer.init(params), params)
        moment[clip] = state["adam"].mu["a"]
    np.testing.assert_allclose(moment[None], [3.0, 4.0], rtol=1e-6)
    np.testing.assert_allclose(moment[1.0], [0.06, 0.08], rtol=1e-6)


def test_the_optimizer_refuses_other_parameters():
    optimizer = make_optimizer(OptimizerConfig(), {"a": 1.0, "b": 1.0}, 10)
    params = {"a": jnp.ones(2), "c": jnp.ones(2)}
    with pytest.raises(ValueError, match="other parameters.*\n  b\n  c"):
        optimizer.update(params, optimizer.init(params), params)
    with pytest.raises(ValueError, match="no parameter trains"):
        make_optimizer(OptimizerConfig(), {}, 10)
