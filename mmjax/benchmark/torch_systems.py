"""The systems' training losses by PyTorch: transformers' networks, peft's LoRA, SDPA.

What a system adds to its networks is written here as its original has it, and named as its original
names it; so weights cross by the converter's tables. Pictures come as the frozen tower's features,
as they come to our step. Texts that are cut in two here (`Batch.prefix`) are read whole: LMEye's
passes share nothing, as in its original.

Letters: as in `mmjax.data.batch`.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from mmjax.data.batch import Batch, Sequence
from mmjax.data.sequence import join
from mmjax.models.clip import ClipTextConfig
from mmjax.models.llama import LlamaConfig
from mmjax.systems.lmeye import LMEyeConfig
from mmjax.systems.minigpt4 import MiniGPT4Config
from mmjax.systems.visual_llama import VisualLlamaConfig

# What LoRA can be beside, as our paths and as transformers call it.
_LAYERS = {f"attention.{name}": f"self_attn.{name}_proj" for name in "qkvo"}
_LAYERS |= {f"mlp.{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")}


@dataclasses.dataclass(frozen=True)
class Text:
    """A `Sequence` on torch's device; ``mask`` is bool[b t], or None where nothing is padded: then
    SDPA needs none."""

    tokens: Tensor
    positions: Tensor
    mask: Tensor | None
    targets: Tensor
    weights: Tensor
    slots: Mapping[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Rows:
    """A `Batch` on torch's device; ``first``: what the first of two passes reads."""

    target: Text
    first: Text | None
    features: Tensor | None


def to_torch(batch: Batch, device: str) -> Rows:
    """A batch of numpy arrays, its prefix in front of both texts that continue it."""
    whole = lambda text: text if batch.prefix is None else join(batch.prefix, text)  # noqa: E731
    first = None if batch.request is None else _text(whole(batch.request), device)
    features = None
    if batch.features is not None:
        features = torch.from_numpy(np.array(batch.features, np.float32)).to(device)
    return Rows(_text(whole(batch.target), device), first, features)


def _text(sequence: Sequence, device: str) -> Text:
    put = lambda x, dtype: torch.from_numpy(np.array(x)).to(device, dtype)  # noqa: E731
    is_real = np.asarray(sequence.segments) > 0
    return Text(
        put(sequence.tokens, torch.long),
        put(sequence.positions, torch.long),
        None if is_real.all() else put(is_real, torch.bool),
        put(sequence.targets, torch.long),
        put(sequence.weights, torch.float32),
        {name: put(slot, torch.long) for name, slot in sequence.slots.items()},
    )


def place(x: Tensor, table: Tensor, slot: Tensor, mode: str) -> Tensor:
    """`mmjax.systems.system.place`."""
    index = slot.clamp(min=0)[..., None].expand(-1, -1, table.shape[-1])
    rows = table.to(x.dtype).gather(1, index)
    return torch.where((slot >= 0)[..., None], x + rows if mode == "add" else rows, x)


class Language(nn.Module):
    """LLaMA; the rows that a system added are a parameter of their own, so that they alone train
    where they alone train in ours."""

    def __init__(self, config: LlamaConfig, mode: str, *, remat: bool):
        super().__init__()
        d, n = config.embed_dim, config.num_heads
        self.model = transformers.LlamaModel(
            transformers.LlamaConfig(
                vocab_size=config.vocab_size,
                hidden_size=d,
                intermediate_size=config.mlp_dim,
                num_hidden_layers=config.num_layers,
                num_attention_heads=n,
                num_key_value_heads=config.num_kv_heads or n,
                head_dim=config.head_dim or d // n,
                rms_norm_eps=config.norm_eps,
                rope_parameters=dict(rope_type="default", rope_theta=config.rope_base),
                max_position_embeddings=config.max_positions,
                attn_implementation="sdpa",
                use_cache=False,
            )
        )
        if remat:
            self.model.gradient_checkpointing_enable(dict(use_reentrant=False))
        rows, logits = config.added_rows, config.added_rows if config.added_logits else 0
        self.added = nn.Parameter(torch.zeros(rows, d)) if rows else None
        self.lm_head = None if config.tied_head else nn.Linear(d, config.vocab_size, bias=False)
        self.head_added = nn.Linear(d, logits, bias=False) if logits else None
        self.mode = mode

    def read(self, text: Text, tables: Mapping[str, Tensor]) -> Tensor:
        """Hidden states after the final norm [b t d]."""
        table = self.model.embed_tokens
        x = table(text.tokens.clamp(max=table.num_embeddings - 1))
        if self.added is not None:
            number = text.tokens - table.num_embeddings
            rows = self.added[number.clamp(min=0)].to(x.dtype)
            x = torch.where((number >= 0)[..., None], rows, x)
        for name, slot in text.slots.items():
            x = place(x, tables[name], slot, self.mode)
        read = self.model(inputs_embeds=x, attention_mask=text.mask, position_ids=text.positions)
        return read.last_hidden_state

    def loss(self, states: Tensor, text: Text, length: int) -> Tensor:
        """Sum of the weighted losses of the last ``length`` places."""
        states = states[:, -length:]
        table = self.model.embed_tokens.weight
        logits = F.linear(states, table) if self.lm_head is None else self.lm_head(states)
        if self.head_added is not None:
            logits = torch.cat([logits, self.head_added(states)], dim=-1)
        targets, weights = text.targets[:, -length:], text.weights[:, -length:]
        losses = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
        return (losses * weights.flatten()).sum()


