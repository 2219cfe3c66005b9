"""LMEye, first generation: the Interactive Perception Network (arXiv 2305.03701; LMEye reference,
sections 1 to 3).

A frozen language model reads each sample twice. Between the two readings a frozen CLIP *text* tower
lets the request look at the picture:

    picture --ViT--> v --image_linear--> <img>       static: what the picture is, in one vector
                     |
                     |    pass 1    Image: <img> What is ... <img-d>
                     |                                          | last hidden state
                     |                                  request_linear
                     |                                          v
                     '--decomposition--> CLIP text:  BOS S S S S S q EOS
                                                                     | text projection
                                                             response_linear
                                                                     v
                          pass 2    Image: <img> What is ... <img-d> x 5 Answer: ...

Every trained part is an affine layer or an additive embedding; slots are *added* to the row of
their token. Both passes share the text up to the first <img-d>, so the second starts from the first
one's keys and values.
"""

import dataclasses

import jax
import jax.numpy as jnp

from mmjax.data.batch import Batch
from mmjax.models.bloom import BloomConfig
from mmjax.models.clip import Clip, ClipConfig
from mmjax.models.language import LANGUAGE_MODELS, LanguageConfig, make_language_model
from mmjax.models.llama import LlamaConfig
from mmjax.models.mpt import MptConfig
from mmjax.models.opt import OptConfig
from mmjax.nn.dense import Linear
from mmjax.nn.dropout import dropout, row_keys
from mmjax.nn.param import normal, param
from mmjax.systems.system import Output, System, read, take

# Tables with more rows than their tokenizers have words: (architecture, rows) -> words.
WORDS = {("opt", 50272): 50265, ("bloom", 250880): 250680, ("mpt", 50432): 50277}


def with_slots(language: LanguageConfig) -> dict:
    """The language model with room for ``<img>`` and ``<img-d>``, as fields of `LMEyeConfig`: in
    rows that published tables have to spare, as the original, else in two rows more."""
    if words := WORDS.get((language.architecture, language.vocab_size)):
        return dict(language=language, spare_row=words)
    return dict(language=dataclasses.replace(language, added_rows=2))


@dataclasses.dataclass(frozen=True)
class LMEyeConfig:
    """Sizes, and what the paper leaves to the recipe.

    Attributes:
      num_prompts: soft vectors that the picture becomes for CLIP's text tower (P).
      num_responses: response slots (K); 5 in all released checkpoints but OPT's, which has 1.
      dropout: on the soft vectors, in training only.
      slot_std: standard deviation of the slot embeddings at the start; the reference's 1.0 is far
        larger than a language model's rows.
      gain: factor on the initial weights of the layers that feed the language model.
      request_gain: and on those of the layer that makes the request.
      clip_bos, clip_eos: the tokens that frame CLIP's text; None = the last two of its vocabulary.
      dtype: of the computation.
      spare_row: row of the language model's own table that ``<img>`` takes, ``<img-d>`` the next;
        rows from there on are no words. None = they take the last two rows that it has.
    """

    language: LanguageConfig
    clip: ClipConfig
    num_prompts: int = 5
    num_responses: int = 5
    dropout: float = 0.5
    slot_std: float = 1.0
    gain: float = 1.0
    request_gain: float = 1.0
    clip_bos: int | None = None
    clip_eos: int | None = None
    dtype: str = "float32"
    spare_row: int | None = None

    def __post_init__(self):
        if LANGUAGE_MODELS[type(self.language)].encodes:
            raise ValueError(
                f"LMEyeConfig: a {self.language.architecture} encodes its prompts, which the first "
                "generation does not do; see mmjax.systems.lmeye_blip2"
            )
        rows = self.language.vocab_size
        if self.spare_row is not None and not 0 < self.spare_row <= rows - 2:
            raise ValueError(
                f"LMEyeConfig: spare_row is {self.spare_row}, the language model has {rows} rows: "
                "<img> and <img-d> take this one and the next"
            )

    @property
    def image_token(self) -> int:
        """``<img>``: the first of the two rows that follow the tokenizer's."""
        if self.spare_row is not None:
            return self.spare_row
        return self.language.vocab_size + self.language.added_rows - 2

    @property
    def slot_token(self) -> int:
        """``<img-d>``: request in pass 1, response in pass 2."""
        return self.image_token + 1

    @classmethod
    def named(cls, variant: str, **changes) -> "LMEyeConfig":
        """A published size, or a tiny one."""
        llms = {
            "tiny": LlamaConfig.tiny,
            "tiny-opt": OptConfig.tiny,
            "tiny-bloom": BloomConfig.tiny,
            "tiny-mpt": MptConfig.tiny,
            "llama-7b": LlamaConfig.llama_7b,
            "llama-13b": LlamaConfig.llama_13b,
            "vicuna-7b": LlamaConfig.llama_7b,
            "vicuna-13b": LlamaConfig.llama_13b,
            "opt-iml-1.3b": OptConfig.opt_1_3b,
            "bloomz-7b1": BloomConfig.bloomz_7b1,
            "mpt-7b": MptConfig.mpt_7b,
        }
        if variant not in llms:
            raise ValueError(f"LMEye has no variant {variant!r}; there are {', '.join(llms)}")
        if variant.startswith("tiny"):
            clip, language = ClipConfig.tiny(), llms[variant]()
            own = dict(slot_std=0.05, gain=0.25, request_gain=0.1, dropout=0.2, dtype="float32")
        else:
            clip, language = ClipConfig.vit_l14(), llms[variant](remat="dots")
            own = dict(dtype="bfloat16", num_responses=1 if variant.startswith("opt") else 5)
        return cls(clip=clip, **with_slots(language) | own | changes)


