"""Answers of a config's model, timed beside transformers' `generate`: random weights, made-up
prompts of the config's shapes in which every place is filled, no data. One device.

prefill    reading the prompts, to the first token
decode     every further token: the time of all of an answer but its first token, over their number

The counterpart is the language model alone, as transformers has it, over prompts of as many places:
what a system adds before the first token (pictures, a second pass) is in our figures alone, and
adapters and LoRA too. Its weights are ours, carried over by the converter's tables.

A floor is the larger of two times: products at the speed of a large one, their operands once
through the memory, both measured in the same run.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.benchmark.measure import Ceiling, Line, ceiling, heading, page, save, take_turns
from mmjax.benchmark.subject import Subject, drawn_params, subject, with_rows
from mmjax.data.batch import Batch
from mmjax.generate.config import GenerationConfig
from mmjax.generate.generator import Generator
from mmjax.kernels.decoding import copies_layers
from mmjax.nn.apart import take_apart
from mmjax.nn.param import Params, subset
from mmjax.train.costs import Cost, cost

KINDS = ("prefill", "decode")


@dataclasses.dataclass(frozen=True)
class Prompts:
    """What is asked.

    Attributes:
      places: of a prompt as the language model reads it last: its prefix and target.
    """

    one: Subject
    batch: Batch
    places: int
    tokens: int
    beams: int

    @property
    def shapes(self) -> str:
        """A line for the heading."""
        rows = len(self.batch.row_id)
        beams = f", {self.beams} beams" if self.beams > 1 else ""
        return (
            f"{self.one.config['system']} {self.one.config['variant']}: {rows} prompts of "
            f"{self.places} places, {self.tokens} tokens{beams}; computed in {self.one.dtype}, "
            f"weights in {self.one.config['frozen_dtype']}"
        )


class Ours:
    """The compiled generator, asked again and again."""

    def __init__(self, asked: Prompts, params: Params, tokens: int):
        settings = GenerationConfig(tokens, num_beams=asked.beams)
        self._generator = Generator(asked.one.stage.system, settings)
        self._params, self._batch = params, jax.tree.map(jnp.asarray, asked.batch)

    def __call__(self) -> np.ndarray:
        return np.asarray(self._generator(self._params, self._batch).tokens)

    def costs(self) -> tuple[Cost, Cost]:
        """(of reading the prompts, of one more token)."""
        begin, advance = self._generator.programs
        seeds = self._batch.row_id
        arguments = (self._params, self._batch, seeds, np.zeros((len(seeds), 0), np.int32), None)
        first = cost(jax.make_jaxpr(begin)(*arguments).jaxpr)
        state = jax.eval_shape(begin, *arguments)
        return first, cost(jax.make_jaxpr(advance)(self._params, state).jaxpr)


def prompts(config: dict, *, stage: str | None, rows: int, tokens: int, beams: int) -> Prompts:
    """Of a config of plain values, see `subject` for what it raises."""
    one = subject(with_rows(config, stage, rows), stage)
    texts = (one.batch.prefix, one.batch.target)
    places = sum(text.tokens.shape[1] for text in texts if text is not None)
    return Prompts(one, one.batch, places, tokens, beams)


def measure(
    kind: str,
    config: dict,
    *,
    stage: str | None = None,
    rows: int = 1,
    tokens: int = 64,
    beams: int = 1,
    compiles: bool = True,
    rounds: int = 5,
    seconds: float = 300.0,
    file: str | Path | None = None,
) -> list[Line]:
    """Prints a page and returns its lines, ours first.

    Args:
      kind: of `KINDS`.
      rows: prompts at once.
      tokens: of an answer.
      compiles: whether torch.compile takes part.

    Raises:
      ValueError: an unknown kind or stage; decoding of fewer than two tokens.
    """
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is none of {', '.join(KINDS)}")
    if kind == "decode" and tokens < 2:
        raise ValueError(f"{tokens} tokens: the first one is the prompt's, decoding needs two")
    asked = prompts(config, stage=stage, rows=rows, tokens=tokens, beams=beams)
    params = drawn_params(asked.one)
    if copies_layers():
        take_apart(params, asked.one.stage.wanted, "language.")
    ours = {n: Ours(asked, params, n) for n in ((1,) if kind == "prefill" else (1, tokens))}
    theirs, notices = _counterparts(kind, asked, params, compiles)
    top = ceiling(asked.one.dtype)
    calls: dict[tuple[str, int], Callable[[], Any]] = {("mmjax", n): x for n, x in ours.items()}
    for name, make in theirs.items():
        calls |= {(name, n): make(n) for n in ours}
    taken = take_turns(calls, rounds=rounds, seconds=seconds)
    floors = [top.floor(x.flops, x.moved) for x in ours[1].costs()]
    lines = [
        _line(kind, name, asked, taken, floors[KINDS.index(kind)] if name == "mmjax" else None)
        for name in ("mmjax", *theirs)
    ]
    print("\n".join([heading(asked.shapes, top), "", page(lines), "", *notices]))
    if file is not None:
        save(file, kind, asked.shapes, lines, ceiling=_peak(top), notices=notices)
    return lines


def _peak(top: Ceiling) -> dict[str, float]:
    return dict(product_flops=top.flops, memory_bytes=top.bytes)


def _line(
    kind: str,
    name: str,
    asked: Prompts,
    taken: Mapping[tuple[str, int], tuple[float, float]],
    floor: float | None,
) -> Line:
    rows = len(asked.batch.row_id)
    first, spread = taken[name, 1]
    if kind == "prefill":
        further = {"prompts/s": f"{rows / first:.4g}"}
        return Line(name, first, spread, floor, further)
    whole, spread = taken[name, asked.tokens]
    each = max(whole - first, 1e-9) / (asked.tokens - 1)
    further = {"tokens/s": f"{rows / each:.4g}", "answer ms": f"{1000 * whole:.4g}"}
    return Line(name, each, spread, floor, further)


def _counterparts(
    kind: str, asked: Prompts, params: Params, compiles: bool
) -> tuple[dict[str, Callable[[int], Callable[[], Any]]], list[str]]:
    """(name -> number of tokens -> a call that makes them, what is to be said of the others)."""
    from mmjax.benchmark.torch_answers import NoCounterpart, TorchAnswers
    from mmjax.benchmark.torch_train import device_of

    device = device_of(jax.default_backend())
    try:
        model = TorchAnswers(
            asked.one.stage.system.config.language,
            subset(params, "language"),
            dtype=asked.one.dtype,
            device=device,
            rows=len(asked.batch.row_id),
            places=asked.places,
            beams=asked.beams,
        )
    except NoCounterpart as error:
        return {}, [str(error)]
    found, notices = {}, [model.notice] if model.notice else []
    for name, start in {"transformers": model.eager, "torch.compile": model.compiled}.items():
        if start == model.compiled and not compiles:
            continue
        try:
            start(1)()
        except Exception as error:  # whatever a compiler may raise: the others are still compared
            notices.append(f"{name} failed: {type(error).__name__}: {str(error).splitlines()[0]}")
            continue
        found[f"{name}, generate" if kind == "decode" else name] = start
    return found, notices
