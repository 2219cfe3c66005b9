"""mPLUG-Owl (arXiv 2304.14178) and LRV-Instruction V2, which is mPLUG-Owl with LoRA on other data.

Any number of pictures, anywhere in the text (mPLUG-Owl reference, section 1):

    picture --CLIP's ViT, all places--> --abstractor--> [ 64 vectors | end ] --.
                                                                              v
                 <s> Human: [ x x x ... x ] \\n Human: QUESTION \\n AI:  ANSWER </s>

The paper trains the abstractor with the language model's LoRA; its public code, the language model
alone, with LoRA (`mmjax.nn.lora`) or all of it.
"""

import dataclasses

import jax
import jax.numpy as jnp

from mmjax.data.batch import Batch
from mmjax.models.abstractor import Abstractor, AbstractorConfig
from mmjax.models.clip import ClipConfig, ClipVision, ClipVisionConfig, normalise
from mmjax.models.llama import Llama, LlamaConfig
from mmjax.nn.dropout import row_keys
from mmjax.systems.system import Output, System, read


@dataclasses.dataclass(frozen=True)
class MplugOwlConfig:
    """``dtype``: of the computation."""

    language: LlamaConfig
    vision: ClipVisionConfig
    abstractor: AbstractorConfig
    dtype: str = "float32"

    def __post_init__(self):
        """Raises ValueError that lists all that does not go together."""
        pairs = {
            "embed_dim": ("the tower's states", self.vision.embed_dim),
            "out_dim": ("the language model's vectors", self.language.embed_dim),
        }
        problems = [
            f"the abstractor's {name} is {getattr(self.abstractor, name)}, {what} are {width} wide"
            for name, (what, width) in pairs.items()
            if getattr(self.abstractor, name) != width
        ]
        if problems:
            raise ValueError("MplugOwlConfig, make them the same:\n  " + "\n  ".join(problems))

    @property
    def tokens_per_picture(self) -> int:
        """Embeddings that a picture becomes (q): its queries and the vector that ends them."""
        return self.abstractor.num_queries + 1

    @classmethod
    def named(cls, variant: str, **changes) -> "MplugOwlConfig":
        """A published size, or ``tiny``."""
        if variant == "tiny":
            parts = LlamaConfig.tiny(), ClipConfig.tiny().vision, AbstractorConfig.tiny()
            return cls(*parts, **changes)
        if variant != "llama-7b":
            raise ValueError(f"mPLUG-Owl has no variant {variant!r}; there are tiny, llama-7b")
        made = dict(
            # Long texts: what `dots` keeps of a row of 2,048 tokens takes 6 GiB.
            language=LlamaConfig.llama_7b(remat="full"),
            vision=dataclasses.replace(ClipConfig.vit_l14().vision, norm_eps=1e-6),
            abstractor=AbstractorConfig.owl_7b(),
            dtype="bfloat16",
        )
        return cls(**made | changes)


class MplugOwl(System):
    Config = MplugOwlConfig
    tower = r"vision\."
    preparation = "squash"

    def __init__(self, config: MplugOwlConfig):
        self.language = Llama(config.language)
        self.vision = ClipVision(config.vision)
        self.abstractor = Abstractor(config.abstractor)
        self.config = config
        self.dtype = jnp.dtype(config.dtype)

    @property
    def image_size(self) -> int:
        return self.config.vision.image_size

    def media_features(self, frames: jax.Array) -> jax.Array:
        """uint8[n H W 3] -> normed states of class token and patches [n p+1 e]."""
        return self.look(normalise(frames, self.dtype))

    def look(self, pixels: jax.Array) -> jax.Array:
        """Normalised pixels [n H W 3] -> [n p+1 e]."""
        return self.vision.post_norm(self.vision.states(pixels)[0])

    def hidden(
        self, batch: Batch, *, dropout_key: jax.Array | None = None, keep: bool = False
    ) -> Output:
        features = self.features(batch)
        aux, tables = {}, {}
        if features is not None:
            b, f = features.shape[:2]
            states = features.astype(self.dtype).reshape(b * f, *features.shape[2:])
            keys = None if dropout_key is None else row_keys(dropout_key, batch.row_id)
            media = self.abstractor(states, dropout_keys=keys)[0]  # [b*f q d]
            aux["media"] = media.reshape(b, f, *media.shape[1:])
            tables["media"] = media.reshape(b, -1, media.shape[-1])
        states, kept, x = read(self, batch.target, tables, mode="replace", keep=keep)
        return Output(states, (kept,) if keep else (), aux | {"embeds": x})
