"""Cheetor with VPG-C, in its two stages: align (one linear layer from BLIP-2's queries to the
frozen language model, on captions), then vpgc (the five tensors of the second look, on differences
between pictures and on captions). Everything else stays frozen.

tiny, the default: questions about several easy-VQA pictures, two cores, about five minutes

    python scripts/train.py --config configs/cheetor.py

full size, with the paper's recipe (Cheetor reference, section 8)

    python scripts/train.py --config configs/cheetor.py:vicuna-7b \\
        --config.weights.language=/models/vicuna-7b-v0 --config.tokenizer=/models/vicuna-7b-v0 \\
        --config.weights.blip2=imported/blip2-flant5xxl \\
        --config.align.data.source=jsonl:captions.jsonl \\
        --config.vpgc.data.source.differences.source=jsonl:differences/pairs.jsonl \\
        --config.vpgc.data.source.captions.source=jsonl:captions.jsonl

The tiny model departs from the paper in one thing, on purpose: both its stages are trained on
questions as well, which a language model of this size cannot answer unless it has met them with
pictures.
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


def get_config(variant: str = "tiny") -> ConfigDict:
    """``tiny`` (default), ``tiny-unguided`` (its control), ``vicuna-7b``, ``vicuna-13b``,
    ``llama2-7b``."""
    unguided = variant == "tiny-unguided"
    name = "tiny" if unguided else variant
    tiny = name == "tiny"
    model = CheetorConfig.named(name)
    config = ConfigDict(
        dict(
            system="cheetor",
            variant=name,
            model=config_to_dict(model),
            seed=0,
            weights=dict(
                all="",  # an imported Cheetor or a finished run, in place of the other two
                any_template=False,  # of ``all``: whether it may go on with another template
                language="asset:tiny/llama-multi" if tiny else "",
                blip2="asset:tiny/blip2" if tiny else "",
            ),
            tokenizer="asset:tiny/llama-multi" if tiny else "",
            frozen_dtype="float32" if tiny else "bfloat16",
            features="once" if tiny else "step",
            mesh=dict(data=-1, fsdp=1, tensor=1) if tiny else dict(data=1, fsdp=-1, tensor=1),
            preset="dp" if tiny else "fsdp",
            max_bad_steps=10,
            max_bad_fraction=1e-3,  # of a source's records, or 100: more stop the run
            stages=("align", "vpgc"),
        )
    )
    if tiny:
        _tiny(config, model, guidance="first" if unguided else "last")
    else:
        _paper(config, model, PROMPTS["llama2" if "llama2" in name else "vicuna"])
    return config


def _tiny(config: ConfigDict, model: CheetorConfig, guidance: str) -> None:
    size, q = model.blip2.vision.image_size, model.tokens_per_picture
    # The tiny language model has only met pictures as "Image: SOMETHING." in its pretraining.
    words = dict(before_picture="Image: ", after_picture=".", end=None)
    asked = dict(prompt="{message}\nAnswer:", **words)
    once, twice = (to_json(PicturePrompt(q, guidance=look, **asked)) for look in ("none", guidance))
    common = dict(accumulation=1, log_every=20, eval_every=0, save_every=100, keep_checkpoints=2)
    common |= dict(eval_at_end=True)
    seen = dict(image_size=size, preparation="squash")
    questions = dict(source="easy-vqa-multi", pictures=3, lengths=dict(target=3 * (q + 4) + 24))
    asking = dict(data=seen | questions, batch_size=100, max_new_tokens=3)

    def on(split: str, count: int) -> dict:
        options = dict(num_records=count, max_pictures=3)
        return asking["data"] | dict(split=split, options=options)

    cosine = dict(schedule="cosine", warmup_steps=30, end_learning_rate=1e-4, weight_decay=0.05)
    sources = dict(
        questions=dict(source="easy-vqa-multi", options=dict(max_pictures=3)),
        differences=dict(source="easy-vqa-differences", options=dict(num_records=3000)),
        captions=dict(source="easy-vqa-multi", options=dict(task="caption")),
    )
    learning = seen | dict(split="train", pictures=3, lengths=dict(target=3 * (q + 4) + 26))
    common |= dict(batch_size=32)
    config.align = dict(
        steps=300,
        data=learning
        | dict(source={name: sources[name] for name in ("questions", "captions")})
        | dict(weights=dict(questions=0.5, captions=0.5)),
        template=once,
        train=ALIGN,
        optimizer=dict(learning_rate=1e-2, **cosine),
        eval=asking | dict(data=on("dev", 1100), template=once),
        **common,
    )
    config.vpgc = dict(
        steps=500,
        data=learning
        | dict(source=sources, weights=dict(questions=0.6, differences=0.2, captions=0.2)),
        template=twice,
        train=VPGC,
        optimizer=dict(learning_rate=2e-3, **cosine),
        eval=asking | dict(data=on("dev", 1100), template=twice),
        **common,
    )
    config.test = asking | dict(data=on("test", 4400), template=twice)


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
