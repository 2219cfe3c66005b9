"""Has every question of GAVIE judged, and keeps every reply.

    prompts.jsonl      what is asked: for a batch service, or to read
    judgements.jsonl   a line for each reply, as it came, with its scores or why there are none
    summary.json       the figures

It may be killed at any moment, and started again with other models, other questions, another judge:
what is there, is not asked again. A line belongs to the question, the answers, the judge and the
whole of the prompt; if one of them changes, it is judged anew.
"""

import collections
import contextlib
import dataclasses
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmjax.data.outcomes import MAX_FAILED
from mmjax.data.recorded import prompt_hash
from mmjax.data.regions import Region
from mmjax.data.resumable import KeyedFile, write_bytes, write_json
from mmjax.evaluate.gavie import CRITERIA, Item, compose, parse_scores, shuffled
from mmjax.evaluate.judge import Case, Judge

_NAMED = 3  # of the questions that cannot be judged


@dataclasses.dataclass(frozen=True)
class Settings:
    """How answers are judged.

    Attributes:
      asks: how often a judge is asked for a reply that can be read.
      shuffle: whether the order of the answers is drawn for each question.
      seed: of that.
      legacy_height: whether a region's width is printed for its height, as the original does.
    """

    asks: int = 3
    shuffle: bool = True
    seed: int = 0
    legacy_height: bool = False

    def __post_init__(self):
        if self.asks < 1:
            raise ValueError(f"asks must be at least 1, got {self.asks}")


@dataclasses.dataclass(frozen=True)
class Summary:
    """What came of it.

    Attributes:
      out: the folder.
      means: model -> criterion -> mean score of what was judged.
      counts: of the questions: all, judged, unparsed (not one reply could be read), failed (no
        reply), unanswered (by one of the models), without regions; of replies.
      problems: what a user should know, in words.
      usage: what all replies took that are in the folder.
    """

    out: Path
    means: Mapping[str, Mapping[str, float]]
    counts: Mapping[str, int]
    problems: Sequence[str]
    usage: Mapping[str, float]

    def __str__(self) -> str:
        rows = [["model", *CRITERIA]]
        for name, scores in self.means.items():
            rows.append([name, *(f"{scores[criterion]:.2f}" for criterion in CRITERIA)])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(f"{cell:<{w}}" if i == 0 else f"{cell:>{w}}" for i, (cell, w) in
                      enumerate(zip(row, widths, strict=True)))
            for row in rows
        ]  # fmt: skip
        said = ", ".join(f"{count:,} {name}" for name, count in self.counts.items())
        spent = ", ".join(f"{n:,.4g} {name.replace('_', ' ')}" for name, n in self.usage.items())
        return "\n".join(
            [*lines, "", said, *([f"usage: {spent}"] if spent else []), *self.problems]
        )


def judge_all(
    items: Sequence[Item],
    answers: Mapping[str, Mapping[Item, str]],
    regions: Mapping[str, Sequence[Region]],
    judge: Judge,
    settings: Settings,
    out: Path,
) -> Summary:
    """Judges every question that all models have answered.

    Args:
      items: the questions.
      answers: model -> its answers.
      regions: image id -> what the picture shows.
      judge: who judges.
      settings: how.
      out: the folder.

    Raises:
      ValueError: there is nothing to judge, the file of judgements is damaged, or there was no
        reply to too many questions in a row: what was judged is kept.
    """
    wanted, counts, problems = _judged(items, answers, regions)
    cases = {item: _case(item, answers, regions[item.image_id], settings) for item in wanted}
    keys = {
        item: _key(item, {name: answers[name][item] for name in answers}, judge, case.prompt)
        for item, (case, _) in cases.items()
    }
    lines = [
        dict(key=keys[item], prompt_sha256=prompt_hash(case.prompt), prompt=case.prompt)
        for item, (case, _) in cases.items()
    ]
    write_bytes(out / "prompts.jsonl", "".join(json.dumps(x) + "\n" for x in lines).encode())
    with contextlib.closing(KeyedFile(out / "judgements.jsonl")) as file:
        _ask_all(file, judge, cases, keys, settings)
        summary = _summary(file, keys, list(answers), counts, problems, out)
    write_json(out / "summary.json", {
        **{field: getattr(summary, field) for field in ("means", "counts", "problems", "usage")},
        "judge": dict(judge.identity), "settings": dataclasses.asdict(settings),
    })  # fmt: skip
    return summary


def _ask_all(
    file: KeyedFile,
    judge: Judge,
    cases: Mapping[Item, tuple[Case, Sequence[str]]],
    keys: Mapping[Item, str],
    settings: Settings,
) -> None:
    """Raises ValueError if there is no reply to `MAX_FAILED` questions in a row."""
    waiting = [item for item, key in keys.items() if not _is_settled(file, key, settings)]
    tokens = sum(len(cases[item][0].prompt) for item in waiting) // 4
    print(
        f"{len(keys) - len(waiting):,} of {len(keys):,} questions are judged already; "
        f"{len(waiting):,} to go, about {tokens:,} tokens of prompts",
        file=sys.stderr,
    )
    failed: list[str] = []  # in a row
    for number, item in enumerate(waiting, start=1):
        case, names = cases[item]
        row = dict(key=keys[item], **dataclasses.asdict(item))
        problem = _ask(file, judge, case, names, settings, row)
        failed = [] if problem is None else [*failed, problem]
        if len(failed) == MAX_FAILED:
            raise ValueError(
                f"no reply to {MAX_FAILED} questions in a row, up to {item.id!r:.80}; with what is "
                "wrong mended, the same command goes on. The last reasons:\n  "
                + "\n  ".join(dict.fromkeys(failed))
            )
        if sys.stderr.isatty():
            print(f"\r{number:,} of {len(waiting):,}", end="\r", file=sys.stderr, flush=True)


