"""PyTorch's side computes what ours does: the same loss and the same gradients from the same
weights."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny
import torch

from conversion.engine import exported
from conversion.lora import lora_rules
from conversion.tables.clip import CLIP
from conversion.tables.llama import LLAMA
from conversion.tables.lmeye import NET
from conversion.tables.minigpt4 import PROJECTION
from conversion.tables.visual_llama import FULL
from mmjax.benchmark.torch_systems import make_counterpart, to_torch
from mmjax.data.batch import Batch, with_media
from mmjax.data.sequence import Lengths, assemble
from mmjax.nn.lora import LoraConfig, is_lora, with_lora
from mmjax.nn.param import merge, specs
from mmjax.systems.lmeye import LMEye
from mmjax.systems.minigpt4 import MiniGPT4, MiniGPT4Config
from mmjax.systems.visual_llama import ConnectorConfig, VisualLlama, VisualLlamaConfig

pytestmark = pytest.mark.usefixtures("quick_compile")

LORA = dict(target=r"language\.layers\.(attention\.(q|v)|mlp\.up)", rank=2, alpha=6.0, dropout=0.0)
TEXTS = CLIP.under(source_prefix="clip.", path_prefix="clip.")
IN_LLM = LLAMA.under(source_prefix="llm.", path_prefix="language.")


def lmeye():
    config = tiny.lmeye_config()
    batch = tiny.lmeye_batch(config, 3)
    trains = ("image_", "slot_", "decomposition", "request_linear", "response_linear")
    return "lmeye", LMEye(config), None, batch, trains, IN_LLM + TEXTS + NET


def minigpt4():
    config = MiniGPT4Config(tiny.llama_config(), tiny.blip2_config())
    shape = (3, 1, 3, config.blip2.qformer.embed_dim)
    llama = LLAMA.under(source_prefix="llama_model.", path_prefix="language.")
    return "minigpt4", MiniGPT4(config), None, one_pass(shape), ("projection",), llama + PROJECTION


def visual_llama():
    language = tiny.llama_config(vocab_size=22, added_rows=2, added_logits=True)
    vision, joint = tiny.clip_config().vision, 10
    config = VisualLlamaConfig(language, vision, joint, ConnectorConfig(num_tokens=3))
    system = with_lora(VisualLlama(config), LoraConfig(**LORA))
    trains = ("connector.", "language.embedding.added")
    return "visual_llama", system, LORA, one_pass((3, 1, joint)), trains, FULL + lora_rules(FULL)


def one_pass(shape) -> Batch:
    _, _, target = assemble(tiny.picture_rows(3), Lengths(target=16), tiny.PAD)
    frames = [[np.zeros((8, 8, 3), np.uint8)]] * 3
    batch = with_media(Batch(np.arange(3), target), frames, 1)
    features = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    return dataclasses.replace(batch, frames=None, features=features)


def their_name(key: str) -> str:
    """As peft has it, once it has wrapped the layers that get LoRA."""
    for kind in ("lora_A", "lora_B"):
        key = key.replace(f".{kind}.weight", f".{kind}.default.weight")
    return key


def fill(model: torch.nn.Module, state: dict[str, np.ndarray]) -> set[str]:
    """Sets the parameters; returns the names of those that ``state`` does not have."""
    wanted = dict(model.named_parameters())
    given = {their_name(key): value for key, value in state.items()}
    for key in [key for key in given if key.endswith(("embed_tokens.weight", "lm_head.weight"))]:
        first = len(wanted[key])  # rows that a system adds are a parameter of their own
        prefix, added = key.split(".")[0], given[key][first:]
        given[key] = given[key][:first]
        name = "added" if key.endswith("embed_tokens.weight") else "head_added.weight"
        given |= {f"{prefix}.{name}": added} if len(added) else {}
    missing = set()
    for name, value in wanted.items():
        source = name.replace(".base_layer.", ".")
        if source not in given:
            missing.add(name)
            continue
        value.data.copy_(torch.from_numpy(np.array(given[source])))
    return missing


@pytest.mark.parametrize("make", [lmeye, minigpt4, visual_llama])
@pytest.mark.parametrize("remat", [False, True])
def test_loss_and_gradients(make, remat):
    name, system, lora, batch, trains, table = make()
    params = tiny.random_params(specs(system))
    trained = {k: v for k, v in params.items() if k.startswith(trains) or is_lora(k)}

    @jax.jit
    def compute(trained, rest):
        return jax.value_and_grad(lambda p: merge(system, rest | p).loss(batch)[0])(trained)

    loss, grads = compute(trained, {k: v for k, v in params.items() if k not in trained})
    model = make_counterpart(name, system.config, lora, tuple(trained), remat=remat)
    tower = ("clip.vision", "clip.visual", "clip.logit", "blip2.")
    outside = tower if name != "visual_llama" else ("clip.",)
    told = {k: v for k, v in params.items() if not k.startswith(outside)}
    state = {key: entry.load() for key, entry in exported(table, told).items()}
    assert fill(model, state) == set()
    model.train()
    theirs = model(to_torch(batch, "cpu"), batch.target.tokens.shape[1])
    assert theirs.item() == pytest.approx(float(loss), rel=1e-5)

    theirs.backward()
    frozen = {n for n, x in model.named_parameters() if x.grad is None}
    assert frozen == {n for n, x in model.named_parameters() if not x.requires_grad}
    norm = sum(float((x.grad**2).sum()) for x in model.parameters() if x.grad is not None)
    ours = sum(float((np.asarray(g) ** 2).sum()) for g in grads.values())
    assert norm == pytest.approx(ours, rel=1e-4), "the same parameters have gradients, of one size"


def test_what_has_no_counterpart():
    with pytest.raises(ValueError, match="lynx has no counterpart; there are lmeye, minigpt4"):
        make_counterpart("lynx", None, None, (), remat=False)
    config = tiny.lmeye_config(language=tiny.opt_config(added_rows=2))
    with pytest.raises(ValueError, match="no counterpart of lmeye on opt"):
        make_counterpart("lmeye", config, None, (), remat=False)
    with pytest.raises(ValueError, match="language.norm.scale is trained, and the counterpart"):
        make_counterpart("lmeye", tiny.lmeye_config(), None, ("language.norm.scale",), remat=False)
