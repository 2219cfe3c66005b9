"""LMEye's own formats.

``lmeye:FOLDER``, second generation: questions in one file, pictures in archives of some gigabytes,
which are read where they are.

    FOLDER/json/data.json      list of {question, answer, image_path, chunk_belong}
    FOLDER/image/CHUNK.zip     has the pictures of that chunk under their image_path

``lmeye-v1:PATH.json``, first generation: pictures are known by their ids alone, and come as stored
features (``python -m conversion features``). A list of records of one of two forms:

    {image_id, caption}                     alignment; the field may also be called input_ids,
    {image_id, input_ids}                   though it is text
    {image_id, pre_input_ids, input_ids}    instruction; the texts of the first and second pass:
                                            "Image: <img>\\n QUESTION <img-d>" and
                                            "Image: <img>\\n QUESTION <img-d> x K\\nAnswer: ANSWER"

Question and answer are cut out of the prompts: the template says how a model is asked. Ids become
the features' keys as in the original: of an id with "coco" or "flickr" what follows the last "-",
``semart-18759-guard301`` without ``semart-``; other ids stay.
"""

import functools
import re
import threading
import zipfile
import zlib
from pathlib import Path
from typing import Any

from mmjax.data.example import BadSample, Example, Media, Text, Turn
from mmjax.data.images import MAX_BYTES
from mmjax.data.sources import records


class LMEyeChunks(records.Records):
    """Questions about pictures in zip archives; safe to read from several threads."""

    def __init__(self, folder: str | Path):
        """Reads and checks the questions; archives are opened when they are needed.

        Raises:
          FileNotFoundError: no ``json/data.json`` in ``folder``.
          ValueError: not a list of such records; lists the bad ones.
        """
        folder = Path(folder)
        self._folder = folder / "image"
        self._open: dict[str, zipfile.ZipFile] = {}
        self._lock = threading.Lock()
        path = folder / "json" / "data.json"
        examples = records.parse_all(path, records.read_list(path), self._parse)
        super().__init__(str(folder), examples)

    def _parse(self, where: str, record: Any) -> list[Example]:
        record = records.as_object(record)
        name = records.id_of(record, f"data.json:{where.removeprefix('record ')}")
        question, answer = (records.text_of(record, field) for field in ("question", "answer"))
        member = records.text_of(record, "image_path")
        chunk = record.pop("chunk_belong", None)
        if isinstance(chunk, bool) or not isinstance(chunk, str | int) or chunk == "":
            raise ValueError(f"field 'chunk_belong': expected a chunk's name, got {chunk!r:.60}")
        chunk = records.checked("field 'chunk_belong'", str(chunk)).removesuffix(".zip")
        if re.search(r"[/\\\0]", chunk) or chunk == "..":
            raise ValueError(f"field 'chunk_belong': {chunk!r:.60} is no name of an archive")
        read = functools.partial(self._read, chunk, member)
        picture = Media(f"{self._folder / chunk}.zip/{member}", read)
        info = records.info_of(record) | {"question": question, "answer": answer}
        turns = Turn("user", (picture, Text(question))), Turn("assistant", (Text(answer),))
        return [Example(name, turns, info)]

    def _read(self, chunk: str, member: str) -> bytes:
        path = self._folder / f"{chunk}.zip"
        try:
            archive = self._archive(path)
            info = archive.getinfo(member)
            if info.file_size > MAX_BYTES:
                raise BadSample(str(path), None, f"{member} has {info.file_size} bytes unpacked")
            with archive.open(info) as file:  # zipfile lets several threads read
                return file.read(MAX_BYTES + 1)
        except KeyError as error:
            raise BadSample(str(path), None, f"the archive has no {member!r:.200}") from error
        except (
            OSError, ValueError, RuntimeError, NotImplementedError, EOFError,
            zipfile.BadZipFile, zlib.error,
        ) as error:  # fmt: skip
            why = f"{type(error).__name__}: {error}"
            raise BadSample(str(path), None, f"{member!r:.200} cannot be read ({why})") from error

    def _archive(self, path: Path) -> zipfile.ZipFile:
        with self._lock:
            if path.name not in self._open:
                self._open[path.name] = zipfile.ZipFile(path)
            return self._open[path.name]


class LMEyeById(records.Records):
    """Captions or questions about pictures that are known by their ids."""

    def __init__(self, path: str | Path):
        """Reads and checks the whole file.

        Raises:
          FileNotFoundError: no such file.
          ValueError: not a list of such records; lists the bad ones.
        """
        path = Path(path)
        self._path = path
        super().__init__(str(path), records.parse_all(path, records.read_list(path), self._parse))

    def _parse(self, where: str, record: Any) -> list[Example]:
        record = records.as_object(record)
        number = where.removeprefix("record ")
        image = record.pop("image_id", None)
        if isinstance(image, bool) or not isinstance(image, str | int) or image == "":
            raise ValueError(f"field 'image_id': expected an id, got {image!r:.60}")
        picture = Media(feature_key(records.checked("field 'image_id'", str(image))), None)
        name = records.id_of(record, f"{self._path.name}:{number}")
        first = records.text_of(record, "pre_input_ids", needed=False)
        field = "caption" if first is None and record.get("caption") is not None else "input_ids"
        text = records.text_of(record, field)
        info = records.info_of(record)
        if first is None:
            turns = Turn("user", (picture,)), Turn("assistant", (Text(text),))
            return [Example(name, turns, info | {"answer": text})]
        question, answer = _question(first), _answer(text)
        turns = Turn("user", (picture, Text(question))), Turn("assistant", (Text(answer),))
        return [Example(name, turns, info | {"question": question, "answer": answer})]


def feature_key(image_id: str) -> str:
    """The key under which the original's feature files have a picture."""
    if "coco" in image_id or "flickr" in image_id:
        return image_id.rpartition("-")[2]
    return image_id.removeprefix("semart-")


def _question(text: str) -> str:
    """What stands between the picture and the request."""
    if text.count("<img>") != 1 or text.count("<img-d>") < 1:
        raise ValueError(
            f"field 'pre_input_ids': expected one <img> and then <img-d>, got "
            f"{text.count('<img>')} and {text.count('<img-d>')} of them in {text!r:.80}"
        )
    question = text.partition("<img>")[2].partition("<img-d>")[0].strip()
    if not question:
        raise ValueError(f"field 'pre_input_ids': no question after <img> in {text!r:.80}")
    return question


def _answer(text: str) -> str:
    """What follows the last response slot and "Answer:"."""
    slots, cue, answer = text.rpartition("<img-d>")[2].partition("Answer:")
    if slots.strip() or not cue or not answer.strip() or "<img-d>" not in text:
        raise ValueError(
            f"field 'input_ids': expected '<img-d> ... Answer: ANSWER', got {text[-80:]!r}"
        )
    return answer.strip()
