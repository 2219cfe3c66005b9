"""mPLUG-Owl's prompt: lines of pictures and texts, cut as the original cuts them."""

import dataclasses

import numpy as np
import pytest
from test_picture_prompt import PICTURE, Letters, example, told

from mmjax.data.example import BadSample, Media
from mmjax.data.owl_prompt import Answer, OwlPrompt
from mmjax.data.sequence import Lengths, assemble
from mmjax.data.templates import from_json, to_json

TEMPLATE = OwlPrompt(tokens_per_picture=2, system="Be brief.")
Q = "what is it?"


def test_a_question_to_a_picture():
    encoded = TEMPLATE.encode(example(PICTURE, Q), Letters())
    assert told(encoded) == "<s>Be brief.\nHuman: @@\nHuman: what is it?\nAI: "
    assert told(encoded, of_target=True) == "a lens</s>"
    assert encoded.media == (PICTURE,)
    bare = dataclasses.replace(TEMPLATE, system="")
    assert told(bare.encode(example(PICTURE, Q), Letters())).startswith("<s>Human: @@\nHuman: what")
    own = bare.encode(example(PICTURE, Q, system="Look."), Letters())
    assert told(own).startswith("<s>Look.\nHuman: @@")
    assert bare.encode(example(Q), Letters()).media == ()


def test_training_tokenizes_as_upstream_cuts():
    """Split at pictures, at "AI: " and at "\\nHuman: ", the delimiters kept; answers alone."""
    earlier = [(["one", PICTURE], "yes")]
    pieces = TEMPLATE.pieces(example(PICTURE, Q, earlier=earlier))
    assert pieces == [
        "Be brief.", "\nHuman: ", "one", "\nHuman: ", PICTURE, "\n", "AI: ", Answer("yes"),
        "\nHuman: ", PICTURE, "\nHuman: ", Q + "\n", "AI: ", Answer("a lens"),
    ]  # fmt: skip
    encoded = TEMPLATE.encode(example(PICTURE, Q, earlier=earlier), Letters())
    assert told(encoded, of_target=True) == "yes</s>a lens</s>"


def test_a_chat_tokenizes_as_upstream_does():
    """Split at pictures alone, earlier answers a part of the text."""
    asked = example(PICTURE, Q, earlier=[([PICTURE, "one"], "yes")], answer=None)
    first = "\nHuman: one\nAI: yes\nHuman: "
    assert TEMPLATE.pieces(asked, generating=True) == [
        "Be brief.\nHuman: ", PICTURE, first, PICTURE, f"\nHuman: {Q}\nAI: ",
    ]  # fmt: skip
    always = dataclasses.replace(TEMPLATE, cut_turns="always")
    trained = always.pieces(
        dataclasses.replace(asked, turns=(*asked.turns, *example("").turns[1:]))
    )
    assert always.pieces(asked, generating=True) == trained[:-1]
    never = dataclasses.replace(TEMPLATE, cut_turns="never")
    assert never.pieces(example(PICTURE, Q)) == [
        "Be brief.\nHuman: ", PICTURE, f"\nHuman: {Q}\nAI: ", Answer("a lens"),
    ]  # fmt: skip
    short = dataclasses.replace(TEMPLATE, trailing_space=False)
    assert short.pieces(asked, generating=True)[-1].endswith("\nAI:")
    assert short.pieces(example(Q)) == TEMPLATE.pieces(example(Q)), "in training it stays"


def test_pictures_that_touch_are_two():
    words = dict(before_picture="", newline="", before_text="", before_answer="")
    bare = OwlPrompt(tokens_per_picture=2, **words)
    encoded = bare.encode(example(PICTURE, Media("q", None), Q), Letters())
    sequence = assemble([encoded], Lengths(target=40), 3)[2]
    assert sequence.slots["media"][0, :6].tolist() == [-1, 0, 1, 2, 3, -1]
    assert np.flatnonzero(sequence.weights[0])[0] == 5 + len(Q) - 1


def test_other_words_and_captions():
    """As the tiny language model knows pictures."""
    words = dict(before_picture="Image: ", after_picture=".", before_text="")
    caption = OwlPrompt(tokens_per_picture=2, before_answer="", **words)
    encoded = caption.encode(example(PICTURE), Letters())
    assert told(encoded) == "<s>Image: @@."
    question = dataclasses.replace(caption, before_answer="Answer:")
    assert told(question.encode(example(PICTURE, Q), Letters())) == (
        "<s>Image: @@.\nwhat is it?\nAnswer:"
    )
    asking = dataclasses.replace(TEMPLATE, requests=("Describe it.",))
    assert "@@\nHuman: Describe it.\nAI: " in told(asking.encode(example(PICTURE), Letters()))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (example(PICTURE, Q, answer=None), "no assistant text"),
        (example(" "), "neither a picture nor a user text"),
        (example(Media("clip", None, is_video=True), Q), "takes no videos: clip"),
    ],
)
def test_what_does_not_fit(wrong, says):
    with pytest.raises(BadSample, match=says):
        TEMPLATE.encode(wrong, Letters())


def test_settings_are_checked_and_travel():
    assert from_json(to_json(TEMPLATE)) == TEMPLATE
    with pytest.raises(ValueError, match="tokens_per_picture is 0") as error:
        OwlPrompt(tokens_per_picture=0, cut_turns="yes")
    assert "cut_turns must be" in str(error.value)
