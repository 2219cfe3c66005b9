"""Checks the data of a config before hours are spent on them."""

import json
from collections.abc import Callable
from pathlib import Path

from mmjax.data.check import LENGTH_HEAD, Pictures, SourceCheck, check_source
from mmjax.data.example import Media
from mmjax.data.features import FeatureStore
from mmjax.data.pipeline import Pipeline
from mmjax.data.sources.mixture import Mixture
from mmjax.train.build import load_tokenizer, make_pipeline
from mmjax.train.config import data_sections
from mmjax.train.pages import write_data_page
from mmjax.train.report import text_table

_TRIED = 8  # records of each source, spread over it, before anything is loaded


def check_data(config: dict, out: Path) -> bool:
    """Goes through every data section of ``config``: stages, their evaluations, the test.

    Prints what is there, and writes to ``out``: ``bad.jsonl`` with every record that cannot be used
    (section, source, row, id, reason), and ``check.html`` with samples.

    Returns:
      Whether training would go through: no section has more bad records than it may have.
    """
    tokenizer = load_tokenizer(config)
    stored = config["features"] not in ("once", "step")
    features = FeatureStore(config["features"]) if stored else None
    checks: dict[str, SourceCheck] = {}
    pictures = Pictures(features)
    for name, section in data_sections(config).items():
        data = section["data"]
        pipeline = make_pipeline(
            data,
            section["template"],
            tokenizer,
            batch_size=1,
            seed=config["seed"],
            max_bad_fraction=config.get("max_bad_fraction", 1e-3),
            generating=name not in config["stages"],
        )
        checks[name] = check_source(pipeline, pictures)
        print(f"\n{name}: {_said(checks[name])}", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "bad.jsonl").open("w") as file:
        for name, check in checks.items():
            file.writelines(json.dumps({"section": name} | entry) + "\n" for entry in check.bad)
    title = f"The data of {config['system']} {config['variant']}"
    write_data_page(out / "check.html", checks, title)
    wrong = [name for name, check in checks.items() if not check.is_good]
    records, bad = (
        sum(n) for n in zip(*((c.num_records, len(c.bad)) for c in checks.values()), strict=True)
    )
    verdict = f"training would stop: too many in {', '.join(wrong)}" if wrong else "good to train"
    print(
        f"\n{records:,} records in {len(checks)} sections, {bad:,} cannot be used; {verdict}. "
        f"See {out / 'check.html'}" + (f" and {out / 'bad.jsonl'}" if bad else "")
    )
    return not wrong


def open_sources(config: dict) -> None:
    """Makes every source of ``config`` once and tries a few records, of a mixture a few of each
    part, so that what is wrong with a late stage's data is said before weights are loaded. Pictures
    are tried where training will read them, not where features are stored.

    Raises:
      ValueError: sources that do not exist, are empty or have bad records, or of which no record
        that is tried can be used (does not fit the template, or its pictures cannot be read); all
        such sources.
    """
    tokenizer = load_tokenizer(config)
    problems: dict[str, str] = {}
    pictures = Pictures(None)
    reads = config["features"] == "step"
    for name, section in data_sections(config).items():
        settings = dict(batch_size=1, seed=config["seed"], generating=name not in config["stages"])
        try:
            pipeline = make_pipeline(section["data"], section["template"], tokenizer, **settings)
            look = lambda media, n=pipeline.num_frames: pictures.check(media, n)  # noqa: E731
            unusable = _unusable(pipeline, look if reads else lambda media: None)
        except (ValueError, OSError, ModuleNotFoundError) as error:
            unusable = [str(error)]
        for problem in unusable:
            problems.setdefault(problem, name)
    if problems:
        said = [f"{name}.data: {message}" for message, name in problems.items()]
        raise ValueError("the data cannot be used\n" + "\n".join(said))


def _unusable(pipeline: Pipeline, look: Callable[[Media], None]) -> list[str]:
    """What is wrong with the source, or the parts of a mixture, of which no record can be used."""
    source, found = pipeline.source, []
    parts = source.parts if isinstance(source, Mixture) else {"": source}
    first = 0
    for name, part in parts.items():
        number = min(len(part), _TRIED)
        tried = [first + n * (len(part) - 1) // max(number - 1, 1) for n in range(number)]
        fits = [pipeline.examine(record, look)[2] for record in tried]
        if fits and not any(fits):
            reasons = dict.fromkeys(
                entry["reason"] for entry in pipeline.quarantine if entry["row"] in tried
            )
            found.append(
                f"{f'{name}: ' if name else ''}none of {len(fits)} records of {part.name}, spread "
                f"over it, can be used: {'; '.join(reasons)}"
            )
        first += len(part)
    return found


def _said(check: SourceCheck) -> str:
    lines = [check.counts(), *check.notices]
    rows = check.length_rows()
    lines.append(text_table(LENGTH_HEAD, rows, [], align="<>>>>>"))
    lines += [f"record {e['row']} ({e['id']}): {e['reason']}" for e in check.bad[:5]]
    lines += [f"and {len(check.bad) - 5:,} more"] if len(check.bad) > 5 else []
    return "\n  ".join("\n".join(lines).splitlines())
