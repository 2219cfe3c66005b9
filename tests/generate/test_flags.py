"""Flags of decoding, and questions from the command line."""

import dataclasses

import pytest
from absl import flags

from mmjax.data.example import Example, Media, Text, Turn
from mmjax.generate.config import GenerationConfig
from mmjax.generate.flags import decoding, define_decoding
from mmjax.generate.question import from_command_line, last_question, picture, row_seed

TOKENS = ("eos_tokens", "stop_sequences", "pad_token", "bos_token")  # the model's own
_ENUMS = {"early_stopping", "rules"}


def parsed(*arguments: str) -> flags.FlagValues:
    values = flags.FlagValues()
    define_decoding(values)
    values(["script", *arguments])
    return values


def test_every_setting_has_its_flag_and_default():
    names = {field.name for field in dataclasses.fields(GenerationConfig)} - {*TOKENS}
    values = parsed()
    assert names <= set(values)
    assert all(values[name].default == getattr(GenerationConfig(), name) for name in names - _ENUMS)
    assert decoding(values) == GenerationConfig()


def test_what_is_not_given_stays_as_it_was():
    base = GenerationConfig(max_new_tokens=2, num_beams=3)
    assert decoding(parsed(), base=base) == base
    given = decoding(parsed("--num_beams=1"), base=base)
    assert given == GenerationConfig(max_new_tokens=2)


def test_settings_are_those_given():
    given = dict(
        max_new_tokens=9, min_new_tokens=2, do_sample=True, temperature=0.5, top_k=7, top_p=0.9,
        repetition_penalty=1.2, no_repeat_ngram_size=3, num_beams=4, length_penalty=-1.0,
        early_stopping="never", num_return_sequences=2, rules="transformers-4.28",
    )  # fmt: skip
    values = parsed(*(f"--{name}={value}" for name, value in given.items()))
    assert decoding(values) == GenerationConfig(**given)
    for spelled, value in {"true": True, "False": False, "never": "never"}.items():
        config = decoding(parsed("--num_beams=2", f"--early_stopping={spelled}"))
        assert config.early_stopping is value or config.early_stopping == value == "never"


def test_wrong_settings_are_named_together():
    with pytest.raises(ValueError, match="num_beams(?s:.*)top_p must be above 0 and at most 1"):
        decoding(parsed("--top_p=2", "--num_beams=0", "--do_sample"))
    with pytest.raises(ValueError, match=r"temperature = 0.5 has no effect without do_sample"):
        decoding(parsed("--temperature=0.5"))
    for argument in ("--max_new_tokens=many", "--early_stopping=maybe"):
        with pytest.raises(flags.IllegalFlagValueError, match=argument[2:].partition("=")[0]):
            parsed(argument)


def test_parts_keep_their_order():
    example = from_command_line(["text=a=b", "image=x/1.png", "text= and ", "image=2.png"])
    first, second = picture("x/1.png"), picture("2.png")
    assert example.turns == (Turn("user", (Text("a=b"), first, Text(" and "), second)),)
    short = from_command_line([], image="x/1.png", question="what?")
    assert short.turns == (Turn("user", (first, Text("what?"))),)
    assert from_command_line([], image="x/1.png").turns == (Turn("user", (first,)),)
    assert from_command_line([], instead=["--chat"]) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(parts=[]), "nothing is asked: give --part"),
        (dict(parts=["text=x"], question="x"), "--part and --image or --question say the same"),
        (dict(parts=["what is"]), "--part 'what is': expected text=..., image=FILE or video=FILE"),
        (dict(parts=["sound=a.mp3"]), "--part 'sound=a.mp3': expected text=..., image=FILE or"),
        (dict(parts=["image="]), "an empty image is asked about"),
        (dict(parts=[], question=""), "an empty text is asked about"),
        (dict(parts=[], instead=["--chat", "--jsonl"]), "--chat and --jsonl exclude each other"),
        (dict(parts=[], image="a", instead=["--chat"]), "--chat and a question (--part, --image"),
    ],
)
def test_questions_that_are_none(arguments, message):
    with pytest.raises(ValueError) as caught:
        from_command_line(**arguments)
    assert message in str(caught.value)


def test_the_last_question_of_a_dialogue():
    a, b, system = Media("a", b"a"), Media("b", b"b"), Turn("system", (Text("be brief"),))
    asked = [Turn("user", (a, Text("one?"))), Turn("user", (Text("two?"), b))]
    said = [Turn("assistant", (Text("one"),)), Turn("assistant", (Text("two"),))]
    whole = Example("x", (system, asked[0], said[0], asked[1], said[1]))
    shown = last_question(whole, takes_history=True)
    assert shown == dataclasses.replace(whole, turns=whole.turns[:-1])
    assert last_question(shown, takes_history=True) == shown
    alone = last_question(whole, takes_history=False)
    assert alone.turns == (system, Turn("user", (a, Text("two?"), b)))
    single = Example("x", (asked[0], said[0]))
    assert last_question(single, takes_history=False).turns == (asked[0],)


def test_seeds_of_rows():
    seeds = {row_seed(seed, row) for seed in range(20) for row in range(50)}
    assert len(seeds) == 1000 and all(0 <= seed < 2**31 for seed in seeds)
    assert row_seed(0, 1) != row_seed(1, 0)
    assert (row_seed(0, 0), row_seed(3, 4)) == (1484405855, 1373224434), (
        "answers drawn before are drawn again"
    )
