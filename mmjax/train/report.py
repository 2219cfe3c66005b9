"""What a person sees of a run: parameter table, accuracies, curves; pages: `mmjax.train.pages`."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mmjax.evaluate.accuracy import Accuracy
from mmjax.nn.apart import is_apart
from mmjax.nn.param import ParamSpec
from mmjax.parallel.distributed import fetch
from mmjax.train.metrics import human, human_bytes, read_metrics
from mmjax.train.optim import Selection


def parameter_table(
    specs: Mapping[str, ParamSpec],
    selection: Selection,
    dtypes: Mapping[str, Any] | None = None,
    optimizer_bytes: int = 0,
) -> str:
    """Parameters and bytes of every top-level module, trained or frozen, and the optimizer's.

    Args:
      specs: path -> object with ``shape``, ``dtype`` and ``size``.
      selection: what trains.
      dtypes: path -> dtype in which it is held, where that is not the declared one.
      optimizer_bytes: of the optimizer's state (`tree_bytes`).
    """
    dtypes = {path: np.dtype((dtypes or {}).get(path, spec.dtype)) for path, spec in specs.items()}
    trainable = set(selection.trainable)

    def row(name: str, paths: Sequence[str]) -> list[str]:
        trained = sum(specs[path].size for path in paths if path in trainable)
        frozen = sum(specs[path].size for path in paths if path not in trainable)
        size = sum(specs[path].size * dtypes[path].itemsize for path in paths)
        kinds = ", ".join(sorted({dtypes[path].name for path in paths}))
        return [
            name,
            *(human(n) if n else "-" for n in (trained, frozen)),
            human_bytes(size),
            kinds,
        ]

    modules: dict[str, list[str]] = {}
    for path in specs:
        modules.setdefault(path.split(".")[0], []).append(path)
    total_bytes = sum(specs[path].size * dtypes[path].itemsize for path in specs)
    trained = sum(specs[path].size for path in specs if path in trainable)
    everything = sum(spec.size for spec in specs.values())
    table = text_table(
        ["module", "trained", "frozen", "memory", "dtype"],
        [row(name, paths) for name, paths in modules.items()],
        [
            row("parameters", list(specs)),
            ["optimizer", "", "", human_bytes(optimizer_bytes), ""],
            ["together", "", "", human_bytes(total_bytes + optimizer_bytes), ""],
        ],
        align="<>>><",
    )
    share = f"{trained:,} of {everything:,} parameters train ({100 * trained / everything:.3g} %)"
    return f"{table}\n{share}"


def text_table(
    head: Sequence[str], body: Sequence[Sequence[str]], foot: Sequence[Sequence[str]], *, align: str
) -> str:
    """Columns two spaces apart, rules around ``body``; ``align``: ``<`` or ``>`` per column."""
    rows = [head, *body, *foot]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [
        "  ".join(f"{cell:{a}{w}}" for cell, a, w in zip(row, align, widths, strict=True)).rstrip()
        for row in rows
    ]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    cut = 1 + len(body)
    return "\n".join([lines[0], rule, *lines[1:cut], *([rule] if foot else []), *lines[cut:]])


def params_hash(params: Mapping[str, jax.Array]) -> str:
    """SHA-256 over path, dtype, shape and bytes of every parameter; the same on any mesh.

    Holds one leaf in host memory at a time. On several hosts all of them must call it.
    """
    digest = hashlib.sha256()
    for path, value in sorted(params.items()):
        array = np.stack([*map(fetch, value.layers)]) if is_apart(value) else fetch(value)
        digest.update(f"{path} {array.dtype.name} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def accuracy_tables(accuracy: Accuracy) -> str:
    """A table, or one for each part of a mixture."""
    if not accuracy.parts:
        return accuracy_table(accuracy.kinds)
    return "\n\n".join(
        f"{part}\n\n{accuracy_table(each.kinds)}" for part, each in accuracy.parts.items()
    )


def accuracy_table(per_kind: Mapping[str, tuple[int, int]]) -> str:
    """Accuracy of every kind of question from its (correct, count), their mean, and overall."""

    def row(name: str, correct: int, count: int) -> list[str]:
        return [name, str(correct), str(count), f"{100 * correct / count:.2f}" if count else "-"]

    measured = [correct / count for correct, count in per_kind.values() if count]
    mean = f"{100 * sum(measured) / len(measured):.2f}" if measured else "-"
    totals = [sum(column) for column in zip(*per_kind.values(), strict=True)] or [0, 0]
    return text_table(
        ["kind", "correct", "count", "accuracy %"],
        [row(kind, *per_kind[kind]) for kind in sorted(per_kind)],
        [["mean of kinds", "", "", mean], row("overall", *totals)],
        align="<>>>",
    )


def plot_curves(metrics_jsonl: str | Path, png: str | Path) -> None:
    """Draws loss, learning rate and accuracies (``*/accuracy``) over the steps of all stages.

    Raises:
      ValueError: if the file has no losses.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    lines = _lines(read_metrics(metrics_jsonl))
    panels = [panel for panel in ("loss", "learning rate", "accuracy") if lines[panel]]
    if not lines["loss"]:
        raise ValueError(
            f"{metrics_jsonl} has no losses to draw; did the run get to its first log step?"
        )
    figure = Figure(figsize=(8, 1.2 + 1.9 * len(panels)), layout="constrained")
    heights = [1.0 if panel == "learning rate" else 2.0 for panel in panels]
    axes = figure.subplots(len(panels), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axis, panel in zip(axes, panels, strict=True):
        for (stage, name), points in lines[panel].items():
            _draw(axis, panel, name, points, color=f"C{stage % 10}")
        axis.set_ylabel(panel)
        axis.grid(axis="y", color="0.9")
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.02)
        if panel == "accuracy":
            axis.yaxis.set_major_formatter(PercentFormatter(xmax=1))
            axis.set_ylim(0, 1.08)
        if panel == "learning rate":
            axis.set_ylim(bottom=0)
            axis.ticklabel_format(axis="y", scilimits=(-2, 3), useMathText=True)
        else:
            axis.legend(frameon=False)
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[-1].set_xlabel("optimizer steps")
    figure.align_ylabels(axes)
    FigureCanvasAgg(figure).print_figure(png, dpi=150)


