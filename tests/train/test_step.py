"""One optimizer step: what trains, what does not, accumulation, steps that are not finite."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

from mmjax.nn.param import merge, specs
from mmjax.parallel.mesh import make_mesh
from mmjax.parallel.sharding import put_rows
from mmjax.systems.lmeye import LMEye
from mmjax.train.optim import OptimizerConfig
from mmjax.train.step import jit_step, make_step

pytestmark = pytest.mark.usefixtures("quick_compile")

CONFIG = tiny.lmeye_config(dropout=0.3)
SYSTEM = LMEye(CONFIG)
MESH = make_mesh(devices=jax.devices()[:1])
FROZEN = r"(language|clip)\..*"
SETTINGS = OptimizerConfig(learning_rate=0.01, schedule="constant", eps=1e-6)


def start():
    return tiny.start(SYSTEM, MESH, "dp", FROZEN, SETTINGS)


def compiled(**options):
    state, frozen, optimizer = start()
    return jit_step(make_step(SYSTEM, optimizer, seed=0, **options), state, frozen, MESH)


@pytest.fixture(scope="module")
def step():
    return compiled()


def batch(**changes):
    return put_rows(dataclasses.replace(tiny.lmeye_batch(CONFIG, 8), **changes), MESH)


def values(tree) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


def test_only_the_trainable_part_has_gradients_and_moments(step):
    state, frozen, _ = start()
    before, trained = {path: np.asarray(x) for path, x in frozen.items()}, set(state.trainable)
    old = {path: np.asarray(x) for path, x in state.trainable.items()}
    state, metrics = step(state, frozen, batch())
    assert trained == {
        path for path in specs(SYSTEM) if not path.startswith(("language.", "clip."))
    }
    assert (
        set(state.trainable)
        == set(state.opt_state["adam"].mu)
        == set(state.opt_state["adam"].nu)
        == trained
    )
    for path, value in before.items():
        np.testing.assert_array_equal(frozen[path], value)
    for path, value in old.items():
        moved = np.abs(np.asarray(state.trainable[path]) - value)
        assert 0.001 < moved.max() <= 0.011, path
    assert int(state.step) == 1
    assert set(metrics) == {"loss", "grad_norm", "target_tokens", "token_accuracy"}


def test_the_loss_falls_and_nothing_compiles_twice(step):
    state, frozen, _ = start()
    losses = []
    for _ in range(8):
        state, metrics = step(state, frozen, batch())
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.97 * losses[0]
    assert step._cache_size() == 1
    again, frozen, _ = start()
    for loss in losses[:3]:
        again, metrics = step(again, frozen, batch())
        assert float(metrics["loss"]) == loss  # bit for bit


def test_loss_and_gradient_norm_are_the_systems():
    plain = LMEye(dataclasses.replace(CONFIG, dropout=0.0))
    state, frozen, optimizer = start()
    step = jit_step(make_step(plain, optimizer, seed=0), state, frozen, MESH)

    @jax.jit
    def wanted(trained, batch):
        total, weight, further = merge(plain, frozen | trained).loss(batch)
        return total / weight, further["token_accuracy"] / weight

    (loss, accuracy), grads = jax.value_and_grad(wanted, has_aux=True)(state.trainable, batch())
    norm = np.sqrt(sum((g**2).sum() for g in values(grads)))
    _, metrics = step(state, frozen, batch())
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["token_accuracy"], accuracy, rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    assert float(metrics["target_tokens"]) == batch().target.weights.sum()


@pytest.mark.parametrize("accumulation", [2, 4])
def test_accumulation_changes_nothing(step, accumulation):
    """Slices have different numbers of tokens, and dropout is on."""
    state, frozen, _ = start()
    wanted, wanted_metrics = step(state, frozen, batch())
    state, frozen, _ = start()
    sliced, metrics = compiled(accumulation=accumulation)(state, frozen, batch())
    for name, value in wanted_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
    for path, value in wanted.trainable.items():
        np.testing.assert_allclose(sliced.trainable[path], value, atol=1e-5, err_msg=path)
        moment = wanted.opt_state["adam"].mu[path]
        np.testing.assert_allclose(
            sliced.opt_state["adam"].mu[path],
            moment,
            rtol=1e-3,
            atol=1e-6 * np.abs(moment).max(),
            err_msg=path,
        )


def test_slices_must_be_equal():
    state, frozen, _ = start()
    with pytest.raises(ValueError, match="8 rows cannot be read in 3 equal slices"):
        compiled(accumulation=3)(state, frozen, batch())


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(step):
    state, frozen, _ = start()
    state, _ = step(state, frozen, batch())
    before, moments = values(state.trainable), values(state.opt_state)
    spoilt = np.array(tiny.lmeye_batch(CONFIG, 8).features)
    spoilt[3] = np.nan
    for bad in (1, 2):
        state, metrics = step(state, frozen, batch(features=spoilt))
        assert not np.isfinite(metrics["loss"])
        assert (int(state.step), int(state.bad_steps), int(state.bad_in_a_row)) == (
            1 + bad,
            bad,
            bad,
        )
    for mine, wanted in zip(
        values(state.trainable) + values(state.opt_state), before + moments, strict=True
    ):
        np.testing.assert_array_equal(mine, wanted)
    state, metrics = step(state, frozen, batch())
    assert np.isfinite(metrics["loss"])
    assert (int(state.bad_steps), int(state.bad_in_a_row)) == (2, 0)
    assert any(
        (mine != old).any() for mine, old in zip(values(state.trainable), before, strict=True)
    )


def test_dropout_changes_from_step_to_step_and_with_the_seed(step):
    def losses(step, steps):
        state, frozen, _ = start()
        state = dataclasses.replace(state, step=state.step + steps)
        return float(step(state, frozen, batch())[1]["loss"])

    other_seed = jit_step(make_step(SYSTEM, start()[2], seed=1), *start()[:2], MESH)
    assert len({losses(step, 0), losses(step, 1), losses(other_seed, 0)}) == 3
