"""Command-line flags of ``scripts/prepare_data.py instructions``.

Called from a script, these show in its ``--help`` as if it had defined them itself. ``--split``,
``--limit`` and ``--seed`` are those of ``differences``.
"""

import hashlib
from pathlib import Path

from absl import flags

from mmjax.data.instructions.builder import Settings, build
from mmjax.data.instructions.easy_vqa import easy_vqa_folder, easy_vqa_regions
from mmjax.data.instructions.prompts import KINDS, TEXTS, Prompts, read_texts
from mmjax.data.instructions.replies import Quality
from mmjax.data.instructions.writers import WRITERS, load_writer
from mmjax.data.outcomes import Report
from mmjax.data.regions import read_regions
from mmjax.data.sources.lrv import TASKS

_RULES = "easy-vqa"  # the offline default

flags.disclaim_key_flags()


def define_instructions(values: flags.FlagValues = flags.FLAGS) -> None:
    """Flags for regions, writer, and each field of `Settings`, `Prompts` and `Quality`."""
    common = dict(flag_values=values)
    flags.DEFINE_string(
        "regions", _RULES, "what is seen where: FILE.json of Visual Genome or in the form of "
        f"GAVIE's annotations, or {_RULES}", **common
    )  # fmt: skip
    known = ", ".join([*WRITERS, "MODULE:ATTRIBUTE"])
    flags.DEFINE_string("writer", _RULES, f"who writes the instructions: {known}", **common)
    settings, prompts, quality = Settings(), Prompts(), Quality()
    flags.DEFINE_list("instruction_kinds", ",".join(KINDS), "which to ask for", **common)
    flags.DEFINE_list("tasks", ",".join(TASKS), "of positive instructions", **common)
    flags.DEFINE_integer(
        "tasks_per_picture", settings.tasks_per_picture, "drawn of --tasks", **common
    )
    flags.DEFINE_integer(
        "min_regions", settings.min_regions, "pictures with fewer are passed over", **common
    )
    flags.DEFINE_string(
        "prompts", None, f"folder of texts of your own: {', '.join(TEXTS)}, each .txt", **common
    )
    flags.DEFINE_bool(
        "coordinates", prompts.coordinates, "give boxes, not captions alone", **common
    )
    flags.DEFINE_integer("positive_count", prompts.positive_count, "of a request", **common)
    flags.DEFINE_integer("negative_count", prompts.negative_count, "of a request", **common)
    flags.DEFINE_integer(
        "max_words", quality.max_words, "leave out longer answers; 0: none", **common
    )
    flags.DEFINE_bool(
        "drop_mentions", quality.mentions, "leave out what speaks of captions or boxes", **common
    )
    flags.DEFINE_bool("drop_faces", quality.faces, "leave out facial expressions", **common)
    flags.DEFINE_bool(
        "drop_coordinates", None, "leave out what has coordinates; by default with "
        "--nocoordinates", **common
    )  # fmt: skip


def build_from_flags(out: Path, values: flags.FlagValues = flags.FLAGS) -> tuple[Report, str]:
    """What the command does.

    Returns:
      (the report, the name of the source that reads the result).

    Raises:
      ValueError, FileNotFoundError: what `build`, the writer or the regions raise.
    """
    given = {flag: values[flag].value for flag in values}
    settings = Settings(
        kinds=tuple(given["instruction_kinds"]),
        tasks=tuple(given["tasks"]),
        **{name: given[name] for name in ("tasks_per_picture", "min_regions", "seed")},
    )
    prompts = Prompts(
        texts=read_texts(given["prompts"]) if given["prompts"] else TEXTS,
        words=given["max_words"] or Prompts.words,
        **{name: given[name] for name in ("coordinates", "positive_count", "negative_count")},
    )
    without = given["drop_coordinates"]
    quality = Quality(
        max_words=given["max_words"],
        mentions=given["drop_mentions"],
        faces=given["drop_faces"],
        coordinates=not given["coordinates"] if without is None else without,
    )
    writer = load_writer(given["writer"])
    limit, made_by = given["limit"], {"writer": given["writer"].partition("?")[0]}
    made_by |= {"writer_is": getattr(writer, "identity", given["writer"])}
    if given["regions"] == _RULES:
        pictures = easy_vqa_regions(given["split"], limit)
        made_by |= {"regions": f"{_RULES}/{given['split']}"}
        images = f"?images={easy_vqa_folder(given['split'])}&extension=png"
    else:
        annotations = read_regions(given["regions"])
        for notice in annotations.notices:
            print(notice)
        pictures, images = annotations.of, "?images=FOLDER"
        with open(given["regions"], "rb") as file:
            made_by |= {"regions": hashlib.file_digest(file, "sha256").hexdigest()}
    report = build(pictures, writer, prompts, settings, quality, out, made_by=made_by, limit=limit)
    return report, f"lrv:{out}/instructions.json{images}"
