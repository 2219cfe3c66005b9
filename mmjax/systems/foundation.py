"""The two foundations that the systems stand on, trained on their own: a language model, and CLIP.

They exist to make the tiny towers under ``mmjax/assets`` (``configs/foundation.py``); at full size
one imports them.
"""

import dataclasses

import jax
import jax.numpy as jnp

from mmjax.data.batch import Batch
from mmjax.models.clip import Clip, ClipConfig
from mmjax.models.llama import Llama, LlamaConfig
from mmjax.systems.system import Output, System, read


@dataclasses.dataclass(frozen=True)
class LanguageModelConfig:
    language: LlamaConfig
    dtype: str = "float32"

    @classmethod
    def named(cls, variant: str) -> "LanguageModelConfig":
        if variant != "tiny":
            raise ValueError(
                f"the language model foundation has one variant, tiny, not {variant!r}"
            )
        return cls(LlamaConfig.tiny())


class LanguageModel(System):
    """Next-token prediction on text."""

    Config = LanguageModelConfig

    def __init__(self, config: LanguageModelConfig):
        self.language = Llama(config.language)
        self.config = config
        self.dtype = jnp.dtype(config.dtype)

    @property
    def image_size(self) -> int:
        return 0

    def hidden(
        self, batch: Batch, *, dropout_key: jax.Array | None = None, keep: bool = False
    ) -> Output:
        past, before = None, ()
        if batch.prefix is not None:
            _, past, _ = read(self, batch.prefix, {}, mode="replace", keep=True)
            before = (past,)
        states, kept, _ = read(self, batch.target, {}, mode="replace", past=past, keep=keep)
        return Output(states, (*before, kept) if keep else (), {})


@dataclasses.dataclass(frozen=True)
class ContrastiveConfig:
    clip: ClipConfig
    dtype: str = "float32"

    @classmethod
    def named(cls, variant: str) -> "ContrastiveConfig":
        if variant != "tiny":
            raise ValueError(f"the CLIP foundation has one variant, tiny, not {variant!r}")
        return cls(ClipConfig.tiny())


class Contrastive(System):
    """CLIP's loss (arXiv 2103.00020, figure 3), on two captions of each picture: ``target`` and
    ``request``.

    Pictures that share a caption to the letter are all right answers to it, in equal parts: in a
    small world the plain loss would call most of them wrong.
    """

    Config = ContrastiveConfig

    def __init__(self, config: ContrastiveConfig):
        self.clip = Clip(config.clip)
        self.config = config
        self.dtype = jnp.dtype(config.dtype)

    @property
    def image_size(self) -> int:
        return self.config.clip.vision.image_size

    def media_features(self, frames: jax.Array) -> jax.Array:  # uint8[n H W 3] -> [n c]
        return self.clip.image_features(frames, self.dtype)

    def loss(self, batch: Batch, *, dropout_key: jax.Array | None = None):
        """Sum over rows and both captions and directions; the weight is the number of rows."""
        pictures = _unit(self.features(batch)[:, 0])
        scale = jnp.exp(jnp.minimum(self.clip.logit_scale[...], jnp.log(100.0)))
        loss, right = 0.0, 0.0
        for captions in (batch.target, batch.request):
            texts = _unit(self.clip.text_features(captions.tokens, captions.segments, self.dtype))
            same = (captions.tokens[:, None] == captions.tokens[None]).all(-1).astype(jnp.float32)
            wanted = same / same.sum(1, keepdims=True)
            logits = scale * pictures @ texts.T  # f32[b b]
            loss += (_cross_entropy(logits, wanted) + _cross_entropy(logits.T, wanted)) / 4
            hit = jnp.take_along_axis(same, jnp.argmax(logits, axis=1)[:, None], axis=1)
            right += hit.sum() / 2
        return loss, jnp.float32(pictures.shape[0]), {"retrieval": right}


def _unit(x: jax.Array) -> jax.Array:
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)


def _cross_entropy(logits: jax.Array, wanted: jax.Array) -> jax.Array:
    return -(wanted * jax.nn.log_softmax(logits, axis=1)).sum()
