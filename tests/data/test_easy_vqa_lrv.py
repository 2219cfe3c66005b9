"""Positive and negative instructions on easy-VQA's pictures."""

import collections
import json
import re
from pathlib import Path

import pytest

import mmjax
from mmjax.data.sources import make_source
from mmjax.data.sources.easy_vqa import captioned
from mmjax.data.sources.easy_vqa_lrv import KINDS, NEGATIVES, OPEN, VALUES

TOKENIZER = Path(mmjax.__file__).parent / "assets/tiny/llama/tokenizer.json"
FACT = {word: fact for fact, words in VALUES.items() for word in words}
ALL_FACTS = ",".join(VALUES)


def words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.lower())


def shown(example) -> dict[str, str]:
    facts = dict(captioned("test"))[int(example.media[0].key.split("/")[-1])]
    return {fact: getattr(facts, fact) for fact in VALUES}


def said(question: str) -> dict[str, str]:
    """What a text says of the picture; "the answer right" says nothing."""
    text = question.replace("is the answer right?", "")
    return {FACT[word]: word for word in words(text) if word in FACT}


@pytest.mark.parametrize("facts", ["colour,shape", ALL_FACTS])
def test_kinds_are_what_they_say(facts):
    """Read against the picture, every instruction is right, or wrong in its kind's way."""
    source = make_source("easy-vqa-lrv", "test", facts=facts, num_records=1500)
    seen = collections.Counter()
    for index in range(len(source)):
        example = source[index]
        info, truth = example.info, shown(example)
        question, answer, kind = info["question"], info["answer"], info["kind"]
        assert kind == source.kinds[index] and kind in KINDS
        assert info["negative"] == (kind if kind in NEGATIVES else "")
        assert example.text("user") == question and example.text("assistant") == answer
        seen[kind] += 1
        if kind in ("colour", "shape"):
            assert answer == truth[kind]
            continue
        told = said(question)
        wrong = {fact for fact, value in told.items() if truth[fact] != value}
        assert told and set(told) <= set(facts.split(","))
        if kind == "present":
            assert answer == "yes" and not wrong, question
        else:
            assert answer == "no"
            if kind == "neg1":
                assert wrong == set(told), question
            elif kind == "neg2":
                predicate = info["form"] == "attribute"  # the shape it asks about is there
                assert (len(wrong) == 1) if predicate else (0 < len(wrong) < len(told)), question
            else:
                assert len(wrong) == 1 < len(told), question
    assert set(seen) == set(KINDS)


def test_words_are_those_of_the_tiny_language_model():
    known = json.loads(TOKENIZER.read_text())["model"]["vocab"]
    used = collections.Counter()
    for answers in ("word", "sentence"):
        source = make_source("easy-vqa-lrv", "test", facts=ALL_FACTS, answers=answers)
        for index in range(700):
            used.update(words(source[index].text("user") + " " + source[index].text("assistant")))
    assert set(used) <= set(known)
    assert len(used) > 30


def test_answers_in_sentences_begin_alike_and_put_it_right():
    short, long = (
        make_source("easy-vqa-lrv", "test", answers=answers, num_records=300)
        for answers in ("word", "sentence")
    )
    for index in range(300):
        one, other = short[index], long[index]
        assert one.text("user") == other.text("user")
        answer, rest = other.text("assistant"), said(other.text("assistant"))
        assert answer.endswith(".") and {**shown(other), **rest} == shown(other)
        if one.info["kind"] not in ("colour", "shape"):
            assert answer.startswith(f"{one.text('assistant')}. there is a ")


def test_a_text_does_not_tell_its_answer():
    """Of each form, each wording and each thing the same share is negative."""
    source = make_source("easy-vqa-lrv", "train", num_records=6_000)
    share = 0.5 / (0.5 + 0.5 * (1 - OPEN))
    counted = {name: collections.defaultdict(list) for name in ("form", "wording", "thing")}
    for index in range(len(source)):
        info = source[index].info
        if info["kind"] in ("colour", "shape"):
            continue
        bare = re.sub(rf"\b({'|'.join(FACT)})\b(?! answer|\?$)", "X", info["question"])
        for name, value in (
            ("form", info["form"]), ("wording", bare), ("thing", str(said(info["question"]))),
        ):  # fmt: skip
            counted[name][value].append(info["answer"] == "no")
    for name, groups in counted.items():
        for value, answers in groups.items():
            if len(answers) > 100:
                error = 4 * (share * (1 - share) / len(answers)) ** 0.5
                assert abs(sum(answers) / len(answers) - share) < error, (name, value)
    assert len(counted["form"]) == 4 and sum(map(len, counted["form"].values())) > 4000


def test_the_share_of_negatives_changes_nothing_else():
    balanced = make_source("easy-vqa-lrv?negatives=0.5", "train", num_records=4000)
    positive = make_source("easy-vqa-lrv?negatives=0", "train", num_records=4000)
    negative = make_source("easy-vqa-lrv?negatives=1", "train", num_records=4000)
    assert len(positive) == len(balanced) == len(negative) == 4000
    assert set(positive.kinds) == {"present", "colour", "shape"}
    assert set(negative.kinds) == set(NEGATIVES)
    kinds = collections.Counter(balanced.kinds)
    assert abs(sum(kinds[kind] for kind in NEGATIVES) - 2000) < 120
    assert all(abs(kinds[kind] - 667) < 100 for kind in NEGATIVES)
    assert [positive[i].media[0].key for i in range(50)] == [
        balanced[i].media[0].key for i in range(50)
    ]


def test_records_depend_on_their_number_and_the_seed_alone():
    some, more = (make_source("easy-vqa-lrv", "test", num_records=n) for n in (40, 90))
    other = make_source("easy-vqa-lrv?seed=1", "test", num_records=40)
    assert [some[i] for i in range(40)] == [more[i] for i in range(40)]
    assert [some[i].turns for i in range(40)] != [other[i].turns for i in range(40)]
    train = make_source("easy-vqa-lrv", "train", num_records=200)
    assert {train[i].media[0].key.split("/")[1] for i in range(200)} == {"train"}
    assert {some[i].media[0].key.split("/")[1] for i in range(40)} == {"test"}
    (notice,) = some.notices
    assert "pictures are left out" in notice and int(notice.split()[0]) > 0


def test_wrong_options_are_named_all_at_once():
    wrong = dict(negatives=1.5, num_records=0, facts="colour,place", answers="none")
    with pytest.raises(ValueError) as caught:
        make_source("easy-vqa-lrv", "test", **wrong)
    for text in (
        "negatives is a share, from 0 to 1; got 1.5",
        "num_records must be at least 1, got 0",
        "got colour,place",
        "got 'none'",
    ):
        assert text in str(caught.value)
