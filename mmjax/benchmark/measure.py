"""How contestants are timed side by side, what the device can do at best, and how it is told.

Machines are noisy, and slow ones get slower: contestants take turns, so that what disturbs one
disturbs all, and their medians are compared as ratios.
"""

import dataclasses
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.train.costs import FORMULA
from mmjax.train.report import text_table

PACKAGES = ("jax", "jaxlib", "torch", "transformers", "peft")


@dataclasses.dataclass(frozen=True)
class Line:
    """What was measured of one contestant.

    Attributes:
      name: of the contestant.
      seconds: median of a call.
      spread: the middle half of the calls, longest over shortest.
      floor: seconds that a call takes at least on this device, or None where that is not counted.
      further: other figures to show, by their name.
    """

    name: str
    seconds: float
    spread: float = 1.0
    floor: float | None = None
    further: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def take_turns(
    contestants: Mapping[str, Callable[[], Any]], *, rounds: int = 10, seconds: float = 120.0
) -> dict[str, tuple[float, float]]:
    """(median seconds of a call, spread) of each; every call must end only when its work is done.

    Each is called once before, uncounted (it compiles), then all in turn: ``rounds`` times, or
    fewer once ``seconds`` are over, but three times at least. In its turn each is called twice and
    the second call counts: the first finds caches full of the others' arrays, and cores on which
    the others' threads still spin.
    """
    for call in contestants.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in contestants}
    begin = time.perf_counter()
    for number in range(rounds):
        if number >= 3 and time.perf_counter() - begin > seconds:
            break
        for name, call in contestants.items():
            call()
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: (statistics.median(each), _spread(each)) for name, each in times.items()}


def _spread(times: Sequence[float]) -> float:
    low, _, high = statistics.quantiles(times, n=4)
    return high / max(low, 1e-12)


@dataclasses.dataclass(frozen=True)
class Ceiling:
    """What this device reached with nothing else to do: products in FLOP/s, reading in bytes/s."""

    flops: float
    bytes: float

    def floor(self, flops: float, moved: float) -> float:
        """Seconds that so many operations and bytes take at least."""
        return max(flops / self.flops, moved / self.bytes)


def ceiling(dtype: str, *, size: int | None = None) -> Ceiling:
    """Measured: a square product in ``dtype``, and a sum over an array that no cache holds.

    Args:
      size: of the square matrices; None = 2,048 on a CPU, 8,192 elsewhere.
    """
    on_cpu = jax.default_backend() == "cpu"
    size = size or (2048 if on_cpu else 8192)
    a = jnp.ones((size, size), dtype)
    words = (2**28 if on_cpu else 2**32) // 4
    x = jnp.ones((words,), jnp.float32)
    product, total = jax.jit(jnp.matmul), jax.jit(jnp.sum)
    calls = {
        "product": lambda: product(a, a).block_until_ready(),
        "sum": lambda: total(x).block_until_ready(),
    }
    taken = take_turns(calls, rounds=10)
    return Ceiling(2 * size**3 / taken["product"][0], 4 * words / taken["sum"][0])


def facts() -> dict[str, Any]:
    """Device and versions, for a line of JSON and for the heading of a page."""
    found = {"device": jax.devices()[0].device_kind, "devices": jax.device_count()}
    if jax.default_backend() == "cpu":
        found["device"] = _processor()
    return found | {"python": platform.python_version()} | _versions()


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {len(names) or 1} threads"


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def heading(shapes: str, ceiling: Ceiling | None = None) -> str:
    """What a reader must know to repeat it: shapes, device, versions, what the device can do and
    how operations are counted."""
    known = facts()
    device, count = known.pop("device"), known.pop("devices")
    lines = [shapes, f"{count} x {device}; " + ", ".join(f"{k} {v}" for k, v in known.items())]
    if ceiling is not None:
        lines.append(
            f"measured here: products {ceiling.flops / 1e12:.3g} TFLOP/s, "
            f"reading {ceiling.bytes / 1e9:.3g} GB/s"
        )
        lines.append(FORMULA)
    return "\n".join(lines)


def page(lines: Sequence[Line]) -> str:
    """A table; ratios are those of the first line's speed to each: above 1, the first is faster."""
    names = list(dict.fromkeys(name for line in lines for name in line.further))
    with_floor = any(line.floor is not None for line in lines)
    head = ["", "ms", "spread", "first is faster by"]
    head += ["of the floor's speed"] * with_floor + names
    rows = []
    for line in lines:
        row = [line.name, f"{1000 * line.seconds:.4g}", f"{line.spread:.2f}"]
        row.append(f"{line.seconds / lines[0].seconds:.2f}")
        if with_floor:
            row.append("" if line.floor is None else f"{100 * line.floor / line.seconds:.0f} %")
        rows.append(row + [str(line.further.get(name, "")) for name in names])
    return text_table(head, rows, [], align="<" + ">" * (len(head) - 1))


def save(path: str | Path, kind: str, shapes: str, lines: Sequence[Any], **further: Any) -> None:
    """Appends one JSON object; ``lines`` are dataclasses."""
    record = {"kind": kind, "shapes": shapes} | facts() | further
    record["lines"] = [dataclasses.asdict(line) for line in lines]
    with open(path, "a") as file:
        file.write(json.dumps(record) + "\n")
