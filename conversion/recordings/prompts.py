"""Recordings of texts: what Cheetor's originals make of a message with pictures and of a record of
its benchmark (Cheetor reference, section 7; DEMON reference, section 4)."""

from collections.abc import Mapping
from pathlib import Path

from mmjax.data.example import Example, Media, Text, Turn
from mmjax.data.sources.demon import example_of
from mmjax.data.templates import PicturePrompt

MARKER = "<HereForImage>"  # in a prompt as it is read
PLACE = "<ImageHere>"  # in what a user writes
WRAPPED = f"<Img>{MARKER}</Img>"
PROMPTS = {
    "vicuna": dict(prompt="###Human: {message}###Assistant:"),
    "llama2": dict(prompt="[INST] <<SYS>>\n\n<</SYS>>\n\n{message} [/INST]", end=None),
}
Compared = list[tuple[str, str, str]]


def is_cheetor(values: Mapping) -> bool:
    return {"answer", "batch", "i4"} <= values.keys()


def cheetor(values: Mapping) -> Compared:
    """Contexts in both spellings of a picture, and records."""
    found: Compared = []
    for number, case in enumerate(values["answer"]):
        for model in (model for model in PROMPTS if model in case):
            ours = _rendered(case["context"], WRAPPED, model)
            found.append((f"answer {number}, {model}", ours, case[model]))
    for number, case in enumerate(values["batch"]):
        for model in (model for model in PROMPTS if model in case):
            for row, (context, recorded) in enumerate(
                zip(case["contexts"], case[model], strict=True)
            ):
                name = f"batch {number}, row {row}, {model}"
                found.append((name, _rendered(context, PLACE, model), recorded))
    for number, case in enumerate(values["i4"]):
        example = example_of(
            case["record"],
            case["task_instruction"],
            dataset="recorded",
            question_type="open-ended",
            root=Path("images"),
        )
        parts = example.turns[0].parts
        context = "".join(part.text if isinstance(part, Text) else PLACE for part in parts)
        found.append((f"i4 {number}, context", context, case["context"]))
        found.append((f"i4 {number}, response", example.text("assistant"), case["response"]))
    return found


def _rendered(context: str, place: str, model: str) -> str:
    """The prompt around a message in which ``place`` stands for the next picture."""
    first, *others = context.split(place)
    parts: list[Text | Media] = [Text(first)]
    for number, text in enumerate(others):
        parts += [Media(str(number), None), Text(text)]
    template = PicturePrompt(tokens_per_picture=1, **PROMPTS[model])
    pieces = template.pieces(Example("recorded", (Turn("user", tuple(parts)),)))
    return "".join(piece if isinstance(piece, str) else MARKER for piece in pieces)
