"""Cheetor with VPG-C (arXiv 2308.04152): the language model looks at its pictures a second time,
half-way, knowing what is asked (Cheetor reference, sections 1, 4, 5 and 8).

    pictures --EVA ViT--> X --Q-Former, general queries--> --projection--.
                          |                                              v
                          |     ###Human: <Img> [ x x x x x x x x x x x ] </Img> ... ###Assistant:
                          |                       |     layers 0 ... u-1                   |
                          |                       |                                   guidance g
                          |                       |                                        |
                          |   queries + query_projection(g) <------------------------------'
                          |              |        |
                          '-> same Q-Former       |
                                   |              v
                          language_projection --> [ + + + + + + + + + + + ]
                                                  |     layers u ... -> logits

The guidance is the state of one token, the last of the prompt; one set of conditioned queries asks
all pictures of a row. What is added stands in the keys and values of the layers from u on, so
generation does nothing more after the prompt. Both projections start at zero, and the whole as the
plain language model.

The linear variant (paper, section 2) has no Q-Former: the patches themselves are projected, and
what is added to them is ``(W1 g) * (W2 X)``.
"""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.data.batch import Batch
from mmjax.models.blip2 import Blip2, Blip2Config
from mmjax.models.llama import Llama, LlamaConfig
from mmjax.nn.dense import Dense, Linear
from mmjax.nn.param import normal, param, zeros
from mmjax.systems.system import Output, System, place, read, take


@dataclasses.dataclass(frozen=True)
class CheetorConfig:
    """Sizes and switches.

    Attributes:
      update_layer: the layer (from 0) before which the pictures are looked at again.
      vpg: what makes a picture's embeddings: ``q-former``, or ``linear`` (the paper's other
        variant).
      dtype: of the computation.
    """

    language: LlamaConfig
    blip2: Blip2Config
    update_layer: int
    vpg: Literal["q-former", "linear"] = "q-former"
    dtype: str = "float32"

    def __post_init__(self):
        if not 0 <= self.update_layer < self.language.num_layers:
            raise ValueError(
                f"update_layer is {self.update_layer}, the language model has layers 0 to "
                f"{self.language.num_layers - 1}: the pictures are looked at again before one of "
                "them (16 of Vicuna-7B's 32)"
            )
        if self.vpg not in ("q-former", "linear"):
            raise ValueError(f"vpg must be 'q-former' or 'linear', got {self.vpg!r}")

    @property
    def tokens_per_picture(self) -> int:
        """Embeddings that a picture becomes (q)."""
        is_linear = self.vpg == "linear"
        return self.blip2.vision.grid**2 if is_linear else self.blip2.num_queries

    @classmethod
    def named(cls, variant: str, **changes) -> "CheetorConfig":
        """A published size, or ``tiny``.

        ``vicuna-13b`` looks again before layer 24 of its 40, as the paper does, which takes it for
        the middle of 48.
        """
        llms = {
            "tiny": (LlamaConfig.tiny_multi(), 2),
            "vicuna-7b": (LlamaConfig.llama_7b(remat="dots"), 16),
            "vicuna-13b": (LlamaConfig.llama_13b(remat="dots"), 24),
            "llama2-7b": (LlamaConfig.llama2_7b(remat="dots"), 16),
        }
        if variant not in llms:
            raise ValueError(f"Cheetor has no variant {variant!r}; there are {', '.join(llms)}")
        language, update_layer = llms[variant]
        tiny = variant == "tiny"
        made = dict(
            language=language,
            blip2=Blip2Config.tiny() if tiny else Blip2Config.vit_g(),
            update_layer=update_layer,
            dtype="float32" if tiny else "bfloat16",
        )
        return cls(**made | changes)


