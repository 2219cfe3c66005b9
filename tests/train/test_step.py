"""One optimizer step: what trains, what does not, accumulation, steps that are not finite."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mmjax.nn.param import merge, specs
from mmjax.parallel.mesh import make_mesh
from mmjax.parallel.sharding import put_rows
from mmjax.systems.lmeye import LMEye
from mmjax.train import loop
from mmjax.train.checkpoint import Checkpointer
from mmjax.train.optim import OptimizerConfig
from mmjax.train.state import LossScale
from mmjax.train.step import jit_step, make_step

pytestmark = pytest.mark.usefixtures("quick_compile")

CONFIG = tiny.lmeye_config(dropout=0.3)
SYSTEM = LMEye(CONFIG)
MESH = make_mesh(devices=jax.devices()[:1])
FROZEN = r"(language|clip)\..*"
SETTINGS = OptimizerConfig(learning_rate=0.01, schedule="constant", eps=1e-6)


def start(loss_scale: float | None = None):
    settings = dataclasses.replace(SETTINGS, loss_scale=loss_scale)
    return tiny.start(SYSTEM, MESH, "dp", FROZEN, settings)


def compiled(system=SYSTEM, loss_scale: float | None = None, **options):
    state, frozen, optimizer = start(loss_scale)
    return jit_step(make_step(system, optimizer, seed=0, **options), state, frozen, MESH)


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


def test_a_loss_scale_changes_no_gradient(step):
    """In float32, where nothing can vanish; with slices of different numbers of tokens."""
    state, frozen, _ = start()
    wanted, wanted_metrics = step(state, frozen, batch())
    state, frozen, _ = start(1000.0)
    scaled, metrics = compiled(loss_scale=1000.0, accumulation=2)(state, frozen, batch())
    for name, value in wanted_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
    for path, moment in wanted.opt_state["adam"].mu.items():
        error = 1e-6 * np.abs(moment).max()
        mine = scaled.opt_state["adam"].mu[path]
        np.testing.assert_allclose(mine, moment, rtol=1e-3, atol=error, err_msg=path)
    assert wanted.loss_scale is None and len(values(scaled)) == len(values(wanted)) + 2


@pytest.fixture(scope="module")
def half_step():
    return compiled(LMEye(dataclasses.replace(CONFIG, dtype="float16")), loss_scale=1.0)


def test_float16_follows_float32(step, half_step):
    state, frozen, _ = start()
    half, also_frozen, _ = start(65536.0)
    for _ in range(12):
        state, metrics = step(state, frozen, batch())
        half, half_metrics = half_step(half, also_frozen, batch())
        np.testing.assert_allclose(half_metrics["loss"], metrics["loss"], rtol=1e-2)
        np.testing.assert_allclose(half_metrics["grad_norm"], metrics["grad_norm"], rtol=3e-2)
    assert int(half.bad_steps) == 0 and float(half.loss_scale.value) == 65536
    assert all(x.dtype == np.float32 for x in values(half.trainable))


def test_what_a_loss_scale_is_for(half_step):
    """Gradients below float16's smallest number vanish, unless they are scaled up."""
    norms = {}
    for scale in (2.0**-22, 65536.0):
        state, frozen, _ = start(scale)
        norms[scale] = float(half_step(state, frozen, batch())[1]["grad_norm"])
    assert norms[2.0**-22] < 0.5 * norms[65536.0]


def test_an_overflow_halves_the_scale_and_changes_nothing_else(half_step):
    state, frozen, _ = start(2.0**40)
    before = values(state.trainable) + values(state.opt_state)
    for number in (1, 2):
        state, metrics = half_step(state, frozen, batch())
        assert np.isfinite(metrics["loss"]) and not np.isfinite(metrics["grad_norm"])
        assert float(state.loss_scale.value) == 2.0 ** (40 - number)
        assert (int(state.bad_steps), int(state.bad_in_a_row)) == (number, 0)
    for mine, old in zip(values(state.trainable) + values(state.opt_state), before, strict=True):
        np.testing.assert_array_equal(mine, old)
    while not np.isfinite(metrics["grad_norm"]):
        state, metrics = half_step(state, frozen, batch())
    assert 2.0**8 <= float(state.loss_scale.value) <= 2.0**30
    assert int(state.bad_in_a_row) == 0 and int(state.bad_steps) == int(state.step) - 1


def test_what_the_scale_cannot_mend_stops_a_run(half_step):
    """A loss that is not finite; and gradients that are not, at a scale of 1."""
    state, frozen, _ = start(65536.0)
    spoilt = np.full_like(tiny.lmeye_batch(CONFIG, 8).features, np.nan)
    for number in (1, 2):
        state, _ = half_step(state, frozen, batch(features=spoilt))
        assert (int(state.bad_steps), int(state.bad_in_a_row)) == (number, number)
    assert float(state.loss_scale.value) == 65536 / 4
    low = dataclasses.replace(state, loss_scale=LossScale.start(1.0))
    assert int(half_step(low, frozen, batch(features=spoilt))[0].bad_in_a_row) == 3


def test_the_scale_doubles_after_2000_good_steps():
    scale = LossScale.start(8.0)
    for finite, value, good in [(True, 8, 1), (True, 8, 2), (False, 4, 0), (True, 4, 1)]:
        scale = scale.after(jnp.array(finite))
        assert (float(scale.value), int(scale.good_steps)) == (value, good)
    scale = dataclasses.replace(scale, good_steps=jnp.int32(1998)).after(jnp.array(True))
    assert (float(scale.value), int(scale.good_steps)) == (4, 1999)
    scale = scale.after(jnp.array(True))
    assert (float(scale.value), int(scale.good_steps)) == (8, 0)
    most = dataclasses.replace(LossScale.start(2.0**127), good_steps=jnp.int32(1999))
    assert float(most.after(jnp.array(True)).value) == 2.0**127


def test_a_run_in_float16_goes_on_as_if_it_had_not_stopped(half_step, tmp_path):
    state, frozen, _ = start(2.0**20)
    for _ in range(3):
        state, _ = half_step(state, frozen, batch())
    with contextlib.closing(Checkpointer(tmp_path / "run", 1)) as checkpointer:
        checkpointer.save(3, state.trainable, loop._rest(state), {})
        checkpointer.wait()
        again, _ = loop._restore(checkpointer, start(1.0)[0])
    assert float(again.loss_scale.value) < 2.0**20 or int(again.loss_scale.good_steps) == 3
    for _ in range(2):
        state, metrics = half_step(state, frozen, batch())
        again, other = half_step(again, frozen, batch())
        assert float(metrics["loss"]) == float(other["loss"])
    for mine, wanted in zip(values(again), values(state), strict=True):
        np.testing.assert_array_equal(mine, wanted)
