"""Scores of captions: the figures are those of the COCO caption package (pycocoevalcap 1.2, its
Java tokenizer included) for the same texts."""

import json

import pytest
from absl import flags

from mmjax.evaluate.captions import (
    captions_from_flags,
    define_captions,
    evaluate_captions,
    read_references,
)
from mmjax.evaluate.text_metrics import cider_d, ptb_words, rouge_l, score_captions

CASES = {
    "1": (
        "a red bus near the station",
        [
            "A red bus parked near a station.",
            "the bus is at the station",
            "a large red bus stops",
        ],
    ),
    "2": (
        "a man rides a horse on the beach",
        ["A man is riding a horse.", "Someone rides a brown horse along the beach."],
    ),
    "3": (
        "two dogs dogs dogs",
        ["Two dogs play.", "Two dogs are running in the grass, side by side"],
    ),
    "4": ("", ["a cat on a sofa"]),
    "5": (
        "a very long caption that goes on and on and on about nothing at all in this picture",
        ["nothing", "a picture of nothing at all"],
    ),
}
CAPTIONS = {key: caption for key, (caption, _) in CASES.items()}
REFERENCES = {key: references for key, (_, references) in CASES.items()}
# Of each picture, by the package.
ROUGE = [0.7587064676616916, 0.6489361702127661, 0.5865384615384615, 0.0, 0.41077441077441]
CIDER = [2.48522925287, 2.03493159511, 1.0969113774, 0.0, 0.112536234724]
BLEU = (0.5555555555401235, 0.4166666666543693, 0.2314638434459504, 2.6810786839117437e-05)


def words(texts):
    return [ptb_words(text) for text in texts]


def test_figures_are_the_packages():
    scores = score_captions(CAPTIONS, REFERENCES)
    assert scores.count == 5
    assert scores.bleu == pytest.approx(BLEU, rel=1e-9)
    assert scores.rouge_l == pytest.approx(0.480991102037466, rel=1e-9)
    assert scores.cider_d == pytest.approx(1.1459216920207906, rel=1e-9)
    assert list(scores.metrics()) == [
        *(f"BLEU-{n}" for n in (1, 2, 3, 4)), "ROUGE-L", "CIDEr-D"
    ]  # fmt: skip
    said, known = words(CAPTIONS.values()), [words(texts) for texts in REFERENCES.values()]
    assert list(map(rouge_l, said, known)) == pytest.approx(ROUGE)
    assert cider_d(said, known) == pytest.approx(CIDER)


def test_what_is_said_in_a_references_words_is_best():
    same = {key: references[0] for key, references in REFERENCES.items()}
    scores = score_captions(same, {key: [text] for key, text in same.items()})
    assert scores.bleu[0] == pytest.approx(1) and scores.rouge_l == pytest.approx(1)
    one = score_captions({"1": same["1"]}, REFERENCES)
    assert one.count == 1 and one.cider_d == 0, "no run of words is rarer than another"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("A man's dog didn't eat (really), can't you see?",
         "a man 's dog did n't eat -lrb- really -rrb- ca n't you see"),
        ('"No" at 3:30 p.m. it\'s 3rd St. cannot black-and-white...',
         "no at 3:30 p.m. it 's 3rd st. can not black-and-white"),
        ("T-shirts w/o 50% a.k.a. o'clock & the boys' toys",
         "t-shirts w/o 50 % a.k.a. o'clock & the boys toys"),
        ("U.S. flag, $5.00 and #1 sign; 2/3 of it -- [left] side!",
         "u.s. flag $ 5.00 and # 1 sign 2/3 of it -lsb- left -rsb- side"),
        ("He's gonna see 'em, it is 5ft tall, 10:30am, 1,000",
         "he 's gon na see 'em it is 5ft tall 10:30 am 1,000"),
        ("rock 'n' roll they'll we've i'd it\u2019s \u201cfine\u201d café email@x.com",
         "rock 'n' roll they 'll we 've i 'd it 's fine café email@x.com"),
        ("an 8-year-old boy 's 3-d ps3 4x4 the 1990's a wave.on top, 10-20 sheep",
         "an 8-year-old boy 's 3-d ps3 4x4 the 1990 's a wave.on top 10-20 sheep"),
    ],
)  # fmt: skip
def test_words_are_the_java_tokenizers(text, wanted):
    assert " ".join(ptb_words(text)) == wanted


def test_files_of_both_kinds_give_the_same(tmp_path):
    """COCO's own, with ids of annotations, and JSON Lines; an error is silence, and told."""
    annotations = [
        {"id": 7 * int(key) + i, "image_id": int(key), "caption": text}
        for key, texts in REFERENCES.items()
        for i, text in enumerate(texts)
    ]
    annotations.append({"id": 99, "image_id": 6, "caption": "of a picture without a caption"})
    coco = tmp_path / "captions_val2014.json"
    coco.write_text(json.dumps({"images": [], "annotations": annotations}))
    lines = tmp_path / "references.jsonl"
    lines.write_text(
        "".join(json.dumps({"id": k, "references": v}) + "\n" for k, v in REFERENCES.items())
    )
    server = tmp_path / "results.json"
    server.write_text(
        json.dumps([{"image_id": int(k), "caption": text} for k, text in CAPTIONS.items()])
    )
    answers = tmp_path / "answers.jsonl"
    rows = [{"id": key, "answer": text} for key, text in CAPTIONS.items()]
    rows[3] = {"id": "4", "error": "no such picture"}
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    wanted = score_captions(CAPTIONS, REFERENCES)
    first, second = evaluate_captions(server, coco), evaluate_captions(answers, lines)
    assert first.scores == second.scores == wanted
    assert (first.pictures, first.bad, second.pictures, second.bad) == (6, 0, 5, 1)
    assert "5 captions of 6 pictures" in str(first) and "BLEU-4" in str(first)
    assert "1 of them are errors and count as silence" in str(second)
    values = flags.FlagValues()
    define_captions(values)
    values(["evaluate.py", f"--answers={answers}", f"--references={lines}"])
    assert captions_from_flags(values) == second
    values.references = None
    with pytest.raises(ValueError, match="needs one --answers=FILE and --references=FILE"):
        captions_from_flags(values)


def test_what_cannot_be_scored(tmp_path):
    answers, references = tmp_path / "answers.jsonl", tmp_path / "references.jsonl"
    references.write_text('{"id": "1", "references": ["a"]}\n')
    for line, told in (
        ('{"id": "2", "answer": "a"}', "1 of 1 captions are of pictures without a reference: 2"),
        ('{"id": "1", "answer": "a"}\n{"id": "1", "answer": "b"}', "there twice, e.g. 1"),
        ('{"id": "1", "answers": ["a", "b"]}', "line 1: it has several 'answers'"),
        ('{"id": "1"}', "line 1: it has neither 'answer' nor 'caption'"),
        ('{"answer": "a"}', "line 1: it has neither 'image_id' nor 'id'"),
        ("a caption", "line 1: not JSON"),
    ):
        answers.write_text(line + "\n")
        with pytest.raises(ValueError, match=told):
            evaluate_captions(answers, references)
    references.write_text('{"id": "1", "references": "a"}\n')
    with pytest.raises(ValueError, match="field 'references': expected a list of texts"):
        read_references(references)
