"""What a checkpoint is, told by its keys and shapes alone, at any dims.

A `Kind` is a table with a way to infer a model of the same shapes. Numbers of heads do not show in
shapes: the inferred configs are for checking shapes, not for running.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx

from conversion import lora
from conversion.engine import ConversionError, Plan, plan
from conversion.io import Source
from conversion.ops import Shape
from conversion.rules import Table
from conversion.tables import (
    blip2,
    cheetor,
    eva_vit,
    lmeye,
    lynx,
    minigpt4,
    mplug_owl,
    visual_llama,
)
from conversion.tables.clip import CLIP, VISION
from conversion.tables.llama import LLAMA
from mmjax.models.abstractor import Abstractor, AbstractorConfig
from mmjax.models.blip2 import Blip2, Blip2Config
from mmjax.models.clip import Clip, ClipConfig, ClipTextConfig, ClipVision, ClipVisionConfig
from mmjax.models.eva_vit import EvaVit, EvaVitConfig
from mmjax.models.llama import Llama, LlamaConfig
from mmjax.models.qformer import QFormerConfig
from mmjax.models.resampler import ResamplerConfig
from mmjax.nn.lora import LoraConfig, with_lora
from mmjax.nn.param import specs
from mmjax.systems.cheetor import Cheetor, CheetorConfig
from mmjax.systems.lmeye import LMEye, LMEyeConfig
from mmjax.systems.lynx import Lynx, LynxConfig
from mmjax.systems.minigpt4 import MiniGPT4, MiniGPT4Config
from mmjax.systems.mplug_owl import MplugOwl, MplugOwlConfig
from mmjax.systems.visual_llama import ConnectorConfig, VisualLlama, VisualLlamaConfig

Shapes = Mapping[str, Shape]


class UnknownSizes(ValueError):
    """The shapes do not say how large the model is: a tensor that tells it is missing or of another
    rank."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of checkpoint. ``infer`` raises UnknownSizes.

    Attributes:
      table: its keys; ``table_of``: the table of an inferred config, where that says which tensor
        goes where (None: ``table`` does for all).
    """

    name: str
    table: Table
    model: Callable[[Any], nnx.Module]
    infer: Callable[[Shapes], object]
    table_of: Callable[[Any], Table] | None = None

    def num_consumed(self, source: Source) -> int:
        """How many keys some rule reads or the table ignores by name."""
        return sum(
            self.table.reads(key) or self.table.ignored(key) is not None for key in source.entries
        )

    def check(self, source: Source) -> tuple[object, Plan]:
        """(inferred config, plan). Raises UnknownSizes, or ConversionError with everything that
        does not fit."""
        try:
            config = self.infer(source.shapes)
            declared = specs(self.model(config))
        except UnknownSizes:
            raise
        except ValueError as error:  # a config that no model can have
            raise UnknownSizes(str(error)) from error
        table = self.table if self.table_of is None else self.table_of(config)
        wanted = {path: spec for path, spec in declared.items() if table.fills(path)}
        return config, plan(table, source, wanted)


def _shape(shapes: Shapes, rank: int, *keys: str) -> Shape:
    for key in keys:
        if key in shapes:
            if len(shapes[key]) != rank or 0 in shapes[key]:
                raise UnknownSizes(f"{key} should have {rank} dimensions, it is {shapes[key]}")
            return shapes[key]
    raise UnknownSizes(f"{' or '.join(keys)} is missing")


def _num_layers(shapes: Shapes, prefix: str) -> int:
    numbers = [int(m[1]) for key in shapes if (m := re.match(re.escape(prefix) + r"(\d+)\.", key))]
    if not numbers:
        raise UnknownSizes(f"no {prefix}0.")
    return max(numbers) + 1


def adapter_sizes(shapes: Shapes) -> dict[str, int]:
    """Which layers of a LLaMA have adapters, and how wide these are: fields of `LlamaConfig`."""
    layer = "model.layers."
    inside = re.compile(re.escape(layer) + r"(\d+)\.output_adapter\.")
    numbers = sorted({int(found[1]) for key in shapes if (found := inside.match(key))})
    if not numbers:
        return {}
    gaps = [after - before for before, after in itertools.pairwise(numbers)]
    every = min(gaps, default=_num_layers(shapes, layer))
    if numbers != list(range(0, every * len(numbers), every)):
        raise UnknownSizes(
            f"adapters in layers {numbers}: they should be in 0, {every}, {2 * every}, ..."
        )
    down = _shape(shapes, 2, f"{layer}0.output_adapter.adapter_down.weight")
    return {"adapter_every": every, "adapter_dim": down[0]}


def llama_sizes(shapes: Shapes) -> LlamaConfig:
    layer = "model.layers.0."
    vocab_size, embed_dim = _shape(shapes, 2, "model.embed_tokens.weight")
    q = _shape(shapes, 2, f"{layer}self_attn.q_proj.weight")[0]
    kv = _shape(shapes, 2, f"{layer}self_attn.k_proj.weight")[0]
    head_dim = math.gcd(q, kv)
    return LlamaConfig(
        vocab_size=vocab_size,
        num_layers=_num_layers(shapes, "model.layers."),
        embed_dim=embed_dim,
        mlp_dim=_shape(shapes, 2, f"{layer}mlp.gate_proj.weight")[0],
        num_heads=q // head_dim,
        num_kv_heads=kv // head_dim,
        head_dim=head_dim,
        tied_head="lm_head.weight" not in shapes,
        **adapter_sizes(shapes),
    )


def clip_vision_sizes(shapes: Shapes) -> ClipVisionConfig:
    d, _, patch, _ = _shape(shapes, 4, "vision_model.embeddings.patch_embedding.weight")
    positions = _shape(shapes, 2, "vision_model.embeddings.position_embedding.weight")[0]
    return ClipVisionConfig(
        image_size=patch * math.isqrt(positions - 1),
        patch_size=patch,
        num_layers=_num_layers(shapes, "vision_model.encoder.layers."),
        embed_dim=d,
        mlp_dim=_shape(shapes, 2, "vision_model.encoder.layers.0.mlp.fc1.weight")[0],
        num_heads=1,
    )


def clip_sizes(shapes: Shapes) -> ClipConfig:
    vocab_size, d = _shape(shapes, 2, "text_model.embeddings.token_embedding.weight")
    text = ClipTextConfig(
        vocab_size=vocab_size,
        max_positions=_shape(shapes, 2, "text_model.embeddings.position_embedding.weight")[0],
        num_layers=_num_layers(shapes, "text_model.encoder.layers."),
        embed_dim=d,
        mlp_dim=_shape(shapes, 2, "text_model.encoder.layers.0.mlp.fc1.weight")[0],
        num_heads=1,
    )
    projection_dim = _shape(shapes, 2, "visual_projection.weight")[0]
    return ClipConfig(vision=clip_vision_sizes(shapes), text=text, projection_dim=projection_dim)


def _clip_around(
    *, vision: ClipVisionConfig | None = None, text_dim: int = 1, projection_dim: int
) -> ClipConfig:
    """A CLIP of which only some sizes matter."""
    small = {"num_layers": 1, "mlp_dim": 1, "num_heads": 1}
    return ClipConfig(
        vision=vision or ClipVisionConfig(image_size=1, patch_size=1, embed_dim=1, **small),
        text=ClipTextConfig(vocab_size=2, max_positions=1, embed_dim=text_dim, **small),
        projection_dim=projection_dim,
    )


def clip_picture_half_sizes(shapes: Shapes) -> ClipConfig:
    projection_dim = _shape(shapes, 2, "visual_projection.weight")[0]
    return _clip_around(vision=clip_vision_sizes(shapes), projection_dim=projection_dim)


def _grid(positions: Shape) -> int:
    """Patches along a side, of positions [1 1+g*g d]."""
    grid = math.isqrt(positions[1] - 1)
    if not grid:
        raise UnknownSizes(f"positions of shape {positions} have no patches")
    return grid


def eva_vit_sizes(shapes: Shapes) -> EvaVitConfig:
    """In EVA's spelling or in Lynx's."""
    d, _, patch, _ = _shape(shapes, 4, "patch_embed.proj.weight")
    tables = {
        name: f"{where}.relative_position_bias_table"
        for name, where in (("relative", "blocks.0.attn"), ("shared_relative", "rel_pos_bias"))
    }
    tables = {name: _shape(shapes, 2, key) for name, key in tables.items() if key in shapes}
    if tables and "pos_embed" not in shapes:
        grid = (math.isqrt(max(max(tables.values())[0] - 3, 1)) + 1) // 2
    else:
        grid = _grid(_shape(shapes, 3, "pos_embed"))
    return EvaVitConfig(
        image_size=patch * grid,
        patch_size=patch,
        num_layers=_num_layers(shapes, "blocks."),
        embed_dim=d,
        mlp_dim=_shape(shapes, 2, "blocks.0.mlp.fc1.weight")[0],
        num_heads=max(tables.values())[1] if tables else 1,
        bias=not {"blocks.0.attn.q_bias", "blocks.0.attn.q_proj.bias"}.isdisjoint(shapes),
        positions="pos_embed" in shapes,
        relative="relative" in tables,
        shared_relative="shared_relative" in tables,
        layer_scale=float("blocks.0.gamma_1" in shapes),
    )


def resampler_sizes(shapes: Shapes) -> ResamplerConfig:
    num_latents, d = _shape(shapes, 2, "latents")
    inner = _shape(shapes, 2, "layers.0.0.to_q.weight")[0]
    return ResamplerConfig(
        embed_dim=d,
        media_dim=_shape(shapes, 2, "layers.0.0.to_kv.weight")[1],
        mlp_dim=_shape(shapes, 2, "layers.0.1.1.weight")[0],
        num_latents=num_latents,
        num_layers=_num_layers(shapes, "layers."),
        num_heads=1,
        head_dim=inner,
    )


def qformer_sizes(shapes: Shapes, *, layers: str, words: str) -> QFormerConfig:
    """``layers``: what the numbers of the layers follow; ``words``: what the text branch's two
    embeddings are below."""
    cross = (f"{layers}0.crossattention.{inner}.key.weight" for inner in ("self", "attention"))
    d, image_dim = _shape(shapes, 2, *cross)
    config = QFormerConfig(
        num_layers=_num_layers(shapes, layers),
        embed_dim=d,
        mlp_dim=_shape(shapes, 2, f"{layers}0.intermediate_query.dense.weight")[0],
        num_heads=1,
        image_dim=image_dim,
    )
    if f"{words}word_embeddings.weight" not in shapes:
        return config
    return dataclasses.replace(
        config,
        vocab_size=_shape(shapes, 2, f"{words}word_embeddings.weight")[0],
        max_positions=_shape(shapes, 2, f"{words}position_embeddings.weight")[0],
    )


def lavis_qformer_sizes(shapes: Shapes, prefix: str = "") -> QFormerConfig:
    """Of a BLIP-2 file of LAVIS; ``prefix`` stands before ``Qformer.``."""
    bert = f"{prefix}Qformer.bert."
    config = qformer_sizes(shapes, layers=f"{bert}encoder.layer.", words=f"{bert}embeddings.")
    head = f"{prefix}Qformer.cls.predictions.bias" in shapes
    return dataclasses.replace(config, text_head=head and config.vocab_size > 0)


def blip2_bridge_sizes(shapes: Shapes) -> Blip2Config:
    qformer = lavis_qformer_sizes(shapes)
    return _blip2_around(qformer, num_queries=_shape(shapes, 3, "query_tokens")[1])


def _blip2_around(qformer: QFormerConfig, *, num_queries: int = 1) -> Blip2Config:
    """One of which the tower does not matter."""
    small = dict(image_size=1, patch_size=1, num_layers=1, mlp_dim=1, num_heads=1)
    vision = EvaVitConfig(embed_dim=qformer.image_dim, **small)
    return Blip2Config(vision=vision, qformer=qformer, num_queries=num_queries)


def lavis_blip2_sizes(shapes: Shapes) -> Blip2Config:
    """Of a whole model of LAVIS, tower included."""
    names = ("", "llama_model.model.")  # Cheetor has its Q-Former twice, or under either name
    has = lambda name: f"{name}Qformer.bert.embeddings.LayerNorm.weight" in shapes  # noqa: E731
    return Blip2Config(
        vision=eva_vit_sizes(below("visual_encoder.", shapes)),
        qformer=lavis_qformer_sizes(shapes, next(filter(has, names), "")),
        num_queries=_shape(shapes, 3, "query_tokens")[1],
    )


def blip2_sizes(shapes: Shapes) -> Blip2Config:
    """As transformers names it."""
    vision, layer = "vision_model.", "vision_model.encoder.layers.0."
    d, _, patch, _ = _shape(shapes, 4, f"{vision}embeddings.patch_embedding.weight")
    tower = EvaVitConfig(
        image_size=patch * _grid(_shape(shapes, 3, f"{vision}embeddings.position_embedding")),
        patch_size=patch,
        num_layers=_num_layers(shapes, f"{vision}encoder.layers."),
        embed_dim=d,
        mlp_dim=_shape(shapes, 2, f"{layer}mlp.fc1.weight")[0],
        num_heads=1,
        key_bias=True,
    )
    qformer = qformer_sizes(shapes, layers="qformer.encoder.layer.", words="embeddings.")
    if qformer.image_dim != d:
        raise UnknownSizes(f"the Q-Former looks at width {qformer.image_dim}, the tower has {d}")
    num_queries = _shape(shapes, 3, "query_tokens")[1]
    return Blip2Config(vision=tower, qformer=qformer, num_queries=num_queries)


def lmeye_stage1_sizes(shapes: Shapes) -> LMEyeConfig:
    d, joint = _shape(shapes, 2, "imageLinear.weight", "imgLinear.weight")
    return LMEyeConfig(language=_llama_around(d), clip=_clip_around(projection_dim=joint))


def lmeye_net_sizes(shapes: Shapes) -> LMEyeConfig:
    d, joint = _shape(shapes, 2, "imgLinear.weight", "imageLinear.weight")
    text_dim = _shape(shapes, 2, "llm2clip.weight")[0]
    return LMEyeConfig(
        language=_llama_around(d),
        clip=_clip_around(text_dim=text_dim, projection_dim=joint),
        num_prompts=_shape(shapes, 2, "promptMlp.weight")[0] // text_dim,
        num_responses=_shape(shapes, 2, "imgdLinear.weight")[0] // d,
    )


def _llama_around(embed_dim: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=1, num_layers=1, embed_dim=embed_dim, mlp_dim=1, num_heads=1, added_rows=2
    )


def lmeye_full_sizes(shapes: Shapes) -> LMEyeConfig:
    return dataclasses.replace(
        lmeye_net_sizes(shapes),
        language=llama_sizes(below("llm.", shapes)),
        clip=clip_sizes(below("clip.", shapes)),
    )


def below(prefix: str, shapes: Shapes) -> Shapes:
    return {
        key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)
    }


def minigpt4_trained_sizes(shapes: Shapes) -> MiniGPT4Config:
    d, width = _shape(shapes, 2, "llama_proj.weight")
    qformer = QFormerConfig(num_layers=1, embed_dim=width, mlp_dim=1, num_heads=1, image_dim=1)
    return MiniGPT4Config(language=_llama_around(d), blip2=_blip2_around(qformer))


def minigpt4_full_sizes(shapes: Shapes) -> MiniGPT4Config:
    language = llama_sizes(below("llama_model.", shapes))
    return MiniGPT4Config(language=language, blip2=lavis_blip2_sizes(shapes))


def _cheetor_sizes(plain: MiniGPT4Config, shapes: Shapes) -> CheetorConfig:
    """What is added to MiniGPT-4 has shapes that follow from it. Which layer looks again does not
    show."""
    num_queries = _shape(shapes, 3, "llama_model.model.query_tokens")[1]
    blip2 = dataclasses.replace(plain.blip2, num_queries=num_queries)
    return CheetorConfig(plain.language, blip2, update_layer=plain.language.num_layers // 2)


def cheetor_trained_sizes(shapes: Shapes) -> CheetorConfig:
    return _cheetor_sizes(minigpt4_trained_sizes(shapes), shapes)


def cheetor_saved_sizes(shapes: Shapes) -> CheetorConfig:
    config = cheetor_trained_sizes(shapes)
    qformer = lavis_qformer_sizes(shapes, "llama_model.model.")
    blip2 = _blip2_around(qformer, num_queries=config.blip2.num_queries)
    return dataclasses.replace(config, blip2=blip2)


def cheetor_full_sizes(shapes: Shapes) -> CheetorConfig:
    return _cheetor_sizes(minigpt4_full_sizes(shapes), shapes)


def lynx_trained_sizes(shapes: Shapes) -> LynxConfig:
    """Sizes of tower and language model that do not show are 1."""
    _, num_frames, _, e = _shape(shapes, 4, "absolute_frame_pos_embed")
    resampler = resampler_sizes(below("bridge.", shapes))
    inside = below("LLM.", shapes)
    extras = adapter_sizes(inside)
    layers = _num_layers(inside, "model.layers.") if extras else 1
    language = dataclasses.replace(_llama_around(resampler.embed_dim), num_layers=layers, **extras)
    small = dict(image_size=1, patch_size=1, num_layers=1, mlp_dim=1, num_heads=1)
    return LynxConfig(language, EvaVitConfig(embed_dim=e, **small), resampler, num_frames)


def lynx_full_sizes(shapes: Shapes) -> LynxConfig:
    return dataclasses.replace(
        lynx_trained_sizes(shapes),
        language=llama_sizes(below("LLM.", shapes)),
        vision=eva_vit_sizes(below("vision_encoder.", shapes)),
    )


def lynx_tower_sizes(shapes: Shapes) -> EvaVitConfig:
    return eva_vit_sizes(below("vision_encoder.", shapes))


def owl_tower_sizes(shapes: Shapes) -> ClipVisionConfig:
    """Of mPLUG-Owl's."""
    inside = below("vision_model.", shapes)
    d, _, patch, _ = _shape(inside, 4, "embeddings.patch_embed.weight")
    return ClipVisionConfig(
        image_size=patch * _grid(_shape(inside, 3, "embeddings.position_embedding")),
        patch_size=patch,
        num_layers=_num_layers(inside, "encoder.layers."),
        embed_dim=d,
        mlp_dim=_shape(inside, 2, "encoder.layers.0.mlp.fc1.weight")[0],
        num_heads=1,
        norm_eps=1e-6,
    )


