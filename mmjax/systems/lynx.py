"""Lynx (arXiv 2307.02469): pictures and videos become a few vectors in front of the text, and small
adapters inside a frozen language model learn to read them (Lynx reference, section 1).

    picture ----------EVA ViT--> [p+1 e] -------------------.
                                                            +--resampler--> [q d]
    video, F frames --EVA ViT--> [F p+1 e] + embedding[F] --'                 |
                                                                              v
                    language model with adapters reads   [ x x x x x x x x x x x ] <s> user: ...

Resampler, adapters and frame embedding are all that trains: 0.688 G of 8.4 G. Rows of a batch may
have pictures, videos, or text alone.

``fusion`` "cross-attention" is the paper's ablation (Lynx reference, section 5.2), for which there
is no code: our reading is Flamingo's gated cross-attention (`mmjax.nn.adapter`) before every k-th
layer, to the resampler's vectors, which are no part of the text then.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from mmjax.data.batch import Batch
from mmjax.models.eva_vit import EvaVit, EvaVitConfig
from mmjax.models.llama import Llama, LlamaConfig
from mmjax.models.resampler import Resampler, ResamplerConfig
from mmjax.nn.param import normal, param
from mmjax.systems.system import Output, System, read

FUSIONS = ("prefix", "cross-attention")


@dataclasses.dataclass(frozen=True)
class LynxConfig:
    """Sizes and switches.

    Attributes:
      num_frames: of a video (F); a checkpoint has an embedding for each.
      fusion: how the language model sees media, see the module.
      one_frame_is_a_picture: whether a video of one frame goes without frame embedding, as in the
        original, which tells videos by their number of frames (with ``num_frames`` 1 only).
      dtype: of the computation.
    """

    language: LlamaConfig
    vision: EvaVitConfig
    resampler: ResamplerConfig
    num_frames: int = 5
    fusion: Literal["prefix", "cross-attention"] = "prefix"
    one_frame_is_a_picture: bool = False
    dtype: str = "float32"

    def __post_init__(self):
        """Raises ValueError that lists all that does not go together."""
        sees, width = self.resampler.media_dim, self.resampler.embed_dim
        problems = []
        if sees != self.vision.embed_dim:
            problems.append(
                f"the resampler looks at states of width {sees}, the tower's are "
                f"{self.vision.embed_dim} wide; make media_dim the tower's embed_dim"
            )
        if width != self.language.embed_dim:
            problems.append(
                f"the resampler's vectors are {width} wide, the language model's "
                f"{self.language.embed_dim}; make the two embed_dim the same"
            )
        if self.num_frames < 1:
            problems.append(f"num_frames is {self.num_frames}, a video has at least 1")
        if self.fusion not in FUSIONS:
            problems.append(f"fusion is {self.fusion!r}, it must be one of {', '.join(FUSIONS)}")
        if (self.fusion == "cross-attention") != bool(self.language.cross_every):
            problems.append(
                f"fusion is {self.fusion!r} and the language model's cross_every "
                f"{self.language.cross_every}: cross-attention needs one above 0, prefix 0"
            )
        if problems:
            raise ValueError("LynxConfig:\n  " + "\n  ".join(problems))

    @property
    def tokens_per_picture(self) -> int:
        """Embeddings that a picture or a video becomes in the text (q)."""
        return self.resampler.num_latents if self.fusion == "prefix" else 0

    @classmethod
    def named(cls, variant: str, **changes) -> "LynxConfig":
        """A published size, or ``tiny``.

        ``7b`` is the released settings': 420 pixels, an adapter in every second layer (the paper
        says every layer); ``7b-224`` what the first stage of training begins with;
        ``7b-cross-attention`` the ablation, every fourth layer.
        """
        every = dict(adapter_every=2, adapter_dim=2048)
        variants = {
            "tiny": (64, dict(adapter_every=2, adapter_dim=32)),
            "7b": (420, every),
            "7b-224": (224, every),
            "7b-cross-attention": (420, dict(cross_every=4)),
        }
        if variant not in variants:
            raise ValueError(f"Lynx has no variant {variant!r}; there are {', '.join(variants)}")
        size, extras = variants[variant]
        fusion = "cross-attention" if "cross_every" in extras else "prefix"
        if variant == "tiny":
            language = LlamaConfig.tiny_clips(**extras)
            networks = language, EvaVitConfig.tiny(), ResamplerConfig.tiny()
            made = dict(dtype="float32", num_frames=3)
        else:
            # Vicuna's 32,000 rows and [PAD].
            language = LlamaConfig.llama_7b(vocab_size=32001, remat="dots", **extras)
            networks = language, EvaVitConfig.g_14(image_size=size), ResamplerConfig.lynx()
            made = dict(dtype="bfloat16")
        parts = dict(zip(("language", "vision", "resampler"), networks, strict=True))
        return cls(**parts | made | dict(fusion=fusion) | changes)


class Lynx(System):
    Config = LynxConfig
    tower = r"vision\."
    preparation = "center"

    def __init__(self, config: LynxConfig):
        self.language = Llama(config.language)
        self.vision = EvaVit(config.vision)
        self.resampler = Resampler(config.resampler)
        frames = (config.num_frames, config.vision.embed_dim)
        self.frame_embedding = param(frames, (None, "vit_embed"), normal())
        self.config = config
        self.dtype = jnp.dtype(config.dtype)

    @property
    def image_size(self) -> int:
        return self.config.vision.image_size

    def media_features(self, frames: jax.Array) -> jax.Array:
        """uint8[n H W 3] -> states of class token and patches [n p+1 e]."""
        return self.vision.image_features(frames, self.dtype)

    def hidden(
        self, batch: Batch, *, dropout_key: jax.Array | None = None, keep: bool = False
    ) -> Output:
        features = self.features(batch)
        aux, tables, seen = {}, {}, None
        if features is not None:
            aux["vision"] = self.in_time(features.astype(self.dtype), batch)
            aux["media"] = tables["media"] = self.resampled(aux["vision"], batch)
        if self.config.fusion == "cross-attention":
            seen = self.language.look(*self.seen(tables.get("media"), batch))
        states, kept, x = read(self, batch.target, tables, mode="replace", keep=keep, seen=seen)
        return Output(states, (kept,) if keep else (), aux | {"embeds": x}, seen)

    def in_time(self, states: jax.Array, batch: Batch) -> jax.Array:
        """The tower's states [b f p+1 e], those of videos with the embeddings of their frames."""
        one_frame = self.config.num_frames == 1 and self.config.one_frame_is_a_picture
        if batch.frame_time is None or one_frame:
            return states
        time = batch.frame_time[..., None]
        added = jnp.take(self.frame_embedding[...], jnp.maximum(time, 0), axis=0)  # [b f 1 e]
        return states + jnp.where(time[..., None] >= 0, added, 0).astype(states.dtype)

    def resampled(self, states: jax.Array, batch: Batch) -> jax.Array:
        """[b f p+1 e] -> the vectors of each medium [b f*q d]; a row has no more media than frames,
        those that it does not have mean nothing."""
        b, f, s, e = states.shape
        item = batch.frame_item
        if f == 1:
            item = None  # one picture or nothing: there is no other to keep apart from
        elif item is None:
            item = jnp.broadcast_to(jnp.arange(f, dtype=jnp.int32), (b, f))
        if item is not None:
            item = jnp.repeat(item, s, axis=1)
        return self.resampler(states.reshape(b, f * s, e), item, items=f)[0]

    def seen(self, media: jax.Array | None, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """What cross-attention sees: (vectors [b s d], i32[b s], 1 where there is one)."""
        if media is None:
            b = batch.target.tokens.shape[0]
            nothing = jnp.zeros((b, 1, self.config.language.embed_dim), self.dtype)
            return nothing, jnp.zeros((b, 1), jnp.int32)
        if batch.frame_item is None:
            raise ValueError(
                "cross-attention sees all media of a row, but the batch does not say which places "
                "have one: give frame_item (see `mmjax.data.batch.media_places`)"
            )
        items = jnp.arange(batch.frame_item.shape[1])
        there = (batch.frame_item[:, None] == items[None, :, None]).any(axis=2)  # [b m]
        segments = jnp.repeat(there.astype(jnp.int32), self.config.resampler.num_latents, axis=1)
        return media, segments
