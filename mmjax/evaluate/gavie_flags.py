"""Command-line flags of ``scripts/evaluate.py gavie``.

Called from a script, these show in its ``--help`` as if it had defined them itself.
"""

import json
from pathlib import Path

from absl import flags

from mmjax.data.regions import read_regions
from mmjax.data.resumable import write_bytes
from mmjax.evaluate.gavie import questions, read_answers, read_items
from mmjax.evaluate.judge import JUDGES, load_judge
from mmjax.evaluate.judging import Settings, Summary, judge_all

flags.disclaim_key_flags()


def define_gavie(values: flags.FlagValues = flags.FLAGS) -> None:
    """Flags for files, judge, and each field of `Settings`."""
    common = dict(flag_values=values)
    flags.DEFINE_string("evaluation_set", None, "evaluation_set.json: the questions", **common)
    flags.DEFINE_multi_string("answers", [], "NAME=FILE of a model, as often as needed", **common)
    flags.DEFINE_string(
        "annotations", None, "what the pictures show: FILE.json of Visual Genome or GAVIE", **common
    )
    known = ", ".join([*JUDGES, "MODULE:ATTRIBUTE"])
    flags.DEFINE_string("judge", None, f"who scores: {known}", **common)
    flags.DEFINE_string("out", None, "folder of the judgements", **common)
    flags.DEFINE_string("questions", None, "write the questions here, for generate.py", **common)
    flags.DEFINE_string("images", "image", "folder of the pictures, for --questions", **common)
    flags.DEFINE_string("extension", "jpg", "of the pictures, for --questions", **common)
    default = Settings()
    flags.DEFINE_integer("asks", default.asks, "until a reply can be read, at most", **common)
    flags.DEFINE_bool("shuffle", default.shuffle, "draw the order of the answers", **common)
    flags.DEFINE_integer("judging_seed", default.seed, "of that order", **common)
    flags.DEFINE_bool(
        "legacy_height", default.legacy_height, "print widths for heights, as published", **common
    )


def gavie_from_flags(values: flags.FlagValues = flags.FLAGS) -> Summary | str:
    """What the command does: the summary, or with ``--questions`` what was written.

    Raises:
      ValueError, FileNotFoundError: a flag is missing or wrong, and what `judge_all` raises.
    """
    given = {flag: values[flag].value for flag in values}
    wanted = ["evaluation_set"]
    wanted += [] if given["questions"] else ["answers", "annotations", "judge", "out"]
    if missing := [name for name in wanted if not given[name]]:
        raise ValueError(f"gavie needs --{' and --'.join(missing)}")
    items, repeats = read_items(given["evaluation_set"])
    if given["questions"]:
        rows = questions(items, given["images"], given["extension"])
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        write_bytes(Path(given["questions"]), lines.encode())
        return f"{given['questions']}: {len(rows):,} questions, for generate.py --jsonl"
    answers = {}
    for named in given["answers"]:
        name, equals, file = named.partition("=")
        if not equals or not name or name in answers:
            raise ValueError(f"--answers={named}: expected NAME=FILE, each name once")
        answers[name] = read_answers(file)
    annotations = read_regions(given["annotations"], {item.image_id for item in items})
    notices = [f"{repeats:,} questions are there twice"] if repeats else []
    for notice in (*annotations.notices, *notices):
        print(notice)
    settings = Settings(
        seed=given["judging_seed"],
        **{name: given[name] for name in ("asks", "shuffle", "legacy_height")},
    )
    judge = load_judge(given["judge"])
    return judge_all(items, answers, annotations.of, judge, settings, Path(given["out"]))
