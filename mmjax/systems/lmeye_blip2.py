"""LMEye, second generation, on a BLIP-2 (LMEye reference, section 4).

As in the first (`mmjax.systems.lmeye`) the language model reads twice, and between the readings a
frozen CLIP text tower lets its request look at the picture; but the picture is 32 vectors, the
request five, and they stand in CLIP's text side by side:

    picture --ViT, Q-Former--> Z --projection--> <image> x 32    static
                               |
                               |    pass 1   Human: What .. Assistant: <image> x 32 <request> ..
                               |                                                        |
                               |                                                request_linear
                               |                                                        v
                               '--decomposition--> CLIP text:  BOS A x 32       q q q q q EOS
                                                                                   | | | | |
                                                                          the last five states
                                                               text projection, response_linear
                                                                                   v v v v v
                                    pass 2   Human: What .. Assistant: <image> x 32 <request>
                                                                                   <response> x 5

An encoder-decoder (FLAN-T5) encodes this text twice and then writes the answer. For a decoder
(ChatGLM2, OPT), pass 1 is what comes before the responses, and pass 2 goes on from it.

Slots are added to the row of their token. In the older version (`LMEyeBlip2Config.bare_images`)
pictures have no token: their vectors replace what is there.
"""

import dataclasses

import jax
import jax.numpy as jnp

from mmjax.data.batch import Batch, Sequence
from mmjax.models.blip2 import Blip2, Blip2Config
from mmjax.models.chatglm import ChatGLMConfig
from mmjax.models.clip import ClipConfig, ClipTextConfig, ClipTexts
from mmjax.models.eva_vit import EvaVitConfig
from mmjax.models.language import LanguageConfig, make_language_model
from mmjax.models.opt import OptConfig
from mmjax.models.t5 import T5Config
from mmjax.nn.cache import KeyValues
from mmjax.nn.dense import Linear
from mmjax.nn.param import normal, param
from mmjax.systems.system import Mode, Output, System, encode, read, take


@dataclasses.dataclass(frozen=True)
class LMEyeBlip2Config:
    """Sizes, and what the paper leaves to the recipe.

    Attributes:
      clip: CLIP's text tower; ``projection_dim``: of CLIP's joint space.
      num_responses: response slots, and vectors that a request becomes.
      aligned_responses: read the states of the request's own vectors. The original (Q1 in its
        reference) reads the last five of CLIP's text: those of all but the first, and of the end.
      bare_images: pictures replace the embeddings at their places, not add to them.
      slot_std: standard deviation of the slot embeddings at the start; the reference's 1.0 is far
        larger than a language model's rows.
      gain: factor on the initial weights of the layers that feed the language model.
      request_gain: and on those of the layer that makes the request.
      clip_bos, clip_eos: the tokens that frame CLIP's text; None = the last two of its vocabulary.
      dtype: of the computation.
    """

    language: LanguageConfig
    blip2: Blip2Config
    clip: ClipTextConfig
    projection_dim: int
    num_responses: int = 5
    aligned_responses: bool = False
    bare_images: bool = False
    slot_std: float = 1.0
    gain: float = 1.0
    request_gain: float = 1.0
    clip_bos: int | None = None
    clip_eos: int | None = None
    dtype: str = "float32"

    def __post_init__(self):
        length = self.blip2.num_queries + self.num_responses + 2
        if length > self.clip.max_positions:
            raise ValueError(
                f"LMEyeBlip2Config: {self.blip2.num_queries} queries and {self.num_responses} "
                f"requests make a text of {length} for CLIP, whose longest is "
                f"{self.clip.max_positions} (max_positions)"
            )

    @property
    def tokens_per_picture(self) -> int:
        """Embeddings that a picture becomes (q)."""
        return self.blip2.num_queries

    @classmethod
    def named(cls, variant: str, **changes) -> "LMEyeBlip2Config":
        """A published size, or ``tiny``."""
        llms = {
            "tiny": T5Config.tiny,
            "tiny-chatglm": ChatGLMConfig.tiny,
            "blip2-flan-t5-xl": T5Config.flan_t5_xl,
            "blip2-flan-t5-xl-v01": T5Config.flan_t5_xl,
            "blip2-flan-t5-xxl": T5Config.flan_t5_xxl,
            "blip2-chatglm2-6b": ChatGLMConfig.chatglm2_6b,
            "blip2-opt-2.7b": OptConfig.opt_2_7b,
        }
        if variant not in llms:
            raise ValueError(
                f"LMEye on BLIP-2 has no variant {variant!r}; there are {', '.join(llms)}"
            )
        tiny = variant.startswith("tiny")
        clip = ClipConfig.tiny() if tiny else ClipConfig.vit_l14()
        made = dict(
            language=llms[variant](**{} if tiny else dict(remat="dots")),
            blip2=Blip2Config.tiny() if tiny else _seeing(),
            clip=clip.text,
            projection_dim=clip.projection_dim,
            bare_images=variant.endswith("-v01"),
            dtype="float32" if tiny else "bfloat16",
        )
        if tiny:
            made |= dict(slot_std=0.05, gain=0.25, request_gain=0.1)
        return cls(**made | changes)


def _seeing() -> Blip2Config:
    """As in transformers' files, where keys have biases and the norm has the tower's epsilon."""
    return Blip2Config.vit_g(vision=EvaVitConfig.g_14(key_bias=True), norm_eps=1e-6)


