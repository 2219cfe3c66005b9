import collections
import functools
import itertools
import re

import pytest

from conversion.weights import locate
from mmjax.data.example import Media, Text
from mmjax.data.sources import make_source
from mmjax.data.sources.easy_vqa import (
    COLOURS,
    NUM_FORMS,
    SHAPES,
    Facts,
    captioned,
    picture,
    questions,
)
from mmjax.data.sources.easy_vqa_multi import (
    DESCRIBE,
    DESCRIBE_DIFFERENCE,
    DIFFERENCES,
    KINDS,
    ORDINALS,
    EasyVQAMulti,
)
from mmjax.data.sources.easy_vqa_multi_text import EDITS, EasyVQAMultiText
from mmjax.data.templates import PlainText
from mmjax.data.tokenizer import Tokenizer, build_word_tokenizer

SPLITS = ("train", "dev", "test")
FACTS = ("colour", "shape", "size", "row", "column")
# If the wording tells nothing: one of 2, 8, 3 answers, of 2 to 4 pictures, of 3 or 4.
CHANCE = {"same colour": 1 / 2, "same shape": 1 / 2, "colour at": 1 / 8, "shape at": 1 / 3}
CHANCE |= dict.fromkeys([kind for kind in KINDS if "which" in kind], (1 / 2 + 1 / 3 + 1 / 4) / 3)
CHANCE |= dict.fromkeys(["odd colour", "odd shape"], (1 / 3 + 1 / 4) / 2)


def test_a_question_interleaves_pictures_and_texts():
    source = make_source("easy-vqa-multi", "dev", num_records=330)
    assert source.kinds == list(KINDS) * 30
    places = collections.Counter()
    for i in range(len(source)):
        example, record = source[i], source.record(i)
        asked = example.turns[0]
        texts = [part.text for part in asked.parts if isinstance(part, Text)]
        numbered = [text for text in texts if text in ORDINALS]
        (question,) = (text for text in texts if text not in ORDINALS)
        assert 2 <= len(example.media) <= 4
        assert [media.key for media in example.media] == [
            picture("dev", number).key for number in record.pictures
        ]
        assert len(set(record.pictures)) == len(record.pictures)
        number = 0 if source.kinds[i].startswith("same") else len(example.media)
        assert numbered == list(ORDINALS[:number])
        for before, after in itertools.pairwise(asked.parts):
            assert before not in map(Text, ORDINALS) or isinstance(after, Media)
        assert example.info == {
            "question": question,
            "answer": example.text("assistant"),
            "kind": source.kinds[i],
        }
        place = asked.parts.index(Text(question))
        last = place == len(asked.parts) - 1
        places["before" if not place else "after" if last else "between"] += 1
    assert places["after"] > places["before"] + places["between"]
    assert min(places.values()) > 20


@pytest.mark.parametrize("split", SPLITS)
def test_answers_are_true_of_the_pictures(split):
    """Found again from the wording and the pictures' facts."""
    known = dict(captioned(split))
    source = EasyVQAMulti(split, num_records=1100)
    for i in range(len(source)):
        record = source.record(i)
        facts = [known[number] for number in record.pictures]
        assert record.answer == answer_to(record.question, facts), record


def answer_to(question: str, facts: list) -> str:
    words = question.rstrip("?").split()
    fact = "colour" if "color" in words else "shape"
    values = [getattr(one, fact) for one in facts]
    if "both" in words:
        return "yes" if values[0] == values[1] else "no"
    if words[0] == "what":
        return values[next(i for i, ordinal in enumerate(ORDINALS) if ordinal in words)]
    if "different" in words:
        (odd,) = [i for i, value in enumerate(values) if values.count(value) == 1]
        return ORDINALS[odd]
    named = {word.removesuffix("st") if word == "largest" else word for word in words}
    named = {"small" if word == "smallest" else word for word in named}
    (shown,) = [
        i
        for i, one in enumerate(facts)
        if all(
            word in [getattr(one, fact) for fact in FACTS]
            for word in named & {*COLOURS, *SHAPES, "small", "large", *PLACES}
        )
    ]
    return ORDINALS[shown]


PLACES = ("top", "bottom", "left", "right")


