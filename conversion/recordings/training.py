"""What a step of training would see of a recorded batch."""

import jax
import numpy as np

from mmjax.data.batch import Batch
from mmjax.nn.param import Params, merge
from mmjax.systems.system import System


def loss_and_grads(
    system: System, params: Params, batch: Batch, trained: tuple[str, ...]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(mean loss of the predicted tokens [1], gradients of the leaves in ``trained``)."""

    def loss(trainable: Params):
        total, weight, _ = merge(system, params | trainable).loss(batch)
        return total / weight

    value, grads = jax.jit(jax.value_and_grad(loss))({path: params[path] for path in trained})
    return np.asarray(value)[None], {path: np.asarray(grad) for path, grad in grads.items()}
