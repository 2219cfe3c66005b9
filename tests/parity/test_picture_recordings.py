"""Recordings of MiniGPT-4, LRV-Instruction V1 and Cheetor: the originals', and others made with
transformers' networks at other dims.

What torch computes here follows the MiniGPT-4 reference, section 5, and the Cheetor reference,
sections 4 and 5, step by step.
"""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
import torch
import transformers
from safetensors.numpy import load_file, save_file

from conversion.engine import export
from conversion.io import read
from conversion.parity import main
from conversion.recordings import cheetor as replays
from conversion.recordings.layout import lay_out
from conversion.tables import cheetor, minigpt4
from mmjax.models.blip2 import Blip2Config
from mmjax.models.eva_vit import EvaVitConfig
from mmjax.models.llama import LlamaConfig
from mmjax.models.qformer import QFormerConfig
from mmjax.nn.param import specs
from mmjax.systems.cheetor import Cheetor, CheetorConfig
from mmjax.systems.minigpt4 import MiniGPT4, MiniGPT4Config

pytestmark = pytest.mark.usefixtures("quick_compile")

FIXTURES = Path(__file__).parent.parent / "fixtures"
INPUTS = re.compile(r"(\w+\.)?image|num_images|answer_(ids|mask)|(before|after)_ids\w*")
BOS, EOS, END, PAD = 1, 2, 9, 5


def failed(output: str) -> set[str]:
    return set(re.findall(r"^  (\S+)(?:, .*?)? +\(.*FAIL$", output, re.MULTILINE))


def save(folder: Path, config: dict, state: dict, recorded: dict) -> Path:
    folder.mkdir(exist_ok=True)
    for name, tensors in (("state", state), ("io", recorded)):
        plain = {key: np.ascontiguousarray(value) for key, value in tensors.items()}
        save_file(plain, folder / f"{name}.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", ["minigpt4", "lrv_minigpt4"])
def test_the_originals_training(name, tmp_path, capsys):
    """It agrees; where one number of each tensor is off, each is found; and a wrong weight is."""
    folder = FIXTURES / name
    recorded = load_file(folder / "io.safetensors")
    compared = {key for key in recorded if not INPUTS.fullmatch(key)}
    assert main([folder]) == 0
    told = capsys.readouterr().out
    assert f"{len(compared)} of {len(compared)} agree" in told and len(compared) == 9
    config = json.loads((folder / "config.json").read_text())
    state = load_file(folder / "state.safetensors")
    for key in compared:
        recorded[key].reshape(-1)[:1] += 1 if recorded[key].dtype == np.int64 else 1e-3
    assert main([save(tmp_path / "off", config, state, recorded)]) == 1
    assert failed(capsys.readouterr().out) == compared
    state["Qformer.bert.encoder.layer.3.output_query.dense.weight"][0] += 1e-2
    right = load_file(folder / "io.safetensors")
    assert main([save(tmp_path / "wrong", config, state, right)]) == 1
    names = {"qformer_out", "img_embeds", "inputs_embeds", "logits", "loss"}
    assert failed(capsys.readouterr().out) == names


def test_the_originals_cheetor():
    """Every tensor but the pictures agrees, and would not if a number of it were off."""
    folder = FIXTURES / "cheetor_vicuna"
    recorded = load_file(folder / "io.safetensors")
    config = json.loads((folder / "config.json").read_text())
    with jax.default_matmul_precision("highest"):
        ours, left_out, remarks = replays.cases(
            config, read(folder / "state.safetensors"), recorded
        )
    assert not remarks and all(INPUTS.fullmatch(key) for key in left_out)
    compared = {key.partition(",")[0] for key in ours}
    assert compared == recorded.keys() - left_out.keys() and len(compared) == 84
    for key, one in ours.items():
        wanted = recorded[key.partition(",")[0]]
        good, told = one.against(wanted)
        assert good, f"{key}: {told}"
        off = wanted.copy()
        there = np.ones(len(wanted), bool) if one.where is None else one.where
        first = tuple(int(i[0]) for i in np.nonzero(there))
        off[first] += 1 if wanted.dtype == np.int64 else 1e-3
        assert not one.against(off)[0], key
    again = {key for key in ours if ", no pads inside" in key}
    assert {"gen_batch.sequences, no pads inside", "gen_batch.step_logits, no pads inside"} <= again


