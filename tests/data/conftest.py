import dataclasses

import pytest
from PIL import Image

from mmjax.data.example import Example, Media, Text, Turn
from mmjax.data.tokenizer import build_word_tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    texts = [
        "Image: a red circle.",
        "what is this?\nAnswer: yes",
        "one two three four five six seven eight",
    ]
    return build_word_tokenizer(texts, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Twelve small picture files, each of its own flat colour."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(12):
        Image.new("RGB", (10, 12), (number * 20, 0, 255 - number)).save(folder / f"{number}.png")
    return [folder / f"{number}.png" for number in range(12)]


@dataclasses.dataclass
class ListSource:
    """Examples in memory."""

    examples: list[Example]
    name: str = "list"

    @property
    def kinds(self):
        return [example.info["kind"] for example in self.examples]

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        return self.examples[index]


WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight"]


def make_example(number: int, picture=None, question="what is this?") -> Example:
    parts = (Text(question),) if picture is None else (Media(str(picture), picture), Text(question))
    turns = Turn("user", parts), Turn("assistant", (Text(WORDS[number % len(WORDS)]),))
    return Example(f"example {number}", turns, {"kind": "even" if number % 2 == 0 else "odd"})


@pytest.fixture
def example():
    return make_example


@pytest.fixture
def listed():
    return ListSource


@pytest.fixture
def source(pictures):
    """Record i shows picture i and has the answer "one", "two", ..."""
    return ListSource([make_example(number, picture) for number, picture in enumerate(pictures)])
