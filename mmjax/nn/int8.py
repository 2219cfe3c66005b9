"""Frozen dense layers with kernels of 8 bits: half of bfloat16's memory, a quarter of float32's.

    y = (x @ kernel) * kernel_scale + bias     kernel int8 [in out], kernel_scale float32 [out]

Weights alone are rounded, each output with a scale of its own. LLM.int8() (arXiv 2208.07339), which
upstream loads its frozen models with, rounds what is read as well, but for its outliers; that is
for speed on GPUs, and less exact. The numbers are qwix's (`conversion.weights.in_int8`).
"""

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.nn.chosen import replace_chosen
from mmjax.nn.dense import Dense
from mmjax.nn.param import ones, param

SCALE = "kernel_scale"


class Int8Dense(Dense):
    """A `Dense` whose kernel is never trained; it is made of a loaded one."""

    def __init__(self, dense: Dense):
        shape, axes = dense.kernel.get_value().shape, dense.kernel.get_metadata("axes")
        self.kernel = param(shape, axes, _not_loaded, jnp.int8)
        self.kernel_scale = param((*shape[:-2], shape[-1]), (*axes[:-2], axes[-1]), ones)
        self.bias = dense.bias

    def __call__(self, x: jax.Array) -> jax.Array:  # [... in] -> [... out]
        y = x.reshape(-1, x.shape[-1]) @ self.kernel[...].astype(x.dtype)
        y = y * self.kernel_scale[...].astype(x.dtype)
        if self.bias is not None:
            y = y + self.bias[...].astype(x.dtype)
        return y.reshape(*x.shape[:-1], y.shape[1])


def _not_loaded(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    raise ValueError(
        f"a kernel {shape} is to be kept in int8, but no weights are given for it: 8 bits are for "
        "what was trained before; leave it out of model.int8, or give weights"
    )


def with_int8(module: nnx.Module, target: str) -> list[str]:
    """Has the dense layers of ``module`` whose path matches keep their kernels in int8, in place;
    before LoRA is added. Returns their paths. Raises ValueError: none matches."""
    return replace_chosen(module, target, Int8Dense, "int8")


def is_scale(path: str) -> bool:
    return path.rpartition(".")[2] == SCALE
