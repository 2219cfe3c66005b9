"""Visual-LLaMA ("Open LLaMA Eyes to See the World", April 2023; Visual-LLaMA reference).

All of a picture is one vector, CLIP's; a connector makes ten of it, which a LLaMA reads between two
words:

    picture --CLIP, pooled and projected--> [c] --connector--> [10 d]
                                                                 |
                                  <s>  x x x x x x x x x x  [eoi]  a red bus

Stage 1 trains the connector and the rows of the new words ``[boi]`` and ``[eoi]``; stage 2 LoRA in
the language model (`mmjax.nn.lora`), on questions to pictures and on texts without any.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.data.batch import Batch
from mmjax.kernels.attention import attention
from mmjax.models.clip import ClipConfig, ClipPictures, ClipVisionConfig
from mmjax.models.llama import Llama, LlamaConfig
from mmjax.nn.attention import Attention
from mmjax.nn.dense import Linear
from mmjax.nn.mlp import MLP
from mmjax.nn.norm import LayerNorm
from mmjax.nn.param import linear, normal, param
from mmjax.nn.stack import run, stack
from mmjax.systems.system import Output, System, read

WORDS = ("[boi]", "[eoi]", "[quest]", "[ans]")  # what is added to the vocabulary, in this order


@dataclasses.dataclass(frozen=True)
class ConnectorConfig:
    """From one vector to several.

    Attributes:
      kind: mlp | transformer; the fields from ``num_latents`` on are the Transformer's.
      num_tokens: vectors that a picture becomes (q).
      num_latents: what the picture's vector is cut into first; upstream has no value for it, 10 is
        that of the work on captions that its mapper descends from.
      mlp_ratio: width of its MLPs by that of the language model.
    """

    kind: str = "mlp"
    num_tokens: int = 10
    num_latents: int = 10
    num_layers: int = 8
    num_heads: int = 8
    mlp_ratio: float = 2.0

    def __post_init__(self):
        """Raises ValueError that lists all that is wrong."""
        problems = [
            f"{name} is {getattr(self, name)}, it must be at least 1"
            for name in ("num_tokens", "num_latents", "num_layers", "num_heads")
            if getattr(self, name) < 1
        ]
        if self.kind not in ("mlp", "transformer"):
            problems.append(f"kind is {self.kind!r}, it must be mlp or transformer")
        if problems:
            raise ValueError("connector:\n  " + "\n  ".join(problems))


@dataclasses.dataclass(frozen=True)
class VisualLlamaConfig:
    """``projection_dim``: width of CLIP's vector (c); ``dtype``: of the computation.

    The language model has as many ``added_rows`` as it knows of `WORDS`: two after stage 1, all
    four in stage 2.
    """

    language: LlamaConfig
    vision: ClipVisionConfig
    projection_dim: int
    connector: ConnectorConfig = ConnectorConfig()
    dtype: str = "float32"

    def __post_init__(self):
        """Raises ValueError: widths that do not go together."""
        width, heads = self.language.embed_dim, self.connector.num_heads
        if self.connector.kind == "transformer" and width % heads:
            raise ValueError(
                f"the connector has {heads} heads, which do not divide {width}, the width of the "
                "language model: change connector.num_heads"
            )
        if self.connector.kind == "mlp" and self.connector.num_tokens * width % 2:
            raise ValueError(
                f"an MLP in between is half as wide as {self.connector.num_tokens} vectors of "
                f"{width}, which is odd: change connector.num_tokens"
            )

    @property
    def tokens_per_picture(self) -> int:
        """Embeddings that a picture becomes (q)."""
        return self.connector.num_tokens

    @classmethod
    def named(cls, variant: str, **changes) -> "VisualLlamaConfig":
        """A published size, or ``tiny``."""
        added = dict(added_rows=len(WORDS), added_logits=True)
        llms = {"7b": LlamaConfig.llama_7b, "13b": LlamaConfig.llama_13b}
        if variant == "tiny":
            clip, language = ClipConfig.tiny(), LlamaConfig.tiny(**added)
            return cls(language, clip.vision, clip.projection_dim, **changes)
        if variant not in llms:
            raise ValueError(
                f"Visual-LLaMA has no variant {variant!r}; there are tiny, {', '.join(llms)}"
            )
        clip = ClipConfig.vit_l14()
        language = llms[variant](remat="dots", **added)
        made = dict(vision=clip.vision, projection_dim=clip.projection_dim, dtype="bfloat16")
        return cls(language, **made | changes)


class MlpConnector(nnx.Module):
    """Two layers, the first as wide as half of what comes out."""

    def __init__(self, in_dim: int, out_dim: int, config: ConnectorConfig):
        whole = config.num_tokens * out_dim
        self.hidden = Linear(in_dim, whole // 2, axes=("clip_embed", "mlp"))
        self.out = Linear(whole // 2, whole, axes=("mlp", "embed"))
        self.num_tokens = config.num_tokens

    def __call__(self, x: jax.Array) -> jax.Array:  # [b c] -> [b q d]
        return self.out(jnp.tanh(self.hidden(x))).reshape(len(x), self.num_tokens, -1)


class _Block(nnx.Module):
    def __init__(self, dim: int, config: ConnectorConfig):
        self.attention_norm = LayerNorm(dim)
        self.attention = Attention(
            dim,
            num_heads=config.num_heads,
            head_dim=dim // config.num_heads,
            out_bias=True,
            init=linear,
        )
        self.mlp_norm = LayerNorm(dim)
        self.mlp = MLP(dim, int(dim * config.mlp_ratio), activation="relu", init=linear)

    def __call__(self, x: jax.Array) -> jax.Array:  # [b t d] -> [b t d]
        x = x + self.attention(self.attention_norm(x), _everywhere)[0]
        return x + self.mlp(self.mlp_norm(x))


def _everywhere(query, key, value):
    return attention(query, key, value, causal=False), None


class TransformerConnector(nnx.Module):
    """The picture's vector, cut into ``num_latents``, and q learned vectors behind them, read each
    other in pre-norm blocks; what has become of the learned ones comes out, without a norm."""

    def __init__(self, in_dim: int, out_dim: int, config: ConnectorConfig):
        self.linear = Linear(in_dim, config.num_latents * out_dim, axes=("projection", "embed"))
        self.prefix = param((config.num_tokens, out_dim), (None, "embed"), normal(1.0))
        self.layers = stack(_Block(out_dim, config), config.num_layers)
        self.config = config

    def __call__(self, x: jax.Array) -> jax.Array:  # [b c] -> [b q d]
        return self.states(self.start(x))[0][:, self.config.num_latents :]

    def start(self, x: jax.Array) -> jax.Array:
        """[b c] -> what goes into the first block, [b latents+q d]."""
        latents = self.linear(x).reshape(len(x), self.config.num_latents, -1)
        prefix = self.prefix[...].astype(x.dtype)
        prefix = jnp.broadcast_to(prefix, (len(x), *prefix.shape))
        return jnp.concatenate([latents, prefix], axis=1)

    def states(
        self, x: jax.Array, taps: tuple[int, ...] = ()
    ) -> tuple[jax.Array, jax.Array | None]:
        """[b t d] -> (states after the last block [b t d], those after the ones in ``taps``)."""
        body = lambda block, x, *_: (block(x), None)  # noqa: E731
        x, _, tapped = run(self.layers, body, x, taps=taps)
        return x, tapped


CONNECTORS = {"mlp": MlpConnector, "transformer": TransformerConnector}


class VisualLlama(System):
    Config = VisualLlamaConfig
    tower = r"clip\."

    def __init__(self, config: VisualLlamaConfig):
        make = CONNECTORS[config.connector.kind]
        self.language = Llama(config.language)
        self.clip = ClipPictures(config.vision, config.projection_dim)
        self.connector = make(config.projection_dim, config.language.embed_dim, config.connector)
        self.config = config
        self.dtype = jnp.dtype(config.dtype)

    @property
    def image_size(self) -> int:
        return self.config.vision.image_size

    def media_features(self, frames: jax.Array) -> jax.Array:
        """uint8[n H W 3] -> CLIP's vectors, not normalised [n c]."""
        return self.clip.image_features(frames, self.dtype)

    def hidden(
        self, batch: Batch, *, dropout_key: jax.Array | None = None, keep: bool = False
    ) -> Output:
        features = self.features(batch)
        aux, tables = {}, {}
        if features is not None:
            b, f, c = features.shape
            media = self.connector(features.astype(self.dtype).reshape(b * f, c))
            aux["media"] = tables["media"] = media.reshape(b, -1, media.shape[-1])
        states, kept, x = read(self, batch.target, tables, mode="replace", keep=keep)
        return Output(states, (kept,) if keep else (), aux | {"embeds": x})