class LMEye(nn.Module):
    """Two passes of the language model, CLIP's text tower between them."""

    def __init__(self, config: LMEyeConfig, *, remat: bool):
        super().__init__()
        d, joint, text = config.language.embed_dim, config.clip.projection_dim, config.clip.text
        self.llm = Language(config.language, "add", remat=remat)
        self.clip = transformers.CLIPTextModelWithProjection(_clip_text(text, joint))
        self.embedding_img = nn.Parameter(torch.zeros(1, d))
        self.embedding_imgd = nn.Parameter(torch.zeros(1, d))
        self.imgLinear = nn.Linear(joint, d)
        self.promptMlp = nn.Linear(joint, config.num_prompts * text.embed_dim)
        self.llm2clip = nn.Linear(d, text.embed_dim)
        self.imgdLinear = nn.Linear(joint, config.num_responses * d)
        self.config = config

    def forward(self, rows: Rows, length: int) -> Tensor:
        """Sum of the weighted losses of the last ``length`` places of ``rows.target``."""
        b, m, _ = rows.features.shape
        tables = {"media": self.imgLinear(rows.features) + self.embedding_img}
        asking = tables | {"request": self.embedding_imgd.expand(b, m, -1)}
        states = self.llm.read(rows.first, asking)
        numbers = torch.arange(m, device=states.device)[:, None]
        asked = rows.first.slots["request"][:, None] == numbers  # [b m t]
        at = asked.int().argmax(dim=2)[..., None].expand(-1, -1, states.shape[-1])
        request = self.llm2clip(states.gather(1, at))
        response = self.interact(rows.features.flatten(0, 1), request.flatten(0, 1))
        tables["response"] = response.reshape(b, -1, states.shape[-1]) + self.embedding_imgd
        return self.llm.loss(self.llm.read(rows.target, tables), rows.target, length)

    def interact(self, v: Tensor, request: Tensor) -> Tensor:
        """v [n c], request [n w] -> responses [n K d]."""
        config, tower, n = self.config, self.clip.text_model, len(v)
        soft = self.promptMlp(v).reshape(n, config.num_prompts, -1)
        soft = F.dropout(soft, config.dropout, self.training)
        vocab = config.clip.text.vocab_size
        bos = vocab - 2 if config.clip_bos is None else config.clip_bos
        eos = vocab - 1 if config.clip_eos is None else config.clip_eos
        length = config.num_prompts + 3
        ends = tower.embeddings.token_embedding(torch.tensor([bos, eos], device=v.device))
        ends = ends + tower.embeddings.position_embedding.weight[[0, length - 1]]
        begin, end = (x.expand(n, 1, -1) for x in ends)
        x = torch.cat([begin, soft.to(begin), request[:, None].to(begin), end], dim=1)
        states = tower.encoder(inputs_embeds=x, attention_mask=None, is_causal=True)
        last = tower.final_layer_norm(states.last_hidden_state[:, -1])
        return self.imgdLinear(self.clip.text_projection(last)).reshape(n, config.num_responses, -1)


def _clip_text(config: ClipTextConfig, joint: int) -> transformers.CLIPTextConfig:
    return transformers.CLIPTextConfig(
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_positions,
        hidden_size=config.embed_dim,
        intermediate_size=config.mlp_dim,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        hidden_act=config.activation,
        layer_norm_eps=config.norm_eps,
        projection_dim=joint,
        attn_implementation="sdpa",
    )


