"""Your own data: a JSON Lines file, ``jsonl:PATH``, one object a line, in one of three forms.

    {"image": "photos/1.jpg", "question": "What is this?", "answer": "a cat"}

image | images     path, or list of paths: relative to the file (or to ``image_root``), or absolute
question | text    what the user says; placeholders such as ``<image>`` in it stay text
answer | caption   what is to be said; not needed for generation

    {"parts": [{"type": "text", "text": "What is "}, {"type": "image", "image": "1.jpg"},
               {"type": "text", "text": "?"}], "answer": "a cat"}

parts              what the user says, texts and pictures in any order; paths as above
answer | caption   as above

    {"images": ["1.jpg"], "messages": [{"role": "user", "content": "<image>What is this?"},
                                       {"role": "assistant", "content": "a cat"}]}

messages           of the roles system, user, assistant; content is text in which each ``<image>``
                   stands for the next picture, or a list of parts, {"type": "image"} and
                   {"type": "text", "text": ...}; see `mmjax.data.sources.dialogue`
image | images     as above

and in all of them

id                 names it in messages and predictions; by default file:line
kind               for sampling and for scores by kind
any other          text, number or boolean, kept in the example's ``info``

Options: ``image_root``; ``turns`` and ``system`` for messages.
"""

from collections.abc import Iterator, Sequence
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
        root, left_out = path.parent if image_root is None else Path(image_root), 0

        def parse_one(where: str, line: str) -> list[Example]:
            nonlocal left_out
            name = f"{path.name}:{where.removeprefix('line ')}"
            found, more = parse(line, name=name, root=root, turns=turns, system=system)
            left_out += more
            return found

        lines = ((f"line {number}", line) for number, line in lines_of(path))
        examples = records.parse_all(path, lines, parse_one)
        super().__init__(str(path), examples, dialogue.notices(left_out))


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, text) of every line that is not blank, read as they are asked for."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, line


def parse(
    line: str,
    *,
    name: str,
    root: Path,
    turns: dialogue.Turns = "each",
    system: Literal["keep", "user"] = "keep",
) -> tuple[list[Example], int]:
    """(the examples of one line, the number of exchanges that were left out).

    Args:
      line: as `lines_of` gives it.
      name: the id of a record that has none.
      root: what paths are relative to.
      turns, system: see `mmjax.data.sources.dialogue`.

    Raises:
      ValueError: names the field.
    """
    try:
        line.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"not UTF-8 text (column {error.start + 1})") from error
    record = records.as_object(records.parse_json(line.rstrip("\r\n")))
    name = records.id_of(record, name)
    _check_forms(record)
    images = records.paths_of(_one_of(record, "image", "images"), "field 'image' or 'images'")
    media = [_picture(root, item) for item in images]
    if record.get("messages") is not None:
        messages = _messages(record.pop("messages"))
        info = records.info_of(record)
        return dialogue.examples_of(name, messages, media, info, turns=turns, system=system)
    if record.get("parts") is not None:
        return [_exchange(name, record, _parts(record.pop("parts"), root))], 0
    question = _text(record, "question", "text")
    if question is None and not media:
        raise ValueError(
            "it has neither a picture (field 'image') nor a text (field 'question'), nor 'parts'"
        )
    return [_exchange(name, record, (*media, *([] if question is None else [Text(question)])))], 0


def _check_forms(record: dict[str, Any]) -> None:
    """Raises ValueError if the same is said in two ways."""
    excluded = {
        "messages": ("parts", "question", "text", "answer", "caption"),
        "parts": ("image", "images", "question", "text"),
    }
    for form, others in excluded.items():
        for other in others if record.get(form) is not None else ():
            if record.get(other) is not None:
                raise ValueError(f"fields {form!r} and {other!r} say the same; give one")


def _messages(spoken: Any) -> list[dialogue.Message]:
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
    return messages


def _parts(value: Any, root: Path) -> tuple[Text | Media, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"field 'parts': expected a list of parts, got {value!r:.60}")
    parts: list[Text | Media] = []
    for number, part in enumerate(value):
        where = f"field 'parts', part {number}"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            parts.append(Text(records.checked(f"{where}, 'text'", part.get("text"))))
        elif kind == "image":
            path = records.checked(f"{where}, 'image'", part.get("image"))
            if not path:
                raise ValueError(f"{where}, 'image': the path is empty")
            parts.append(_picture(root, path))
        else:
            raise ValueError(f"{where}: expected the type 'text' or 'image', got {part!r:.60}")
    return tuple(parts)


def _picture(root: Path, path: str) -> Media:
    return Media(str(root / path), root / path)


def _exchange(name: str, record: dict[str, Any], asked: Sequence[Text | Media]) -> Example:
    answer = _text(record, "answer", "caption")
    info = records.info_of(record)
    questions = [part.text for part in asked if isinstance(part, Text)]
    info |= {"question": "".join(questions)} if questions else {}
    info |= {} if answer is None else {"answer": answer}
    answered = [] if answer is None else [Turn("assistant", (Text(answer),))]
    return Example(name, (Turn("user", tuple(asked)), *answered), info)


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
