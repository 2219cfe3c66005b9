"""Settings by task, and questions that come after a description."""

import dataclasses
from pathlib import Path

import pytest
from generate.stub import StubAnswerer
from generate.test_flags import parsed

from mmjax.data.example import BadSample, Example, Media, Text, Turn
from mmjax.generate.config import GenerationConfig
from mmjax.generate.flags import decoding
from mmjax.generate.round_zero import REQUEST, RoundZero
from mmjax.generate.tasks import TASKS

# Task, max new, beams, top-p, top-k, length penalty, no-repeat, sample: the paper's Table 6.
TABLE = [
    ("lynx-image-description", 64, 5, 1.0, 1, -2.0, 2, False),
    ("lynx-open-vqa-image", 64, 5, 1.0, 1, -2.0, 2, False),
    ("lynx-video-description", 128, 1, 0.9, 3, 1.0, 3, True),
    ("lynx-open-vqa-video", 128, 3, 1.0, 1, -1.0, 3, False),
    ("lynx-owleval-description", 128, 1, 0.9, 3, 1.0, 3, True),
    ("lynx-owleval", 256, 3, 0.9, 3, 1.0, 3, True),
]


def test_the_papers_settings():
    assert [row[0] for row in TABLE] == [*TASKS]
    for task, new, beams, top_p, top_k, penalty, ngram, sample in TABLE:
        config = GenerationConfig(**TASKS[task])
        assert (config.max_new_tokens, config.num_beams, config.do_sample) == (new, beams, sample)
        assert (config.no_repeat_ngram_size, config.length_penalty) == (ngram, penalty)
        if sample:  # else they have no effect
            assert (config.top_p, config.top_k) == (top_p, top_k)
        assert config.rules == "transformers-4.28" and config.min_new_tokens == 1


def test_a_task_by_its_flag():
    assert decoding(parsed("--decoding_task=lynx-owleval")) == GenerationConfig(
        **TASKS["lynx-owleval"]
    )
    changed = decoding(
        parsed("--decoding_task=lynx-open-vqa-image", "--num_beams=2"),
        base=GenerationConfig(max_new_tokens=3),
    )
    assert changed == dataclasses.replace(
        GenerationConfig(**TASKS["lynx-open-vqa-image"]), num_beams=2
    )


class Describer(StubAnswerer):
    """Says of each picture what it is called, and with which seed."""

    def answer(self, prompts, seeds):
        answers = super().answer(prompts, seeds)
        return [
            dataclasses.replace(answer, texts=(f"a thing ({seed})" if seed else " ",))
            for answer, seed in zip(answers, seeds, strict=True)
        ]


class Roomy(StubAnswerer):
    left = 100

    def room(self, prompt):
        return self.left


def question(folder: Path, text: str, name: str | None = "a.png") -> Example:
    if name is not None:
        (folder / name).touch()
    shown = () if name is None else (Media(name, folder / name),)
    return Example(text, (Turn("user", (*shown, Text(text))),))


@pytest.fixture
def rounds():
    return RoundZero(Roomy(), Describer(), takes_history=True)


def test_questions_come_after_descriptions(rounds, tmp_path):
    """Those of pictures; of a text alone there is nothing to describe."""
    asked = [question(tmp_path, text) for text in ("why?", "b?")]
    asked.insert(1, question(tmp_path, "text?", None))
    prompts = [rounds.prompt(example) for example in asked]
    answers = rounds.answer(prompts, [7, 8, 9])
    assert rounds._describer.asked == [
        [(f"user: [a.png] {REQUEST}", 7), (f"user: [a.png] {REQUEST}", 9)]
    ]
    opening = f"user: [a.png] {REQUEST} | assistant: a thing"
    assert [answer.texts[0] for answer in answers] == [
        f"7\n0 <{opening} (7) | user: why?> \u2028ö",
        "8\n0 <user: text?> \u2028ö",
        f"9\n0 <{opening} (9) | user: b?> \u2028ö",
    ]
    (empty,) = rounds.answer(prompts[:1], [0])
    assert "assistant: . | user: why?" in empty.texts[0]
    streamed = "".join(rounds.stream(prompts[0], 7))
    assert rounds._answerer.prompts[-1] == f"{opening} (7) | user: why?" and streamed


def test_conversations_go_on_after_it(rounds, tmp_path):
    first = question(tmp_path, "one?")
    said = (Turn("assistant", (Text("1"),)), Turn("user", (Text("two?"),)))
    dialogue = dataclasses.replace(first, turns=(*first.turns, *said))
    (answer,) = rounds.answer([rounds.prompt(dialogue)], [3])
    assert "a thing (3) | user: one? | assistant: 1 | user: two?>" in answer.texts[0]


def test_what_cannot_be_asked(rounds, tmp_path):
    with pytest.raises(BadSample, match="cannot be read"):
        rounds.prompt(Example("x", (Turn("user", (Media("g", tmp_path / "gone.png"), Text("?"))),)))
    rounds._answerer.left = 63
    with pytest.raises(BadSample, match="room for 63 tokens, a description may have 64"):
        rounds.prompt(question(tmp_path, "why?"))
    with pytest.raises(ValueError, match="one question at a time is not shown its description"):
        RoundZero(Roomy(), Describer(), takes_history=False)