def abstractor_sizes(shapes: Shapes) -> AbstractorConfig:
    layers = "abstractor.encoder.layers."
    _, num_queries, d = _shape(shapes, 3, "query_tokens")
    return AbstractorConfig(
        embed_dim=d,
        out_dim=_shape(shapes, 2, "abstractor.visual_fc.weight")[0],
        mlp_dim=_shape(shapes, 2, f"{layers}0.crossattention.output.mlp.w1.weight")[0],
        num_queries=num_queries,
        num_layers=_num_layers(shapes, layers),
        num_heads=1,
    )


def mplug_owl_sizes(shapes: Shapes) -> MplugOwlConfig:
    language = llama_sizes(below("language_model.", shapes))
    return MplugOwlConfig(language, owl_tower_sizes(shapes), abstractor_sizes(shapes))


def connector_sizes(shapes: Shapes, embed_dim: int) -> ConnectorConfig:
    """Of Visual-LLaMA's, in front of a language model of this width."""
    prefix, layers = "image_project.prefix_const", "image_project.transformer.layers."
    if prefix not in shapes:
        out = _shape(shapes, 2, "image_project.model.2.weight")[0]
        return ConnectorConfig(num_tokens=out // embed_dim)
    first = _shape(shapes, 2, "image_project.linear.weight")[0]
    mlp_dim = _shape(shapes, 2, f"{layers}0.mlp.fc1.weight")[0]
    return ConnectorConfig(
        kind="transformer",
        num_tokens=_shape(shapes, 2, prefix)[0],
        num_latents=first // embed_dim,
        num_layers=_num_layers(shapes, layers),
        num_heads=1,
        mlp_ratio=mlp_dim / embed_dim,
    )


def _visual_llama_sizes(shapes: Shapes, language: LlamaConfig) -> VisualLlamaConfig:
    """Sizes of the tower are 1."""
    small = dict(image_size=1, patch_size=1, num_layers=1, mlp_dim=1, num_heads=1, embed_dim=1)
    first = ("image_project.model.0.weight", "image_project.linear.weight")
    return VisualLlamaConfig(
        language,
        ClipVisionConfig(**small),
        projection_dim=_shape(shapes, 2, *first)[1],
        connector=connector_sizes(shapes, language.embed_dim),
    )


def visual_llama_sizes(shapes: Shapes) -> VisualLlamaConfig:
    return _visual_llama_sizes(shapes, llama_sizes(below("llm.", shapes)))


def visual_llama_connector_sizes(shapes: Shapes) -> VisualLlamaConfig:
    """Of a connector alone; an MLP does not tell how many vectors it makes: one."""
    prefix = "image_project.prefix_const"
    if prefix in shapes:
        width = _shape(shapes, 2, prefix)[1]
    else:
        width = _shape(shapes, 2, "image_project.model.2.weight")[0]
    language = dataclasses.replace(_llama_around(width), added_rows=0)
    return _visual_llama_sizes(shapes, language)


WithLora = tuple[Any, LoraConfig]


def visual_llama_lora_sizes(shapes: Shapes) -> WithLora:
    config = visual_llama_sizes(shapes)
    return config, _lora(VisualLlama(config), visual_llama.FULL, shapes)


def visual_llama_adapter_sizes(shapes: Shapes) -> WithLora:
    """Sizes of the language model that do not show are 1."""
    language, adapter = llama_adapter_sizes(below("llm.", shapes))
    target = rf"language\.(?:{adapter.target})"
    return _visual_llama_sizes(shapes, language), dataclasses.replace(adapter, target=target)


def _lora_part(shapes: Shapes) -> Shapes:
    return {key: shape for key, shape in shapes.items() if ".lora_" in key}


def _lora(model: nnx.Module, names: Table, shapes: Shapes) -> LoraConfig:
    target, rank, problems = lora.sizes(model, names, _lora_part(shapes))
    if problems:
        raise UnknownSizes("; ".join(problems))
    return LoraConfig(target, rank)


def mplug_owl_lora_sizes(shapes: Shapes) -> WithLora:
    config = mplug_owl_sizes(shapes)
    return config, _lora(MplugOwl(config), mplug_owl.full(1), shapes)


def mplug_owl_adapter_sizes(shapes: Shapes) -> WithLora:
    """Sizes of the language model that do not show, and all of the tower's, are 1."""
    language, adapter = llama_adapter_sizes(below("language_model.", shapes))
    d = language.embed_dim
    small = dict(num_layers=1, mlp_dim=1, num_heads=1, embed_dim=1)
    config = MplugOwlConfig(
        language,
        ClipVisionConfig(image_size=1, patch_size=1, **small),
        AbstractorConfig(num_queries=1, out_dim=d, **small),
    )
    return config, dataclasses.replace(adapter, target=rf"language\.(?:{adapter.target})")


def llama_adapter_sizes(shapes: Shapes) -> WithLora:
    """Sizes of the language model that do not show are 1."""
    side = {"lora_A": 1, "lora_B": 0}

    def width(leaf: str, *layers: str) -> int:
        keys = [f"model.layers.0.{layer}.{leaf}.weight" for layer in layers]
        there = [key for key in keys if key in shapes]
        return _shape(shapes, 2, *there)[side[leaf]] if there else 0

    reads, writes = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), (
        "self_attn.o_proj", "mlp.down_proj",
    )  # fmt: skip
    wide = ("mlp.gate_proj", "mlp.up_proj")
    d = width("lora_A", *reads, *wide) or width("lora_B", *writes)
    if not d:
        raise UnknownSizes("no layer's LoRA tells how wide the language model is")
    q = width("lora_B", reads[0]) or width("lora_A", writes[0]) or d
    kv = width("lora_B", *reads[1:]) or q
    head_dim = math.gcd(q, kv)
    config = LlamaConfig(
        vocab_size=1,
        num_layers=_num_layers(shapes, "model.layers."),
        embed_dim=d,
        mlp_dim=width("lora_B", *wide) or width("lora_A", writes[1]) or 1,
        num_heads=q // head_dim,
        num_kv_heads=kv // head_dim,
        head_dim=head_dim,
    )
    return config, _lora(Llama(config), LLAMA, shapes)


