"""Visual-LLaMA's prompt: the picture in front, marks between texts, what upstream predicts."""

import dataclasses

import numpy as np
import pytest
from test_picture_prompt import PICTURE, Letters, example, told

from mmjax.data.example import BadSample, Media
from mmjax.data.sequence import Lengths, assemble
from mmjax.data.templates import VisualLlamaPrompt, from_json, to_json

BOI, EOI, QUEST, ANS = "{}[]"
STAGE_1 = VisualLlamaPrompt(tokens_per_picture=3, after_picture=ord(EOI))
STAGE_2 = dataclasses.replace(STAGE_1, before_question=ord(QUEST), before_answer=ord(ANS))
Q = " what is it? "


def both(template, *parts, generating=False, **changes) -> tuple[str, str]:
    """(what is read only, what is predicted)."""
    encoded = template.encode(example(*parts, **changes), Letters(), generating=generating)
    return told(encoded), told(encoded, of_target=True)


def test_a_caption_and_the_beginning_of_one():
    assert both(STAGE_1, PICTURE) == ("<s>@@@}", "a lens</s>")
    assert both(STAGE_1, PICTURE, " a pho", answer=None, generating=True) == ("<s>@@@}a pho", "")
    assert both(STAGE_1, PICTURE, answer=None, generating=True) == ("<s>@@@}", "")
    shown = dataclasses.replace(STAGE_1, before_picture=ord(BOI), add_eos=False)
    assert both(shown, PICTURE) == ("<s>{@@@}", "a lens")


def test_questions_with_a_picture_and_without():
    assert both(STAGE_2, PICTURE, Q) == ("<s>@@@}[what is it?]", "a lens</s>")
    assert both(STAGE_2, Q) == ("<s>[what is it?]", "a lens</s>")
    assert both(STAGE_2, Q, generating=True) == ("<s>[what is it?]", "")
    earlier = [((PICTURE, "one?"), "yes")]
    read, said = both(STAGE_2, Q, earlier=earlier)
    assert (read, said) == ("<s>@@@}[one?][what is it?]", "yes</s>a lens</s>")
    words = dataclasses.replace(STAGE_2, before_question="Q: ", before_answer="A: ")
    assert both(words, PICTURE, Q)[0] == "<s>@@@}Q: what is it?A: "


def test_what_is_predicted():
    text = dataclasses.replace(STAGE_2, loss="text")
    assert both(text, PICTURE, Q) == ("<s>@@@", "}[what is it?]a lens</s>")
    upstream = dataclasses.replace(text, loss="upstream", add_eos=False)
    encoded = upstream.encode(example(PICTURE, "\0what"), Letters())
    lengths = Lengths(target=24)
    target = assemble([encoded], lengths, 3)[2]
    ids = [1, *[3] * 2, 1, *map(ord, "}[\0what]a lens")]
    assert target.tokens[0, : len(ids)].tolist() == ids
    # <s> after the last place but one, [eoi] after the last; nothing before, nor where it is id 0.
    assert target.weights[0].tolist() == [0, 0, 1, 1, 1, 0, *[1] * 11, *[0] * 7]
    assert target.targets[0, 2:5].tolist() == [1, ord(EOI), ord(QUEST)]
    assert target.slots["media"][0, :5].tolist() == [-1, 0, 1, 2, -1]
    fixed = assemble([dataclasses.replace(text, add_eos=False).encode(
        example(PICTURE, "\0what"), Letters())], lengths, 3)[2]  # fmt: skip
    differing = np.flatnonzero(fixed.weights[0] != target.weights[0]).tolist()
    assert differing == [2, 5], "upstream's <s> and its id 0 are the whole difference"
    generating = upstream.encode(example(PICTURE, "what"), Letters(), generating=True)
    assert not any(segment.is_target for segment in generating.target)


def test_it_travels():
    for template in (STAGE_1, dataclasses.replace(STAGE_2, before_answer="Answer:")):
        assert from_json(to_json(template)) == template


def test_samples_that_do_not_fit():
    film = Media("f", None, is_video=True)
    for parts, changes, reason in (
        ((PICTURE, PICTURE), {}, "one picture or none"),
        ((film,), {}, "one picture or none"),
        ((PICTURE,), dict(earlier=[(["one"], "yes")]), "comes after the first question"),
        ((PICTURE,), dict(answer=None), "it has no assistant text"),
        ((PICTURE,), dict(system="Look."), "it has a system text"),
    ):
        with pytest.raises(BadSample, match=reason):
            STAGE_2.encode(example(*parts, **changes), Letters())
    with pytest.raises(BadSample, match="neither a picture nor a user text"):
        STAGE_2.encode(example(" ", answer=None), Letters(), generating=True)


def test_settings_that_are_none():
    with pytest.raises(ValueError, match="tokens_per_picture is 1") as error:
        VisualLlamaPrompt(1, after_picture=None, loss="all")
    assert "loss must be 'answers', 'text' or 'upstream', got 'all'" in str(error.value)