def test_the_originals_prompts(tmp_path, capsys):
    assert main([FIXTURES / "cheetor_prompts"]) == 0
    told = capsys.readouterr().out
    assert "24 of 24 agree" in told
    values = json.loads((FIXTURES / "cheetor_prompts" / "prompts.json").read_text())
    values["answer"][1]["llama2"] += " "
    values["i4"][0]["context"] = values["i4"][0]["context"].replace("'no'", "'No'")
    (tmp_path / "x.json").write_text(json.dumps(values))
    assert main([tmp_path]) == 1
    told = capsys.readouterr().out
    assert "22 of 24 agree" in told and "answer 1, llama2  FAIL" in told
    assert "i4 0, context  FAIL" in told and 'recorded "Do it.' in told
    (tmp_path / "x.json").write_text("{}")
    assert main([tmp_path]) == 1 and "neither io.safetensors nor" in capsys.readouterr().out


def test_layouts_with_pads_inside():
    """The drawings of `conversion.recordings.layout`."""
    prompts = [[[11], [12], [13, 14]], [[11], [12, 12], [13]]]
    told = dict(bos=1, pad=0, tokens_per_picture=2)
    layout = lay_out(prompts, [[8, 9], [8]], mode="train_arange", **told)
    assert layout.tokens.tolist() == [
        [1, 11, 0, 0, 12, 0, 0, 0, 13, 14, 8, 9],
        [1, 11, 0, 0, 12, 12, 0, 0, 13, 8, 0, 0],
    ]
    assert layout.mask.tolist() == [
        [1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0],
    ]
    assert layout.positions.tolist() == [list(range(12))] * 2
    assert layout.pictures.tolist() == [[2, 4], [6, 8]] and layout.guidance.tolist() == [9, 8]
    ignored = [-100] * 9
    assert layout.labels.tolist() == [[*ignored, -100, 8, 9], [*ignored, 8, -100, -100]]
    layout = lay_out(prompts, mode="infer_cumsum", **told)
    assert layout.tokens.tolist() == [
        [1, 11, 0, 0, 0, 12, 0, 0, 13, 14],
        [1, 11, 0, 0, 12, 12, 0, 0, 0, 13],
    ]
    assert layout.positions.tolist() == [
        [0, 1, 2, 3, 1, 4, 5, 6, 7, 8],
        [0, 1, 2, 3, 4, 5, 6, 7, 1, 8],
    ]
    assert layout.guidance.tolist() == [9, 9]
    with pytest.raises(ValueError, match=r"rows of \[0, 2\] pictures"):
        lay_out([*prompts, [[1]]], mode="infer_cumsum", **told)
    with pytest.raises(ValueError, match="takes no answers"):
        lay_out(prompts, [[8], [9]], mode="infer_cumsum", **told)


LANGUAGE = LlamaConfig(
    vocab_size=50, num_layers=3, embed_dim=24, mlp_dim=30, num_heads=3, norm_eps=1e-5
)
SEEING = Blip2Config(
    vision=EvaVitConfig(
        image_size=15, patch_size=5, num_layers=2, embed_dim=12, mlp_dim=17, num_heads=3
    ),
    qformer=QFormerConfig(num_layers=3, embed_dim=16, mlp_dim=20, num_heads=2, image_dim=12),
    num_queries=2,
)
LLAMA = dict(
    vocab_size=50,
    hidden_size=24,
    intermediate_size=30,
    num_hidden_layers=3,
    num_attention_heads=3,
    rms_norm_eps=1e-5,
    max_position_embeddings=64,
    pad_token_id=0,
)


