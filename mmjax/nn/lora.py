"""LoRA (arXiv 2106.09685) for any dense layer of any module, chosen by its path.

    y = x @ kernel + bias + alpha/rank * dropout(x) @ lora_a @ lora_b

``lora_a`` [in r] and ``lora_b`` [r out] are leaves beside the kernel, stacked as it is, so that
sharding, training rules, checkpoints and conversion see them as any others. They start as PEFT's
do: ``lora_b`` at zero, so that the model starts as the one without.

Dropout falls on the input of the low-rank way alone, in training. Its keys travel with the layer's
weights (`with_dropout`): a stack hands each of its layers that layer's, whatever lies between.
"""

import dataclasses
import re
import zlib
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmjax.nn.chosen import replace_chosen, whole
from mmjax.nn.dense import Dense
from mmjax.nn.dropout import dropout, row_keys
from mmjax.nn.int8 import Int8Dense
from mmjax.nn.param import linear, param, zeros

LEAVES = ("lora_a", "lora_b")


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """What gets LoRA; the numbers are mPLUG-Owl's.

    Attributes:
      target: regular expression that the whole path of a dense layer must match; a stack is
        ``layers``, however it is cut: ``language\\.layers\\.attention\\.(q|v)``.
      rank: r.
      alpha: what is added is scaled by alpha / rank.
      dropout: of what the low-rank way reads, in training.
    """

    target: str
    rank: int = 8
    alpha: float = 32.0
    dropout: float = 0.05

    def __post_init__(self):
        """Raises ValueError that lists all that is wrong."""
        problems = []
        if self.rank < 1:
            problems.append(f"rank is {self.rank}, it must be at least 1")
        if not self.alpha > 0:
            problems.append(f"alpha is {self.alpha}, it must be above 0")
        if not 0 <= self.dropout < 1:
            problems.append(f"dropout is {self.dropout}, it must be at least 0 and below 1")
        try:
            re.compile(self.target)
        except (re.error, TypeError) as error:
            problems.append(f"target {self.target!r} is not a regular expression: {error}")
        if problems:
            raise ValueError("LoRA:\n  " + "\n  ".join(problems))

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class LoraDense(Dense):
    """A `Dense` and what was added to it."""

    def __init__(self, dense: Dense, config: LoraConfig):
        self.kernel, self.bias = dense.kernel, dense.bias
        *stacked, in_dim, out_dim = dense.kernel.get_value().shape
        *layers, in_axis, out_axis = dense.kernel.get_metadata("axes")
        a, b = (*stacked, in_dim, config.rank), (*stacked, config.rank, out_dim)
        self.lora_a = param(a, (*layers, in_axis, None), linear)
        self.lora_b = param(b, (*layers, None, out_axis), zeros)
        self.scale, self.rate = config.scale, config.dropout
        self.dropout_keys: nnx.Variable | None = None

    def __call__(self, x: jax.Array) -> jax.Array:  # [... in] -> [... out]
        read = x if self.dropout_keys is None else dropout(x, self.rate, self.dropout_keys[...])
        a, b = (leaf[...].astype(x.dtype) for leaf in (self.lora_a, self.lora_b))
        added = (read.reshape(-1, x.shape[-1]) @ a) @ b * self.scale
        return super().__call__(x) + added.reshape(*x.shape[:-1], -1)


class Int8LoraDense(LoraDense, Int8Dense):
    """What was added to an `Int8Dense`."""

    def __init__(self, dense: Int8Dense, config: LoraConfig):
        LoraDense.__init__(self, dense, config)
        self.kernel_scale = dense.kernel_scale


def with_lora(module: nnx.Module, config: LoraConfig) -> nnx.Module:
    """``module`` as constructed, its dense layers of which the path matches given LoRA, in place.

    Raises:
      ValueError: none matches.
    """
    replace_chosen(module, config.target, lambda dense: _added(dense, config), "LoRA")
    return module


def _added(dense: Dense, config: LoraConfig) -> Dense:
    kind = Int8LoraDense if isinstance(dense, Int8Dense) else LoraDense
    return kind(dense, config)


def is_lora(path: str) -> bool:
    return path.rpartition(".")[2] in LEAVES


def target_of(paths: Iterable[str]) -> str:
    """A target that matches exactly the layers that have LoRA among ``paths`` of leaves."""
    layers: dict[str, list[str]] = {}
    for path in sorted({whole(path).rpartition(".")[0] for path in paths if is_lora(path)}):
        parent, _, name = path.rpartition(".")
        layers.setdefault(f"{parent}." if parent else "", []).append(name)
    choices = (
        re.escape(parent) + (names[0] if len(names) == 1 else f"({'|'.join(names)})")
        for parent, names in layers.items()
    )
    return "|".join(choices)


def with_dropout(module: nnx.Module, key: jax.Array, row_id: jax.Array) -> nnx.Module:
    """``module`` (holding arrays) as it is in training: a copy with keys for the dropout of its
    LoRA, each layer's and each row's own; itself, if it has none."""
    wanted = lambda layer: isinstance(layer, LoraDense) and layer.rate > 0  # noqa: E731
    if not any(wanted(layer) for _, layer in nnx.iter_modules(module)):
        return module
    module = nnx.merge(*nnx.split(module))
    for path, layer in nnx.iter_modules(module):
        if not wanted(layer):
            continue
        own = jax.random.fold_in(key, zlib.crc32(".".join(map(str, path)).encode()))
        if layer.lora_a.ndim == 2:
            keys = row_keys(own, row_id)
        else:
            index = jnp.arange(layer.lora_a.shape[0])
            keys = jax.vmap(lambda i, own=own: row_keys(jax.random.fold_in(own, i), row_id))(index)
        layer.dropout_keys = nnx.data(nnx.Variable(keys))
    return module


def added(params: Mapping[str, np.ndarray], layer: str, scale: float) -> np.ndarray:
    """What LoRA adds to the kernel of a layer, float32[... in out]."""
    a, b = (np.asarray(params[f"{layer}.{leaf}"]).astype(np.float32) for leaf in LEAVES)
    return np.float32(scale) * (a @ b)
