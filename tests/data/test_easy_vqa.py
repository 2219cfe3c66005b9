import collections
import re

import numpy as np
import pytest
from PIL import Image

from mmjax.data.images import load_image
from mmjax.data.sources import make_source
from mmjax.data.sources.easy_vqa import (
    COLOURS,
    KINDS,
    NUM_FORMS,
    SHAPES,
    captioned,
    kind_of,
    picture,
    questions,
)
from mmjax.data.sources.easy_vqa_text import PROPORTIONS, EasyVQAPairs, EasyVQAText
from mmjax.data.templates import PlainText
from mmjax.data.tokenizer import build_word_tokenizer


def test_splits_are_whole_and_disjoint():
    train, dev, test = (make_source("easy-vqa", split) for split in ("train", "dev", "test"))
    assert len(train) + len(dev) == 38_575
    assert len(test) == 9_673
    pictures = [{question.picture for question in questions(split)} for split in ("train", "dev")]
    assert not pictures[0] & pictures[1]
    assert len(pictures[0] | pictures[1]) == 4_000
    assert 360 < len(pictures[1]) < 440
    assert (len(train), len(dev)) == (34_588, 3_987)  # the cut must never move


def test_kinds_and_their_bias():
    kinds = collections.Counter(
        make_source("easy-vqa", "train").kinds + make_source("easy-vqa", "dev").kinds
    )
    assert kinds == {
        "plain yes": 2_579,
        "plain no": 11_608,
        "negated yes": 11_650,
        "negated no": 2_570,
        "colour": 5_166,
        "shape": 5_002,
    }
    assert set(make_source("easy-vqa", "test").kinds) == set(KINDS)
    assert kind_of("isn't there a circle?", "yes") == "negated yes"
    assert kind_of("is a knot present?", "no") == "plain no"


def test_a_question():
    source = make_source("easy-vqa", "test")
    example = source[0]
    assert example.info == {
        "question": "what is the red shape?",
        "answer": "triangle",
        "kind": "shape",
    }
    assert (example.text("user"), example.text("assistant")) == (
        "what is the red shape?",
        "triangle",
    )
    (media,) = example.media
    assert media.key == "easy-vqa/test/0" and load_image(media).size == (64, 64)
    keys = {source[i].media[0].key for i in range(len(source))}
    assert len(keys) == 1_000


def test_one_wording_of_each_kind():
    one = make_source("easy-vqa", "dev", wordings="one")
    asked = [one[i].info for i in range(len(one))]
    assert {info["kind"] for info in asked} == set(KINDS)
    named = "|".join((*COLOURS, *SHAPES))
    forms = {re.sub(named, "X", info["question"]) for info in asked}
    assert forms == {
        "what shape is present?", "what color is the shape?", "is there a X?",
        "is there a X shape?", "is there not a X?", "is there not a X shape?",
    }  # fmt: skip
    assert len(one) < len(make_source("easy-vqa", "dev")) / 3


def test_facts_of_the_pictures():
    facts = [facts for split in ("train", "dev") for _, facts in captioned(split)]
    assert len(facts) == 3_961
    assert sum(fact.colour is None for fact in facts) == 251
    assert sum(fact.shape is None for fact in facts) == 168
    left_out = [
        make_source("easy-vqa", split, task="caption").num_without_facts
        for split in ("train", "dev")
    ]
    assert sum(left_out) == 4_000 - 3_961


def test_facts_contradict_nothing_the_questions_say():
    known = dict(captioned("test"))
    for question in questions("test"):
        fact = known.get(question.picture)
        if fact is None:
            continue
        if question.answer not in ("yes", "no"):
            assert question.answer in (fact.colour, fact.shape)
        if question.kind in ("plain yes", "negated no"):
            assert set(re.findall(r"\w+", question.question)) & {fact.colour, fact.shape}


def test_size_and_place_one_picture_at_a_time():
    """Against the rule as written down: the commonest colour is the background."""
    for number, facts in captioned("dev"):
        pixels = np.asarray(Image.open(picture("dev", number).data)).astype(int)
        colours, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
        ys, xs = np.nonzero(np.abs(pixels - colours[counts.argmax()]).sum(-1) > 40)
        side = max(ys.max() - ys.min(), xs.max() - xs.min()) + 1
        size = "small" if side < 20 else "medium" if side < 30 else "large"
        y, x = (ys.max() + ys.min()) / 2, (xs.max() + xs.min()) / 2
        row = "top" if y < 25 else "middle" if y < 39 else "bottom"
        column = "left" if x < 25 else "center" if x < 39 else "right"
        assert (facts.size, facts.row, facts.column) == (size, row, column)


