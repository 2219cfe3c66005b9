import json

import numpy as np
import pytest

from mmjax.data.example import BadSample, Example, Media, Text, Turn
from mmjax.data.sequence import Lengths, assemble, join
from mmjax.data.templates import (
    CaptionPair,
    LMEyeCaption,
    LMEyeQuestion,
    PlainText,
    Segment,
    from_json,
    to_json,
)

IMG, SLOT = 100, 101


class NumberTokenizer:
    """Each word is its own id."""

    bos_id, eos_id, pad_id = 1, 2, 0

    def encode(self, text):
        return [int(word) for word in text.split()]


def asked(question, answer=None):
    turns = [Turn("user", (Media("p", b""), Text(question)))]
    if answer is not None:
        turns.append(Turn("assistant", (Text(answer),)))
    return Example("the example", tuple(turns))


# Pass-1 ids, pass-2 ids and labels as upstream code made them (LMEye reference, IPN for LLaMA).
GOLDEN = [
    {
        "before": "60 29", "question": "41 45 13 17 8 38", "answer": "35 81 60 26 81",
        "first": [60, 29, 88, 41, 45, 13, 17, 8, 38, 89, 2],
        "second": [60, 29, 88, 41, 45, 13, 17, 8, 38, *[89] * 5, 5, 6, 35, 81, 60, 26, 81, 2],
        "labels": [-100] * 16 + [35, 81, 60, 26, 81, 2],
    },
    {
        "before": "23 66", "question": "11 65 51", "answer": "45 41 54 67 17 74 45 29",
        "first": [23, 66, 88, 11, 65, 51, 89, 2],
        "second": [23, 66, 88, 11, 65, 51, *[89] * 5, 5, 6, 45, 41, 54, 67, 17, 74, 45, 29, 2],
        "labels": [-100] * 13 + [45, 41, 54, 67, 17, 74, 45, 29, 2],
    },
]  # fmt: skip


@pytest.mark.parametrize("case", GOLDEN)
@pytest.mark.parametrize("interaction", ["request", "blind"])
def test_lmeye_question_gives_upstream_tokens_and_labels(case, interaction):
    template = LMEyeQuestion(
        88,
        89,
        add_bos=False,
        before=case["before"],
        after=" {text} ",
        cue="5 6",
        interaction=interaction,
    )
    encoded = template.encode(asked(case["question"], case["answer"]), NumberTokenizer())
    prefix, request, target = assemble([encoded], Lengths(prefix=12, request=2, target=24), 0)

    second = join(prefix, target)
    real = second.segments[0] == 1
    assert second.tokens[0, real].tolist() == case["second"]
    np.testing.assert_array_equal(second.positions[0, real], np.arange(real.sum()))
    labels = np.array(case["labels"])
    predicted = second.weights[0, real] > 0
    np.testing.assert_array_equal(
        predicted[:-1], labels[1:] >= 0
    )  # upstream shifts inside the loss
    assert not predicted[-1]
    np.testing.assert_array_equal(second.targets[0, real][predicted], labels[labels >= 0])
    assert second.slots["response"][0, second.slots["response"][0] >= 0].tolist() == [0, 1, 2, 3, 4]
    assert (second.tokens[second.slots["response"] >= 0] == 89).all()
    assert (second.tokens[second.slots["media"] >= 0] == 88).all()

    first = join(prefix, request)
    real = first.segments[0] == 1
    expected = case["first"][:-1]  # a causal model's request does not see the eos after it
    if interaction == "blind":
        expected = [*case["first"][:3], 89]
    assert first.tokens[0, real].tolist() == expected
    np.testing.assert_array_equal(first.positions[0, real], np.arange(real.sum()))


def ids(segments):
    return [token for segment in segments for token in segment.ids]


def test_lmeye_question_interactions():
    tokenizer, example = NumberTokenizer(), asked("30 31", "40")

    def make(**fields):
        texts = {"before": "10", "after": "20 {text} 21", "cue": "25"}
        return LMEyeQuestion(IMG, SLOT, num_responses=2, **texts, **fields).encode(
            example, tokenizer
        )

    request = make()
    assert ids(request.prefix) == [1, 10, IMG, 20, 30, 31, 21]
    assert ids(request.target) == [SLOT, SLOT, 25, 40, 2]
    assert request.request == [Segment((SLOT,), slot=("request", 0))]
    blind = make(interaction="blind")
    assert ids(blind.prefix) == [1, 10, IMG]
    assert ids(blind.target) == [20, 30, 31, 21, SLOT, SLOT, 25, 40, 2]
    assert blind.request == request.request
    none = make(interaction="none", add_bos=False)
    assert ids(none.prefix) == [10, IMG, 20, 30, 31, 21]
    assert ids(none.target) == [25, 40, 2] and none.request is None
    for encoded in (request, blind, none):
        assert ids(segment for segment in encoded.target if segment.is_target) == [40, 2]
        assert encoded.media == example.media
        assert Segment((IMG,), slot=("media", 0)) in encoded.prefix
        assert not any(segment.is_target for segment in encoded.prefix)


def test_reference_wording(tokenizer):
    encoded = LMEyeQuestion(IMG, SLOT).encode(asked("what is this?", "yes"), tokenizer)
    words = [
        tokenizer.token(token) if token < IMG else f"#{token}" for token in ids(encoded.prefix)
    ]
    assert words == ["<s>", "image", ":", "#100", "what", "is", "this", "?"]
    words = [
        tokenizer.token(token) if token < IMG else f"#{token}" for token in ids(encoded.target)
    ]
    assert words == ["#101"] * 5 + ["answer", ":", "yes", "</s>"]


