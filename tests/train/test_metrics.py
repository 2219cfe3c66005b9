"""metrics.jsonl, the meter and the progress line."""

import io
import json
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from tensorboardX.proto import event_pb2

from mmjax.train import metrics as module
from mmjax.train.metrics import Meter, MetricsWriter, Progress, human, read_metrics


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests set."""

    class Clock:
        now = 100.0

    monkeypatch.setattr(module.time, "perf_counter", lambda: Clock.now)
    monkeypatch.setattr(module.time, "time", lambda: Clock.now)
    return Clock


def test_lines_are_plain_json(tmp_path, clock):
    writer = MetricsWriter(tmp_path / "run")
    values = {
        "loss": jnp.float32(1.5),
        "n": np.int64(3),
        "bad": float("nan"),
        "inf": jnp.inf,
        "name": "x",
    }
    writer.write(values, stage_index=0, stage="align", step=10)
    line = writer.path.read_text()
    assert line.endswith("\n") and "NaN" not in line
    expected = {
        "stage_index": 0,
        "stage": "align",
        "step": 10,
        "time": 100.0,
        "loss": 1.5,
        "n": 3,
        "bad": None,
        "inf": None,
        "name": "x",
    }
    assert json.loads(line) == expected
    assert read_metrics(writer.path) == [expected]


def events(workdir) -> list[tuple[str, int, float, float]]:
    """(tag, step, time, value) of all TensorBoard events: length, checksum, Event, checksum ..."""
    found = []
    for file in sorted((workdir / "tensorboard").iterdir()):
        data = file.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            event = event_pb2.Event.FromString(data[12 : 12 + size])
            data = data[12 + size + 4 :]
            for value in event.summary.value:
                found.append((value.tag, event.step, event.wall_time, value.simple_value))
    return found


def test_tensorboard_shows_what_the_file_says(tmp_path, clock):
    for killed in (False, True):
        with MetricsWriter(tmp_path) as writer:
            if killed:
                writer.truncate_after(0, 10)
            for step in (20,) if killed else (10, 20, 30):
                clock.now += 1
                values = {"loss": step / 8 + killed, "note": "text", "bad": float("nan")}
                writer.write(values, stage_index=0, stage="align", step=step)
    assert events(tmp_path) == [("align/loss", 10, 101.0, 1.25), ("align/loss", 20, 104.0, 3.5)]


def test_resuming_drops_what_will_be_written_again(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.truncate_after(0, 0)
    for stage_index, step in [(0, 10), (0, 20), (1, 5), (1, 10), (1, 15), (2, 5)]:
        writer.write({}, stage_index=stage_index, stage="s", step=step)
    writer.truncate_after(1, 10)
    writer.write({}, stage_index=1, stage="s", step=15)
    kept = [(r["stage_index"], r["step"]) for r in read_metrics(writer.path)]
    assert kept == [(0, 10), (0, 20), (1, 5), (1, 10), (1, 15)]
    assert {p.name for p in tmp_path.iterdir()} == {"metrics.jsonl", "tensorboard"}


def test_an_unfinished_line_is_repaired(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write({}, stage_index=0, stage="s", step=1)
    whole = writer.path.read_text()
    writer.path.write_text(whole + '{"stage_ind')
    assert len(read_metrics(writer.path)) == 1
    MetricsWriter(tmp_path)
    assert writer.path.read_text() == whole
    writer.path.write_text(whole + "broken\n" + whole)
    with pytest.raises(ValueError, match=r"line 2, is not JSON.*'broken'"):
        read_metrics(writer.path)


def test_the_meter_averages_and_measures(clock):
    meter = Meter()
    for loss in (1.0, 3.0):
        with meter.waiting():
            clock.now += 0.5
        clock.now += 1.5
        loss = jnp.float32(loss).block_until_ready()
        meter.add({"loss": loss, "grad_norm": 2.0}, samples=8, tokens=100)
    with meter.paused():
        clock.now += 1000
    assert meter.read() == {
        "loss": 2.0,
        "grad_norm": 2.0,
        "samples_per_second": 4.0,
        "tokens_per_second": 50.0,
        "seconds_per_step": 2.0,
        "data_wait": 0.25,
    }
    with pytest.raises(ValueError, match="no step was added"):
        meter.read()
    clock.now += 1
    meter.add({"loss": jnp.float32(7)}, samples=8, tokens=8)
    values = meter.read()
    assert (values["loss"], values["samples_per_second"], values["data_wait"]) == (7.0, 8.0, 0.0)


@pytest.mark.parametrize("ready, share", [(False, 0.0), (True, 0.5)])
def test_a_wait_counts_where_the_devices_run_out_of_work(clock, monkeypatch, ready, share):
    loss = jnp.ones(())
    monkeypatch.setattr(type(loss), "is_ready", lambda x: ready)
    meter = Meter()
    for wait in (0.0, 1.0):
        with meter.waiting():
            clock.now += wait
        meter.add({"loss": loss}, samples=1, tokens=1)
    clock.now += 1
    assert meter.read()["data_wait"] == share


def test_the_meter_does_not_wait_before_it_is_read():
    class Untouchable:
        def __array__(self, *args, **kwargs):
            raise AssertionError("read too early")

        __float__ = __array__

    meter = Meter()
    meter.add({"loss": Untouchable()}, samples=1, tokens=1)
    with pytest.raises(AssertionError, match="read too early"):
        meter.read()


def test_the_meter_refuses_mixed_metrics():
    meter = Meter()
    meter.add({"loss": 1.0}, samples=1, tokens=1)
    meter.add({"loss": 1.0, "more": 1.0}, samples=1, tokens=1)
    with pytest.raises(ValueError, match="different metrics"):
        meter.read()


VALUES = {
    "loss": 1.23456,
    "samples_per_second": 812.3,
    "tokens_per_second": 24112.0,
    "data_wait": 0.031,
}


def run_progress(clock, *, terminal: bool) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=140, color_system=None)
    with Progress("1/2 [align]", 1000, start=100, every=300, console=console) as progress:
        for step in range(101, 1001):
            clock.now += 60.0 if step == 101 else 2.0
            progress.update(step, VALUES if step % 10 == 0 else None)
            if step == 600:
                progress.say("evaluated: 12 [%]")
    return console.file.getvalue()


def test_progress_in_a_log_file_is_a_few_plain_lines(clock):
    lines = run_progress(clock, terminal=False).splitlines()
    pace = "loss 1.235  812 samples/s  24.1k tokens/s  data wait 3 %"
    assert lines == [
        f"1/2 [align] 400/1000  {pace}  ETA 0:20:00",
        "evaluated: 12 [%]",
        f"1/2 [align] 700/1000  {pace}  ETA 0:10:00",
        f"1/2 [align] 1000/1000  {pace}  ETA 0:00:00",
    ]


def test_progress_on_a_terminal_is_a_bar(clock):
    text = run_progress(clock, terminal=True)
    assert "━" in text and "evaluated: 12 [%]\n" in text
    assert "1000/1000  loss 1.235" in text.splitlines()[-2]


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (7.5, "7.5"), (999.4, "999"), (999.6, "1k"), (24112, "24.1k"), (6.738e9, "6.74G")],
)
def test_human(number, text):
    assert human(number) == text


def test_a_saved_meter_goes_on_with_the_same_mean():
    losses = [jnp.float32(x) for x in (0.1, 0.2, 0.3, 0.7)]
    whole, first = Meter(), Meter()
    for loss in losses:
        whole.add({"loss": loss}, samples=1, tokens=1)
    for loss in losses[:3]:
        first.add({"loss": loss}, samples=1, tokens=1)
    second = Meter(json.loads(json.dumps(first.pending())))
    with pytest.raises(ValueError, match="nothing to read"):
        second.read()
    second.add({"loss": losses[3]}, samples=1, tokens=1)
    assert second.read()["loss"] == whole.read()["loss"]
    assert second.pending() == []
