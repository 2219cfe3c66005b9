"""How fast a config's data comes: the pipeline alone (read, decode, resize, tokenise, batch) by
number of threads, beside torch's DataLoader with as many processes; and what share of a real run
waits for it.

The pipeline reads pictures, also where the config would store their features. Its frames stay
uint8, which the device normalises; transformers' image processor gives float32.
"""

import copy
import itertools
import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import grain

from mmjax.benchmark.measure import Line, heading, page, save, take_turns
from mmjax.benchmark.subject import stage_of
from mmjax.data.pipeline import Pipeline
from mmjax.data.workers import reading
from mmjax.train.build import load_tokenizer, make_pipeline
from mmjax.train.loop import train

BATCHES = 16  # read in each turn


def measure(
    config: dict,
    *,
    stage: str | None = None,
    workers: tuple[int, ...] = (1, 2, 4),
    rounds: int = 5,
    steps: int = 100,
    file: str | Path | None = None,
) -> list[Line]:
    """Prints a page and returns its lines.

    Args:
      config: resolved; its data must be there.
      workers: threads and processes that read ahead.
      steps: of each stage of the short run; 0 leaves it out.
      file: for a line of JSON, see `save`.

    Raises:
      ValueError: there is no such stage.
    """
    section = config[stage_of(config, stage)]
    data, size = section["data"], section["batch_size"]
    tokenizer = load_tokenizer(config)
    settings = dict(batch_size=size, seed=config["seed"])
    pipeline = make_pipeline(data, section["template"], tokenizer, **settings)
    contestants = {f"mmjax, {n} threads": _reading(pipeline, n) for n in workers}
    loaders, notices = _loaders(config, data, size, workers)
    contestants |= loaders
    taken = take_turns(contestants, rounds=rounds)
    lines = []
    for name, (seconds, spread) in taken.items():
        rate = {"samples/s": f"{size * BATCHES / seconds:.4g}"}
        lines.append(Line(name, seconds / BATCHES, spread, None, rate))
    waits = data_waits(config, steps) if steps else {}
    notices += [
        f"A run of {steps} steps waits for data {100 * share:.2f} % of stage {name}"
        for name, share in waits.items()
    ]
    shapes = f"{pipeline.source.name}, batches of {size} rows, pictures of {data.get('image_size')}"
    print("\n".join([heading(shapes), "", page(lines), "", *notices]))
    if file is not None:
        save(file, "data", shapes, lines, data_wait=waits, notices=notices)
    return lines


def _reading(pipeline: Pipeline, threads: int) -> Callable[[], None]:
    """Reads other batches each time, as training does."""
    starts = itertools.count(step=BATCHES)

    def read() -> None:
        first = next(starts)
        steps = grain.MapDataset.range(first, first + BATCHES)
        _exhaust(steps.map(pipeline.batch_at).to_iter_dataset(reading(threads)))

    return read


def _exhaust(batches: Iterable) -> None:
    for _ in batches:
        pass


def _loaders(
    config: dict, data: dict, size: int, workers: tuple[int, ...]
) -> tuple[dict[str, Callable[[], None]], list[str]]:
    """(torch's side, what is to be said where there is none)."""
    from mmjax.benchmark.torch_data import make_loader

    sizes = dict(rows=size, batches=BATCHES)
    try:
        made = {n: make_loader(config, data, workers=n, **sizes) for n in workers}
    except ValueError as error:
        return {}, [f"No DataLoader beside it: {error}."]
    return {
        f"torch DataLoader, {n} processes": lambda loader=loader: _exhaust(loader)
        for n, loader in made.items()
    }, []


def data_waits(config: dict, steps: int) -> dict[str, float]:
    """Share of the time that a short run waits for batches, by stage: what `Meter` measured, but
    for the first line of each stage, in which its step is compiled.

    Raises:
      ValueError: so few steps that nothing comes after the first line.
    """
    short = copy.deepcopy(config)
    every = max(1, steps // 5)
    if steps < 2 * every:
        raise ValueError(f"a run of {steps} steps has nothing to tell: give 2 or more")
    for name in short["stages"]:
        short[name] |= dict(steps=steps, log_every=every, save_every=0)
        short[name] |= dict(eval={}, eval_every=0, eval_at_end=False)
        short[name]["optimizer"]["warmup_steps"] = 0
    short["test"] = {}
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        train(short, Path(folder) / "run")
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    waits = {}
    for name in short["stages"]:
        later = [one for one in records if one.get("stage") == name][1:]
        waited = sum(one["data_wait"] * one["seconds_per_step"] for one in later)
        waits[name] = waited / sum(one["seconds_per_step"] for one in later)
    return waits
