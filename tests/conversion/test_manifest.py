"""Manifests of published checkpoints: exactly their keys and shapes, at any dims."""

import gzip
import json
from pathlib import Path

import pytest

from conversion.__main__ import main

FOLDER = Path(__file__).parents[1] / "manifests"
KNOWN = {
    "lmeye_ipn_llama_7b": "lmeye stage 2 net: 10 of 10 tensors read, 25,006,592 parameters",
    "lmeye_ipn_llama_13b": "lmeye stage 2 net: 10 of 10 tensors read, 30,519,808 parameters",
    "lmeye_ipn_vicuna_7b": "lmeye stage 2 net: 10 of 10 tensors read, 25,006,592 parameters",
    "lmeye_ipn_vicuna_13b": "lmeye stage 2 net: 10 of 10 tensors read, 30,519,808 parameters",
    "lmeye_stage1_llama_7b": "lmeye stage 1 net: 3 of 3 tensors read, 3,153,920 parameters",
    "lmeye_stage1_llama_13b": "lmeye stage 1 net: 3 of 3 tensors read, 3,942,400 parameters",
    "clip_vit_large_patch14_vision": "clip picture half: 392 of 393 tensors read, 1 ignored",
    "eva_vit_g": "eva vit: 511 of 511 tensors read, 985,894,528 parameters",
    "blip2_pretrained_flant5xxl_consumed": (
        "blip-2 of LAVIS without its tower: 257 of 258 tensors read, 1 ignored by name, 105,165,056"
    ),
    "vicuna_7b_v0_llama": "llama: 291 of 323 tensors read, 32 ignored by name, 6,738,415,616",
}


def _shapes(name):
    with gzip.open(FOLDER / f"{name}.json.gz", "rt") as file:
        return json.load(file)


def _check(tmp_path, values):
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(values))
    return main(["manifest", str(path)])


@pytest.mark.parametrize("name", KNOWN)
def test_published(tmp_path, capsys, name):
    assert _check(tmp_path, _shapes(name)) == 0
    assert KNOWN[name] in capsys.readouterr().out


@pytest.mark.parametrize("name", KNOWN)
def test_any_change_fails(tmp_path, capsys, name):
    shapes = _shapes(name)
    for key in list(shapes)[:: max(1, len(shapes) // 5)]:
        if "position_ids" in key or "inv_freq" in key:
            continue  # buffers may be there or not
        missing = {k: v for k, v in shapes.items() if k != key}
        # A LLaMA without its head is a LLaMA with a tied one.
        assert _check(tmp_path, missing) == (0 if key == "lm_head.weight" else 1), (
            f"{key} is missing"
        )
        assert _check(tmp_path, shapes | {key: [*shapes[key], 1]}) == 1, f"{key} has another rank"
    assert _check(tmp_path, shapes | {"another": [1]}) == 1
    assert "FAIL" in capsys.readouterr().out


def test_one_wrong_length_is_told_with_both_shapes(tmp_path, capsys):
    shapes = _shapes("vicuna_7b_v0_llama") | {"model.layers.7.mlp.up_proj.weight": [11008, 4095]}
    assert _check(tmp_path, shapes) == 1
    assert (
        "up_proj.weight is (11008, 4095), the model wants (11008, 4096)" in capsys.readouterr().out
    )


def test_other_dims_and_notations(tmp_path):
    net = {"new_embedding": [1, 6], "imageLinear.weight": [6, 4], "imageLinear.bias": [6]}
    assert _check(tmp_path, net) == 0
    assert (
        _check(
            tmp_path,
            {key: {"shape": shape, "dtype": "torch.bfloat16"} for key, shape in net.items()},
        )
        == 0
    )
    assert _check(tmp_path, {key: ["float16", shape] for key, shape in net.items()}) == 0
    assert _check(tmp_path, {key: [shape, "float16"] for key, shape in net.items()}) == 0


def test_unknown_and_broken(tmp_path, capsys):
    others = {f"tower.{key}": shape for key, shape in _shapes("eva_vit_g").items()}
    assert _check(tmp_path, others) == 1
    assert "no table knows any of its 511 keys" in capsys.readouterr().out
    for values, told in (
        ({"a": "b"}, "'b' is no shape"),
        ({"a": ["float99", [1]]}, "float99"),
        ([1], "holds a list"),
        ({}, "no tensors"),
    ):
        assert _check(tmp_path, values) == 1
        assert told in capsys.readouterr().out
    assert main(["manifest", str(tmp_path / "none.json")]) == 1
