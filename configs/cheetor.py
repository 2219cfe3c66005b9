"""Cheetor with VPG-C, in its two stages: align (one linear layer from BLIP-2's queries to the frozen
language model, on captions), then vpgc (the five tensors of the second look, on differences between
pictures and on captions). Everything else stays frozen.

tiny, the default: questions about several easy-VQA pictures, two cores, about five minutes

    python scripts/train.py --config configs/cheetor.py

full size, with the paper's recipe (Cheetor reference, section 8)

    python scripts/train.py --config configs/cheetor.py:vicuna-7b \\
        --config.weights.language=/models/vicuna-7b-v0 --config.tokenizer=/models/vicuna-7b-v0 \\
        --config.weights.blip2=imported/blip2-flant5xxl \\
        --config.align.data.source=jsonl:captions.jsonl \\
        --config.vpgc.data.source.differences.source=jsonl:differences/pairs.jsonl \\
        --config.vpgc.data.source.captions.source=jsonl:captions.jsonl

The tiny model departs from the paper in one thing, on purpose: it is trained on questions as well,
which a language model of this size cannot answer unless it has met them with pictures.
"""

from ml_collections import ConfigDict

from mmjax.data.templates import PicturePrompt, to_json
from mmjax.models.llama import LlamaConfig
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
    model = CheetorConfig.named(name, **(dict(language=LlamaConfig.tiny_multi()) if tiny else {}))
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
