"""Cheetor with VPG-C, in its two stages: align (one linear layer from BLIP-2's queries to the
frozen language model, on captions), then vpgc (the five tensors of the second look, on differences
between pictures and on captions). Everything else stays frozen.

With the paper's recipe (Cheetor reference, section 8):

    python scripts/train.py --config configs/cheetor.py:vicuna-7b \\
        --config.weights.language=/models/vicuna-7b-v0 --config.tokenizer=/models/vicuna-7b-v0 \\
        --config.weights.blip2=imported/blip2-flant5xxl \\
        --config.align.data.source=jsonl:captions.jsonl \\
        --config.vpgc.data.source.differences.source=jsonl:differences/pairs.jsonl \\
        --config.vpgc.data.source.captions.source=jsonl:captions.jsonl
"""

from ml_collections import ConfigDict

from mmjax.data.templates import PicturePrompt, to_json
from mmjax.systems.cheetor import CheetorConfig
from mmjax.systems.system import config_to_dict

ALIGN = (("projection.*", "train", 1.0), (".*", "freeze", 1.0))
VPGC = (("vpgc.*", "train", 1.0), (".*", "freeze", 1.0))
# The published prompts, by the language model that the sizes name.
PROMPTS = {
    "vicuna": dict(prompt="###Human: {message} ###Assistant: ", end="###", max_answer=160),
    "llama2": dict(
        prompt="[INST] <<SYS>>\n\n<</SYS>>\n\n{message} [/INST]",
        earlier=" [/INST] {answer} </s><s>[INST] ",
        end=None,
        max_answer=360,
    ),
}
REQUEST = "Describe the picture."


def get_config(variant: str = "vicuna-7b") -> ConfigDict:
    """``vicuna-7b`` (default), ``vicuna-13b``, ``llama2-7b``."""
    if variant not in ("vicuna-7b", "vicuna-13b", "llama2-7b"):
        raise ValueError(
            "configs/cheetor.py has the variants vicuna-7b, vicuna-13b and llama2-7b, "
            f"not {variant!r}"
        )
    model = CheetorConfig.named(variant)
    config = ConfigDict(
        dict(
            system="cheetor",
            variant=variant,
            model=config_to_dict(model),
            seed=0,
            weights=dict(
                all="",  # an imported Cheetor or a finished run, in place of the other two
                any_template=False,  # of ``all``: whether it may go on with another template
                language="",
                blip2="",
            ),
            tokenizer="",
            frozen_dtype="bfloat16",
            features="step",
            mesh=dict(data=1, fsdp=-1, tensor=1),
            preset="fsdp",
            max_bad_steps=10,
            max_bad_fraction=1e-3,  # of a source's records, or 100: more stop the run
            stages=("align", "vpgc"),
        )
    )
    _paper(config, model, PROMPTS["llama2" if "llama2" in variant else "vicuna"])
    return config


def _paper(config: ConfigDict, model: CheetorConfig, prompt: dict) -> None:
    size, q = model.blip2.vision.image_size, model.tokens_per_picture
    once, twice = (
        to_json(PicturePrompt(q, guidance=look, requests=(REQUEST,), **prompt))
        for look in ("none", "last")
    )
    common = dict(log_every=20, eval_every=0, eval_at_end=False, eval={}, keep_checkpoints=2)
    pictures = dict(split="train", image_size=size, preparation="crop")
    text = 64 + prompt["max_answer"]
    # Stage 0 is not published: MiniGPT-4's first stage, which fits the same layer, stands in.
    config.align = dict(
        steps=20_000,
        batch_size=256,
        accumulation=4,
        data=pictures | dict(source="", lengths=dict(target=q + text)),
        template=once,
        train=ALIGN,
        optimizer=dict(
            learning_rate=1e-4,
            schedule="lavis",
            warmup_steps=5000,
            start_learning_rate=1e-6,
            end_learning_rate=8e-5,
            weight_decay=0.05,
            decay_exclude=r".*\.bias",
            clip_norm=None,
        ),
        save_every=5000,
        **common,
    )
    # Batches of 24 pairs and 64 captions by turns, in the paper; here both in each of 88 rows.
    config.vpgc = dict(
        steps=18_000,
        batch_size=88,
        accumulation=4,
        data=pictures
        | dict(pictures=2, lengths=dict(target=2 * q + text))
        | dict(source=dict(differences=dict(source=""), captions=dict(source="")))
        | dict(weights=dict(differences=24.0, captions=64.0)),
        template=twice,
        train=VPGC,
        optimizer=dict(
            learning_rate=2e-5,
            schedule="lavis",
            warmup_steps=2000,
            start_learning_rate=1e-6,
            weight_decay=0.05,
            decay_exclude=r".*\.(bias|queries)",
            clip_norm=None,
        ),
        save_every=2000,
        **common,
    )
    config.test = {}