class LMEye(System):
    Config = LMEyeConfig
    tower = r"clip\.(vision|visual_projection)\."

    def __init__(self, config: LMEyeConfig):
        d, joint, text = (
            config.language.embed_dim,
            config.clip.projection_dim,
            config.clip.text.embed_dim,
        )
        p, k = config.num_prompts, config.num_responses
        into_llm, into_clip = ("projection", "embed"), ("projection", "clip_embed")
        self.language = make_language_model(config.language)
        self.clip = Clip(config.clip)
        self.image_linear = Linear(joint, d, axes=into_llm, gain=config.gain)
        self.image_embedding = param((1, d), (None, "embed"), normal(config.slot_std))
        self.slot_embedding = param((1, d), (None, "embed"), normal(config.slot_std))
        self.decomposition = Linear(joint, p * text, axes=into_clip)
        request_axes = ("embed", "projection")
        self.request_linear = Linear(d, text, axes=request_axes, gain=config.request_gain)
        self.response_linear = Linear(joint, k * d, axes=into_llm, gain=config.gain)
        self.config = config
        self.dtype = jnp.dtype(config.dtype)

    @property
    def image_size(self) -> int:
        return self.config.clip.vision.image_size

    def media_features(self, frames: jax.Array) -> jax.Array:
        """uint8[n H W 3] -> v [n c]: pooled, projected, not normalised."""
        return self.clip.image_features(frames, self.dtype)

    def logits(self, states: jax.Array) -> jax.Array:  # [b t d] -> f32[b t v]
        """Of rows that are words or slots; the original cuts the others off the table."""
        logits, row = self.language.logits(states), self.config.spare_row
        return logits if row is None else logits[..., : row + 2]

    def hidden(
        self, batch: Batch, *, dropout_key: jax.Array | None = None, keep: bool = False
    ) -> Output:
        v = self.features(batch).astype(self.dtype)  # [b m c]
        b, m, _ = v.shape
        image = self.image_linear(v)
        slot = self.slot_embedding[...].astype(self.dtype)
        tables = {"media": image + self.image_embedding[...].astype(self.dtype)}
        aux = {"image": image}
        past, prefix = None, ()
        if batch.prefix is not None:
            _, past, _ = read(self, batch.prefix, tables, mode="add", keep=True)
            prefix = (past,)
        if batch.request is not None:
            rows = jnp.broadcast_to(slot, (b, m, slot.shape[-1]))
            asking = tables | {"request": rows, "earlier": rows}
            states, _, x = read(self, batch.request, asking, mode="add", past=past)
            request = take(states, batch.request.slots["request"], m)  # each of its own picture
            request = self.request_linear(request).reshape(b * m, -1)
            seen = v.reshape(b * m, -1)
            response, inside = self.interact(seen, request, batch.row_id, dropout_key)
            tables["response"] = response.reshape(b, -1, response.shape[-1]) + slot
            aux |= {
                "embeds_1": x,
                "hidden_1": states,
                "request": request,
                "response": response,
            } | inside
        states, kept, x = read(self, batch.target, tables, mode="add", past=past, keep=keep)
        aux["embeds_2"] = x
        return Output(states, (*prefix, kept) if keep else (), aux)

    def interact(
        self, v: jax.Array, request: jax.Array, row_id: jax.Array, dropout_key: jax.Array | None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Requests look at their pictures: v [n c], request [n w] of n/b for each row -> (responses
        [n K d], intermediates).

        Neither soft vectors nor request get a position embedding; CLIP's causal mask applies, so
        that only the request and the end token see the soft vectors.
        """
        config, (n, _) = self.config, v.shape
        soft = self.decomposition(v)
        prompts = soft.reshape(n, config.num_prompts, -1)
        if dropout_key is not None and config.dropout > 0:
            prompts = dropout(prompts, config.dropout, row_keys(dropout_key, row_id))
        vocab = config.clip.text.vocab_size
        bos = vocab - 2 if config.clip_bos is None else config.clip_bos
        eos = vocab - 1 if config.clip_eos is None else config.clip_eos
        between = [bos] * (config.num_prompts + 1)  # only the first and last embeddings are used
        ends = self.clip.text.embed(jnp.array([[bos, *between, eos]]), self.dtype)
        ends = jnp.broadcast_to(ends, (n, *ends.shape[1:]))
        x = jnp.concatenate([ends[:, :1], prompts, request[:, None], ends[:, -1:]], axis=1)
        states = self.clip.text(x)
        feature = self.clip.text_projection(states[:, -1])
        response = self.response_linear(feature)
        aux = {"soft": soft, "clip_in": x, "clip_out": states, "clip_feature": feature}
        return response.reshape(n, config.num_responses, -1), aux
