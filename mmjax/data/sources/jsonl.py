"""Your own data: a JSON Lines file, one object a line.

{"image": "photos/1.jpg", "question": "What is this?", "answer": "a cat"}

image | images     path, or list of paths: relative to the file (or to ``image_root``), or absolute
question | text    what the user says; placeholders such as ``<image>`` in it stay text
answer | caption   what is to be said; not needed for generation
id                 names it in messages and predictions; by default file:line
kind               for sampling and for scores by kind
any other          text, number or boolean, kept in the example's ``info``
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmjax.data.example import Example, Media, Text, Turn

_MAX_SHOWN = 20


class Jsonl:
    """The records of a JSON Lines file; pictures come before the question."""

    def __init__(self, path: str | Path, image_root: str | Path | None = None):
        """Reads and checks the whole file, but opens no picture.

        Raises:
          FileNotFoundError: no such file.
          ValueError: bad lines (lists the first 20, with line and field), or no records at all.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no such data file: {path}")
        self.name = str(path)
        root = path.parent if image_root is None else Path(image_root)
        problems: list[str] = []
        self._examples: list[Example] = []
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    self._examples.append(_parse(line, number=number, path=path, root=root))
                except ValueError as error:
                    problems.append(f"line {number}: {error}")
        if problems:
            shown = "\n  ".join(problems[:_MAX_SHOWN])
            rest = len(problems) - _MAX_SHOWN
            more = f"\n  and {rest} more" if rest > 0 else ""
            raise ValueError(f"{path}: {len(problems)} bad lines\n  {shown}{more}")
        if not self._examples:
            raise ValueError(f"{path} holds no records")
        self.kinds: Sequence[str] = [example.info.get("kind", "") for example in self._examples]

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        return self._examples[index]


def _parse(line: str, *, number: int, path: Path, root: Path) -> Example:
    """Raises ValueError that names the field."""
    try:
        line.encode("utf-8")
        record = json.loads(line)
    except UnicodeEncodeError as error:
        raise ValueError(f"not UTF-8 text (column {error.start + 1})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from error
    if not isinstance(record, dict):
        raise ValueError(f"expected an object, got {type(record).__name__}")
    image = _one_of(record, "image", "images")
    images = [image] if isinstance(image, str) else [] if image is None else image
    if not isinstance(images, list) or not all(isinstance(item, str) and item for item in images):
        raise ValueError(
            f"field 'image' or 'images': expected a path or a list of paths, got {image!r}"
        )
    question = _text(record, "question", "text")
    answer = _text(record, "answer", "caption")
    if question is None and not images:
        raise ValueError("it has neither a picture (field 'image') nor a text (field 'question')")

    name = str(record.pop("id", f"{path.name}:{number}"))
    info = {key: _plain(key, value) for key, value in record.items() if value is not None}
    said = {"question": question, "answer": answer}
    info |= {key: value for key, value in said.items() if value is not None}
    parts: list[Media | Text] = [Media(str(root / item), root / item) for item in images]
    if question is not None:
        parts.append(Text(question))
    turns = [Turn("user", tuple(parts))]
    if answer is not None:
        turns.append(Turn("assistant", (Text(answer),)))
    return Example(name, tuple(turns), info)


def _one_of(record: dict[str, Any], *names: str) -> Any:
    present = [name for name in names if record.get(name) is not None]
    if len(present) > 1:
        raise ValueError(f"fields {' and '.join(map(repr, present))} mean the same; give one")
    values = {name: record.pop(name, None) for name in names}
    return values[present[0]] if present else None


def _text(record: dict[str, Any], *names: str) -> str | None:
    value = _one_of(record, *names)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"field {' or '.join(map(repr, names))}: expected text, got {value!r}")
    return value


def _plain(key: str, value: Any) -> str:
    if not isinstance(value, (str, int, float)):
        raise ValueError(f"field {key!r}: expected text, a number or a boolean, got {value!r:.40}")
    return str(value)