class VPGC(nnx.Module):
    """The visual prompt generator complete: 6,320,896 parameters on a 7B."""

    def __init__(self, config: CheetorConfig):
        q, d = config.blip2.qformer.embed_dim, config.language.embed_dim
        zero = dict(bias=True, init=zeros)
        self.queries = param((config.blip2.num_queries, q), (None, "query_embed"), normal())
        self.query_projection = Dense(d, q, axes=("embed", "projection"), **zero)
        self.language_projection = Dense(q, d, axes=("projection", "embed"), **zero)

    def __call__(
        self, blip2: Blip2, image: jax.Array, guidance: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Asks again: image [b f p+1 e], guidance [b d] -> (what is added [b f q d],
        intermediates)."""
        b, f = image.shape[:2]
        guided = self.query_projection(guidance)  # [b c]
        queries = guided[:, None] + self.queries[...].astype(guided.dtype)
        asked = jnp.repeat(queries, f, axis=0)
        found = blip2.query(image.reshape(b * f, *image.shape[2:]), asked)
        added = self.language_projection(found).reshape(b, f, *found.shape[1:-1], -1)
        return added, {"guided": guided, "queries": queries, "found": found}


class LinearVPGC(nnx.Module):
    """``(W1 g) * (W2 X)``; W2 starts at zero."""

    def __init__(self, config: CheetorConfig):
        e, d = config.blip2.vision.embed_dim, config.language.embed_dim
        self.guidance_projection = Dense(d, d, axes=("embed", None), init=normal(d**-0.5))
        self.image_projection = Dense(e, d, axes=("projection", "embed"), init=zeros)

    def __call__(
        self, blip2: Blip2, image: jax.Array, guidance: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """As `VPGC`, with a row for each patch; the class token has none."""
        del blip2
        weights = self.guidance_projection(guidance)  # [b d]
        return weights[:, None, None] * self.image_projection(image[:, :, 1:]), {"guided": weights}


class Cheetor(System):
    Config = CheetorConfig
    tower = r"blip2\.(vision|norm)\."
    preparation = "squash"
    copies: ClassVar = {"vpgc.queries": "blip2.queries"}

    def __init__(self, config: CheetorConfig):
        d, u = config.language.embed_dim, config.update_layer
        is_linear = config.vpg == "linear"
        # Stored as two stacks: a slice of one would copy half of the weights.
        language = dataclasses.replace(config.language, splits=(u,) if u else ())
        self.language = Llama(language)
        self.blip2 = Blip2(config.blip2)
        seen = config.blip2.vision.embed_dim if is_linear else config.blip2.qformer.embed_dim
        self.projection = Linear(seen, d, axes=("projection", "embed"))
        self.vpgc = LinearVPGC(config) if is_linear else VPGC(config)
        self.config = config
        self.dtype = jnp.dtype(config.dtype)

    @property
    def image_size(self) -> int:
        return self.config.blip2.vision.image_size

    def media_features(self, frames: jax.Array) -> jax.Array:
        """uint8[n H W 3] -> X [n p+1 e], which both looks start from."""
        return self.blip2.image_features(frames, self.dtype)

    def hidden(
        self, batch: Batch, *, dropout_key: jax.Array | None = None, keep: bool = False
    ) -> Output:
        """Looks again where the batch has ``guidance`` slots; without, it is the plain model."""
        image = self.pictures(batch).astype(self.dtype)  # [b f p+1 e]
        aux = {"image": image}
        media = self.first_look(image, aux)
        slots = dict(batch.target.slots)
        guidance = slots.pop("guidance", None)
        target = dataclasses.replace(batch.target, slots=slots)

        def look_again(hidden: jax.Array) -> jax.Array:
            state = take(hidden, guidance)[:, 0]
            added, inside = self.vpgc(self.blip2, image, state)
            after = place(hidden, _rows(added), slots["media"], "add")
            aux.update(inside, guidance=state, added=added, before=hidden, after=after)
            return after

        states, kept, x = read(
            self,
            target,
            {"media": _rows(media)},
            mode="replace",
            keep=keep,
            edits=None if guidance is None else {self.config.update_layer: look_again},
        )
        return Output(states, (kept,) if keep else (), aux | {"embeds": x})

    def first_look(self, image: jax.Array, aux: dict[str, jax.Array]) -> jax.Array:
        """X [b f p+1 e] -> embeddings [b f q d]."""
        if self.config.vpg == "linear":
            return self.projection(image[:, :, 1:])
        b, f = image.shape[:2]
        found = self.blip2.query(image.reshape(b * f, *image.shape[2:]))
        aux["general"] = found
        return self.projection(found).reshape(b, f, *found.shape[1:-1], -1)


def _rows(media: jax.Array) -> jax.Array:
    """A slot table: [b f q d] -> [b f*q d]."""
    return media.reshape(media.shape[0], -1, media.shape[-1])
