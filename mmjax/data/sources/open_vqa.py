"""Open-VQA's questions about pictures and videos, and data in its form: ``open-vqa:PATH.jsonl``
(Lynx reference, sections 2 and 5.1), one object a line.

    {"dataset": "Open_VQA_videos", "index": 1, "question": "Is the paper torn?", "answer": ["yes"],
     "video": "images/sthsthv2cap/val/93317.mp4", "origin_dataset": "sthsthv2cap",
     "class": "Action(Y/N)"}

image            path of a picture; path of a .json file with one in base64; or base64 itself
video            path of a video; path of a .json file with frames in base64; base64 of one frame,
                 or a list of them
index            unique; names the record in predictions
answer           a text, or a list of one; not needed for generation
class            the kind of the record; by default image or video
dataset, origin_dataset, and any other text or number: kept in ``info``

A text is base64 if it is a ``data:image/...`` address, or begins as an encoded picture does and has
no character that base64 does not. Paths are relative to the file, or to ``image_root``; addresses
of the web are refused.

Options: ``image_root``.
"""

import re
from pathlib import Path
from typing import Any

from mmjax.data.example import BadSample, Example, Media, Text, Turn
from mmjax.data.sources import records
from mmjax.data.sources.jsonl import JsonlFormat
from mmjax.data.video import from_base64, in_base64, picture_in_base64, read_base64

# The beginnings of JPEG, PNG, GIF, WebP and BMP; no picture is shorter than the bound.
_BASE64 = re.compile(r"(?:/9j/|iVBORw0KGgo|R0lGOD|UklGR|Qk)[A-Za-z0-9+/\s]{36,}={0,2}\s*")


class OpenVQA(records.Records):
    """The questions of a file.

    Attributes:
      kinds: their classes.
    """

    def __init__(self, path: str | Path, image_root: str | Path | None = None):
        """Reads and checks the whole file; pictures and videos are not opened.

        Raises:
          FileNotFoundError: no such file.
          ValueError: bad records (lists the first 20), an index twice, or no records at all.
        """
        path = records.existing(path)
        root = path.parent if image_root is None else Path(image_root)
        first: dict[str, str] = {}  # index -> line

        def parse(where: str, line: str) -> list[Example]:
            example = _example(records.parse_json(line), root)
            index = example.info["index"]
            if index in first:
                raise ValueError(f"field 'index': {index} is that of {first[index]}, too")
            first[index] = where
            return [example]

        super().__init__(str(path), records.parse_all(path, JsonlFormat.items(path), parse))


def _example(record: Any, root: Path) -> Example:
    """Raises ValueError that names the field."""
    record = records.as_object(record)
    index = records.id_of({"id": record.pop("index", None)}, "")
    if not index:
        raise ValueError("field 'index' is missing")
    name = f"{record.get('dataset') or 'open-vqa'}/{index}"
    shown = {kind: record.pop(kind, None) for kind in ("image", "video")}
    given = [kind for kind, value in shown.items() if value is not None]
    if len(given) != 1:
        raise ValueError(
            f"expected a field 'image' or a field 'video', got {' and '.join(given) or 'neither'}"
        )
    (kind,) = given
    media = (_picture if kind == "image" else _video)(name, shown[kind], root)
    question = records.text_of(record, "question")
    answer = record.pop("answer", None)
    if isinstance(answer, list) and len(answer) == 1:
        (answer,) = answer
    if answer is not None:
        answer = records.checked("field 'answer': one answer", answer)
    info = {"index": index, "kind": records.text_of(record, "class", needed=False) or kind}
    info |= {"question": question} | ({} if answer is None else {"answer": answer})
    answered = [] if answer is None else [Turn("assistant", (Text(answer),))]
    turns = Turn("user", (media, Text(question))), *answered
    return Example(name, turns, info | records.info_of(record))


def _picture(name: str, value: Any, root: Path) -> Media:
    text = records.checked("field 'image'", value)
    if _is_base64(text):
        return picture_in_base64(name, text)
    path = _path("image", text, root)
    if path.suffix.lower() != ".json":
        return Media(str(path), path)
    return Media(str(path), lambda: _only_picture(path))


def _video(name: str, value: Any, root: Path) -> Media:
    if isinstance(value, list):
        for frame in value:
            if not isinstance(frame, str) or not _is_base64(frame):
                raise ValueError(f"field 'video': expected pictures in base64, got {frame!r:.40}")
        return in_base64(name, value)
    text = records.checked("field 'video'", value)
    if _is_base64(text):
        return in_base64(name, text)
    path = _path("video", text, root)
    return Media(str(path), path, is_video=True)


def _only_picture(path: Path) -> bytes:
    found = read_base64(path)
    if isinstance(found, list) and len(found) != 1:
        raise BadSample(
            str(path), None, f"it holds {len(found)} frames: give it in the field 'video'"
        )
    return from_base64(str(path), found if isinstance(found, str) else found[0])


def _is_base64(text: str) -> bool:
    return text.startswith("data:image/") or _BASE64.fullmatch(text) is not None


def _path(field: str, text: str, root: Path) -> Path:
    if not text:
        raise ValueError(f"field {field!r}: the path is empty")
    if re.match(r"\w+://", text):
        raise ValueError(
            f"field {field!r}: {text:.60} is no file; nothing is fetched, download it first"
        )
    return root / text