class Reference:
    """transformers' BLIP-2 on a LLaMA, with LAVIS's epsilon behind the tower."""

    def __init__(self, params: dict):
        vision, qformer = SEEING.vision, SEEING.qformer
        config = transformers.Blip2Config(
            vision_config=dict(
                image_size=15,
                patch_size=5,
                num_hidden_layers=2,
                hidden_size=12,
                intermediate_size=17,
                num_attention_heads=vision.num_heads,
            ),
            qformer_config=dict(
                num_hidden_layers=3,
                hidden_size=16,
                intermediate_size=20,
                num_attention_heads=qformer.num_heads,
                encoder_hidden_size=12,
            ),
            text_config=transformers.LlamaConfig(**LLAMA).to_dict(),
            num_query_tokens=2,
        )
        self.model = transformers.Blip2ForConditionalGeneration(config).eval()
        wanted = {k: v for k, v in params.items() if not k.startswith("vpgc.")}
        state = {k: torch.tensor(np.array(v)) for k, v in export(minigpt4.HF, wanted)}
        self.model.load_state_dict(state)
        self.model.vision_model.post_layernorm.eps = 1e-5
        self.language, self.embedding = self.model.language_model, None
        self.embedding = self.language.get_input_embeddings()

    def look(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """pixels [b 3 H W] -> tower, norm, Q-Former, projection."""
        vision = self.model.vision_model
        raw = vision.encoder(inputs_embeds=vision.embeddings(pixels)).last_hidden_state
        image = vision.post_layernorm(raw)
        found = self.ask(image, self.model.query_tokens.expand(len(image), -1, -1))
        return raw, image, found, self.model.language_projection(found)

    def ask(self, image: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
        return self.model.qformer(
            query_embeds=queries, encoder_hidden_states=image
        ).last_hidden_state


def loss_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def test_minigpt4_with_several_pictures_at_other_dims(tmp_path, capsys):
    """Rows of one and two pictures, an end inside an answer where pads are ends."""
    params = tiny.random_params(specs(MiniGPT4(MiniGPT4Config(LANGUAGE, SEEING))))
    reference, rng = Reference(params), np.random.default_rng(1)
    image = torch.tensor(rng.normal(size=(2, 2, 3, 15, 15)).astype(np.float32))
    raw, normed, found, media = reference.look(image.flatten(0, 1))
    before, answers = [[11, 12, 13], [14]], [[20, EOS, 21, END], [22, END, EOS, EOS]]
    after = [[[15], [16, 17, 18]], [[19, 19], []]]
    used = [2, 1]
    embed = lambda ids: reference.embedding(torch.tensor(ids, dtype=torch.long))  # noqa: E731
    rows, masks, labels = [], [], []
    real = [4, 2]
    for row in range(2):
        prompt = [embed([BOS, *before[row]])]
        for number in range(used[row]):
            prompt += [media[2 * row + number], embed(after[row][number])]
        prompt = torch.cat(prompt)
        rows.append(torch.cat([prompt, embed(answers[row])]))
        masks.append([1] * (len(prompt) + real[row]))
        seen = [-100 if token == EOS else token for token in answers[row]]
        labels.append([-100] * len(prompt) + seen)
    t = max(map(len, rows))
    embeds = torch.stack([torch.cat([row, embed([EOS] * (t - len(row)))]) for row in rows])
    mask = torch.tensor([row + [0] * (t - len(row)) for row in masks])
    labels = torch.tensor([row + [-100] * (t - len(row)) for row in labels])
    logits = reference.language(inputs_embeds=embeds, attention_mask=mask).logits
    loss = loss_of(logits, labels)
    loss.backward()
    projection = reference.model.language_projection
    recorded = {
        "image": image,
        "num_images": torch.tensor(used),
        "before_ids": torch.tensor([[11, 12, 13], [14, -1, -1]]),
        "after_ids_0": torch.tensor([[15, -1], [19, 19]]),
        "after_ids_1": torch.tensor([[16, 17, 18], [-1, -1, -1]]),
        "answer_ids": torch.tensor(answers),
        "answer_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
        "vision_out": raw,
        "ln_vision_out": normed,
        "qformer_out": found,
        "img_embeds": media,
        "inputs_embeds": embeds,
        "attention_mask": mask,
        "labels": labels,
        "logits": logits,
        "loss": loss,
        "grad.llama_proj.weight": projection.weight.grad,
        "grad.llama_proj.bias": projection.bias.grad,
    }
    recorded = {key: value.detach().numpy() for key, value in recorded.items()}
    config = {
        "vision": dict(num_heads=3, layer_norm_eps=1e-6),
        "qformer": dict(num_attention_heads=2, cross_attention_freq=2),
        "llama": LLAMA,
        "bos_token_id": BOS,
        "pad_token_id": EOS,
    }
    state = dict(export(minigpt4.FULL, params))
    assert main([save(tmp_path / "x", {"config": config}, state, recorded)]) == 0
    assert "11 of 11 agree; 11 of 18 tensors compared" in capsys.readouterr().out


def test_cheetor_with_three_pictures_at_other_dims(tmp_path, capsys):
    """Training of two rows and greedy generation of three whose answers end at different steps,
    from a state that has the Q-Former under its second name alone."""
    params = tiny.random_params(specs(Cheetor(CheetorConfig(LANGUAGE, SEEING, update_layer=1))))
    reference = Reference(params)
    state = {key: np.array(value) for key, value in export(cheetor.FULL, params)}
    state = {key: value for key, value in state.items() if not key.startswith("Qformer.")}
    inside = "llama_model.model."
    own = {key: torch.tensor(state[inside + key]) for key in (
        *("query_tokens", "qformer_proj.weight", "qformer_proj.bias"),
        *("llm_proj.weight", "llm_proj.bias"),
    )}  # fmt: skip
    own = {key: value.requires_grad_() for key, value in own.items()}
    linear = torch.nn.functional.linear
    told = dict(bos=BOS, pad=PAD, tokens_per_picture=2)
    rng = np.random.default_rng(2)

    def see(layout, pictures):
        """pictures [b 3 n H W] -> embeddings [b t d], the looks [n] at each picture."""
        looks = [reference.look(pictures[:, :, j]) for j in range(pictures.shape[2])]
        embeds = reference.embedding(torch.tensor(layout.tokens, dtype=torch.long)).clone()
        for (start, end), look in zip(layout.pictures, looks, strict=True):
            embeds[:, start:end] = look[3]
        return embeds, looks

    def read(layout, embeds, looks, layer, **more):
        kept = {}

        def hook(module, arguments, values):
            hidden = values["hidden_states"] if "hidden_states" in values else arguments[0]
            guide = hidden[torch.arange(len(hidden)), torch.tensor(layout.guidance)]
            guided = linear(guide, own["qformer_proj.weight"], own["qformer_proj.bias"])
            queries = guided[:, None] + own["query_tokens"]
            after = hidden.clone()
            kept.update(guidance_hidden=guide, guidance=guided, cond_queries=queries)
            for j, ((start, end), look) in enumerate(zip(layout.pictures, looks, strict=True)):
                second = reference.ask(look[1], queries)
                added = linear(second, own["llm_proj.weight"], own["llm_proj.bias"])
                after[:, start:end] += added
                kept[f"qformer_pass2.{j}"], kept[f"residual.{j}"] = second, added
            kept.update(hidden_before_hook=hidden, hidden_after_hook=after)
            return (after, *arguments[1:]), values

        layers = reference.language.model.layers
        handle = layers[layer].register_forward_pre_hook(hook, with_kwargs=True) if (
            0 <= layer < len(layers)
        ) else None  # fmt: skip
        output = reference.language(
            inputs_embeds=embeds,
            attention_mask=torch.tensor(layout.mask),
            position_ids=torch.tensor(layout.positions),
            **more,
        )
        if handle is not None:
            handle.remove()
        return output, kept

    template, end = "3 {} 4", [END]
    train = ["20 <HereForImage> 21 22 <HereForImage><HereForImage> 23",
             "<HereForImage> 24 <HereForImage> 25 26 <HereForImage> 27 28"]  # fmt: skip
    said = ["30 5 31", "32 33 34 35 36"]
    ids = lambda text: [[int(i) for i in part.split()] for part in text.split("<HereForImage>")]  # noqa: E731
    answers = [([int(i) for i in text.split()] + end)[:4] for text in said]
    prompts = [ids(template.format(text)) for text in train]
    layout = lay_out(prompts, answers, mode="train_arange", **told)
    image = torch.tensor(rng.normal(size=(2, 3, 3, 15, 15)).astype(np.float32))
    embeds, looks = see(layout, image)
    output, kept = read(layout, embeds, looks, 1)
    labels = torch.tensor(layout.labels)
    loss = loss_of(output.logits, labels)
    loss.backward()
    plain = read(layout, embeds, looks, -1)[0].logits
    names = ("vit_raw", "vit_ln", "qformer_pass1", "image_tokens")
    recorded = {"image": image, "inputs_embeds": embeds, "logits": output.logits, **kept}
    recorded |= {f"{name}.{j}": looks[j][i] for j in range(3) for i, name in enumerate(names)}
    recorded |= {f"grad.{inside}{key}": value.grad for key, value in own.items()}
    recorded |= {
        "grad.llama_proj.weight": reference.model.language_projection.weight.grad,
        "attention_mask": torch.tensor(layout.mask),
        "labels": labels,
        "loss": loss[None],
        "logits_no_vpgc": plain,
        "loss_no_vpgc": loss_of(plain, labels)[None],
        "logits_ul0": read(layout, embeds, looks, 0)[0].logits,
        "logits_ul2": read(layout, embeds, looks, 2)[0].logits,
        "logits_ul9": plain,
    }
    recorded = {f"t.{key}": value for key, value in recorded.items()}

    asked = ["20 <HereForImage> 21", "<HereForImage> 22 23 24", "25 26 27 <HereForImage> 28 29"]
    layout = lay_out([ids(text) for text in asked], mode="infer_cumsum", **told)
    image = torch.tensor(rng.normal(size=(3, 3, 15, 15)).astype(np.float32))
    steps = 6
    with torch.no_grad():
        embeds, looks = see(layout, image[:, :, None])
        output, kept = read(layout, embeds, looks, 1, use_cache=True)
        mask, at = torch.tensor(layout.mask), torch.tensor(layout.positions[:, -1:])
        logits = [output.logits[:, -1]]
        free = logits[0].argmax(1)
        eos = int(free[1])  # the second row is over at once
        made, over = [], torch.zeros(3, dtype=torch.bool)
        for _ in range(steps):
            new = torch.where(over, 0, logits[-1].argmax(1))
            made.append(new)
            over |= new == eos
            mask, at = torch.cat([mask, torch.ones(3, 1, dtype=mask.dtype)], 1), at + 1
            output = reference.language(
                input_ids=new[:, None],
                attention_mask=mask,
                position_ids=at,
                past_key_values=output.past_key_values,
                use_cache=True,
            )
            logits.append(output.logits[:, -1])
    assert over.any() and not over.all()
    recorded |= {
        "g.image": image,
        "g.inputs_embeds": embeds,
        "g.guidance": kept["guidance"],
        "g.residual.0": kept["residual.0"],
        "g.prefill_position_ids": torch.tensor(layout.positions),
        "g.sequences": torch.stack([torch.full((3,), BOS), *made], 1),
        "g.step_logits": torch.stack(logits[:-1], 1),
    }
    config = {
        "update_layer": 1,
        "vit": dict(num_heads=3, layer_norm_eps=1e-6, ln_vision_eps=1e-5),
        "qformer": dict(num_attention_heads=2, cross_attention_freq=2),
        "llama": LLAMA,
        "tokens": dict(
            bos_id=BOS, eos_id=eos, pad_id=PAD, end_sym_ids=end, max_txt_len=4,
            prompt_template=template,
        ),
        "cases": {
            "t": dict(prompts=train, outputs=said),
            "g": dict(prompts=asked, num_beams=1, max_new_tokens=steps),
        },
    }  # fmt: skip
    recorded = {key: value.detach().numpy() for key, value in recorded.items()}
    status = main([save(tmp_path / "x", config, state, recorded)])
    told = capsys.readouterr().out
    assert status == 0, told
    assert "g.step_logits, no pads inside" in told
    assert f"{len(recorded) - 2} of {len(recorded)} tensors compared" in told
