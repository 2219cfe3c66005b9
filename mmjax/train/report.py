"""What a person sees of a run: parameter table, curves, samples with pictures, accuracies."""

import base64
import hashlib
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from mmjax.data.check import LENGTH_HEAD, CheckedSample, SourceCheck
from mmjax.data.example import BadSample, Example, Media
from mmjax.data.images import load_image
from mmjax.data.pipeline import Word
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
        array = fetch(value)
        digest.update(f"{path} {array.dtype.name} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


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


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark;
  --back: #fff; --card: #f6f6f4; --line: #d9d9d4;
  --text: #1d1d1b; --dim: #5f5f5a; --good: #1a6b34; --bad: #a62b22; }}
@media (prefers-color-scheme: dark) {{ :root {{
  --back: #161615; --card: #222220; --line: #3a3a37;
  --text: #ecece8; --dim: #a9a9a2; --good: #7fd19a; --bad: #ff9d92; }} }}
body {{ margin: 2rem auto; max-width: 76rem; padding: 0 1rem;
  background: var(--back); color: var(--text); font: 16px/1.45 system-ui, sans-serif; }}
h1 {{ font-size: 1.5rem; margin: 0; }}
.summary {{ color: var(--dim); margin: .25rem 0 1.5rem; }}
.grid {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); gap: 1rem; }}
article {{ background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
  overflow: hidden; }}
img {{ display: block; width: 100%; height: 11rem; object-fit: contain; background: var(--back);
  border-bottom: 1px solid var(--line); }}
img.small {{ image-rendering: pixelated; }}
.text {{ padding: .7rem .9rem .9rem; overflow-wrap: anywhere; }}
.kind {{ color: var(--dim); font-size: .8rem; }}
.question {{ font-weight: 600; margin: .1rem 0 .5rem; white-space: pre-line; }}
dl {{ display: grid; grid-template-columns: auto 1fr; gap: .15rem .7rem; margin: 0 0 .5rem; }}
dt {{ color: var(--dim); }}
dd {{ margin: 0; white-space: pre-line; }}
.mark {{ font-weight: 600; }}
.correct {{ color: var(--good); }}
h2 {{ font-size: 1.2rem; margin: 2rem 0 .25rem; }}
.none {{ height: 11rem; display: grid; place-items: center; color: var(--dim);
  border-bottom: 1px solid var(--line); }}
table {{ border-collapse: collapse; margin: .25rem 0 1rem; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: right; padding: .1rem .9rem .1rem 0; }}
th:first-child, td:first-child {{ text-align: left; }}
.row {{ font-family: ui-monospace, monospace; font-size: .85rem; margin: .3rem 0; }}
.row b {{ color: var(--dim); font-weight: 400; }}
.slot {{ color: var(--dim); }}
.target {{ background: color-mix(in srgb, var(--good) 22%, transparent); border-radius: .2rem;
  padding: 0 .15rem; }}
.wrong {{ color: var(--bad); }}
</style>
</head>
<body>
<h1>{title}</h1>
<p class="summary">{summary}</p>
{body}
</body>
</html>
"""

_GRID = """<main class="grid">
{cards}
</main>"""

_CARD = """<article>
{picture}
<div class="text">
<div class="kind">{kind}</div>
<div class="question">{question}</div>
<dl><dt>answer</dt><dd>{answer}</dd><dt>truth</dt><dd>{truth}</dd></dl>
{mark}
</div>
</article>"""


def write_samples(
    path_html: str | Path, rows: Sequence[Mapping[str, Any]], title: str = "Samples"
) -> None:
    """Writes one self-contained page of pictures with question, answer and truth.

    Args:
      path_html: where to.
      rows: mappings with ``image`` (PIL image, path, or None where there is no picture),
        ``question``, ``answer``, ``truth``, ``kind`` and ``correct`` (bool).
      title: heading of the page.
    """
    cards = []
    for number, row in enumerate(rows, start=1):
        mark = (
            '<div class="mark correct">✓ correct</div>'
            if row["correct"]
            else '<div class="mark wrong">✗ wrong</div>'
        )
        text = {key: html.escape(str(row[key])) for key in ("kind", "question", "answer", "truth")}
        picture = _picture(row["image"], f"picture {number}")
        cards.append(_CARD.format(picture=picture, mark=mark, **text))
    correct = sum(bool(row["correct"]) for row in rows)
    summary = f"{correct} of {len(rows)} answers are correct."
    body = _GRID.format(cards="\n".join(cards))
    page = _PAGE.format(title=html.escape(title), summary=summary, body=body)
    Path(path_html).write_text(page, encoding="utf-8")


_ROW_CARD = """<article>
{pictures}
<div class="text">
<div class="kind">{name}</div>
{rows}
</div>
</article>"""


def write_data_page(path_html: str | Path, sections: Mapping[str, SourceCheck], title: str) -> None:
    """Writes one self-contained page: what a model will see of its data.

    For each section a table of lengths and cards of decoded samples: pictures, tokens, slots by
    name, and what is to be predicted highlighted.
    """
    parts = []
    for name, check in sections.items():
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in LENGTH_HEAD)
        body = "".join(
            f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>"
            for row in check.length_rows()
        )
        notes = "<br>".join(html.escape(line) for line in (check.counts(), *check.notices))
        parts.append(
            f'<h2>{html.escape(name)}</h2>\n<p class="summary">{notes}</p>\n'
            f"<table><tr>{head}</tr>{body}</table>"
        )
        parts.append(_GRID.format(cards="\n".join(map(_row_card, check.samples))))
    summary = (
        'Tokens to be predicted are <span class="target">highlighted</span>, '
        '<span class="slot">&lt;slots&gt;</span> are filled in by the model.'
    )
    page = _PAGE.format(title=html.escape(title), summary=summary, body="\n".join(parts))
    Path(path_html).write_text(page, encoding="utf-8")


def _row_card(sample: CheckedSample) -> str:
    def span(word: Word) -> str:
        kind = "slot" if word.is_slot else "target" if word.weight else ""
        weight = f' title="weight {word.weight:g}"' if word.weight else ""
        text = html.escape(word.text.encode("utf-8", "replace").decode())
        return f'<span class="{kind}"{weight}>{text}</span>' if kind else text

    pictures = [_picture(picture_or_none(media), media.key) for media in sample.example.media]
    rows = "\n".join(
        f'<div class="row"><b>{part}</b> {" ".join(map(span, words))}</div>'
        for part, words in sample.words.items()
    )
    return _ROW_CARD.format(
        pictures="\n".join(pictures), name=html.escape(sample.example.id), rows=rows
    )


def picture_of(example: Example) -> Image.Image | None:
    """The first picture of ``example``, if it can be shown."""
    return picture_or_none(example.media[0]) if example.media else None


def picture_or_none(media: Media) -> Image.Image | None:
    """None for a picture that is known by its stored features alone, or is gone."""
    try:
        return load_image(media)
    except BadSample:
        return None


def _picture(image: Image.Image | str | Path | None, name: str) -> str:
    if image is None:
        return f'<div class="none">no picture: {html.escape(name)}</div>'
    url, is_small = _data_url(image)
    small = ' class="small"' if is_small else ""
    return f'<img{small} src="{url}" alt="{html.escape(name)}">'


def _data_url(image: Image.Image | str | Path) -> tuple[str, bool]:
    """(``data:`` URL, whether it is small); larger pictures become JPEG of at most 448 pixels."""
    picture = (image if isinstance(image, Image.Image) else Image.open(image)).convert("RGB")
    is_small = max(picture.size) <= 128
    if not is_small:
        picture.thumbnail((448, 448))
    data = io.BytesIO()
    picture.save(data, "PNG" if is_small else "JPEG", **({} if is_small else {"quality": 85}))
    kind = "png" if is_small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode('ascii')}", is_small