def test_generating_stops_before_the_answer():
    tokenizer = NumberTokenizer()
    for answer in (None, "40"):
        example = asked("30", answer)
        for interaction, expected in (
            ("request", [SLOT, 25]),
            ("blind", [30, SLOT, 25]),
            ("none", [25]),
        ):
            template = LMEyeQuestion(
                IMG,
                SLOT,
                num_responses=1,
                before="",
                after="{text}",
                cue="25",
                interaction=interaction,
            )
            encoded = template.encode(example, tokenizer, generating=True)
            assert ids(encoded.target) == expected
            assert not any(segment.is_target for segment in encoded.target)
        caption = LMEyeCaption(IMG, add_bos=True).encode(example, tokenizer, generating=True)
        assert ids(caption.target) == [1, IMG]


def test_lmeye_caption():
    encoded = LMEyeCaption(IMG).encode(asked("", "40 41"), NumberTokenizer())
    assert encoded.target == [
        Segment((IMG,), slot=("media", 0)),
        Segment((40, 41, 2), is_target=True),
    ]
    assert encoded.prefix is None and encoded.request is None


def test_placeholders_in_user_text_stay_text(tokenizer):
    plain = LMEyeQuestion(IMG, SLOT).encode(
        asked("what is <img> {text} <img-d> </s>?", "yes"), tokenizer
    )
    everything = ids(plain.prefix)
    assert (
        everything.count(IMG) == 1 and SLOT not in everything and tokenizer.eos_id not in everything
    )
    text = "".join(f" {tokenizer.token(token)}" for token in everything[4:])
    assert text.startswith(" what is <unk> <unk> <unk>")  # "<", "img", ">": words like any others


def test_plain_text_weights_and_bos():
    turns = [
        Turn("user", (Text("10 11"),)),
        Turn("assistant", (Text("12"),)),
        Turn("user", (Text("13"),)),
    ]
    document = Example("d", tuple(turns), {"kind": "a"})
    encoded = PlainText(answer_weight=8).encode(document, NumberTokenizer())
    assert ids(encoded.target) == [1, 10, 11, 12, 2, 13, 2]
    _, _, target = assemble([encoded], Lengths(target=8), 0)
    assert target.weights[0].tolist() == [1, 1, 8, 8, 1, 1, 0, 0]
    assert target.targets[0, :6].tolist() == [10, 11, 12, 2, 13, 2]

    encoded = PlainText(add_bos=False).encode(document, NumberTokenizer())
    assert ids(encoded.target) == [10, 11, 12, 2, 13, 2]
    assert not encoded.target[0].is_target and all(
        segment.is_target for segment in encoded.target[1:]
    )

    generating = PlainText().encode(
        Example("d", tuple(turns[:2])), NumberTokenizer(), generating=True
    )
    assert ids(generating.target) == [1, 10, 11]


def test_caption_pair():
    encoded = CaptionPair(8, 9).encode(asked("30", "40 41"), NumberTokenizer())
    assert (ids(encoded.request), ids(encoded.target)) == ([8, 30, 9], [8, 40, 41, 9])
    prefix, request, target = assemble([encoded], Lengths(request=4, target=5), 0)
    assert prefix is None
    assert request.positions[0].tolist() == [0, 1, 2, 0] and not target.weights.any()


@pytest.mark.parametrize("number", [0, 2])
def test_wrong_number_of_pictures_names_the_example(number):
    media = tuple(Media(f"p{i}", b"") for i in range(number))
    example = Example(
        "the example", (Turn("user", (*media, Text("30"))), Turn("assistant", (Text("40"),)))
    )
    for template in (LMEyeCaption(IMG), LMEyeQuestion(IMG, SLOT), CaptionPair(8, 9)):
        with pytest.raises(BadSample, match=f"the example: it has {number} pictures, .* exactly 1"):
            template.encode(example, NumberTokenizer())


def test_missing_texts_name_the_example():
    with pytest.raises(BadSample, match="the example: it has no assistant text"):
        LMEyeQuestion(IMG, SLOT).encode(asked("30"), NumberTokenizer())
    with pytest.raises(BadSample, match="the example: it has no user text"):
        LMEyeQuestion(IMG, SLOT).encode(asked(" ", "40"), NumberTokenizer())


@pytest.mark.parametrize(
    "template",
    [
        LMEyeCaption(5, add_bos=True),
        LMEyeQuestion(5, 6, num_responses=3, before="Image as evidence: ", interaction="blind"),
        PlainText(answer_weight=8.0),
        CaptionPair(8, 9),
    ],
)
def test_json_round_trip(template):
    assert from_json(json.loads(json.dumps(to_json(template)))) == template


def test_only_plain_text_takes_earlier_turns():
    """And it is no field: a checkpoint's template does not say it."""
    templates = (LMEyeCaption(5), LMEyeQuestion(5, 6), PlainText(), CaptionPair(8, 9))
    assert [template.takes_history for template in templates] == [False, False, True, False]
    assert not any("takes_history" in to_json(template) for template in templates)


def test_json_errors():
    with pytest.raises(ValueError, match="unknown template 'lmeye-questions'"):
        from_json({"template": "lmeye-questions"})
    with pytest.raises(
        ValueError, match=r"unknown fields \['bos'\], missing fields \['image_token'\]"
    ):
        from_json({"template": "lmeye-caption", "bos": True})
    with pytest.raises(ValueError, match="interaction"):
        LMEyeQuestion(5, 6, interaction="both")
    with pytest.raises(ValueError, match="exactly once"):
        LMEyeQuestion(5, 6, after="question")
