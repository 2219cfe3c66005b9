"""DEMON, instructions that several pictures demonstrate (arXiv 2308.04152): ``demon:PATH`` of a
``core.json``, pictures in ``images`` beside it.

    {"metadata": {"dataset": "WebQA", "question_type": "multi-choice" | "open-ended",
                  "task_instruction": ["Answer the question. ", ...], ...},
     "data": [{"sample_id": 0, "task_instruction_id": 0, "response": "yes",
               "task_instance": {"context": "{image#1}{table#2}Is it?",
                                 "images_path": ["0.jpg", "1.png"],
                                 "choice_list": ["yes", "no"]}}, ...]}

What is asked is the instruction, the context and, where there is a ``choice_list``, "Choice
list:['yes', 'no']. Your answer is:" (DEMON reference, sections 3 and 4). ``{image#k}`` and
``{table#k}`` are the k-th picture, in any order and as often as they are named; the original's own
reader gives the j-th place the j-th picture, so records in which that is another one are counted.

``info`` has ``kind`` (the data set), ``sample_id``, ``question_type``, ``question``, ``answer``
and, of multi-choice questions, ``choices``, a JSON list.

Options: ``image_root``.
"""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmjax.data.example import Example, Media, Text, Turn
from mmjax.data.sources import records

_PLACE = re.compile(r"\{(?:image|table)#(\d+)\}")
_TYPES = {"open-ended": "open-ended", "multi-choice": "multi-choice", "": "open-ended"}


class Demon(records.Records):
    """The questions of one data set."""

    def __init__(self, path: str | Path, image_root: str | Path | None = None):
        """Reads and checks the whole file; pictures are not opened.

        Raises:
          FileNotFoundError: no such file.
          ValueError: not such a file, or bad records in it: lists them.
        """
        path = records.existing(path)
        root = Path(image_root) if image_root else path.parent / "images"
        try:
            metadata, data = _opened(path)
            instructions, question_type = _instructions(metadata), _question_type(metadata)
            dataset = records.text_of(metadata, "dataset")
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

        reordered = 0

        def parse(where: str, record: Any) -> list[Example]:
            nonlocal reordered
            example = example_of(
                record, instructions, dataset=dataset, question_type=question_type, root=root
            )
            paths = records.paths_of(record["task_instance"].get("images_path"), "images_path")
            reordered += [str(root / path) for path in paths] != [m.key for m in example.media]
            return [example]

        items = ((f"record {number}", record) for number, record in enumerate(data))
        examples = records.parse_all(path, items, parse)
        notices = []
        if reordered:
            notices.append(
                f"{reordered:,} of {len(examples):,} records name their pictures in another order, "
                "more than once or not at all; here each place gets the picture that it names"
            )
        if metadata.get("num_sample") not in (None, len(examples)):
            told = metadata["num_sample"]
            notices.append(f"it has {len(examples):,} records, its metadata says {told}")
        super().__init__(str(path), examples, notices)


def example_of(
    record: Any, instructions: Sequence[str], *, dataset: str, question_type: str, root: Path
) -> Example:
    """One record.

    Raises:
      ValueError: names the field.
    """
    record = records.as_object(record)
    sample_id = records.id_of({"id": record.get("sample_id")}, "")
    if not sample_id:
        raise ValueError("field 'sample_id' is missing")
    number = record.get("task_instruction_id")
    if not isinstance(number, int) or not 0 <= number < len(instructions):
        raise ValueError(
            f"field 'task_instruction_id': there are {len(instructions)} instructions, from 0; got "
            f"{number!r:.40}"
        )
    response = record.get("response")
    if isinstance(response, bool) or not isinstance(response, str | int | float):
        raise ValueError(f"field 'response': expected text or a number, got {response!r:.60}")
    answer = records.checked("field 'response'", str(response))
    instance = records.as_object(record.get("task_instance"))
    context = records.text_of(instance, "context")
    paths = records.paths_of(instance.get("images_path"), "field 'images_path'")
    choices = _choices(instance)
    asked = instructions[number] + context
    if choices:
        listed = "', '".join(choices)
        asked += f"Choice list:['{listed}']. Your answer is:"
    elif question_type == "multi-choice":
        choices = _choices_in(context)
    parts = _parts(asked, [Media(str(root / path), root / path) for path in paths])
    info = {"kind": dataset, "sample_id": sample_id, "question_type": question_type}
    info |= {"question": "".join(p.text for p in parts if isinstance(p, Text)), "answer": answer}
    if question_type == "multi-choice":
        info["choices"] = json.dumps(choices, ensure_ascii=False)
    turns = Turn("user", tuple(parts)), Turn("assistant", (Text(answer),))
    return Example(f"{dataset}/{sample_id}", turns, info)


def _parts(asked: str, media: list[Media]) -> list[Text | Media]:
    pieces = _PLACE.split(asked)  # text, number, text, number, ..., text
    named = [int(number) for number in pieces[1::2]]
    if unknown := sorted({number for number in named if not 1 <= number <= len(media)}):
        raise ValueError(
            f"field 'context' names pictures {unknown}; there are {len(media)}, counted from 1"
        )
    parts: list[Text | Media] = []
    for text, number in zip(pieces[::2], [*named, None], strict=True):
        parts += [Text(text)] if text else []
        parts += [] if number is None else [media[number - 1]]
    return parts


def _choices(instance: Mapping[str, Any]) -> list[str]:
    choices = instance.get("choice_list")
    if choices is None:
        return []
    if not isinstance(choices, list):
        raise ValueError(f"field 'choice_list': expected a list, got {choices!r:.60}")
    return [records.checked("field 'choice_list'", choice) for choice in choices]


def _choices_in(context: str) -> list[str]:
    """Those written at the end of the context, where a record has no list of them."""
    found = re.search(r"\[([^\[\]]+)\][^\[\]]*$", context)
    if found is None:
        raise ValueError("a multi-choice question without choices: no 'choice_list', and no list")
    try:
        choices = ast.literal_eval(found[0][: found[0].index("]") + 1])
    except (ValueError, SyntaxError):  # quotes inside: not as Python writes them
        choices = [choice.strip().strip("'\"") for choice in re.split(r"['\"], ?['\"]", found[1])]
    return [str(choice) for choice in choices]


def _opened(path: Path) -> tuple[dict[str, Any], list[Any]]:
    whole = records.as_object(records.parse_json(path.read_text(encoding="utf-8-sig")))
    if not isinstance(whole.get("data"), list):
        raise ValueError("field 'data': expected a list of records")
    return records.as_object(whole.get("metadata")), whole["data"]


def _instructions(metadata: Mapping[str, Any]) -> list[str]:
    given = metadata.get("task_instruction")
    if not isinstance(given, list):
        raise ValueError(f"field 'task_instruction': expected a list, got {given!r:.60}")
    return [records.checked("field 'task_instruction'", text) for text in given]


def _question_type(metadata: Mapping[str, Any]) -> str:
    """An empty one, as ALFRED's card has it, is open-ended."""
    given = metadata.get("question_type") or ""
    if given not in _TYPES:
        raise ValueError(
            f"field 'question_type': expected open-ended or multi-choice, got {given!r:.60}"
        )
    return _TYPES[given]
