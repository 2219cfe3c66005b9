"""LMEye on OPT, BLOOM and MPT, and these alone, from file to file."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import transformers

from conversion.__main__ import main
from conversion.huggingface import config_from_hf
from conversion.store import load_imported
from mmjax.models.clip import ClipConfig
from mmjax.models.opt import OptConfig
from mmjax.nn.param import specs
from mmjax.systems import lmeye
from mmjax.systems.lmeye import LMEye, LMEyeConfig
from mmjax.systems.system import config_from_dict

D = 32  # as the nets of conftest
KINDS = {
    "opt": (
        transformers.OPTForCausalLM,
        transformers.OPTConfig(
            vocab_size=90,
            hidden_size=D,
            ffn_dim=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=20,
        ),
    ),
    "bloom": (
        transformers.BloomForCausalLM,
        transformers.BloomConfig(vocab_size=90, hidden_size=D, n_layer=2, n_head=4),
    ),
    "mpt": (
        transformers.MptForCausalLM,
        transformers.MptConfig(vocab_size=90, d_model=D, n_layers=2, n_heads=4),
    ),
}


@pytest.fixture(scope="module", params=KINDS)
def spoken(request, tmp_path_factory):
    """(name, class of transformers, folder)."""
    kind, config = KINDS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(1)
    kind(config).save_pretrained(folder)
    return request.param, kind, folder


def run(command: str, *paths) -> int:
    return main([*command.split(), *map(str, paths)])


def same(one, other) -> bool:
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_lmeye_there_and_back(tmp_path, net, spoken, clip_folder, monkeypatch, capsys):
    """The file is as upstream writes it: not a zip file, wrapped, with an optimizer. Where a table
    has rows to spare (OPT, here), the two tokens are among them."""
    name, kind, folder = spoken
    monkeypatch.setitem(lmeye.WORDS, ("opt", 90), 80)
    optimizer = torch.optim.AdamW(net.values())
    for parameter in net.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    wrapped = {f"module.{key}": value for key, value in net.items()}
    saved = {"net": wrapped, "optimizer": optimizer.state_dict(), "epoch": 4}
    torch.save(saved, tmp_path / "net.pth", _use_new_zipfile_serialization=False)
    out = tmp_path / "imported"
    sources = (clip_folder, tmp_path / "net.pth", folder)
    assert run(f"import --system lmeye --out {out} --source", *sources) == 0
    assert "optimizer" in capsys.readouterr().out

    header, params = load_imported(out)
    config = config_from_dict(LMEyeConfig, header["model"])
    assert config.language.architecture == name
    wanted = specs(LMEye(config))
    assert {path: leaf.shape for path, leaf in params.items()} == {
        path: spec.shape for path, spec in wanted.items()
    }
    token = 80 if name == "opt" else 90
    template = header["template"]
    assert (template["image_token"], template["slot_token"]) == (token, token + 1)
    assert not template["add_bos"] and template["num_responses"] == 5
    assert ("language.embedding.added" in params) == (name != "opt")

    command = f"export --checkpoint {out} --format"
    assert run(f"{command} original --module-prefix --out", tmp_path / "original") == 0
    again = torch.load(tmp_path / "original" / "checkpoint.pth", weights_only=True)["net"]
    assert again.keys() == wrapped.keys()
    assert all(torch.equal(again[key], value) for key, value in wrapped.items())
    assert run(f"{command} hf --out", tmp_path / "hf") == 0
    made = kind.from_pretrained(tmp_path / "hf" / "language")
    assert same(made, kind.from_pretrained(folder))

    out = tmp_path / "as upstream loads it"
    command = ["import", "--system", "lmeye", "--upstream-embedding-img-bug", "--out", str(out)]
    assert main([*command, "--source", *map(str, sources)]) == 0
    _, params = load_imported(out)
    np.testing.assert_array_equal(params["image_embedding"], net["embedding_imgd"].detach().numpy())


def test_another_language_model_than_the_variants(tmp_path, net, spoken, clip_folder, capsys):
    name, _, folder = spoken
    variant = {"opt": "mpt-7b", "bloom": "opt-iml-1.3b", "mpt": "llama-7b"}[name]
    torch.save({"net": net}, tmp_path / "net.pth")
    command = f"import --system lmeye --variant {variant} --out {tmp_path / 'out'} --source"
    assert run(command, tmp_path / "net.pth", folder, clip_folder) == 1
    assert f"holds a {name}, the variant is of" in capsys.readouterr().err


@pytest.mark.parametrize("spoken", ["opt"], indirect=True)
def test_stage_1_of_a_variant(tmp_path, net_stage1, spoken, clip_folder, monkeypatch):
    """Its file does not tell how many responses there will be; the variant does (OPT: one)."""
    _, _, folder = spoken
    sizes = dict(vocab_size=90, num_layers=2, embed_dim=D, mlp_dim=48, num_heads=4)
    small = OptConfig(**sizes, max_positions=20)
    monkeypatch.setattr(OptConfig, "opt_1_3b", lambda **how: dataclasses.replace(small, **how))
    monkeypatch.setattr(ClipConfig, "vit_l14", lambda: config_from_hf(clip_folder))
    monkeypatch.setitem(lmeye.WORDS, ("opt", 90), 80)
    torch.save({"net": net_stage1}, tmp_path / "net.pth")
    command = f"import --system lmeye --variant opt-iml-1.3b --out {tmp_path / 'out'} --source"
    assert run(command, tmp_path / "net.pth", folder, clip_folder) == 0
    header, _ = load_imported(tmp_path / "out")
    config = config_from_dict(LMEyeConfig, header["model"])
    assert (config.num_responses, config.spare_row, config.dtype) == (1, 80, "bfloat16")
    assert config.language.remat == "dots"


def test_alone_in_half_precision(tmp_path, spoken):
    name, kind, folder = spoken
    out = tmp_path / "imported"
    assert run(f"import --system {name} --dtype float16 --out {out} --source", folder) == 0
    assert run(f"export --format hf --checkpoint {out} --out", tmp_path / "hf") == 0
    values = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert values["model_type"] == name and values["torch_dtype"] == "float16"
    made = kind.from_pretrained(tmp_path / "hf")
    assert made.dtype == torch.float16
    assert same(made, kind.from_pretrained(folder).half())
