import collections
import random
import re

import pytest

from conversion.weights import locate
from mmjax.data.sources import make_source
from mmjax.data.sources.easy_vqa import COLOURS, SHAPES, EasyVQA
from mmjax.data.sources.easy_vqa_clips import (
    DESCRIBE,
    KINDS,
    SIDES,
    EasyVQAClips,
    further_questions,
)
from mmjax.data.sources.easy_vqa_clips_text import PROPORTIONS, EasyVQAClipsText
from mmjax.data.templates import LynxPrompt
from mmjax.data.tokenizer import Tokenizer, build_word_tokenizer


def texts(source) -> list[str]:
    return [
        " ".join(part.text for turn in source[i].turns for part in turn.parts)
        for i in range(len(source))
    ]


def test_documents_have_the_layout_of_lynxs_prompt():
    source = make_source("easy-vqa-clips-text", "dev", num_documents=400)
    counts = collections.Counter(source.kinds)
    assert {*counts} == {*PROPORTIONS} and counts["clip"] > counts["picture"] > counts["caption"]
    for i in range(len(source)):
        example = source[i]
        asked, answered = example.turns[::2], example.turns[1::2]
        assert {turn.role for turn in asked} == {"user"} and len(asked) == len(answered)
        (first,) = asked[0].parts
        assert re.fullmatch(r"[a-z ]+\. User: .+\nBot:", first.text), first.text
        for turn in asked[1:]:
            assert re.fullmatch(r" User: .+\nBot:", turn.parts[0].text)
        assert len({turn.parts for turn in asked}) == len(asked)
        assert example.info["answer"] == answered[0].parts[0].text


def test_the_first_question_of_a_clip_is_its_record():
    source, clips = EasyVQAClipsText("dev", 200), EasyVQAClips("dev", num_records=200)
    for i in range(200):
        if source.kinds[i] == "clip":
            record, said = clips.record(i), source[i]
            text = said.turns[0].parts[0].text
            assert text.split(". User: ")[1] == f"{record.question}\nBot:"
            assert said.info == {"kind": record.kind, "answer": record.answer}
            assert text.split(" User:")[0] in [record.clip.caption(form) for form in range(3)]


def test_further_questions_agree_with_the_records():
    """Of clips of all kinds, the answer that a record was made for is found again from its clip."""
    clips = EasyVQAClips("dev", num_records=150 * len(KINDS))
    seen = collections.Counter()
    for i in range(0, len(clips)):
        record = clips.record(i)
        for question, answer in further_questions(record.clip, random.Random(i)):
            if question == record.question:
                seen[record.kind] += 1
                assert answer == record.answer
    assert {*seen} == {*KINDS}


def test_the_shipped_vocabulary_is_that_of_the_documents(tmp_path):
    """And has all words of what Lynx is asked and answers."""
    made = build_word_tokenizer(texts(EasyVQAClipsText("train", 3000)), tmp_path)
    shipped = Tokenizer.load(locate("asset:tiny/llama-clips"))
    words = lambda tokenizer: {tokenizer.token(i) for i in range(tokenizer.vocab_size)}  # noqa: E731
    assert words(made) == words(shipped)
    template, unknown = LynxPrompt(tokens_per_picture=1, max_prompt=None), shipped.encode("unheard")
    for source in (
        EasyVQAClips("test", num_records=300),
        EasyVQAClips("test", "caption", num_records=300),
        EasyVQA("test", limit=300),
        EasyVQA("test", "caption", limit=300, request=DESCRIBE),
    ):
        for i in range(300):
            segments = template.encode(source[i], shipped).target
            assert unknown[0] not in [token for segment in segments for token in segment.ids]


def test_documents_fit():
    """Words and punctuation marks, bos, and eos after each answer."""
    source = EasyVQAClipsText("dev", 400)
    lengths = [
        1 + len(source[i].turns) // 2 + len(re.findall(r"\w+|[^\w\s]", text))
        for i, text in enumerate(texts(source))
    ]
    assert 60 < max(lengths) <= 72


def test_shuffled_words_keep_what_belongs_together():
    plain, mixed = (EasyVQAClipsText("dev", 600, shuffled=share) for share in (0.0, 1.0))
    orders = set()
    for i in range(600):
        first, second = (s[i].turns[0].parts[0].text.split(". User:")[0] for s in (plain, mixed))
        facts = {*COLOURS, *SHAPES, *SIDES, "from", "moving", "changing"}
        if plain.kinds[i] == "clip":
            assert {*first.split()} & facts == {*second.split()} & facts
            assert re.findall(r"(from|to) (\w+)", second) or "from" not in first
            for colour in re.findall(r"from (\w+)", first):
                assert f"from {colour}" in second
            halves = [
                [{*half.split()} & {*COLOURS, *SHAPES} for half in text.split(" and ")]
                for text in (first, second)
            ]
            assert halves[0] == halves[1]
        orders.add(first == second)
    assert orders == {False}


def test_graded_documents_have_one_question():
    source = EasyVQAClipsText("test", 400, graded=True)
    assert {*source.kinds} == {"clip", "picture"}
    kinds = {source[i].info["kind"] for i in range(400)}
    assert kinds > {*KINDS} and all(len(source[i].turns) == 2 for i in range(400))


def test_a_document_depends_on_seed_and_number_alone():
    long, short = (EasyVQAClipsText("dev", number) for number in (300, 40))
    assert texts(short) == texts(long)[:40]
    other = EasyVQAClipsText("dev", 40, seed=1)
    assert sum(a == b for a, b in zip(texts(other), texts(short), strict=True)) < 3
    with pytest.raises(ValueError, match="has no option words"):
        make_source("easy-vqa-clips-text?words=3", "dev")
