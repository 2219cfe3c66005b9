"""What happens to one tensor on its way in: a small closed set of reversible ops.

`forward` leads from the source's layout to ours, `inverse` back, bit for bit. The shape maps say
the same about shapes alone, so that a whole checkpoint is checked before any data is read.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np

Shape = tuple[int, ...]


class Op(Protocol):
    def forward(self, x: np.ndarray) -> np.ndarray: ...

    def inverse(self, x: np.ndarray) -> np.ndarray: ...

    def forward_shape(self, shape: Shape) -> Shape:
        """Raises ValueError for a shape that the op does not take."""

    def inverse_shape(self, shape: Shape) -> Shape:
        """Raises ValueError for a shape that `forward` cannot give."""


@dataclasses.dataclass(frozen=True)
class Identity:
    def forward(self, x: np.ndarray) -> np.ndarray:
        return x

    inverse = forward

    def forward_shape(self, shape: Shape) -> Shape:
        return shape

    inverse_shape = forward_shape


IDENTITY = Identity()


@dataclasses.dataclass(frozen=True)
class Transpose:
    """`torch.nn.Linear` keeps [out, in], we keep [in, out]."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        return x.T

    inverse = forward

    def forward_shape(self, shape: Shape) -> Shape:
        if len(shape) != 2:
            raise ValueError(f"a transpose takes 2 dimensions, not {shape}")
        return shape[::-1]

    inverse_shape = forward_shape


@dataclasses.dataclass(frozen=True)
class Conv:
    """A convolution that cuts patches, [d, channels, p, p] -> a dense kernel [p*p*channels, d].

    Its rows are in reading order: row in the patch, column in the patch, channel.
    """

    channels: int = 3

    def forward(self, x: np.ndarray) -> np.ndarray:
        return x.transpose(2, 3, 1, 0).reshape(self.forward_shape(x.shape))

    def inverse(self, x: np.ndarray) -> np.ndarray:
        d, c, p, _ = self.inverse_shape(x.shape)
        return x.reshape(p, p, c, d).transpose(3, 2, 0, 1)

    def forward_shape(self, shape: Shape) -> Shape:
        if len(shape) != 4 or shape[1] != self.channels or shape[2] != shape[3]:
            raise ValueError(f"a patch convolution is [d, {self.channels}, p, p], not {shape}")
        return (math.prod(shape[1:]), shape[0])

    def inverse_shape(self, shape: Shape) -> Shape:
        if len(shape) != 2:
            raise ValueError(f"a patch kernel is [p*p*{self.channels}, d], not {shape}")
        p = math.isqrt(shape[0] // self.channels)
        if p * p * self.channels != shape[0]:
            raise ValueError(f"{shape[0]} rows are no square patch of {self.channels} channels")
        return (shape[1], self.channels, p, p)


def split_rows(x: np.ndarray, lengths: Sequence[int]) -> list[np.ndarray]:
    """Cuts [v ...] along its rows: a token table into the tokenizer's rows and those a system
    added."""
    if sum(lengths) != x.shape[0]:
        raise ValueError(f"{x.shape[0]} rows cannot be cut into {list(lengths)}")
    return np.split(x, np.cumsum(lengths)[:-1])


def join_rows(parts: Sequence[np.ndarray]) -> np.ndarray:
    """The inverse of `split_rows`."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
