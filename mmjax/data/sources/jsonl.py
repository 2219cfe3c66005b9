"""Your own data: a JSON Lines file, ``jsonl:PATH``, one object a line, in one of three forms.

    {"image": "photos/1.jpg", "question": "What is this?", "answer": "a cat"}

image | images     path, or list of paths: relative to the file (or to ``image_root``), or absolute
video              path of one video, or the list of its frames, which are pictures; paths as above
question | text    what the user says; placeholders such as ``<image>`` in it stay text
answer | caption   what is to be said; not needed for generation

    {"parts": [{"type": "text", "text": "What is "}, {"type": "image", "image": "1.jpg"},
               {"type": "text", "text": "?"}], "answer": "a cat"}

parts              what the user says: texts, pictures and videos ({"type": "video", "video": ...})
                   in any order; paths as above
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
from typing import Any

from mmjax.data.example import Example, Media, Text, Turn
from mmjax.data.sources import records
from mmjax.data.sources.dialogue import DialogueRecords, Format

_ROLES = {role: role for role in ("system", "user", "assistant")}
_EXCLUDED = {  # they say the same
    "messages": ("parts", "question", "text", "answer", "caption"),
    "parts": ("image", "images", "video", "question", "text"),
}


class JsonlFormat(Format):
    """Records are lines of text."""

    images = ("image", "images")
    messages, role_field, content_field = "messages", "role", "content"
    roles = _ROLES

    @staticmethod
    def items(path: Path) -> Iterator[tuple[str, str]]:
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"line {number}", line

    def examples(self, name: str, line: str) -> list[Example]:
        try:
            line.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"not UTF-8 text (column {error.start + 1})") from error
        record = records.as_object(records.parse_json(line.rstrip("\r\n")))
        for form, others in _EXCLUDED.items():
            for other in others if record.get(form) is not None else ():
                if record.get(other) is not None:
                    raise ValueError(f"fields {form!r} and {other!r} say the same; give one")
        if record.get("messages") is not None and record.get("video") is not None:
            raise ValueError("field 'video' goes with 'question' or 'parts', not with 'messages'")
        return super().examples(name, record)

    def without_messages(self, name: str, record: dict[str, Any], media: list[Media]) -> Example:
        if record.get("parts") is not None:
            asked = self._parts(record.pop("parts"))
        else:
            if (film := record.pop("video", None)) is not None:
                media = [*media, self.video("field 'video'", film)]
            question = _text(record, "question", "text")
            if question is None and not media:
                raise ValueError(
                    "it has neither a picture (field 'image') nor a video ('video') nor a text "
                    "(field 'question'), nor 'parts'"
                )
            asked = [*media, *([] if question is None else [Text(question)])]
        answer = _text(record, "answer", "caption")
        info = records.info_of(record)
        if questions := [part.text for part in asked if isinstance(part, Text)]:
            info["question"] = "".join(questions)
        if answer is not None:
            info["answer"] = answer
        answered = [] if answer is None else [Turn("assistant", (Text(answer),))]
        return Example(name, (Turn("user", tuple(asked)), *answered), info)

    def _parts(self, value: Any) -> Sequence[Text | Media]:
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
                parts.append(self.picture(path))
            elif kind == "video":
                parts.append(self.video(f"{where}, 'video'", part.get("video")))
            else:
                raise ValueError(
                    f"{where}: expected the type 'text', 'image' or 'video', got {part!r:.60}"
                )
        return parts


class Jsonl(DialogueRecords):
    """The records of a JSON Lines file."""

    format = JsonlFormat


def _text(record: dict[str, Any], *names: str) -> str | None:
    value = records.one_of(record, *names)
    what = f"field {' or '.join(map(repr, names))}"
    return None if value is None else records.checked(what, value)
