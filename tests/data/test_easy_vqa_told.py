"""What Visual-LLaMA's tiny run reads besides questions to pictures."""

import pytest

from mmjax.data.example import Example, Text
from mmjax.data.sources import make_source
from mmjax.evaluate.accuracy import is_right
from mmjax.evaluate.runner import Prediction


def test_a_told_question_can_be_answered_without_its_picture():
    source = make_source("easy-vqa-told", "dev")
    asked = {kind: source[source.kinds.index(kind)] for kind in set(source.kinds)}
    assert set(asked) == {
        f"told {kind}"
        for kind in ("colour", "shape", "plain yes", "plain no", "negated yes", "negated no")
    }
    for kind in ("told colour", "told shape"):
        example = asked[kind]
        assert not example.media and example.info["kind"] == kind
        caption, question = example.text("user").split("\n ")
        assert caption.startswith("Image: ") and question in example.info["question"]
        assert example.info["answer"] in caption.split() or f"{example.info['answer']}." in caption
    few = make_source("easy-vqa-told", "test", limit=50)
    assert len(few) == 50 and len(set(few.kinds)) > 3
    assert few[0] == make_source("easy-vqa-told", "test")[0]


def test_captions_are_right_by_colour_and_shape():
    source = make_source("easy-vqa-captions", "test")
    example = source[5]
    words = example.info["contains"]
    assert words in example.info["answer"] and len(example.media) == 1
    right = lambda answer: is_right(Prediction(example, answer))  # noqa: E731
    assert right(f"There is a SMALL {words.upper()}. And more.")
    assert not right(words.replace(" ", " not ")) and not right(f"un{words}") and not right("")


def test_instructions_say_what_they_are_of():
    mixed = make_source("easy-vqa-instructions", "dev")
    pictures = make_source("easy-vqa-instructions", "dev", told=0)
    assert set(mixed.kinds) - set(pictures.kinds) == {"told"} and "caption" in pictures.kinds
    assert len(mixed) - len(pictures) == len(make_source("easy-vqa-told", "dev"))
    for kind, count in (("told", 0), ("caption", 1), ("colour", 1)):
        assert len(mixed[mixed.kinds.index(kind)].media) == count
    last = mixed[len(mixed) - 1]
    assert isinstance(last, Example) and isinstance(last.turns[0].parts[0], Text)
    with pytest.raises(ValueError, match="splits train, dev and test"):
        make_source("easy-vqa-instructions", "tests")
