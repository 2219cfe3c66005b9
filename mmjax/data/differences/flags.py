"""Command-line flags of ``scripts/prepare_data.py differences``.

Called from a script, these show in its ``--help`` as if it had defined them itself.
"""

from pathlib import Path

from absl import flags

from mmjax.data.differences.builder import Parts, Settings, build
from mmjax.data.differences.interfaces import KINDS
from mmjax.data.differences.plugins import BUILT_IN, load
from mmjax.data.outcomes import Report
from mmjax.data.sources import make_source

_PARTS = dict(
    attention="how much the queries of a Q-Former look at each place",
    segmenter="finds the objects of a picture, and its background",
    text_model="writes what an edit shows, and the sentence that says the difference",
    editor="makes the edited picture",
    filter="scores edited pictures; with --min_score; none by default",
)
_RULES = "easy-vqa"  # the offline default

flags.disclaim_key_flags()


def define_differences(values: flags.FlagValues = flags.FLAGS) -> None:
    """Flags for the source, each part, and each field of `Settings`."""
    common = dict(flag_values=values)
    flags.DEFINE_string("source", "easy-vqa?task=caption", "pictures with captions", **common)
    flags.DEFINE_string("split", "train", "of --source", **common)
    flags.DEFINE_integer("limit", None, "the first pictures only", lower_bound=1, **common)
    for part, meaning in _PARTS.items():
        built_in = _RULES if _RULES in BUILT_IN[part] else None
        known = ", ".join([*BUILT_IN[part], "MODULE:ATTRIBUTE"])
        flags.DEFINE_string(part, built_in, f"{meaning}: {known}", **common)
    default = Settings()
    flags.DEFINE_string("instruction", default.instruction, "what the user says", **common)
    flags.DEFINE_list("kinds", ",".join(KINDS), "of edits, one of them drawn for each", **common)
    flags.DEFINE_integer("edits", default.edits, "of each picture", **common)
    flags.DEFINE_float(
        "max_attention", None, "leave alone what is attended more, as a multiple of the picture's "
        "mean; by default the least attended segment is edited in any case", **common
    )  # fmt: skip
    flags.DEFINE_float("min_score", None, "leave out what --filter scores lower", **common)
    flags.DEFINE_integer("seed", default.seed, "of all choices", **common)
    flags.DEFINE_integer(
        "batch_size", default.batch_size, "pictures at once through --attention", **common
    )


def build_from_flags(out: Path, values: flags.FlagValues = flags.FLAGS) -> Report:
    """What the command does.

    Raises:
      ValueError: a part is missing or unknown, and what `build` raises.
    """
    if values["attention"].value is None:
        raise ValueError(
            "differences needs --attention, the Q-Former that says what is ignored in a picture: "
            "blip-2?weights=FOLDER, or MODULE:ATTRIBUTE; there is no default. (For easy-VQA pairs "
            "whose edits are drawn at random, use the source easy-vqa-differences: it needs no "
            "preparation.)"
        )
    named = {part: values[part].value for part in _PARTS}
    source_named = {name: values[name].value for name in ("source", "split", "limit")}
    fields = Settings.__dataclass_fields__
    given = {name: values[name].value for name in fields}
    settings = Settings(**given | dict(kinds=tuple(given["kinds"])))
    parts = {part: load(part, name) for part, name in named.items() if name is not None}
    source = make_source(source_named["source"], source_named["split"])
    made_by = source_named | named
    return build(
        source, Parts(**parts), settings, out, made_by=made_by, limit=source_named["limit"]
    )
