"""What a training run is made of: parameters that train, parameters that do not, and the
optimizer's state."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Sharding

from mmjax.nn.param import Params

_GROWTH_INTERVAL = 2000  # good steps until the loss scale doubles, as torch's GradScaler has it


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LossScale:
    """The factor on the loss that keeps float16 gradients above its smallest number; found as
    torch's `GradScaler` finds it.

    Attributes:
      value: f32[].
      good_steps: i32[], steps since it changed.
    """

    value: jax.Array
    good_steps: jax.Array

    @classmethod
    def start(cls, value: float) -> "LossScale":
        return cls(jnp.asarray(value, jnp.float32), jnp.zeros((), jnp.int32))

    def after(self, finite: jax.Array) -> "LossScale":
        """A step that was not ``finite`` halves it, 2000 good ones double it."""
        is_due = self.good_steps + 1 >= _GROWTH_INTERVAL
        grown = jnp.where(is_due & jnp.isfinite(2 * self.value), 2 * self.value, self.value)
        return LossScale(
            jnp.where(finite, grown, self.value / 2),
            jnp.where(finite & ~is_due, self.good_steps + 1, 0),
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a step changes; donated to it. Frozen parameters are handed to the step beside it.

    Attributes:
      step: i32[], optimizer steps taken (also the position in the data).
      trainable: path -> array.
      opt_state: the optimizer's, for the trainable leaves only.
      bad_steps: i32[], steps skipped so far because loss, gradients or updates were not finite.
      bad_in_a_row: i32[], those since the last good step that a lower loss scale would not mend.
      loss_scale: of a system that computes in float16, or None.
    """

    step: jax.Array
    trainable: Params
    opt_state: optax.OptState
    bad_steps: jax.Array
    bad_in_a_row: jax.Array
    loss_scale: LossScale | None = None

    @classmethod
    def start(
        cls,
        trainable: Params,
        optimizer: optax.GradientTransformation,
        loss_scale: float | None = None,
    ) -> "TrainState":
        counters = [jnp.zeros((), jnp.int32) for _ in range(3)]  # three buffers: each is donated
        return cls(
            counters[0],
            trainable,
            optimizer.init(trainable),
            *counters[1:],
            None if loss_scale is None else LossScale.start(loss_scale),
        )


def state_shardings(
    abstract: TrainState, shardings: Mapping[str, Sharding], whole: Sharding
) -> TrainState:
    """Where every leaf of a state lives: optimizer moments with their parameters, counters
    ``whole``."""

    def sharding(path, _) -> Sharding:
        return next(
            (shardings[key.key] for key in path if getattr(key, "key", None) in shardings), whole
        )

    return jax.tree_util.tree_map_with_path(sharding, abstract)
