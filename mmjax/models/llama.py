"""LLaMA (arXiv 2302.13971) and what has its shape: Vicuna, LLaMA-2, SmolLM2.

Pre-norm blocks with RMSNorm, rotary positions, SwiGLU, no biases; grouped key heads where the
config says so. Lynx puts something into every p-th layer, a period of the stack
(`mmjax.nn.stack`): an adapter at its end, or (in an ablation) cross-attention at its beginning.
"""

import dataclasses
from typing import ClassVar

import jax

from mmjax.models.decoder import Block, Decoder
from mmjax.nn.adapter import Adapter, GatedCrossAttention
from mmjax.nn.apart import entry
from mmjax.nn.attention import Attention
from mmjax.nn.cache import KeyValues
from mmjax.nn.dense import Dense, Embedding
from mmjax.nn.mlp import GatedMLP
from mmjax.nn.norm import RMSNorm
from mmjax.nn.param import normal, zeros
from mmjax.nn.stack import each_layer, stack


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Sizes and switches.

    Attributes:
      num_kv_heads: None = ``num_heads``.
      head_dim: None = ``embed_dim // num_heads``.
      tied_head: whether the output layer is the input embedding.
      max_positions: how many tokens a text may have; longer ones were never seen in training.
      added_rows: vocabulary rows that a system adds after ``vocab_size``.
      added_logits: whether they have logits, and start as the others do, not at zero.
      adapter_every: layers 0, adapter_every, 2 * adapter_every, ... end with an adapter; 0 = none.
      adapter_dim: its inner width.
      cross_every: so many layers apart, beginning with the first, cross-attention to states of the
        same width comes before the layer; 0 = nowhere.
      splits: layers before which the hidden states may be edited, see `mmjax.nn.stack`.
      remat: none | full | dots, see `mmjax.nn.stack.run`.
      attention: auto | xla | cudnn | splash.
      init_std: of kernels and words at the start.
    """

    architecture: ClassVar[str] = "llama"

    vocab_size: int
    num_layers: int
    embed_dim: int
    mlp_dim: int
    num_heads: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    norm_eps: float = 1e-6
    rope_base: float = 10000.0
    max_positions: int = 2048
    tied_head: bool = False
    added_rows: int = 0
    added_logits: bool = False
    adapter_every: int = 0
    adapter_dim: int = 0
    cross_every: int = 0
    splits: tuple[int, ...] = ()
    remat: str = "none"
    attention: str = "auto"
    init_std: float = 0.02

    def __post_init__(self):
        problems = [
            f"{name} is {value}, it must be 0 (none) to {self.num_layers}, the number of layers"
            for name in ("adapter_every", "cross_every")
            if not 0 <= (value := getattr(self, name)) <= self.num_layers
        ]
        if self.adapter_every and self.cross_every:
            problems.append(
                f"adapter_every is {self.adapter_every} and cross_every {self.cross_every}: a stack"
                " has one kind of extra; make one of them 0"
            )
        if self.added_logits and (self.tied_head or not self.added_rows):
            problems.append(
                f"added_logits with added_rows {self.added_rows} and tied_head {self.tied_head}: "
                "there must be rows, and a head of its own"
            )
        if bool(self.adapter_every) != bool(self.adapter_dim):
            problems.append(
                f"adapter_every is {self.adapter_every}, adapter_dim {self.adapter_dim}: both are "
                "0, or neither"
            )
        if problems:
            raise ValueError("LlamaConfig:\n  " + "\n  ".join(problems))

    @property
    def extra_every(self) -> int:
        """The period of what some layers have besides; 0 = none has anything."""
        return self.adapter_every or self.cross_every

    @classmethod
    def tiny(cls, **changes) -> "LlamaConfig":
        sizes = dict(vocab_size=47, num_layers=4, embed_dim=128, mlp_dim=344, num_heads=4)
        return cls(**sizes | changes)

    @classmethod
    def tiny_multi(cls, **changes) -> "LlamaConfig":
        """With the words for several pictures; at 0.02 a net this narrow stays long where it
        begins."""
        return cls.tiny(**dict(vocab_size=66, init_std=0.08) | changes)

    @classmethod
    def tiny_clips(cls, **changes) -> "LlamaConfig":
        """With the words for clips, otherwise as `tiny_multi`."""
        return cls.tiny_multi(**dict(vocab_size=58) | changes)

    @classmethod
    def llama_7b(cls, **changes) -> "LlamaConfig":
        sizes = dict(vocab_size=32000, num_layers=32, embed_dim=4096, mlp_dim=11008, num_heads=32)
        return cls(**sizes | changes)

    @classmethod
    def llama2_7b(cls, **changes) -> "LlamaConfig":
        return cls.llama_7b(**dict(norm_eps=1e-5, max_positions=4096) | changes)

    @classmethod
    def llama_13b(cls, **changes) -> "LlamaConfig":
        sizes = dict(vocab_size=32000, num_layers=40, embed_dim=5120, mlp_dim=13824, num_heads=40)
        return cls(**sizes | changes)


def _block(config: LlamaConfig) -> Block:
    d, init = config.embed_dim, normal(config.init_std)
    attention = Attention(
        d,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim or d // config.num_heads,
        rope_base=config.rope_base,
        init=init,
    )
    return Block(
        attention_norm=RMSNorm(d, eps=config.norm_eps),
        attention=attention,
        mlp_norm=RMSNorm(d, eps=config.norm_eps),
        mlp=GatedMLP(d, config.mlp_dim, init=init),
    )


def _cross_attention(config: LlamaConfig) -> GatedCrossAttention:
    head_dim = config.head_dim or config.embed_dim // config.num_heads
    sizes = dict(num_heads=config.num_heads, head_dim=head_dim, seen_dim=config.embed_dim)
    return GatedCrossAttention(config.embed_dim, **sizes)


class Llama(Decoder):
    def __init__(self, config: LlamaConfig):
        d, v, init = config.embed_dim, config.vocab_size, normal(config.init_std)
        added = dict(added_rows=config.added_rows, added_init=zeros)
        if config.added_logits:
            added["added_init"] = init
        self.embedding = Embedding(v, d, init=init, **added)
        self.layers = stack(_block(config), config.num_layers, config.splits)
        count = -(-config.num_layers // config.extra_every) if config.extra_every else 0
        adapter = Adapter(config.embed_dim, config.adapter_dim)
        self.adapters = stack(adapter, count) if config.adapter_every else None
        self.cross = stack(_cross_attention(config), count) if config.cross_every else None
        self.norm = RMSNorm(config.embed_dim, eps=config.norm_eps)
        tied = config.tied_head
        self.head = None if tied else Dense(d, v, axes=("embed", "vocab"), init=init)
        more = Dense(d, config.added_rows, axes=("embed", None), init=init)
        self.head_added = more if config.added_logits else None
        self.config = config

    def look(self, seen: jax.Array, segments: jax.Array) -> KeyValues:
        """What the cross-attention of all layers sees: states [b s d], segments i32[b s] (0 =
        nothing is there). Once for a text and what is generated after it."""
        keys, values = each_layer(lambda cross: cross.look(seen), self.cross)
        return KeyValues(keys, values, segments)

    def extras(self) -> dict:
        extras = self.adapters if self.cross is None else self.cross
        return {} if extras is None else dict(extras=extras, period=self.config.extra_every)

    def layer(self, block, x, positions, attend, *, extra, index, seen):
        if isinstance(extra, GatedCrossAttention):
            x = self._crossed(extra, x, index // self.config.cross_every, seen)
        x, kept = block(x, positions, attend)
        return (extra(x) if isinstance(extra, Adapter) else x), kept

    def _crossed(
        self, cross: GatedCrossAttention, x: jax.Array, row: jax.Array, seen: KeyValues | None
    ) -> jax.Array:
        if seen is None:
            raise ValueError(
                f"this language model has cross-attention every {self.config.cross_every} layers: "
                "give what it looks at as seen (segments of 0 where there is nothing)"
            )
        return cross(x, entry(seen.keys, row), entry(seen.values, row), seen.segments)