class LMEyeBlip2(System):
    Config = LMEyeBlip2Config
    tower = r"blip2\.(vision|norm)\."
    preparation = "squash"

    def __init__(self, config: LMEyeBlip2Config):
        d, q = config.language.embed_dim, config.blip2.qformer.embed_dim
        text, joint, k = config.clip.embed_dim, config.projection_dim, config.num_responses
        into_llm = dict(axes=("projection", "embed"), gain=config.gain)
        self.language = make_language_model(config.language)
        self.blip2 = Blip2(config.blip2)
        self.clip = ClipTexts(config.clip, joint)
        self.projection = Linear(q, d, **into_llm)
        self.request_embedding = param((1, d), (None, "embed"), normal(config.slot_std))
        self.response_embedding = param((1, d), (None, "embed"), normal(config.slot_std))
        request = dict(axes=("embed", "projection"), gain=config.request_gain)
        self.request_linear = Linear(d, k * text, **request)
        self.decomposition = Linear(q, text, axes=("projection", "clip_embed"))
        self.response_linear = Linear(joint, d, **into_llm)
        self.config = config
        self.dtype = jnp.dtype(config.dtype)

    @property
    def image_size(self) -> int:
        return self.config.blip2.vision.image_size

    def media_features(self, frames: jax.Array) -> jax.Array:
        """uint8[n H W 3] -> the tower's states [n p+1 e], normalised."""
        return self.blip2.image_features(frames, self.dtype)

    def hidden(
        self, batch: Batch, *, dropout_key: jax.Array | None = None, keep: bool = False
    ) -> Output:
        """Each row has one picture. Where no text has ``response`` slots, but ``silent`` ones in
        their place, nothing is asked back (the first stage)."""
        del dropout_key
        found = self.blip2.query(self.pictures(batch)[:, 0].astype(self.dtype))  # [b q c]
        media = self.projection(found)
        row = lambda x: jnp.broadcast_to(x[...].astype(media.dtype), (len(media), 1, x.shape[1]))  # noqa: E731
        silent = row(self.response_embedding)
        tables = {
            "media": media,
            "request": row(self.request_embedding),
            "response": jnp.repeat(silent, self.config.num_responses, axis=1),
            "silent": silent,
        }
        aux = {"found": found, "media": media}
        read_all = self._encode_and_write if self.language.encodes else self._read_on
        return read_all(batch, tables, aux, keep)

    @property
    def _mode(self) -> Mode:
        names = ("media", "request", "response", "silent")
        return dict.fromkeys(names, "add") | {
            "media": "replace" if self.config.bare_images else "add"
        }

    def _encode_and_write(self, batch: Batch, tables: dict, aux: dict, keep: bool) -> Output:
        text, mode = batch.request, self._mode
        states, x = encode(self, text, tables, mode=mode)
        if "response" in text.slots:
            aux |= {"embeds_1": x, "hidden_1": states}
            self._interact(states, text, tables, aux)
            states, x = encode(self, text, tables, mode=mode)
        aux |= {"embeds_2": x, "hidden_2": states}
        seen = self.language.look(states, text.segments)
        states, kept, _ = read(self, batch.target, {}, mode=mode, keep=keep, seen=seen)
        return Output(states, (kept,) if keep else (), aux, seen)

    def _read_on(self, batch: Batch, tables: dict, aux: dict, keep: bool) -> Output:
        """The request is in the prefix, or in a text of its own that continues it."""
        past: KeyValues | None = None
        prefix, asked, mode = (), batch.prefix, self._mode
        if batch.prefix is not None:
            states, past, x = read(self, batch.prefix, tables, mode=mode, keep=True)
            prefix = (past,)
        if batch.request is not None:
            asked = batch.request
            states, _, x = read(self, asked, tables, mode=mode, past=past)
        if "response" in batch.target.slots:
            if asked is None:
                raise ValueError(
                    "the batch has response slots, and no text before them with a request: give "
                    "it a prefix, or silent slots (nothing is asked back)"
                )
            aux |= {"embeds_1": x, "hidden_1": states}
            self._interact(states, asked, tables, aux)
        states, kept, x = read(self, batch.target, tables, mode=mode, past=past, keep=keep)
        aux |= {"embeds_2": x, "hidden_2": states}
        return Output(states, (*prefix, kept) if keep else (), aux)

    def _interact(self, states: jax.Array, text: Sequence, tables: dict, aux: dict) -> None:
        """What the request slot has read, states [b t d], becomes the table of responses.

        Neither picture nor requests get a position embedding; CLIP's causal mask applies, so that
        the requests see the picture and earlier requests, and the picture sees no request.
        """
        config, (b, _, _) = self.config, states.shape
        k = config.num_responses
        asked = take(states, text.slots["request"])[:, 0]
        request = self.request_linear(asked)
        image = self.decomposition(aux["found"])
        vocab = config.clip.vocab_size
        bos = vocab - 2 if config.clip_bos is None else config.clip_bos
        eos = vocab - 1 if config.clip_eos is None else config.clip_eos
        between = [bos] * (config.blip2.num_queries + k)  # only the first and last embeddings count
        ends = self.clip.text.embed(jnp.array([[bos, *between, eos]]), self.dtype)
        ends = jnp.broadcast_to(ends, (b, *ends.shape[1:]))
        requests = request.reshape(b, k, -1)
        x = jnp.concatenate([ends[:, :1], image, requests, ends[:, -1:]], axis=1)
        mixed = self.clip.text(x)
        last = mixed[:, -k - 1 : -1] if config.aligned_responses else mixed[:, -k:]
        feature = self.clip.text_projection(last)
        response = self.response_linear(feature)
        tables["response"] = tables["response"] + response
        aux |= {
            "request": request,
            "decomposed": image,
            "clip_in": x,
            "clip_out": mixed,
            "clip_feature": feature,
            "response": response,
        }
