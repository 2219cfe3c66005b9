"""MiniGPT-4 (arXiv 2304.10592) and LRV-Instruction V1, which is MiniGPT-4 on other data.

One linear layer between two frozen worlds (MiniGPT-4 reference, sections 1 and 5):

    picture --EVA ViT--> --Q-Former, 32 queries--> --projection--.
                                                                 v
                             <s> ###Human: <Img> [ x x x x x x x x x x ] </Img> ... ###Assistant:

It is all that trains: 3,149,824 parameters on a 7B.
"""

import dataclasses

import jax
import jax.numpy as jnp

from mmjax.data.batch import Batch
from mmjax.models.blip2 import Blip2, Blip2Config
from mmjax.models.llama import Llama, LlamaConfig
from mmjax.nn.dense import Linear
from mmjax.systems.system import Output, System, read


@dataclasses.dataclass(frozen=True)
class MiniGPT4Config:
    """``dtype``: of the computation; the originals' is float16."""

    language: LlamaConfig
    blip2: Blip2Config
    dtype: str = "float32"

    @property
    def tokens_per_picture(self) -> int:
        """Embeddings that a picture becomes (q)."""
        return self.blip2.num_queries

    @classmethod
    def named(cls, variant: str, **changes) -> "MiniGPT4Config":
        """A published size, or ``tiny``."""
        llms = {
            "tiny": LlamaConfig.tiny,
            "vicuna-7b": LlamaConfig.llama_7b,
            "vicuna-13b": LlamaConfig.llama_13b,
        }
        if variant not in llms:
            raise ValueError(f"MiniGPT-4 has no variant {variant!r}; there are {', '.join(llms)}")
        if variant == "tiny":
            return cls(LlamaConfig.tiny(), Blip2Config.tiny(), **changes)
        parts = dict(language=llms[variant](remat="dots"), blip2=Blip2Config.vit_g())
        return cls(**parts | dict(dtype="bfloat16") | changes)


class MiniGPT4(System):
    Config = MiniGPT4Config
    tower = r"blip2\."
    preparation = "squash"

    def __init__(self, config: MiniGPT4Config):
        queries, d = config.blip2.qformer.embed_dim, config.language.embed_dim
        self.language = Llama(config.language)
        self.blip2 = Blip2(config.blip2)
        self.projection = Linear(queries, d, axes=("projection", "embed"))
        self.config = config
        self.dtype = jnp.dtype(config.dtype)

    @property
    def image_size(self) -> int:
        return self.config.blip2.vision.image_size

    def media_features(self, frames: jax.Array) -> jax.Array:
        """uint8[n H W 3] -> what the queries found, [n q c]."""
        return self.blip2.query(self.blip2.image_features(frames, self.dtype))

    def hidden(
        self, batch: Batch, *, dropout_key: jax.Array | None = None, keep: bool = False
    ) -> Output:
        found = self.pictures(batch).astype(self.dtype)  # [b f q c]
        media = self.projection(found)
        tables = {"media": media.reshape(media.shape[0], -1, media.shape[-1])}
        states, kept, x = read(self, batch.target, tables, mode="replace", keep=keep)
        return Output(states, (kept,) if keep else (), {"media": media, "embeds": x})
