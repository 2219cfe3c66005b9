"""What a text model is asked, so that it writes instructions about a picture that it reads of in
captions and boxes (LRV reference, section 1.5). The layout is the original's, the words are ours.

    HEADER
                                                                      Without coordinates
    bounding box:                                                     captions:
    a wooden table X: 3 Y: 40 Width: 200 Height: 90                   a wooden table
    ...                                                               ...

    Task: image captioning, ocr, ...                                  (positive alone)

    REQUEST

    Output format:
    Instruction:
    ...

Each text can be one of your own: a folder of files named as `TEXTS` has them, with ``.txt``.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmjax.data.regions import Region

KINDS = ("positive", "neg1", "neg2", "neg3")

_NEGATIVE = (
    " Vary the style of language, and mix questions with statements and requests. With each, give "
    "the reason why it misleads: what a careful answer, which does not accept the premise, would "
    "say."
)
TEXTS: Mapping[str, str] = {
    "header": "What follows describes a picture by its regions: each has a caption, the place of "
    "its upper left corner (X, Y), and its size (Width, Height), in pixels. Boxes that cover each "
    "other almost wholly may be one and the same object.",
    "header_without_coordinates": "What follows describes a picture by captions of its regions. "
    "Several of them may be of one and the same object.",
    "positive": "Write {count} different instructions that a person could give about this picture, "
    "over all of the tasks above and fewer than 3 for each, with answers that the description "
    "bears out. Vary the style of language, and mix questions with statements and requests. An "
    "answer has fewer than {words} words.",
    "neg1": "Write {count} misleading instructions: each takes for granted something that is not "
    "in this picture, such as an object, an activity, an attribute or an interaction." + _NEGATIVE,
    "neg2": "Write {count} misleading instructions: each is about an object that is in this "
    "picture, and gives it an attribute that it has not, such as a wrong colour, number, material, "
    "place or action." + _NEGATIVE,
    "neg3": "Write {count} misleading instructions: each repeats what the captions tell, with one "
    "of its facts altered, such as a name, an event, a number, a date or a key word." + _NEGATIVE,
    "format_positive": "Output format:\nInstruction:\nthe instruction\nAnswer:\nthe answer\nTask:\n"
    "the task",
    "format_negative": "Output format:\nInstruction:\nthe instruction\nReason:\nthe reason",
}
"""``{count}`` and ``{words}`` are replaced."""
_NO_NUMBERS = " Say where things are in words, not in numbers."


@dataclasses.dataclass(frozen=True)
class Prompts:
    """How requests are put together.

    Attributes:
      texts: as `TEXTS`.
      coordinates: whether boxes are given.
      positive_count: instructions of a positive request.
      negative_count: of a negative one.
      words: of an answer, at most.
    """

    texts: Mapping[str, str] = dataclasses.field(default_factory=lambda: TEXTS)
    coordinates: bool = True
    positive_count: int = 20
    negative_count: int = 6
    words: int = 30

    def compose(self, kind: str, regions: Sequence[Region], tasks: Sequence[str]) -> str:
        """The request for one of `KINDS` about a picture; ``tasks`` are for a positive one."""
        positive = kind == "positive"
        count = self.positive_count if positive else self.negative_count
        request = self.texts[kind].replace("{count}", str(count))
        request = request.replace("{words}", str(self.words))
        if self.coordinates:
            head, title = self.texts["header"], "bounding box:"
        else:
            head, title = self.texts["header_without_coordinates"], "captions:"
            request += _NO_NUMBERS
        lines = [_line(region, self.coordinates) for region in regions]
        parts = [head, "\n".join([title, *lines])]
        parts += [f"Task: {', '.join(tasks)}"] if positive else []
        parts += [request, self.texts["format_positive" if positive else "format_negative"]]
        return "\n\n".join(parts) + "\n"


def read_texts(folder: str | Path) -> dict[str, str]:
    """`TEXTS` with those that are in ``folder`` in their places.

    Raises:
      FileNotFoundError: no such folder.
      ValueError: it has a file that is no such text, or none at all.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder of prompts: {folder}")
    found = {path.stem: path for path in sorted(folder.glob("*.txt"))}
    if unknown := sorted(found.keys() - TEXTS.keys()) or (not found and ["(no .txt file)"]):
        raise ValueError(
            f"{folder}: no prompt is called {', '.join(unknown)}; there are "
            + ", ".join(f"{name}.txt" for name in TEXTS)
        )
    return {**TEXTS, **{name: path.read_text().strip() for name, path in found.items()}}


def _line(region: Region, coordinates: bool) -> str:
    if not coordinates:
        return region.caption
    x, y, width, height = (f"{value:g}" for value in region.box)
    return f"{region.caption} X: {x} Y: {y} Width: {width} Height: {height}"