def test_sizes_and_places_that_are_asked_are_far_apart():
    known = dict(captioned("test"))
    source = EasyVQAMulti("test", num_records=550)
    for i, kind in enumerate(source.kinds):
        record = source.record(i)
        facts = [known[number] for number in record.pictures]
        if kind == "which size":
            assert sorted({one.size for one in facts}) == ["large", "small"]
        if kind == "which place":
            sides = [{getattr(one, fact) for one in facts} for fact in ("row", "column")]
            assert {"top", "bottom"} == sides[0] or {"left", "right"} == sides[1]


@functools.cache
def asked_records(seed: int) -> list:
    source = EasyVQAMulti("dev", num_records=600 * len(KINDS), seed=seed)
    return [source.record(i) for i in range(len(source))]


def test_answers_are_balanced():
    counts = {kind: collections.Counter() for kind in KINDS}
    for record in asked_records(0):
        counts[record.kind][len(record.pictures), record.answer] += 1
    for kind, found in counts.items():
        for number in {number for number, _ in found}:
            answers = [count for (shown, _), count in found.items() if shown == number]
            expected = sum(answers) / len(answers)
            assert all(abs(count - expected) < 4 * expected**0.5 for count in answers), kind
    answers = {kind: {answer for _, answer in found} for kind, found in counts.items()}
    assert answers["same colour"] == answers["same shape"] == {"yes", "no"}
    assert answers["colour at"] == set(COLOURS) and answers["shape at"] == set(SHAPES)
    rest = [
        set(ORDINALS) == answers[kind] for kind in KINDS if kind[:5] in ("which", "odd c", "odd s")
    ]
    assert len(rest) == 7 and all(rest)


@pytest.mark.parametrize(
    "seen",
    [
        lambda record: tuple(part if isinstance(part, str) else "" for part in record.parts),
        lambda record: (record.question, len(record.pictures)),
        lambda record: (record.kind, len(record.pictures)),
        lambda record: (record.kind, record.parts.index(record.question)),
    ],
    ids=["all", "wording", "kind", "place"],
)
def test_the_wording_gives_nothing_away(seen):
    """The commonest answer to what a model sees that is blind to pictures, counted on 6,600
    questions and tried on 6,600 others, is right as often as chance: 35 % over all kinds."""
    answers = collections.defaultdict(collections.Counter)
    for record in asked_records(0):
        answers[seen(record)][record.answer] += 1
    right, count = collections.Counter(), collections.Counter()
    for record in asked_records(1):
        guess = answers[seen(record)].most_common(1)
        right[record.kind] += bool(guess) and guess[0][0] == record.answer
        count[record.kind] += 1
    for kind, chance in CHANCE.items():
        assert right[kind] / count[kind] < chance + 0.07, kind
    assert abs(sum(CHANCE.values()) / len(KINDS) - 0.350) < 1e-3
    assert right.total() / count.total() < 0.350 + 0.02


@pytest.mark.parametrize("split", SPLITS)
def test_differences_are_in_one_fact(split):
    known = dict(captioned(split))
    source = EasyVQAMulti(split, "difference", num_records=400)
    named = {"modify": ("colour",), "swap": ("shape",), "resize": ("size",)}
    for i, kind in enumerate(source.kinds):
        record = source.record(i)
        *shown, text = record.parts
        one, other = (known[number] for number in shown)
        assert text == DESCRIBE_DIFFERENCE
        (fact,) = [fact for fact in FACTS if getattr(one, fact) != getattr(other, fact)]
        assert fact in named.get(kind, ("row", "column"))
        said = [getattr(facts, fact) for facts in (one, other)]
        assert kind in ("modify", "swap") or set(said) <= {"small", "large", *PLACES}
        if kind == "move":
            said = [f"at the {place}" for place in said]
        assert record.answer == DIFFERENCES[kind].format(*said)
    assert source.kinds == list(DIFFERENCES) * 100


def test_the_sentences_that_other_sources_share():
    assert DIFFERENCES["modify"].format("red", "blue") == (
        "the shape is red in the first picture and blue in the second picture."
    )
    assert DIFFERENCES["swap"].format("circle", "triangle") == (
        "there is a circle in the first picture and a triangle in the second picture."
    )
    assert EDITS["delete"].format("red circle") == (
        "there is a red circle in the first picture and no shape in the second picture."
    )
    assert EDITS["add"].format("red circle") == (
        "there is a red circle in the second picture that is not in the first picture."
    )


