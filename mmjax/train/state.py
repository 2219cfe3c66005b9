"""What a training run is made of: parameters that train, parameters that do not, and the
optimizer's state."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Sharding

from mmjax.nn.param import Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a step changes; donated to it. Frozen parameters are handed to the step beside it.

    Attributes:
      step: i32[], optimizer steps taken (also the position in the data).
      trainable: path -> array.
      opt_state: the optimizer's, for the trainable leaves only.
      bad_steps: i32[], steps skipped so far because loss, gradients or updates were not finite.
      bad_in_a_row: i32[], those since the last good step.
    """

    step: jax.Array
    trainable: Params
    opt_state: optax.OptState
    bad_steps: jax.Array
    bad_in_a_row: jax.Array

    @classmethod
    def start(cls, trainable: Params, optimizer: optax.GradientTransformation) -> "TrainState":
        counters = [jnp.zeros((), jnp.int32) for _ in range(3)]  # three buffers: each is donated
        return cls(counters[0], trainable, optimizer.init(trainable), *counters[1:])


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