class MiniGPT4(nn.Module):
    """What the queries found, through one linear layer, into the language model."""

    def __init__(self, config: MiniGPT4Config, *, remat: bool):
        super().__init__()
        self.llama_model = Language(config.language, "replace", remat=remat)
        seen = config.blip2.qformer.embed_dim
        self.llama_proj = nn.Linear(seen, config.language.embed_dim)

    def forward(self, rows: Rows, length: int) -> Tensor:
        media = self.llama_proj(rows.features).flatten(1, 2)
        states = self.llama_model.read(rows.target, {"media": media})
        return self.llama_model.loss(states, rows.target, length)


class VisualLlama(nn.Module):
    """CLIP's vector, through two layers, into a language model with LoRA."""

    def __init__(self, config: VisualLlamaConfig, *, remat: bool):
        super().__init__()
        if config.connector.kind != "mlp":
            raise ValueError(f"there is no counterpart with a {config.connector.kind} connector")
        whole = config.connector.num_tokens * config.language.embed_dim
        self.llm = Language(config.language, "replace", remat=remat)
        first, second = (config.projection_dim, whole // 2), (whole // 2, whole)
        self.image_project = nn.Module()  # its layers are called image_project.model.0 and .2
        self.image_project.model = nn.Sequential(nn.Linear(*first), nn.Tanh(), nn.Linear(*second))
        self.tokens = config.connector.num_tokens

    def forward(self, rows: Rows, length: int) -> Tensor:
        b, f, _ = rows.features.shape
        media = self.image_project.model(rows.features).reshape(b, f * self.tokens, -1)
        states = self.llm.read(rows.target, {"media": media})
        return self.llm.loss(states, rows.target, length)


COUNTERPARTS: dict[str, Callable[..., nn.Module]] = {
    "lmeye": LMEye,
    "minigpt4": MiniGPT4,
    "visual_llama": VisualLlama,
}
# Ours (regular expressions of paths) -> names of what trains there.
_NAMES = {
    "image_linear": "imgLinear",
    "image_embedding": "embedding_img",
    "slot_embedding": "embedding_imgd",
    "decomposition": "promptMlp",
    "request_linear": "llm2clip",
    "response_linear": "imgdLinear",
    "projection": "llama_proj",
    "connector": "image_project",
    "language.embedding.added": "llm.added",
}


def make_counterpart(
    system: str, config, lora: Mapping | None, trainable: tuple[str, ...], *, remat: bool
) -> nn.Module:
    """The counterpart of a system with drawn weights, on the CPU and in float32; what trains in
    ours (``trainable``, paths) requires gradients in it.

    Args:
      config: the system's.
      lora: fields of `mmjax.nn.lora.LoraConfig`, or None.
      remat: whether layers are computed again in the backward pass.

    Raises:
      ValueError: there is no counterpart, or something trains that it has no name for.
    """
    if system not in COUNTERPARTS:
        raise ValueError(f"{system} has no counterpart; there are {', '.join(COUNTERPARTS)}")
    if not isinstance(config.language, LlamaConfig) or config.language.extra_every:
        raise ValueError(f"there is no counterpart of {system} on {config.language.architecture}")
    model = COUNTERPARTS[system](config, remat=remat)
    if lora:
        _add_lora(model, lora)
    trained = [path for path in trainable if not path.endswith((".lora_a", ".lora_b"))]
    names = {}
    for path in trained:
        known = [ours for ours in _NAMES if path == ours or path.startswith(f"{ours}.")]
        if not known:
            raise ValueError(f"{path} is trained, and the counterpart of {system} keeps it frozen")
        names[path] = _NAMES[known[0]]
    for name, value in model.named_parameters():
        is_lora = ".lora_" in name and len(trained) < len(trainable)
        value.requires_grad_(is_lora or any(name.startswith(each) for each in names.values()))
    return model


def _add_lora(model: nn.Module, lora: Mapping) -> None:
    ours = [f"language.layers.{path}" for path in _LAYERS]
    chosen = [path for path in ours if re.fullmatch(lora["target"], path)]
    modules = [_LAYERS[path.removeprefix("language.layers.")] for path in chosen]
    if not modules:
        raise ValueError(f"LoRA on {lora['target']!r}: the counterpart has it in LLaMA's layers")
    settings = LoraConfig(
        r=lora["rank"],
        lora_alpha=lora["alpha"],
        lora_dropout=lora["dropout"],
        target_modules=rf"layers\.\d+\.({'|'.join(map(re.escape, modules))})",
    )
    inject_adapter_in_model(settings, model.llm.model)