def test_captions():
    source = make_source("easy-vqa", "dev", task="caption")
    assert len(source) == len(captioned("dev")) * NUM_FORMS
    texts = [source[i].text("assistant") for i in range(len(source))]
    detailed = sum(bool(re.search("small|medium|large", text)) for text in texts) / len(texts)
    assert 0.55 < detailed < 0.65
    assert source[0].text("user") == ""
    asked = make_source("easy-vqa", "dev", task="caption", request="describe the picture.")
    assert asked[0].text("user") == "describe the picture." and len(asked[0].media) == 1
    number, facts = captioned("dev")[3]
    assert source[3 * NUM_FORMS].media[0].key == f"easy-vqa/train/{number}"
    assert facts.caption(0, details=True) == (
        f"a {facts.size} {facts.colour} {facts.shape} at the {facts.row} {facts.column}."
    )
    unknown = next(facts for _, facts in captioned("dev") if facts.shape is None)
    assert unknown.caption(1, details=False) == f"there is a {unknown.colour} shape."
    assert len({facts.caption(form, details=True) for form in range(NUM_FORMS)}) == NUM_FORMS


def test_documents_are_made_as_said(tmp_path):
    source = EasyVQAText("dev", num_documents=2_000)
    kinds = collections.Counter(source.kinds)
    for kind, percent in PROPORTIONS.items():
        assert abs(kinds[kind] / len(source) - percent / sum(PROPORTIONS.values())) < 0.03
    again = EasyVQAText("dev", num_documents=10)
    assert [again[i] for i in range(10)] == [source[i] for i in range(10)]
    assert EasyVQAText("dev", num_documents=10, seed=1)[0] != source[0]

    texts = [
        [part.text for turn in source[i].turns for part in turn.parts] for i in range(len(source))
    ]
    tokenizer = build_word_tokenizer([text for parts in texts for text in parts], tmp_path)
    template = PlainText(answer_weight=8)
    for i, (kind, parts) in enumerate(zip(source.kinds, texts, strict=True)):
        encoded = template.encode(source[i], tokenizer)
        tokens = [token for segment in encoded.target for token in segment.ids]
        assert len(tokens) <= 60 and tokens[-1] == tokenizer.eos_id
        assert tokens[0] == tokenizer.bos_id
        if kind.startswith("caption"):
            assert len(parts) == 1 and parts[0].count(".") == 2
            continue
        questions_, answers = parts[::2], parts[1::2]
        assert len(questions_) == len(answers) >= 1
        assert all(text.endswith("\nAnswer:") for text in questions_)
        assert [text.startswith("Image: ") for text in questions_] == [kind == "context"] + [
            False
        ] * (len(answers) - 1)
        assert sum("." in text.split("?")[1] for text in questions_) >= len(answers) * (
            kind == "response"
        )
        if kind == "blind":
            assert not any("." in text for text in questions_)


def test_pairs_mirror_words_and_pixels():
    source = EasyVQAPairs("dev")
    for side, other in (("left", "right"), ("right", "left")):
        records = range(0, len(source), 2)
        straight, mirrored = next(
            (source[i], source[i + 1]) for i in records if side in source[i].text("assistant")
        )
        assert mirrored.text("assistant") == straight.text("assistant").replace(side, other)
        assert mirrored.text("user") == straight.text("user")
        assert mirrored.media[0].key != straight.media[0].key
        pictures = [np.asarray(load_image(pair.media[0])) for pair in (straight, mirrored)]
        np.testing.assert_array_equal(pictures[1], pictures[0][:, ::-1])
    plain = EasyVQAPairs("dev", mirror=False)
    assert len(plain) * 2 == len(source) and not plain[1].media[0].mirrored


def test_unknown_names():
    with pytest.raises(
        ValueError, match=r"no source named 'easy-vqq'; did you mean easy-vqa.*jsonl:PATH"
    ):
        make_source("easy-vqq", "train")
    with pytest.raises(ValueError, match="not 'val'"):
        make_source("easy-vqa", "val")
    with pytest.raises(ValueError, match="task must be"):
        make_source("easy-vqa", "dev", task="answer")
