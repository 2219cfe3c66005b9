"""Recordings of what transformers does to scores before it chooses a token (Lynx reference, section
3): no model, given logits."""

import re
from collections.abc import Mapping

import jax
import numpy as np

from conversion.io import Source
from conversion.recordings import Ours, Replayed
from mmjax.generate.beam import sums
from mmjax.generate.config import GenerationConfig
from mmjax.generate.logits import (
    ban_repeated_ngrams,
    keep_top_k,
    keep_top_p,
    penalize_repetition,
    process,
)

_LYNX = dict(top_k=3, top_p=0.9, no_repeat_ngram_size=2)  # as its shipped settings file has it


def is_rules(config: Mapping, keys: set[str]) -> bool:
    return {"logits", "beam_scores", "beam_sample_scores", "beam_sample_probs"} <= keys


def rules(config: Mapping, state: Source | None, recorded: Mapping[str, np.ndarray]) -> Replayed:
    """Every rule alone, by the number in the tensor's name, and a step of beam sampling."""
    logits, text = recorded["logits"], recorded["input_ids"].astype(np.int32)
    dims, end = config["dims"], text.shape[1]
    new = dict(eos_tokens=(dims["eos"],), rules="transformers-4.28", bos_token=1)
    short = GenerationConfig(min_new_tokens=1, **new)
    ours = {"min_length": Ours(process(logits, text, end, 0, short))}
    one = {
        r"repetition_penalty_(.+)": lambda x: penalize_repetition(logits, text, float(x)),
        r"no_repeat_ngram_(\d+)": lambda n: ban_repeated_ngrams(logits, text, end, int(n)),
        r"top_k_(\d+)": lambda k: keep_top_k(logits, int(k)),
        r"top_k_(\d+)_keep(\d+)": lambda k, least: keep_top_k(logits, max(int(k), int(least))),
        r"top_p_([\d.]+)": lambda p: keep_top_p(logits, float(p)),
        r"top_p_([\d.]+)_keep(\d+)": lambda p, least: keep_top_p(logits, float(p), int(least)),
    }
    for name in recorded:
        for pattern, rule in one.items():
            if match := re.fullmatch(pattern, name):
                ours[name] = Ours(rule(*match.groups()))
    drawn = GenerationConfig(do_sample=True, num_beams=dims["num_beams"], **_LYNX, **new)
    scores = sums(logits, text, recorded["beam_scores"][:, None], end, 0, drawn)
    ours["beam_sample_scores"] = Ours(scores)
    ours["beam_sample_probs"] = Ours(jax.nn.softmax(scores.reshape(dims["batch"], -1)))
    given = dict.fromkeys(("logits", "input_ids", "beam_scores"), "an input")
    return ours, given, []
