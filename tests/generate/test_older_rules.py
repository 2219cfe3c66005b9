"""Beam search by the rules of transformers 4.28 to 4.31, which are written down here once more: one
row, one hypothesis, one candidate at a time (Lynx reference, section 3)."""

import dataclasses

import numpy as np
import pytest
import torch
from generate.test_against_transformers import NEW, PAD, Pair, make_pair

from mmjax.generate.config import GenerationConfig
from mmjax.generate.generator import Generator

pytestmark = pytest.mark.usefixtures("quick_compile")

BOS = 1
OLDER = dict(rules="transformers-4.28", bos_token=BOS, pad_token=PAD)


@dataclasses.dataclass
class Beam:
    total: float
    text: list[int]


def scores_of(pair: Pair, prompt: list[int], text: list[int], config: GenerationConfig):
    """Log probabilities of the next token, after the rules; ``text`` begins with bos, which the
    model does not see."""
    ids = torch.tensor([prompt + text[1:]])
    scores = torch.log_softmax(pair.theirs(ids).logits[0, -1], dim=-1).numpy().astype(np.float64)
    if config.repetition_penalty != 1:
        for token in set(text):
            factor = config.repetition_penalty
            scores[token] *= factor if scores[token] < 0 else 1 / factor
    if n := config.no_repeat_ngram_size:
        for i in range(len(text) - n + 1):
            if text[i : i + n - 1] == text[len(text) - n + 1 :]:
                scores[text[i + n - 1]] = -np.inf
    if len(text) - 1 < config.min_new_tokens:
        scores[list(config.eos_tokens)] = -np.inf
    return scores


def search(pair: Pair, prompt: list[int], config: GenerationConfig) -> list[tuple[float, list]]:
    """(score, new tokens) of the best, by the rules."""
    k, power = config.num_beams, config.length_penalty
    running, finished, done = [Beam(0.0, [BOS])], [], False

    def finish(beam: Beam, end: list[int]) -> None:
        finished.append((beam.total / len(beam.text) ** power, beam.text[1:] + end))
        finished.sort(key=lambda pair: -pair[0])
        del finished[k:]

    for _ in range(config.max_new_tokens):
        candidates = [
            (beam.total + score, token, beam)
            for beam in running
            for token, score in enumerate(scores_of(pair, prompt, beam.text, config))
        ]
        candidates.sort(key=lambda candidate: -candidate[0])
        candidates = candidates[: max(2, 1 + len(config.eos_tokens)) * k]
        length, running = len(running[0].text) + 1, []
        for rank, (total, token, beam) in enumerate(candidates):
            if token in config.eos_tokens:
                if rank < k:
                    finish(Beam(total, beam.text), [token])
            elif len(running) < k:
                running.append(Beam(total, [*beam.text, token]))
        if len(finished) == k:
            best = candidates[0][0]
            if config.early_stopping == "never" and power > 0:
                length = config.max_new_tokens + 1
            done = config.early_stopping is True or finished[-1][0] >= best / length**power
        if done:
            break
    if not done:
        for beam in running:
            finish(beam, [])
    return finished[: config.num_return_sequences]


SETTINGS = [
    dict(
        num_beams=5, length_penalty=-2.0, min_new_tokens=1, no_repeat_ngram_size=2
    ),  # Lynx, images
    dict(num_beams=3, length_penalty=-1.0, no_repeat_ngram_size=3, num_return_sequences=3),
    dict(num_beams=3, length_penalty=0.0, early_stopping=True, num_return_sequences=2),
    dict(num_beams=2, length_penalty=2.0, early_stopping="never", num_return_sequences=2),
    dict(num_beams=4, length_penalty=1.0, repetition_penalty=1.5, num_return_sequences=4),
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_beams(tmp_path, settings):
    config = GenerationConfig(NEW, eos_tokens=(3, 6, 9), **OLDER, **settings)
    for seed in range(3):
        pair = make_pair(seed, tmp_path / str(seed))
        made = Generator(pair.system, config)(pair.params, pair.batch(left=seed == 1))
        for row, prompt in enumerate(pair.prompts):
            wanted = search(pair, prompt, config)
            for beam, (score, text) in enumerate(wanted):
                padded = text + [PAD] * (NEW - len(text))
                np.testing.assert_array_equal(
                    made.tokens[row, beam], padded, err_msg=f"{seed} {row}"
                )
                assert float(made.scores[row, beam]) == pytest.approx(score, abs=1e-4)
