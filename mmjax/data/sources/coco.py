"""COCO's captions and VQAv2's questions about COCO's pictures, as their sites give them.

``coco-captions:captions_train2014.json?images=train2014``

    {"images": [{"id": 57870, "file_name": "COCO_train2014_000000057870.jpg", ...}, ...],
     "annotations": [{"id": 787980, "image_id": 57870, "caption": "A restaurant ..."}, ...]}

One record for each caption, so that a picture comes as often as it has captions; with
``each=picture``
one for each picture, of which all captions are references: for writing captions.

``vqav2:v2_OpenEnded_mscoco_train2014_questions.json?annotations=FILE&images=train2014``

    {"data_subtype": "train2014",
     "questions": [{"image_id": 458752, "question": "...", "question_id": 458752000}, ...]}
    {"annotations": [{"question_id": 458752000, "answers": [{"answer": "net"}, ...],
                      "answer_type": "other", ...}, ...]}

The two are joined by question_id, and the most frequent of the ten answers is the answer (of
several the first). Without ``annotations`` questions have no answers: for generation.

``images`` is the folder of the pictures; those of VQAv2 are named by ``file_name``, by default
``COCO_{subset}_{id:012d}.jpg``.
"""

import collections
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mmjax.data.example import Example, Media, Text, Turn
from mmjax.data.sources import records

NAME = "COCO_{subset}_{id:012d}.jpg"


class CocoCaptions:
    """Captions of a file.

    Attributes:
      kinds: ``caption`` for all.
      notices: how many pictures have no caption.
    """

    def __init__(
        self,
        path: str | Path,
        images: str | Path | None = None,
        each: Literal["caption", "picture"] = "caption",
    ):
        """Reads and checks the whole file; pictures are not opened.

        Raises:
          FileNotFoundError: no such file.
          ValueError: no ``images`` folder, bad records (the first 20), captions of pictures that
            the file does not name.
        """
        path, self._images = records.existing(path), _folder(images)
        if each not in ("caption", "picture"):
            raise ValueError(f"each must be 'caption' or 'picture', got {each!r}")
        whole = _lists(path, "images", "annotations")
        files = dict(records.parse_all(path, _items("image", whole["images"]), _file))
        parse = lambda where, record: _captioned(record, files)  # noqa: E731
        captions = records.parse_all(path, _items("annotation", whole["annotations"]), parse)
        self.name, self._files = f"coco-captions:{path}", files
        self._records: list[tuple[int, int, tuple[str, ...]]] = [
            (number, picture, (caption,)) for number, picture, caption in captions
        ]
        if each == "picture":
            found: dict[int, list[str]] = {}
            for _, picture, caption in captions:
                found.setdefault(picture, []).append(caption)
            self._records = [(key, key, tuple(texts)) for key, texts in found.items()]
        self.kinds: Sequence[str] = ["caption"] * len(self._records)
        silent = len(files) - len({picture for _, picture, _ in captions})
        self.notices = (f"{silent} of its {len(files)} pictures have no caption",) if silent else ()

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        number, picture, captions = self._records[index]
        shown = self._images / self._files[picture]
        turns = (
            Turn("user", (Media(str(shown), shown),)),
            Turn("assistant", (Text(captions[0]),)),
        )
        info = dict(answer=captions[0], kind="caption", image_id=str(picture))
        return Example(str(number), turns, info)


