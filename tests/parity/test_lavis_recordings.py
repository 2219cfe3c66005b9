"""Recordings of EVA ViT and Q-Former: the originals', and others made with transformers' models."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import transformers
from safetensors.numpy import load_file, save_file

from conversion.engine import export
from conversion.parity import main
from conversion.tables import eva_vit, qformer
from mmjax.models.eva_vit import EvaVit, EvaVitConfig
from mmjax.models.qformer import QFormer, QFormerConfig
from mmjax.nn.param import specs

pytestmark = pytest.mark.usefixtures("quick_compile")

FIXTURES = Path(__file__).parent.parent / "fixtures"


def failed(output: str) -> set[str]:
    return set(re.findall(r"^  (\S+) .*FAIL$", output, re.MULTILINE))


def torch_state(table, params) -> dict[str, torch.Tensor]:
    return {key: torch.tensor(np.array(value)) for key, value in export(table, params)}


def save(folder: Path, config: dict, state: dict, recorded: dict) -> Path:
    folder.mkdir()
    arrays = lambda tensors: {k: np.ascontiguousarray(v) for k, v in tensors.items()}  # noqa: E731
    save_file(arrays(state), folder / "state.safetensors")
    save_file(arrays(recorded), folder / "io.safetensors")
    (folder / "config.json").write_text(json.dumps({"config": config}))
    return folder


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("lavis_eva_vit", {"image", "interp_src"}),
        (
            "lavis_qformer",
            {
                *("encoder_hidden_states", "encoder_attention_mask", "input_ids"),
                *("text_attention_mask", "full_attention_mask"),
            },
        ),
    ],
)
def test_the_originals_recordings(name, inputs, tmp_path, capsys):
    """They agree; and where one number of each tensor is off, each is found."""
    folder = FIXTURES / name
    recorded = load_file(folder / "io.safetensors")
    compared = recorded.keys() - inputs
    for key in compared:
        recorded[key].reshape(-1)[0] += 1e-3
    config = json.loads((folder / "config.json").read_text())["config"]
    spoilt = save(tmp_path / "x", config, load_file(folder / "state.safetensors"), recorded)
    assert main([folder]) == 0
    told = capsys.readouterr().out
    assert set(re.findall(r"^  (\S+) +left out: an input", told, re.MULTILINE)) == inputs
    assert f"{len(compared)} of {len(compared)} agree" in told
    assert main([spoilt]) == 1
    assert failed(capsys.readouterr().out) == compared


def test_an_eva_vit_of_other_dims(tmp_path, capsys):
    sizes = dict(image_size=15, patch_size=5, num_layers=2, embed_dim=12, mlp_dim=17, num_heads=3)
    params = tiny.random_params(specs(EvaVit(EvaVitConfig(**sizes))))
    values = dict(image_size=15, patch_size=5, num_hidden_layers=2, hidden_size=12)
    values |= dict(intermediate_size=17, num_attention_heads=3)
    theirs = transformers.Blip2VisionModel(transformers.Blip2VisionConfig(**values)).eval()
    assert not theirs.load_state_dict(torch_state(eva_vit.HF, params), strict=False)[1]
    image = np.random.default_rng(0).normal(size=(2, 3, 15, 15)).astype(np.float32)
    with torch.no_grad():
        states = theirs(torch.tensor(image), output_hidden_states=True).hidden_states
    recorded = {"image": image, "output": states[2]}
    recorded |= {"block_0_out": states[1], "block_1_out": states[2]}
    config = dict(num_heads=3, layer_norm_eps=1e-6)
    state = dict(export(eva_vit.EVA, params))
    assert main([save(tmp_path / "x", config, state, recorded)]) == 0
    assert "3 of 3 agree; 3 of 4 tensors compared" in capsys.readouterr().out


def test_a_qformer_of_other_dims_without_text(tmp_path, capsys):
    """It looks at the picture in every third layer."""
    sizes = QFormerConfig(
        num_layers=4, embed_dim=12, mlp_dim=17, num_heads=3, image_dim=10, cross_every=3
    )
    params = tiny.random_params(specs(QFormer(sizes)))
    values = dict(num_hidden_layers=4, hidden_size=12, intermediate_size=17)
    values |= dict(num_attention_heads=3, encoder_hidden_size=10, cross_attention_frequency=3)
    theirs = transformers.Blip2QFormerModel(transformers.Blip2QFormerConfig(**values)).eval()
    theirs.load_state_dict(torch_state(qformer.hf(3), params), strict=True)
    rng = np.random.default_rng(0)
    queries, image = (rng.normal(size=s).astype(np.float32) for s in ((1, 5, 12), (2, 7, 10)))
    mask = (np.arange(7) < np.array([[7], [4]])).astype(np.int64)
    recorded = dict(query_tokens=queries, encoder_hidden_states=image, encoder_attention_mask=mask)
    for name, seen in (("only", None), ("padded_encoder", torch.tensor(mask))):
        with torch.no_grad():
            output = theirs(
                torch.tensor(queries).expand(2, -1, -1),
                encoder_hidden_states=torch.tensor(image),
                encoder_attention_mask=seen,
            )
        recorded[f"out_query_{name}"] = output.last_hidden_state
    config = dict(num_attention_heads=3, cross_attention_freq=3)
    state = dict(export(qformer.lavis(3).under(source_prefix="Qformer."), params))
    folder = save(tmp_path / "x", config, state | {"query_tokens": queries}, recorded)
    assert main([folder]) == 0
    assert "3 of 3 agree; 3 of 5 tensors compared" in capsys.readouterr().out