def _lines(
    records: Sequence[Mapping[str, Any]],
) -> dict[str, dict[tuple[int, str], list[tuple[int, float]]]]:
    """Panel -> (stage, name) of a line -> points (steps since the run began, value).

    Steps count from the start of their stage; a stage without losses (the final test) lies at the
    end of training.
    """
    lines = {"loss": {}, "learning rate": {}, "accuracy": {}}
    before = 0
    for index in sorted({record["stage_index"] for record in records}):
        stage = [record for record in records if record["stage_index"] == index]
        length = max(record["step"] for record in stage)
        trains = any("loss" in record for record in stage)
        start = before if trains else before - length
        for record in stage:
            for key, value in record.items():
                panel, name = key.replace("_", " "), record["stage"]
                if key.endswith("/accuracy"):
                    panel, name = (
                        "accuracy",
                        f"{name}: {key.removesuffix('/accuracy')}" if trains else name,
                    )
                if panel in lines and value is not None:
                    lines[panel].setdefault((index, name), []).append(
                        (start + record["step"], value)
                    )
        before = start + length
    return lines


def _draw(
    axis: Any, panel: str, name: str, points: Sequence[tuple[int, float]], *, color: str
) -> None:
    """One line; dots where it has so few points that it would not be seen."""
    steps, values = zip(*points, strict=True)
    if panel == "loss":
        axis.plot(steps, values, color=color, alpha=0.3, linewidth=1)
        values = _smooth(values)
    if panel == "accuracy":
        name = f"{name}, {100 * values[-1]:.1f} %"
    marker = "o" if panel == "accuracy" or len(steps) < 3 else ""
    axis.plot(steps, values, color=color, label=name, linewidth=1.8, marker=marker, markersize=4)


def _smooth(values: Sequence[float]) -> list[float]:
    """Centred moving average, over a twentieth of the values; it does not lag behind."""
    reach = len(values) // 40
    windows = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]
