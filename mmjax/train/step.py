"""One optimizer step, compiled once."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from mmjax.data.batch import Batch
from mmjax.nn.param import Params, merge
from mmjax.parallel.sharding import replicated, rows_sharding
from mmjax.systems.system import System
from mmjax.train.state import TrainState

Step = Callable[[TrainState, Params, Batch], tuple[TrainState, dict[str, jax.Array]]]


def make_step(
    system: System,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    accumulation: int = 1,
    label_smoothing: float = 0.0,
) -> Step:
    """``step(state, frozen, batch) -> (state, metrics)``, to be jitted by `jit_step`.

    The loss is the sum of weighted losses over the sum of weights of the whole batch, so it does
    not depend on ``accumulation`` (the number of slices that the rows are read in) nor on the mesh.
    Gradients are taken of the trainable part only. A step whose loss, gradients or updates are not
    finite changes nothing but the counters and the loss scale.

    With a loss scale (float16), gradients are those of scale times the mean loss, which is what
    the usual scales are made for, and are divided again in float32. While the scale settles, some
    overflow: such a step counts as bad, but not among the bad ones in a row that stop a run,
    unless its loss is not finite either, or the scale is down at 1 and cannot be what is wrong.
    ``label_smoothing`` is the loss's, for systems with a token loss.
    """
    smoothing = {"label_smoothing": label_smoothing} if label_smoothing else {}

    def sums(trainable: Params, frozen: Params, batch: Batch, key: jax.Array, scale):
        model = merge(system, frozen | trainable)
        loss, weight, further = model.loss(batch, dropout_key=key, **smoothing)
        scaled = loss if scale is None else loss * (scale / jnp.maximum(weight, 1e-8))
        return scaled, (loss, weight, further)

    def step(state: TrainState, frozen: Params, batch: Batch):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        grad = jax.value_and_grad(sums, has_aux=True)
        scale = None if state.loss_scale is None else state.loss_scale.value

        def slice_sums(slice_of_batch):
            (_, sums), grads = grad(state.trainable, frozen, slice_of_batch, key, scale)
            grads = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
            if scale is not None:
                grads = jax.tree.map(lambda g: g * (jnp.maximum(sums[1], 1e-8) / scale), grads)
            return sums, grads

        if accumulation == 1:
            (loss, weight, further), grads = slice_sums(batch)
        else:
            total = lambda total, part: (jax.tree.map(jnp.add, total, slice_sums(part)), None)  # noqa: E731
            slices = jax.tree.map(lambda x: _slices(x, accumulation), batch)
            shapes = jax.eval_shape(slice_sums, jax.tree.map(lambda x: x[0], slices))
            zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
            ((loss, weight, further), grads), _ = jax.lax.scan(total, zeros, slices)
        weight = jnp.maximum(weight, 1e-8)
        grads = jax.tree.map(lambda g: g / weight, grads)
        norm = optax.tree.norm(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
        finite = jnp.isfinite(norm) & jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(updates))
        trainable = optax.apply_updates(state.trainable, updates)
        keep = lambda new, old: jnp.where(finite, new, old)  # noqa: E731
        bad = (~finite).astype(jnp.int32)
        counts = 1
        if scale is not None:
            settles = jnp.isfinite(loss) & ~jnp.isfinite(norm) & (scale > 1)
            counts = (~settles).astype(jnp.int32)
        new = TrainState(
            step=state.step + 1,
            trainable=jax.tree.map(keep, trainable, state.trainable),
            opt_state=jax.tree.map(keep, opt_state, state.opt_state),
            bad_steps=state.bad_steps + bad,
            bad_in_a_row=jnp.where(finite, 0, state.bad_in_a_row + counts),
            loss_scale=None if scale is None else state.loss_scale.after(finite),
        )
        metrics = {"loss": loss / weight, "grad_norm": norm, "target_tokens": weight}
        metrics |= {name: value / weight for name, value in further.items()}
        return new, metrics

    return step


def jit_step(step: Step, state: TrainState, frozen: Params, mesh: jax.sharding.Mesh) -> Step:
    """Compiles ``step`` with the shardings that its arguments have; without pinned outputs it would
    compile twice."""
    at = lambda tree: jax.tree.map(lambda x: x.sharding, tree)  # noqa: E731
    return jax.jit(
        step,
        in_shardings=(at(state), at(frozen), rows_sharding(mesh)),
        out_shardings=(at(state), replicated(mesh)),
        donate_argnums=0,
    )


def _slices(x: jax.Array, count: int) -> jax.Array:
    """[b ...] -> [count b/count ...], every slice with rows of every device."""
    if x.shape[0] % count:
        raise ValueError(f"a batch of {x.shape[0]} rows cannot be read in {count} equal slices")
    return x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1)
