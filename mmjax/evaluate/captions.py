"""``scripts/evaluate.py captions``: a file of captions against a file of references.

References: a ``captions_*.json`` of COCO, or JSON Lines

    {"id": "391895", "references": ["a man on a bike", "a man rides"]}

Captions: what ``scripts/generate.py --jsonl`` writes, of questions whose id is that of the picture,
or a JSON list as COCO's server takes it, ``[{"image_id": 391895, "caption": "..."}, ...]``.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags

from mmjax.data.sources import records
from mmjax.evaluate.text_metrics import CaptionScores, score_captions

flags.disclaim_key_flags()


@dataclasses.dataclass(frozen=True)
class Summary:
    """What became of a file of captions.

    Attributes:
      pictures: that have references.
      bad: captions that are errors; they are scored as silence.
    """

    scores: CaptionScores
    pictures: int
    bad: int

    def __str__(self) -> str:
        lines = [f"{name:8} {value:.4f}" for name, value in self.scores.metrics().items()]
        head = f"{self.scores.count:,} captions of {self.pictures:,} pictures that have references"
        bad = [f"{self.bad:,} of them are errors and count as silence"] if self.bad else []
        return "\n".join([head, *bad, *lines])


def define_captions(values: flags.FlagValues = flags.FLAGS) -> None:
    """Flags of the two files; ``--answers`` may be another command's, too."""
    if "answers" not in values:
        flags.DEFINE_multi_string("answers", [], "FILE of the captions", flag_values=values)
    flags.DEFINE_string(
        "references", None, "FILE.json of COCO's captions, or FILE.jsonl", flag_values=values
    )


def captions_from_flags(values: flags.FlagValues = flags.FLAGS) -> Summary:
    """What the command does.

    Raises:
      ValueError, FileNotFoundError: a flag is missing, or a file cannot be read or scored.
    """
    answers, references = values["answers"].value, values["references"].value
    if len(answers or ()) != 1 or not references:
        raise ValueError("captions needs one --answers=FILE and --references=FILE")
    return evaluate_captions(Path(answers[0]), Path(references))


def evaluate_captions(answers: Path, references: Path) -> Summary:
    """Scores the captions in a file.

    Raises:
      ValueError: lines that cannot be read (the first 20), an id twice, ids without references.
      FileNotFoundError: no such file.
    """
    captions, known = read_captions(answers), read_references(references)
    bad = sum(caption is None for caption in captions.values())
    said = {key: caption or "" for key, caption in captions.items()}
    return Summary(score_captions(said, known), len(known), bad)


def read_references(path: Path) -> dict[str, list[str]]:
    """Picture -> its references."""
    found: dict[str, list[str]] = {}
    for key, texts in _parsed(path, _reference, "annotations"):
        found.setdefault(key, []).extend(texts)
    return found


def read_captions(path: Path) -> dict[str, str | None]:
    """Picture -> its caption, None where there is an error in its place."""
    found: dict[str, str | None] = {}
    twice = []
    for key, caption in _parsed(path, _caption, None):
        if key in found:
            twice.append(key)
        found[key] = caption
    if twice:
        raise ValueError(f"{path}: {len(twice)} ids are there twice, e.g. {twice[0]}")
    return found


def _parsed(path: Path, parse, field: str | None) -> list[tuple[str, Any]]:
    """(id, what ``parse`` finds) of all records: those of ``field`` if the file is one object,
    those of one list, or one a line."""
    text = records.existing(path).read_text(encoding="utf-8-sig")
    try:
        whole = json.loads(text)
    except json.JSONDecodeError:
        whole = None
    if isinstance(whole, Mapping) and field is not None and field in whole:
        whole = whole[field]
    if isinstance(whole, list):
        items = [(f"record {number}", record) for number, record in enumerate(whole)]
    else:
        lines = enumerate(text.splitlines(), start=1)
        items = [(f"line {number}", line) for number, line in lines if line.strip()]

    def one(where: str, record: Any) -> list[tuple[str, Any]]:
        record = records.parse_json(record) if isinstance(record, str) else record
        record = records.as_object(record)
        key = records.one_of(record, "id", "image_id") if parse is _caption else None
        if parse is _reference:  # COCO's annotations have ids of their own
            image, own = record.pop("image_id", None), record.pop("id", None)
            key = own if image is None else image
        if key is None:
            raise ValueError("it has neither 'image_id' nor 'id'")
        return [(records.id_of({"id": key}, ""), parse(record))]

    return records.parse_all(path, items, one)


def _reference(record: dict[str, Any]) -> list[str]:
    if record.get("references") is None:
        return [records.text_of(record, "caption")]
    texts = record["references"]
    if not isinstance(texts, list) or not texts:
        raise ValueError(f"field 'references': expected a list of texts, got {texts!r:.60}")
    return [records.checked("field 'references'", text) for text in texts]


def _caption(record: dict[str, Any]) -> str | None:
    if record.get("error") is not None:
        return None
    if record.get("answers") is not None:
        raise ValueError("it has several 'answers'; generate one for each picture")
    caption = records.one_of(record, "answer", "caption")
    if caption is None:
        raise ValueError("it has neither 'answer' nor 'caption'")
    return records.checked("field 'answer' or 'caption'", caption)
