"""What a run reports: `Meter` measures, `MetricsWriter` writes metrics.jsonl, `Progress` shows.

A line of metrics.jsonl is one JSON object with ``stage_index``, ``stage``, ``step`` (optimizer
steps taken in that stage), ``time`` (seconds since 1970) and values: ``loss``, ``learning_rate``,
``samples_per_second`` ... at log steps, ``dev/accuracy`` and the like after an evaluation. The same
values go to TensorBoard events, as ``STAGE/NAME``.
"""

import contextlib
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

if TYPE_CHECKING:
    from tensorboardX.event_file_writer import EventsWriter

_COORDINATES = ("stage_index", "stage", "step", "time")


class MetricsWriter:
    """Appends to ``metrics.jsonl`` of a run directory, one line at a time; to be closed.

    The file is the record. The TensorBoard events in ``tensorboard/`` are drawn from it anew when
    lines are dropped, so they never show what a killed run wrote and a resumed one repeats.
    """

    def __init__(self, workdir: str | Path):
        """Opens the file; a last line that a killed run left unfinished is removed."""
        self.path = Path(workdir) / "metrics.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            written = self.path.read_bytes()
            if not written.endswith(b"\n"):
                os.truncate(self.path, written.rfind(b"\n") + 1)
        self._events: EventsWriter | None = None
        self._draw_events()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception) -> None:
        self._events.close()

    def write(self, values: Mapping[str, Any], *, stage_index: int, stage: str, step: int) -> None:
        """Appends one line; NaN and infinities, which JSON does not have, become null."""
        record = {"stage_index": stage_index, "stage": stage, "step": step}
        record |= {"time": round(time.time(), 3)}
        record |= {name: _plain(value) for name, value in values.items()}
        line = json.dumps(record, allow_nan=False) + "\n"
        with self.path.open("a") as file:
            file.write(line)
        self._add_events(record)

    def records(self) -> list[dict[str, Any]]:
        """All lines so far."""
        return read_metrics(self.path) if self.path.exists() else []

    def truncate_after(self, stage_index: int, step: int) -> None:
        """Drops what a resumed run will write again: lines after ``step`` of ``stage_index``."""
        last, records = (stage_index, step), self.records()
        kept = [r for r in records if (r["stage_index"], r["step"]) <= last]
        if len(kept) == len(records):
            return
        temporary = self.path.with_suffix(".jsonl.tmp")
        with temporary.open("w") as file:
            file.writelines(json.dumps(record) + "\n" for record in kept)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path)
        self._draw_events()

    def _draw_events(self) -> None:
        """Starts the events over, from the file."""
        from tensorboardX.event_file_writer import EventsWriter  # writes at once, without a thread

        if self._events is not None:
            self._events.close()
        folder = self.path.parent / "tensorboard"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        self._events = EventsWriter(str(folder / "events"))
        for record in self.records():
            self._add_events(record)

    def _add_events(self, record: Mapping[str, Any]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        values = [
            Summary.Value(tag=f"{record['stage']}/{name}", simple_value=value)
            for name, value in record.items()
            if name not in _COORDINATES and isinstance(value, int | float)
        ]
        event = Event(wall_time=record["time"], step=record["step"], summary=Summary(value=values))
        self._events.write_event(event)
        self._events.flush()


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | int):
        return value
    number = float(value)
    return number if math.isfinite(number) else None


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, without an unfinished last one (of a running or killed run).

    Raises:
      ValueError: if another line is not JSON.
    """
    lines = Path(path).read_text().split("\n")[:-1]  # after the last newline: nothing, or a half
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}, line {number}, is not JSON ({error}): {line[:80]!r}"
            ) from error
    return records


class Meter:
    """Collects the steps' scalars and the run's pace; waits for the devices only in `read`."""

    def __init__(self, pending: Sequence[Mapping[str, float]] = ()):
        """``pending``: the scalars of steps before this meter's, as another one's `pending` gave
        them."""
        self._restart()
        self._metrics = list(pending)

    def _restart(self) -> None:
        self._metrics: list[Mapping[str, jax.Array | float]] = []
        self._samples = self._tokens = self._steps = 0
        self._waited = self._paused = 0.0
        self._since = time.perf_counter()

    def add(self, metrics: Mapping[str, jax.Array | float], *, samples: int, tokens: int) -> None:
        """Notes a step: its scalars (not read yet), rows of its batch, tokens without pads."""
        self._metrics.append(metrics)
        self._steps += 1
        self._samples += samples
        self._tokens += tokens

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Put this around the wait for the next batch. It counts unless the devices, to which steps
        are given ahead of time, still work when it is over: then they lost nothing by it."""
        start = time.perf_counter()
        yield
        given = self._metrics[-1].values() if self._metrics else ()
        if all(not isinstance(value, jax.Array) or value.is_ready() for value in given):
            self._waited += time.perf_counter() - start

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Put this around what must not count for the pace: evaluating, saving."""
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start

    def pending(self) -> list[dict[str, float]]:
        """Waits for the devices; the scalars of every step since the last `read`, to be saved."""
        steps = jax.device_get(self._metrics)
        return [{name: float(value) for name, value in step.items()} for step in steps]

    def read(self) -> dict[str, float]:
        """Waits for the devices, and starts over.

        Returns:
          The mean over the steps since the last `read` of every scalar; ``samples_per_second``,
          ``tokens_per_second``, ``seconds_per_step``; and ``data_wait``, the share of the time
          (0 to 1) that went by waiting for batches and in which the devices ran out of work.

        Raises:
          ValueError: if there was no step since, or the steps had different scalars.
        """
        if not self._steps:
            raise ValueError("there is nothing to read: no step was added since the last read")
        steps = self.pending()
        names = steps[0].keys()
        if any(step.keys() != names for step in steps):
            raise ValueError(
                f"the steps have different metrics: {sorted(set().union(*steps))}, "
                f"{sorted(names)} at first"
            )
        seconds = max(time.perf_counter() - self._since - self._paused, 1e-9)
        means = {name: sum(step[name] for step in steps) / len(steps) for name in names}
        pace = {
            "samples_per_second": self._samples / seconds,
            "tokens_per_second": self._tokens / seconds,
            "seconds_per_step": seconds / self._steps,
            "data_wait": min(self._waited / seconds, 1.0),
        }
        self._restart()
        return means | pace


class Progress:
    """A bar on a terminal; elsewhere (a log file) one plain line every ``every`` steps.

    align ━━━━━━━━ 420/1000  loss 1.234  812 samples/s  24.1k tokens/s  data wait 3 %  ETA 0:04:10
    """

    def __init__(
        self,
        stage: str,
        total: int,
        *,
        start: int = 0,
        every: int = 100,
        console: Console | None = None,
    ):
        """``start`` is the step that the stage resumes from."""
        self._stage, self._total, self._every = stage, total, every
        self._console = console or Console()
        self._first: tuple[int, float] | None = None
        self._printed = start
        self._values: Mapping[str, float] = {}
        columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=20))
        self._bar = Bar(
            *columns, TextColumn("{task.fields[text]}", markup=False), console=self._console
        )
        self._task = self._bar.add_task(
            stage, total=total, completed=start, text=f"{start}/{total}"
        )

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *exception) -> None:
        if self._console.is_terminal:
            self._bar.stop()

    def update(self, step: int, values: Mapping[str, float] | None = None) -> None:
        """Shows that ``step`` steps are done; ``values`` (`Meter.read`) stay until the next."""
        now = time.perf_counter()
        self._first = self._first or (step, now)
        self._values = values or self._values
        text = self._text(step, now)
        if self._console.is_terminal:
            self._bar.update(self._task, completed=step, text=text)
        elif step >= min(self._printed + self._every, self._total) and step > self._printed:
            self._printed = step
            self.say(f"{self._stage} {text}")

    def say(self, text: str) -> None:
        """Prints a line of its own, above the bar."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _text(self, step: int, now: float) -> str:
        first_step, first_time = self._first
        parts = [f"{step}/{self._total}"]
        formats = {
            "loss": lambda x: f"loss {x:.4g}",
            "samples_per_second": lambda x: f"{human(x)} samples/s",
            "tokens_per_second": lambda x: f"{human(x)} tokens/s",
            "data_wait": lambda x: f"data wait {100 * x:.0f} %",
        }
        parts += [
            text(self._values[name]) for name, text in formats.items() if name in self._values
        ]
        if step > first_step:  # the first step, which compiles, would spoil the estimate
            left = (now - first_time) / (step - first_step) * (self._total - step)
            parts.append(f"ETA {int(left) // 3600}:{int(left) // 60 % 60:02}:{int(left) % 60:02}")
        return "  ".join(parts)


def human(number: float) -> str:
    """Three significant digits and a decimal suffix: 999, 1.23k, 24.1M, 6.74G."""
    for suffix in ("", "k", "M", "G", "T"):
        if abs(number) < 999.5 or suffix == "T":
            break
        number /= 1000
    return f"{number:.3g}{suffix}"


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays (or `jax.ShapeDtypeStruct`) of a tree."""
    return sum(leaf.size * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))


def human_bytes(count: int) -> str:
    """Three significant digits, binary: 512 B, 1.5 KiB, 13.4 GiB."""
    number = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if number < 999.5 or unit == "TiB":
            break
        number /= 1024
    return f"{number:.3g} {unit}"