def without_model_prefix(source: Source) -> Source:
    """Lynx's files may have ``model.`` before every key."""
    if not any(key.startswith("model.bridge.") for key in source.entries):
        return source
    entries = {key.removeprefix("model."): entry for key, entry in source.entries.items()}
    notices = (*source.notices, "the prefix 'model.' was taken off every key")
    return dataclasses.replace(source, entries=entries, notices=notices)


LMEYE_NET = Kind("lmeye stage 2 net", lmeye.NET, LMEye, lmeye_net_sizes)
LMEYE_STAGE1 = Kind("lmeye stage 1 net", lmeye.NET_STAGE1, LMEye, lmeye_stage1_sizes)
LMEYE_FULL = Kind("lmeye whole model", lmeye.FULL, LMEye, lmeye_full_sizes)
MINIGPT4_TRAINED = Kind("minigpt4 trained part", minigpt4.TRAINED, MiniGPT4, minigpt4_trained_sizes)
MINIGPT4_FULL = Kind("minigpt4 whole model", minigpt4.FULL, MiniGPT4, minigpt4_full_sizes)
CHEETOR_TRAINED = Kind("cheetor trained part", cheetor.TRAINED, Cheetor, cheetor_trained_sizes)
CHEETOR_SAVED = Kind(
    "cheetor trained part and Q-Former", cheetor.SAVED, Cheetor, cheetor_saved_sizes
)
CHEETOR_FULL = Kind("cheetor whole model", cheetor.FULL, Cheetor, cheetor_full_sizes)
MPLUG_OWL = Kind("mplug-owl whole model", mplug_owl.full(1), MplugOwl, mplug_owl_sizes)
KINDS = (
    Kind("llama", LLAMA, Llama, llama_sizes),
    Kind("clip", CLIP, Clip, clip_sizes),
    Kind("clip picture half", VISION, Clip, clip_picture_half_sizes),
    Kind("eva vit", eva_vit.EVA, EvaVit, eva_vit_sizes),
    Kind("blip-2 of LAVIS without its tower", blip2.BRIDGE, Blip2, blip2_bridge_sizes),
    Kind("blip-2 of transformers", blip2.HF, Blip2, blip2_sizes),
    LMEYE_NET,
    LMEYE_STAGE1,
    LMEYE_FULL,
    MINIGPT4_TRAINED,
    MINIGPT4_FULL,
    CHEETOR_TRAINED,
    CHEETOR_SAVED,
    CHEETOR_FULL,
    Kind("lynx vision encoder", lynx.TOWER, EvaVit, lynx_tower_sizes),
    Kind(
        "lynx trained part",
        lynx.trained(1),
        Lynx,
        lynx_trained_sizes,
        lambda config: lynx.trained(config.language.adapter_every),
    ),
    Kind(
        "lynx whole model",
        lynx.full(1),
        Lynx,
        lynx_full_sizes,
        lambda config: lynx.full(config.language.adapter_every),
    ),
    Kind("mplug-owl vision tower", mplug_owl.tower(1), ClipVision, owl_tower_sizes),
    Kind("mplug-owl abstractor", mplug_owl.ABSTRACTOR, Abstractor, abstractor_sizes),
    MPLUG_OWL,
    Kind(
        "mplug-owl whole model with LoRA",
        mplug_owl.full(1) + lora.lora_rules(mplug_owl.full(1)),
        lambda made: with_lora(MplugOwl(made[0]), made[1]),
        mplug_owl_lora_sizes,
    ),
    Kind(
        "mplug-owl LoRA adapter",
        lora.lora_rules(mplug_owl.full(1)),
        lambda made: with_lora(MplugOwl(made[0]), made[1]),
        mplug_owl_adapter_sizes,
    ),
    Kind("visual-llama without CLIP", visual_llama.FULL, VisualLlama, visual_llama_sizes),
    Kind(
        "visual-llama connector",
        visual_llama.CONNECTOR,
        VisualLlama,
        visual_llama_connector_sizes,
    ),
    Kind(
        "visual-llama without CLIP, with LoRA",
        visual_llama.FULL + lora.lora_rules(visual_llama.FULL),
        lambda made: with_lora(VisualLlama(made[0]), made[1]),
        visual_llama_lora_sizes,
    ),
    Kind(
        "visual-llama connector and LoRA",
        visual_llama.CONNECTOR + lora.lora_rules(visual_llama.FULL),
        lambda made: with_lora(VisualLlama(made[0]), made[1]),
        visual_llama_adapter_sizes,
    ),
    Kind(
        "llama LoRA adapter",
        lora.lora_rules(LLAMA),
        lambda made: with_lora(Llama(made[0]), made[1]),
        llama_adapter_sizes,
    ),
)


def recognise(source: Source) -> tuple[Kind, object, Plan]:
    """(kind, inferred config, plan) of the one table that consumes exactly these keys and shapes.

    Raises:
      ConversionError: none does; the problems are those of the table that comes closest.
    """
    source = lora.plain(without_model_prefix(source))
    if not source.entries:
        raise ConversionError(source.name, ["there are no tensors in it"])
    known = {kind: consumed for kind in KINDS if (consumed := kind.num_consumed(source))}
    closest: ConversionError | None = None
    for kind in sorted(known, key=lambda kind: (-known[kind], len(kind.table.rules))):
        try:
            return kind, *kind.check(source)
        except UnknownSizes as error:
            problems = [f"({known[kind]} of its {len(source.entries)} keys known) {error}"]
        except ConversionError as error:
            problems = error.problems
        problems = [f"as {kind.name}: {problem}" for problem in problems]
        closest = closest or ConversionError(source.name, problems)
    if closest is None:
        tables = "; ".join(kind.name for kind in KINDS)
        raise ConversionError(
            source.name, [f"no table knows any of its {len(source.entries)} keys; tables: {tables}"]
        )
    raise closest
