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
from typing import Any

from mmjax.data.example import Example, Media, Text, Turn
from mmjax.data.sources import records
from mmjax.data.sources.dialogue import DialogueRecords

_ROLES = {role: role for role in ("system", "user", "assistant")}


class Jsonl(DialogueRecords):
    """The records of a JSON Lines file."""

    images = ("image", "images")
    messages, role_field, content_field = "messages", "role", "content"
    roles = _ROLES

    def _items(self, path: Path) -> Iterator[tuple[str, str]]:
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"line {number}", line

    def _parse(self, where: str, line: str) -> list[Example]:
        try:
            line.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"not UTF-8 text (column {error.start + 1})") from error
        record = records.as_object(records.parse_json(line.rstrip("\r\n")))
        for field in ("question", "text", "answer", "caption"):
            if record.get("messages") is not None and record.get(field) is not None:
                raise ValueError(f"fields 'messages' and {field!r} say the same; give one")
        return super()._parse(where, record)

    def _without_messages(self, name: str, record: dict[str, Any], media: list[Media]) -> Example:
        question = _text(record, "question", "text")
        answer = _text(record, "answer", "caption")
        if question is None and not media:
            raise ValueError(
                "it has neither a picture (field 'image') nor a text (field 'question')"
            )
        said = {"question": question, "answer": answer}
        info = records.info_of(record)
        info |= {key: value for key, value in said.items() if value is not None}
        asked = Turn("user", (*media, *([] if question is None else [Text(question)])))
        answered = [] if answer is None else [Turn("assistant", (Text(answer),))]
        return Example(name, (asked, *answered), info)


def _text(record: dict[str, Any], *names: str) -> str | None:
    value = records.one_of(record, *names)
    what = f"field {' or '.join(map(repr, names))}"
    return None if value is None else records.checked(what, value)
