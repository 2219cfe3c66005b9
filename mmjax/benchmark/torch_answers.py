"""transformers' side of `mmjax.benchmark.decode`: `generate` of the language model alone."""

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import torch
import transformers

from conversion.engine import export
from conversion.huggingface import config_to_hf, network_with
from mmjax.models.language import LANGUAGE_MODELS
from mmjax.nn.apart import is_apart
from mmjax.nn.param import specs

# What our language models may have that transformers' do not.
_OWN = dict(adapter_every=0, cross_every=0, added_rows=0, added_logits=False, splits=())


class NoCounterpart(ValueError):
    """transformers has no such language model."""


class TorchAnswers:
    """Prompts of random embeddings, answered without an end token: all tokens are made.

    Attributes:
      prompts: [rows places d].
      notice: what of our language model it lacks; "" if nothing.
    """

    def __init__(
        self,
        config: Any,
        params: Mapping[str, Any],
        *,
        dtype: str,
        device: str,
        rows: int,
        places: int,
        beams: int,
    ):
        """
        Args:
          config, params: of our language model; layers may be kept apart.

        Raises:
          NoCounterpart: transformers has no class for it.
        """
        own = {name: value for name, value in _OWN.items() if hasattr(config, name)}
        plain = dataclasses.replace(config, **own)
        values = config_to_hf(plain)
        if values["model_type"] not in transformers.CONFIG_MAPPING:
            raise NoCounterpart(
                f"transformers has no {values['model_type']}: nothing to compare with"
            )
        wanted = specs(LANGUAGE_MODELS[type(plain)](plain))
        left = sorted({path.split(".")[0] for path in params.keys() - wanted.keys()})
        self.notice = f"transformers' model lacks {', '.join(left)}" if left else ""
        held = getattr(torch, dtype)
        known = transformers.AutoConfig.for_model(**values)
        with torch.device(device):
            model = _class_of(values).from_config(known, dtype=held, attn_implementation="sdpa")
        model = model.eval()
        _load(model, plain, {path: params[path] for path in wanted})
        self._model, self._beams = model, beams
        self.prompts = torch.randn(rows, places, config.embed_dim, device=device, dtype=held)
        self._device = device

    def eager(self, tokens: int) -> Callable[[], np.ndarray]:
        """A call that makes so many tokens, as users do."""
        return lambda: self._generate(self._model, tokens)

    def compiled(self, tokens: int) -> Callable[[], np.ndarray]:
        """The same with a cache of fixed size and a forward pass by torch.compile."""
        model = copy.copy(self._model)
        mode = "reduce-overhead" if self._device == "cuda" else None
        model.forward = torch.compile(self._model.forward, mode=mode)
        return lambda: self._generate(model, tokens, cache_implementation="static")

    @torch.no_grad()
    def _generate(self, model: Any, tokens: int, **how: Any) -> np.ndarray:
        made = model.generate(
            inputs_embeds=self.prompts,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            num_beams=self._beams,
            eos_token_id=None,
            pad_token_id=0,
            **how,
        )
        return made[:, -tokens:].cpu().numpy()


def _class_of(values: Mapping) -> Any:
    is_pair = values.get("is_encoder_decoder") or values["model_type"] == "t5"
    return transformers.AutoModelForSeq2SeqLM if is_pair else transformers.AutoModelForCausalLM


def _load(model: Any, config: Any, params: Mapping[str, Any]) -> None:
    """Copies our weights into the model."""
    theirs = model.state_dict()
    stacked = {
        path: np.stack([*map(np.asarray, x.layers)]) if is_apart(x) else jax.device_get(x)
        for path, x in params.items()
    }
    for key, value in export(network_with(config).table, stacked):
        theirs[key].copy_(torch.from_numpy(np.array(value, np.float32)))
    model.tie_weights()
