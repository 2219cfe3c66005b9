"""Answers that end with a text, whose tokens depend on what stands before it."""

import dataclasses

import numpy as np
import pytest
import tiny

from mmjax.data.sequence import Lengths
from mmjax.data.templates import LMEyeCaption, PicturePrompt
from mmjax.generate.config import GenerationConfig
from mmjax.generate.ending import Ending
from mmjax.generate.generator import Generator
from mmjax.nn.param import specs
from mmjax.systems.lmeye import LMEye

pytestmark = pytest.mark.usefixtures("quick_compile")

CONFIG = tiny.lmeye_config()
SYSTEM = LMEye(CONFIG)
PARAMS = tiny.random_params(specs(SYSTEM), seed=1)
ROWS, NEW = 4, 6
GREEDY = GenerationConfig(NEW, pad_token=tiny.PAD)


class Pieces:
    """Spells ``###`` with one token at the start of a text, and with two inside it."""

    bos_id, eos_id, pad_id = 1, 2, 0

    def encode(self, text: str) -> list[int]:
        if text.startswith("###"):
            return [8, *self.encode(text[3:])] if len(text) > 3 else [8]
        ids = []
        while text:
            ids += [22, 29] if text.startswith("###") else [ord(text[0])]
            text = text[3:] if text.startswith("###") else text[1:]
        return ids

    def decode(self, ids) -> str:
        return "".join({8: "###", 22: "##", 29: "#", 2: "", 0: ""}.get(i, chr(i)) for i in ids)


def test_both_spellings_end_an_answer():
    settings = Ending(Pieces(), PicturePrompt(2)).applied(GenerationConfig())
    assert settings.stop_sequences == ((8,), (22, 29))
    assert (settings.eos_tokens, settings.pad_token, settings.bos_token) == ((2,), 0, 1)


def test_words_stop_before_the_end():
    ending = Ending(Pieces(), PicturePrompt(2))
    assert ending.words([ord("a"), ord(" "), 22, 29, ord("b"), 0]) == "a"
    assert ending.words([ord("a"), 22]) == "a##", "half an end is no end"


def test_templates_whose_answers_end_with_eos():
    for template in (PicturePrompt(2, end=None), LMEyeCaption(5)):
        ending = Ending(Pieces(), template)
        assert ending.applied(GenerationConfig()).stop_sequences == ()
        assert ending.words([ord("a"), 22, 29]) == "a###"


def answers(config: GenerationConfig) -> np.ndarray:
    lengths = Lengths(target=6, prefix=8, request=2)
    batch = tiny.lmeye_batch(CONFIG, ROWS, lengths=lengths, answers=False, seed=5)
    return np.asarray(Generator(SYSTEM, config)(PARAMS, batch).tokens)


def test_a_sequence_ends_its_row_alone():
    free = answers(GREEDY)[:, 0]
    pair = tuple(free[0, 2:4].tolist())
    ended = answers(dataclasses.replace(GREEDY, stop_sequences=(pair,)))[:, 0]
    for row, whole in zip(ended, free, strict=True):
        hits = [i for i in range(NEW - 1) if tuple(whole[i : i + 2].tolist()) == pair]
        end = hits[0] + 2 if hits else NEW
        assert row.tolist() == whole[:end].tolist() + [tiny.PAD] * (NEW - end)
    assert (ended[0] == tiny.PAD).sum() >= 2


def test_it_must_be_said_in_the_answer_as_a_whole():
    """What the text starts with does not count: half of the sequence is in the start here."""
    free = answers(GREEDY)[:, 0]
    start = dict(rules="transformers-4.28", bos_token=9)
    first = int(free[0, 0])
    sequences = ((9, first),)
    ended = answers(dataclasses.replace(GREEDY, stop_sequences=sequences, **start))
    np.testing.assert_array_equal(ended[:, 0], free)


@pytest.mark.parametrize("ways", [{}, {"num_beams": 3}])
def test_a_sequence_of_one_token_is_an_eos(ways):
    config = dataclasses.replace(GREEDY, **ways)
    token = int(answers(config)[0, 0, 2])
    as_eos = answers(dataclasses.replace(config, eos_tokens=(token,)))
    as_sequence = answers(dataclasses.replace(config, stop_sequences=((token,),)))
    np.testing.assert_array_equal(as_sequence, as_eos)


def test_not_before_the_fewest_tokens():
    free = answers(GREEDY)[:, 0]
    stop = (tuple(free[0, :2].tolist()),)
    held = dataclasses.replace(GREEDY, stop_sequences=stop, min_new_tokens=NEW)
    np.testing.assert_array_equal(answers(held)[:, 0], free)


def test_an_empty_sequence_is_refused():
    with pytest.raises(ValueError, match="stop sequence has no tokens"):
        GenerationConfig(stop_sequences=((),))