@pytest.mark.parametrize("name", ["easy-vqa-multi", "easy-vqa-multi-text"])
def test_a_record_depends_on_seed_and_number_alone(name):
    size = "num_records" if name == "easy-vqa-multi" else "num_documents"
    long, short = (make_source(name, "dev", **{size: number}) for number in (300, 40))
    backwards = {i: short[i] for i in reversed(range(40))}
    assert [backwards[i] for i in range(40)] == [long[i] for i in range(40)]
    other = make_source(name, "dev", seed=1)
    assert sum(other[i].turns == long[i].turns for i in range(40)) < 4
    train = make_source(name, "train")
    assert sum(train[i].turns == long[i].turns for i in range(40)) < 4


def test_held_out_pictures_are_never_trained_on():
    shown = {}
    for split in SPLITS:
        sources = [EasyVQAMulti(split, task, 2200) for task in ("question", "difference")]
        shown[split] = {
            part.key
            for source in sources
            for i in range(len(source))
            for part in source[i].turns[0].parts
            if isinstance(part, Media)
        }
    assert not shown["train"] & shown["dev"]
    assert not (shown["train"] | shown["dev"]) & shown["test"]
    assert len(shown["dev"]) == 365 and len(shown["test"]) > 870


def test_pictures_left_out_are_counted():
    for split, shown, left_out in (("train", 3177, 413), ("dev", 365, 45), ("test", 880, 120)):
        source = make_source("easy-vqa-multi", split)
        assert len(source.facts) == shown
        assert shown + left_out == len({question.picture for question in questions(split)})
        assert all(facts.colour and facts.shape for facts in source.facts.values())
        (notice,) = source.notices
        assert notice.startswith(f"{left_out} pictures are left out") and f"{shown:,} are" in notice


def test_captions_of_single_pictures():
    known = dict(captioned("dev"))
    source = EasyVQAMulti("dev", "caption", 200)
    for i in range(len(source)):
        number, request = source.record(i).parts
        assert request == DESCRIBE and len(source[i].media) == 1
        forms = [(form, details) for form in range(NUM_FORMS) for details in (True, False)]
        captions = [known[number].caption(form, details=details) for form, details in forms]
        assert source[i].text("assistant") in captions
    assert len({source.record(i).pictures for i in range(200)}) > 130


def test_as_many_pictures_as_are_wanted():
    source = EasyVQAMulti("dev", num_records=99, max_pictures=3)
    shown = {
        kind: {len(source.record(i).pictures) for i in range(99) if source.kinds[i] == kind}
        for kind in KINDS
    }
    assert all(numbers <= {2, 3} for numbers in shown.values())
    assert shown["odd colour"] == {3} and shown["which shape"] == {2, 3}


def test_unknown_task_and_number_of_pictures():
    with pytest.raises(ValueError, match="task must be one of question, difference, caption, got"):
        make_source("easy-vqa-multi", "dev", task="answer")
    with pytest.raises(ValueError, match="max_pictures must be 3 or 4, got 5"):
        make_source("easy-vqa-multi", "dev", max_pictures=5)


def test_documents_say_what_the_pictures_show():
    """Words stand where record i of ``easy-vqa-multi`` has its pictures, and agree with them."""
    known = dict(captioned("test"))
    source = EasyVQAMultiText("test", num_documents=300, graded=True)
    assert set(source.kinds) == {"question"}
    asked = EasyVQAMulti("test")
    for i in range(len(source)):
        record = asked.record(i)
        assert source[i].info["kind"] == record.kind
        layout = " ".join(
            re.escape(part) if isinstance(part, str) else r"Image: ([^.:]+)\."
            for part in record.parts
        )
        assert source[i].text("assistant") == source[i].info["answer"] == record.answer
        found = re.fullmatch(layout + "\nAnswer:", source[i].text("user"))
        for caption, number in zip(found.groups(), record.pictures, strict=True):
            facts, words = known[number], caption.split()
            assert {facts.colour, facts.shape} <= set(words)
            told = set(words) & {"small", "medium", "large", "middle", "center", *PLACES}
            everything = {facts.size, facts.row, facts.column}
            assert told <= everything
            if record.kind in ("which size", "which place", "resize", "move"):
                assert told == everything
            assert len(words) <= 8


