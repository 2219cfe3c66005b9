"""PyTorch's side of `mmjax.benchmark.train`: one optimizer step as its users write it."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
from torch import nn

from mmjax.benchmark.torch_systems import Rows, make_counterpart, to_torch
from mmjax.data.batch import Batch
from mmjax.systems.registry import split_lora


def device_of(backend: str) -> str:
    """torch's device where JAX computes on ``backend`` (cpu, gpu).

    Raises:
      ValueError: this torch has none of the kind.
    """
    if backend == "cpu":
        return "cpu"
    if backend == "gpu" and torch.cuda.is_available():
        return "cuda"
    raise ValueError(
        f"JAX computes on {backend}, and torch {torch.__version__} does not: install its build for "
        "this device, or compare on a CPU (JAX_PLATFORMS=cpu)"
    )


class TorchStep:
    """Forth, back, clip, AdamW; called again and again on the same batch.

    Frozen weights are kept in the config's type, what trains in float32, computed by autocast.

    Attributes:
      first_seconds: of the first call, after `start`.
    """

    def __init__(self, one: Any, device: str, *, compiles: bool):
        """
        Args:
          one: a `mmjax.benchmark.train.Subject`.

        Raises:
          ValueError: the system has no counterpart.
        """
        _, lora = split_lora(one.config["model"])
        remat = one.config["model"]["language"].get("remat") == "full"  # torch has no `dots`
        lora = lora and vars(lora)
        model = make_counterpart(
            one.config["system"], one.stage.system.config, lora, one.trainable, remat=remat
        )
        frozen = getattr(torch, one.config["frozen_dtype"])
        for value in model.parameters():
            value.data = value.data.to(device, torch.float32 if value.requires_grad else frozen)
        self.model = model.to(device).train()
        self._trained = [x for x in model.parameters() if x.requires_grad]
        settings = one.stage.settings
        self._clip = settings.clip_norm
        self._optimizer = torch.optim.AdamW(
            self._trained,
            lr=settings.learning_rate,
            betas=(settings.b1, settings.b2),
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            fused=device != "cpu",
        )
        self._slices = [to_torch(part, device) for part in _slices(one)]
        self._length = one.batch.target.tokens.shape[1]
        self._total = float(np.sum(one.batch.target.weights))
        self._dtype, self._device = getattr(torch, one.dtype), device
        self._forward: Callable[[Rows, int], torch.Tensor] = (
            torch.compile(self.model) if compiles else self.model
        )

    def start(self) -> None:
        """The first step, which compiles."""
        begin = time.perf_counter()
        self()
        self.first_seconds = time.perf_counter() - begin

    def __call__(self) -> float:
        """A step, to its end: the mean loss before it."""
        self._optimizer.zero_grad(set_to_none=True)
        total = sum(self._backward(rows) for rows in self._slices)
        if self._clip is not None:
            nn.utils.clip_grad_norm_(self._trained, self._clip)
        self._optimizer.step()
        if self._device == "cuda":
            torch.cuda.synchronize()
        return float(total)

    def _backward(self, rows: Rows) -> torch.Tensor:
        is_half = self._dtype != torch.float32
        with torch.autocast(self._device, dtype=self._dtype, enabled=is_half):
            loss = self._forward(rows, self._length) / self._total
        loss.backward()
        return loss.detach()


def _slices(one: Any) -> list[Batch]:
    """The rows of each slice of the batch."""
    count = one.stage.section["accumulation"]
    size = len(one.batch.row_id) // count
    return [
        jax.tree.map(lambda x, at=at: x[at * size : (at + 1) * size], one.batch)
        for at in range(count)
    ]