def _judged(
    items: Sequence[Item],
    answers: Mapping[str, Mapping[Item, str]],
    regions: Mapping[str, Sequence[Region]],
) -> tuple[list[Item], dict[str, int], list[str]]:
    """Which questions can be judged, counts of those that cannot, and who they are."""
    problems = []
    unanswered: set[Item] = set()
    known = set(items)
    for name, given in answers.items():
        without = [item for item in items if item not in given]
        unanswered.update(without)
        others = [item for item in given if item not in known]
        for what, some in (("no answer to", without), ("answers to what is not asked:", others)):
            problems += [f"{name}: {what} {_named(some, len(items))}"] if some else []
    blank = [item for item in items if not regions.get(item.image_id)]
    problems += [f"no regions of the picture of {_named(blank, len(items))}"] if blank else []
    out_of_it = unanswered.union(blank)
    wanted = [item for item in items if item not in out_of_it]
    if not wanted:
        raise ValueError(
            "no question can be judged:\n  " + "\n  ".join(problems or ["none is there"])
        )
    counts = dict(questions=len(items), unanswered=len(unanswered))
    return wanted, counts | {"without regions": len(set(blank) - unanswered)}, problems


def _named(items: Sequence[Item], total: int) -> str:
    some = ", ".join(repr(item.id)[:60] for item in items[:_NAMED])
    return f"{len(items):,} of {total:,} questions: {some}{', ...' if len(items) > _NAMED else ''}"


def _case(
    item: Item,
    answers: Mapping[str, Mapping[Item, str]],
    regions: Sequence[Region],
    settings: Settings,
) -> tuple[Case, list[str]]:
    """With the names of the models in the order in which the judge sees them."""
    names = shuffled(item, list(answers), settings.seed if settings.shuffle else None)
    said = [answers[name][item] for name in names]
    prompt = compose(regions, item.question, said, legacy_height=settings.legacy_height)
    return Case(regions, item.question, said, prompt), names


def _key(item: Item, answers: Mapping[str, str], judge: Judge, prompt: str) -> str:
    whole = [item.image_id, item.question, sorted(answers.items()), dict(judge.identity), prompt]
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def _replies(file: KeyedFile, key: str) -> list[dict[str, Any]]:
    return [row for row in file.rows.get(key, []) if "reply" in row]


def _is_settled(file: KeyedFile, key: str, settings: Settings) -> bool:
    replies = _replies(file, key)
    return len(replies) >= settings.asks or any("scores" in row for row in replies)


def _ask(
    file: KeyedFile,
    judge: Judge,
    case: Case,
    names: Sequence[str],
    settings: Settings,
    row: Mapping[str, Any],
) -> str | None:
    """Until a reply can be read; each is on disk before the next one is asked for.

    Returns:
      Why there is no reply, if there is none.
    """
    row = dict(row, answers=dict(zip(names, case.answers, strict=True)), judge=dict(judge.identity))
    row["prompt_sha256"] = prompt_hash(case.prompt)
    while not _is_settled(file, row["key"], settings):
        try:
            verdict = judge(case, len(_replies(file, row["key"])))
        except Exception as error:  # whatever a judge raises is counted, and many in a row stop
            problem = f"{type(error).__name__}: {error}"
            file.append({**row, "failed": problem, "usage": getattr(error, "usage", {})})
            return problem
        result: dict[str, Any] = dict(reply=verdict.reply)
        try:
            scores = parse_scores(verdict.reply, len(names))
        except ValueError as error:
            result["unparsed"] = str(error)
        else:
            result["scores"] = {
                name: {
                    criterion: dataclasses.asdict(scores[criterion][n]) for criterion in CRITERIA
                }
                for n, name in enumerate(names)
            }
        file.append(row | result | ({"usage": dict(verdict.usage)} if verdict.usage else {}))
    return None


def _summary(
    file: KeyedFile,
    keys: Mapping[Item, str],
    names: Sequence[str],
    counts: Mapping[str, int],
    problems: Sequence[str],
    out: Path,
) -> Summary:
    totals = {name: dict.fromkeys(CRITERIA, 0.0) for name in names}
    judged = unparsed = 0
    reasons: list[str] = []
    failed: list[str] = []
    for item, key in keys.items():
        replies = _replies(file, key)
        scores = next((row["scores"] for row in replies if "scores" in row), None)
        if scores is not None:
            judged += 1
            for name in names:
                for criterion in CRITERIA:
                    totals[name][criterion] += scores[name][criterion]["score"]
        elif replies:
            unparsed += 1
            reasons.append(f"{item.id!r:.60} ({replies[-1]['unparsed']:.120})")
        else:
            failed.append(f"{item.id!r:.60} ({file.rows[key][-1]['failed']:.120})")
    usage: collections.Counter = collections.Counter()
    for row in (row for rows in file.rows.values() for row in rows):
        usage.update(row.get("usage") or {})
    problems = list(problems)
    for what, some in (("could not be read", reasons), ("did not come", failed)):
        if some:
            more = ", ..." if len(some) > _NAMED else ""
            problems.append(f"{len(some):,} replies {what}: {', '.join(some[:_NAMED])}{more}")
    means = {
        name: {criterion: total / judged for criterion, total in each.items()}
        for name, each in totals.items()
    } if judged else {}  # fmt: skip
    counts = {**counts, "judged": judged, "unparsed": unparsed, "failed": len(failed)}
    return Summary(out, means, counts, problems, dict(sorted(usage.items())))
