"""MiniGPT-4's and Cheetor's prompts: what is tokenized together, what is predicted, what guides."""

import dataclasses

import pytest

from mmjax.data.example import BadSample, Example, Media, Text, Turn
from mmjax.data.templates import Encoded, PicturePrompt, from_json, to_json

PICTURE = Media("p", None)
TEMPLATE = PicturePrompt(tokens_per_picture=2)


class Letters:
    """One token a character; ids are code points, so that a text can be read back."""

    bos_id, eos_id, pad_id = 1, 2, 3

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]


def example(*parts, answer: str | None = "a lens", earlier=(), system=None, name="x") -> Example:
    turn = lambda role, said: Turn(  # noqa: E731
        role, tuple(part if isinstance(part, Media) else Text(part) for part in said)
    )
    turns = [turn("system", [system])] if system else []
    for asked, answered in earlier:
        turns += [turn("user", asked), turn("assistant", [answered])]
    turns.append(turn("user", parts))
    turns += [turn("assistant", [answer])] if answer is not None else []
    return Example(name, tuple(turns))


def told(encoded: Encoded, *, of_target: bool = False) -> str:
    """The text, ``@`` for each place of a picture, ``^`` behind the token that guides."""
    said = ""
    for segment in encoded.target:
        if segment.is_target != of_target:
            continue
        if segment.slot is not None and segment.slot[0] == "media":
            said += "@"
            continue
        names = {1: "<s>", 2: "</s>"}
        said += "".join(names.get(i, chr(i)) for i in segment.ids)
        said += "^" if segment.slot is not None else ""
    return said


def test_the_training_prompt():
    encoded = TEMPLATE.encode(example(PICTURE, "what is it?"), Letters())
    assert told(encoded) == "<s>###Human: <Img>@@</Img> what is it? ###Assistant: "
    assert told(encoded, of_target=True) == "a lens###"
    assert encoded.media == (PICTURE,)


def test_every_string_between_pictures_is_one_piece():
    pieces = TEMPLATE.pieces(example("Look ", PICTURE, " then ", PICTURE, " compare"))
    assert pieces == [
        "###Human: Look  <Img>",
        PICTURE,
        "</Img>  then  <Img>",
        PICTURE,
        "</Img>  compare ###Assistant: ",
    ]


def test_texts_that_follow_each_other_are_one_and_blanks_between_pictures_vanish():
    pieces = TEMPLATE.pieces(example(PICTURE, " ", PICTURE, "a", "b"))
    assert pieces[2::2] == ["</Img> <Img>", "</Img> ab ###Assistant: "]


def test_rows_of_pictures_count_through():
    encoded = TEMPLATE.encode(example(PICTURE, PICTURE, "both?"), Letters())
    slots = [segment.slot for segment in encoded.target if segment.slot is not None]
    assert slots == [("media", row) for row in range(4)]


def test_the_stage_without_a_prompt():
    template = PicturePrompt(
        2, prompt="{pictures}", before_picture="", after_picture="", end="\n", clean=True
    )
    encoded = template.encode(example(PICTURE, answer='A "Red" car: fast!! #1'), Letters())
    assert told(encoded) == "<s>@@"
    assert told(encoded, of_target=True) == "a red car fast 1\n"


def test_earlier_exchanges_and_a_system_text():
    asked = example(
        *(PICTURE, " sure? "), earlier=[((PICTURE, " what? "), "A lens.")], system="Be brief."
    )
    encoded = TEMPLATE.encode(asked, Letters(), generating=True)
    assert told(encoded) == (
        "<s>Be brief.###Human: <Img>@@</Img>  what?  ###Assistant: A lens. ###Human:  "
        "<Img>@@</Img>  sure?  ###Assistant: "
    )
    assert told(encoded, of_target=True) == ""


def test_a_long_answer_loses_its_end():
    template = dataclasses.replace(TEMPLATE, max_answer=4)
    encoded = template.encode(example(PICTURE, "?"), Letters())
    assert told(encoded, of_target=True) == "a le"


def test_eos_as_the_end():
    template = dataclasses.replace(TEMPLATE, end=None)
    encoded = template.encode(example(PICTURE, "?"), Letters())
    assert told(encoded, of_target=True) == "a lens</s>"


def test_which_token_guides():
    def guided(guidance: str) -> str:
        template = dataclasses.replace(TEMPLATE, guidance=guidance)
        return told(template.encode(example(PICTURE, "what?"), Letters()))

    assert guided("none") == "<s>###Human: <Img>@@</Img> what? ###Assistant: "
    assert guided("last") == "<s>###Human: <Img>@@</Img> what? ###Assistant: ^"
    assert guided("first") == "<s>^###Human: <Img>@@</Img> what? ###Assistant: "


def test_a_prompt_that_ends_with_a_picture_cannot_guide():
    template = PicturePrompt(2, prompt="{pictures}", after_picture="", guidance="last")
    with pytest.raises(BadSample, match="no token has read it all"):
        template.encode(example(PICTURE), Letters())


def test_requests_for_pictures_without_a_question():
    template = dataclasses.replace(TEMPLATE, requests=("Describe.", "Tell."))
    said = {told(template.encode(example(PICTURE, name=str(i)), Letters())) for i in range(20)}
    assert said == {
        f"<s>###Human: <Img>@@</Img> {request} ###Assistant: " for request in template.requests
    }
    asked = template.encode(example(PICTURE, "what?"), Letters())
    assert "what?" in told(asked)


def test_the_fork_of_lrv():
    template = dataclasses.replace(TEMPLATE, cut="###", masks_eos=True, one_prompt=True)
    rows = [
        template.encode(example(PICTURE, "what? ###Assistant: me", answer="a\2b"), Letters()),
        template.encode(example(PICTURE, "where?", answer="there"), Letters()),
    ]
    assert told(rows[0]) == "<s>###Human: <Img>@@</Img> what?  ###Assistant: "
    weights = [segment.weight for segment in rows[0].target if segment.is_target]
    assert weights == [1.0, 0.0, 1.0, 1.0, 1.0, 1.0]  # a, eos, b, ###
    first, second = template.together(rows)
    assert told(first) == told(second) == told(rows[0])
    assert told(second, of_target=True) == "there###"
    assert TEMPLATE.together(rows) == rows


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (example("what?"), "no pictures"),
        (example(PICTURE, " "), "no user text"),
        (example(PICTURE, "what?", answer=None), "no assistant text"),
        (example(PICTURE, "what?", answer=" "), "no assistant text"),
        (Example("x", (Turn("assistant", (Text("a"),)),)), "the user first"),
        (example(PICTURE, "?", earlier=[(("a",), "")]), "earlier answer"),
    ],
)
def test_what_does_not_fit(wrong, says):
    with pytest.raises(BadSample, match=says):
        TEMPLATE.encode(wrong, Letters())


def test_settings_that_make_no_sense_are_named_together():
    with pytest.raises(ValueError) as error:
        PicturePrompt(0, prompt="{message} {pictures}", earlier="", end="", guidance="middle")
    for name in ("tokens_per_picture", "'prompt'", "'earlier'", "'end'", "guidance"):
        assert name in str(error.value)


def test_it_travels_in_checkpoints():
    template = dataclasses.replace(TEMPLATE, requests=("a", "b"), guidance="last", end=None)
    assert from_json(to_json(template)) == template