def test_documents_about_edited_pictures():
    source = EasyVQAMultiText("dev", num_documents=600)
    found = collections.Counter()
    for i, task in enumerate(source.kinds):
        if task != "difference" or source[i].info["kind"] not in EDITS:
            continue
        kind, answer = source[i].info["kind"], source[i].info["answer"]
        found[kind] += 1
        one, other = re.findall(r"Image: ([^.]*)\.", source[i].text("user"))
        colour, shape = answer.split()[3:5]
        one, other = set(one.split()), set(other.split())
        if kind == "delete":
            assert {colour, shape} <= one and other == {"no", "shape"}
        else:
            assert not {colour, shape} <= one and {colour, shape} <= other
            assert one & {*COLOURS, *SHAPES} <= other
    assert min(found[kind] for kind in EDITS) > 5


def test_a_document_has_the_layout_of_a_prompt():
    source = EasyVQAMultiText("dev", num_documents=400)
    assert set(source.kinds) == {"pair", "question", "difference", "caption", "description"}
    for i, task in enumerate(source.kinds):
        turns = source[i].turns
        first = turns[0].parts[0].text
        assert 1 <= first.count("Image: ") <= 4
        assert "Answer:" in first or task == "caption"
        if task == "pair":
            assert first.count("Image: ") == 2 and first.endswith("?\nAnswer:")
        elif task in ("caption", "description"):
            assert described(first, turns[1].parts[0].text)
        assert [turn.role for turn in turns] == ["user", "assistant"] * (len(turns) // 2)
        for turn in turns[2::2]:
            assert re.fullmatch(r" [^.:]+\?\nAnswer:", turn.parts[0].text)
    graded = EasyVQAMultiText("dev", num_documents=400, graded=True)
    assert {len(graded[i].turns) for i in range(400)} == {2}


def test_documents_fit_and_the_words_of_training_cover_all_tasks(tmp_path):
    """Also easy-VQA's captions, and the sentences about edited pictures."""
    source = EasyVQAMultiText("train", 4000, max_words=50)  # configs/foundation.py
    documents = (source[i] for i in range(len(source)))
    tokenizer = build_word_tokenizer(
        (part.text for each in documents for turn in each.turns for part in turn.parts), tmp_path
    )
    shipped = Tokenizer.load(locate("asset:tiny/llama-multi"))
    assert tokenizer.fingerprint == shipped.fingerprint
    unknown = tokenizer.encode("unheard-of")[0]
    template = PlainText()
    for split in SPLITS:
        for options in (dict(), dict(graded=True)):
            source = EasyVQAMultiText(split, 200, **options)
            for i in range(len(source)):
                encoded = template.encode(source[i], tokenizer)
                tokens = [token for segment in encoded.target for token in segment.ids]
                assert len(tokens) <= 82 and unknown not in tokens
    facts = [Facts(c, s, "large", "middle", "right") for c in COLOURS for s in (*SHAPES, None)]
    texts = {one.caption(form, details=True) for one in facts for form in range(NUM_FORMS)}
    texts |= {
        sentence.format(f"{c} {s}", c)
        for sentence in (*DIFFERENCES.values(), *EDITS.values(), DESCRIBE_DIFFERENCE)
        for c in COLOURS
        for s in SHAPES
    }
    texts |= {part.text for source in _all_tasks() for part in source if isinstance(part, Text)}
    assert not [text for text in texts if unknown in tokenizer.encode(text)]
    assert unknown in tokenizer.encode("a purple circle")


def _all_tasks():
    for task in ("question", "difference", "caption"):
        source = EasyVQAMulti("train", task, 300)
        for i in range(len(source)):
            yield [part for turn in source[i].turns for part in turn.parts]


def described(asked: str, answer: str) -> bool:
    """Whether ``answer`` says nothing but what ``asked`` says of the picture to be described."""
    captions = re.findall(r"Image: ([^.]*)\.", asked)
    which = [i for i, ordinal in enumerate(ORDINALS) if f"describe the {ordinal} pic" in asked]
    assert which or len(captions) == 1
    facts = {*COLOURS, *SHAPES, *PLACES, "small", "medium", "large", "middle", "center"}
    told = set(captions[which[0] if which else 0].split()) & facts
    return set(re.findall(r"\w+", answer)) & facts <= told
