"""Your own data: a JSON Lines file, ``jsonl:PATH``, one object a line, in one of two forms.

    {"image": "photos/1.jpg", "question": "What is this?", "answer": "a cat"}

image | images     path, or list of paths: relative to the file (or to ``image_root``), or absolute
question | text    what the user says; placeholders such as ``<image>`` in it stay text
answer | caption   what is to be said; not needed for generation

    {"images": ["1.jpg"], "messages": [{"role": "user", "content": "<image>What is this?"},
                                       {"role": "assistant", "content": "a cat"}]}

messages           of the roles system, user, assistant; content is text in which each ``<image>``
                   stands for the next picture, or a list of parts, {"type": "image"} and
                   {"type": "text", "text": ...}; see `mmjax.data.sources.dialogue`
image | images     as above

and in both

id                 names it in messages and predictions; by default file:line
kind               for sampling and for scores by kind
any other          text, number or boolean, kept in the example's ``info``

Options: ``image_root``; ``turns`` and ``system`` for messages.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from mmjax.data.example import Example, Media, Text, Turn
from mmjax.data.sources import dialogue, records


class Jsonl(records.Records):
    """The records of a JSON Lines file."""

    def __init__(
        self,
        path: str | Path,
        image_root: str | Path | None = None,
        turns: dialogue.Turns = "each",
        system: Literal["keep", "user"] = "keep",
    ):
        """Reads and checks the whole file, but opens no picture.

        Raises:
          FileNotFoundError: no such file.
          ValueError: bad lines (lists the first 20, with line and field), or no records at all.
        """
        path = records.existing(path)
        dialogue.check_options(turns, system)
        self._path, self._root = path, path.parent if image_root is None else Path(image_root)
        self._turns, self._system, self._left_out = turns, system, 0
        examples = records.parse_all(path, _lines(path), self._parse)
        super().__init__(str(path), examples, dialogue.notices(self._left_out))

    def _parse(self, where: str, line: str) -> list[Example]:
        """Raises ValueError that names the field."""
        try:
            line.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"not UTF-8 text (column {error.start + 1})") from error
        record = records.as_object(records.parse_json(line.rstrip("\r\n")))
        name = records.id_of(record, f"{self._path.name}:{where.removeprefix('line ')}")
        images = records.paths_of(_one_of(record, "image", "images"), "field 'image' or 'images'")
        media = [Media(str(self._root / item), self._root / item) for item in images]
        if record.get("messages") is not None:
            return self._dialogue(name, record, media)
        return [_exchange(name, record, media)]

    def _dialogue(self, name: str, record: dict[str, Any], media: list[Media]) -> list[Example]:
        spoken = record.pop("messages")
        for field in ("question", "text", "answer", "caption"):
            if record.get(field) is not None:
                raise ValueError(f"fields 'messages' and {field!r} say the same; give one")
        if not isinstance(spoken, list):
            raise ValueError(f"field 'messages': expected a list, got {spoken!r:.60}")
        messages = []
        for number, message in enumerate(spoken):
            where = f"message {number}"
            role = message.get("role") if isinstance(message, dict) else None
            if role not in ("system", "user", "assistant"):
                raise ValueError(
                    f"{where}: expected an object with the role system, user or assistant, "
                    f"got {message!r:.60}"
                )
            content = dialogue.content_of(role, message.get("content"), f"{where}, 'content'")
            messages.append(dialogue.Message(role, content))
        examples, left_out = dialogue.examples_of(
            name,
            messages,
            media,
            records.info_of(record),
            turns=self._turns,
            system=self._system,
        )
        self._left_out += left_out
        return examples


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield f"line {number}", line


def _exchange(name: str, record: dict[str, Any], media: list[Media]) -> Example:
    question = _text(record, "question", "text")
    answer = _text(record, "answer", "caption")
    if question is None and not media:
        raise ValueError("it has neither a picture (field 'image') nor a text (field 'question')")
    said = {"question": question, "answer": answer}
    info = records.info_of(record)
    info |= {key: value for key, value in said.items() if value is not None}
    asked = Turn("user", (*media, *([] if question is None else [Text(question)])))
    answered = [] if answer is None else [Turn("assistant", (Text(answer),))]
    return Example(name, (asked, *answered), info)


def _one_of(record: dict[str, Any], *names: str) -> Any:
    present = [name for name in names if record.get(name) is not None]
    if len(present) > 1:
        raise ValueError(f"fields {' and '.join(map(repr, present))} mean the same; give one")
    values = {name: record.pop(name, None) for name in names}
    return values[present[0]] if present else None


def _text(record: dict[str, Any], *names: str) -> str | None:
    value = _one_of(record, *names)
    return (
        value if value is None else records.checked(f"field {' or '.join(map(repr, names))}", value)
    )
