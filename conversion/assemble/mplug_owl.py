"""mPLUG-Owl and LRV-Instruction V2 (mPLUG-Owl reference, sections 1, 3 and 5).

Sources, in any order:

    model   a folder of the Hub's, or an imported mPLUG-Owl
    state   files of the same tensors, all or some: what was trained, which is taken in place of the
            model's; with a variant it will do alone if it has all

LoRA, in files of its own or among a state's tensors: `conversion.lora`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from conversion.ops import Shape
from conversion.recognise import mplug_owl_sizes
from mmjax.systems.mplug_owl import MplugOwlConfig

MODEL_TYPE = "mplug-owl"
# What the original assumes where a config.json is silent.
_VISION = dict(num_attention_heads=16, layer_norm_eps=1e-6)
_ABSTRACTOR = _VISION | dict(attention_probs_dropout_prob=0.1)
_LANGUAGE = dict(num_attention_heads=32, rms_norm_eps=1e-6, max_position_embeddings=2048)


def config_from_hf(values: Mapping[str, Any], shapes: Mapping[str, Shape]) -> MplugOwlConfig:
    """Sizes by the tensors (old configs are wrong about the abstractor's mlp_dim), what they do
    not show by config.json.

    Raises:
      ValueError: shapes that are no mPLUG-Owl's.
    """
    sizes = mplug_owl_sizes(shapes)
    parts = ("vision_config", "visual_abstractor_config", "text_config")
    vision, abstractor, text = (
        defaults | dict(values.get(name) or {})
        for name, defaults in zip(parts, (_VISION, _ABSTRACTOR, _LANGUAGE), strict=True)
    )
    return dataclasses.replace(
        sizes,
        language=dataclasses.replace(
            sizes.language,
            num_heads=text["num_attention_heads"],
            num_kv_heads=None,
            head_dim=None,
            norm_eps=text["rms_norm_eps"],
            max_positions=text["max_position_embeddings"],
        ),
        vision=dataclasses.replace(
            sizes.vision,
            num_heads=vision["num_attention_heads"],
            norm_eps=vision["layer_norm_eps"],
        ),
        abstractor=dataclasses.replace(
            sizes.abstractor,
            num_heads=abstractor["num_attention_heads"],
            norm_eps=abstractor["layer_norm_eps"],
            dropout=abstractor["attention_probs_dropout_prob"],
        ),
    )