class VqaV2:
    """Questions of a file.

    Attributes:
      kinds: their types of answer (``yes/no``, ``number``, ``other``), or ``question`` for all
        without annotations.
    """

    def __init__(
        self,
        path: str | Path,
        annotations: str | Path | None = None,
        images: str | Path | None = None,
        file_name: str = NAME,
    ):
        """Reads and checks both files; pictures are not opened.

        Raises:
          FileNotFoundError: no such file.
          ValueError: no ``images`` folder, bad records (the first 20), questions without an
            annotation, or annotations of no question.
        """
        path, self._images, self._name = records.existing(path), _folder(images), file_name
        whole = _lists(path, "questions")
        self._subset = whole.get("data_subtype", "")
        try:
            self._file(1)
        except (KeyError, ValueError, IndexError) as error:
            raise ValueError(f"file_name={file_name!r} is no name of a picture: {error}") from error
        self._questions = records.parse_all(
            path, _items("question", whole["questions"]), lambda where, record: _asked(record)
        )
        self.name, self._answers = f"vqav2:{path}", {}
        self.kinds: Sequence[str] = ["question"] * len(self._questions)
        if annotations is not None:
            file = records.existing(annotations)
            told = _items("annotation", _lists(file, "annotations")["annotations"])
            parse = lambda where, record: _answered(record)  # noqa: E731
            self._answers = dict(records.parse_all(file, told, parse))
            self._check_joined(path, file)
            self.kinds = [self._answers[number][1] for number, _, _ in self._questions]

    def _check_joined(self, path: Path, annotations: Path) -> None:
        asked = {number for number, _, _ in self._questions}
        open_, lost = asked - self._answers.keys(), self._answers.keys() - asked
        if len(asked) < len(self._questions):
            twice = len(self._questions) - len(asked)
            raise ValueError(f"{path}: {twice} question_ids are there twice")
        if open_ or lost:
            raise ValueError(
                f"{path} and {annotations}: {len(open_)} of {len(asked)} questions have no "
                f"annotation, {len(lost)} annotations no question, e.g. "
                f"{min(open_ or lost)}: files of two splits?"
            )

    def _file(self, picture: int) -> str:
        return self._name.format(subset=self._subset, id=picture)

    def __len__(self) -> int:
        return len(self._questions)

    def __getitem__(self, index: int) -> Example:
        number, picture, question = self._questions[index]
        shown = self._images / self._file(picture)
        info = dict(question=question, kind=self.kinds[index], image_id=str(picture))
        turns = (Turn("user", (Media(str(shown), shown), Text(question))),)
        if self._answers:
            info["answer"] = self._answers[number][0]
            turns += (Turn("assistant", (Text(info["answer"]),)),)
        return Example(str(number), turns, info)


def _folder(images: str | Path | None) -> Path:
    if images is None:
        raise ValueError("say where the pictures are: images=FOLDER")
    if not Path(images).is_dir():
        raise ValueError(f"images={images}: no such folder")
    return Path(images)


def _lists(path: Path, *fields: str) -> dict[str, Any]:
    """The object in a file, with lists in these fields."""
    try:
        whole = records.parse_json(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    missing = [
        field
        for field in fields
        if not isinstance(whole, dict) or not isinstance(whole.get(field), list)
    ]
    if missing:
        raise ValueError(f"{path}: it has no list {' and no list '.join(map(repr, missing))}")
    return whole


def _items(what: str, found: Sequence[Any]) -> list[tuple[str, Any]]:
    return [(f"{what} {number}", record) for number, record in enumerate(found)]


def _file(where: str, record: Any) -> list[tuple[int, str]]:
    record = records.as_object(record)
    return [(_number(record, "id"), records.text_of(record, "file_name"))]


def _captioned(record: Any, files: Mapping[int, str]) -> list[tuple[int, int, str]]:
    record = records.as_object(record)
    number, picture = (_number(record, field) for field in ("id", "image_id"))
    if picture not in files:
        raise ValueError(f"field 'image_id': {picture} is none of the file's images")
    return [(number, picture, _said(records.text_of(record, "caption"), "caption"))]


def _asked(record: Any) -> list[tuple[int, int, str]]:
    record = records.as_object(record)
    number, picture = (_number(record, field) for field in ("question_id", "image_id"))
    return [(number, picture, _said(records.text_of(record, "question"), "question"))]


def _answered(record: Any) -> list[tuple[int, tuple[str, str]]]:
    """(question, (most frequent answer, its type))."""
    record = records.as_object(record)
    number, answers = _number(record, "question_id"), record.get("answers")
    if not isinstance(answers, list) or not answers:
        raise ValueError(f"field 'answers': expected a list of answers, got {answers!r:.60}")
    said = [records.text_of(records.as_object(answer), "answer") for answer in answers]
    ((best, _),) = collections.Counter(said).most_common(1)
    kind = records.text_of(record, "answer_type", needed=False) or "question"
    return [(number, (_said(best, "answers"), kind))]


def _said(text: str, field: str) -> str:
    if not text.strip():
        raise ValueError(f"field {field!r}: it has no text")
    return text.strip()


def _number(record: dict[str, Any], field: str) -> int:
    value = record.get(field)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"field {field!r}: expected a whole number, got {value!r:.40}")
    return value
