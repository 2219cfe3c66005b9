"""Recordings of Lynx and of its networks: the originals', and towers from files of another grid."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from conversion.io import read
from conversion.parity import CASES, main
from conversion.recordings import lynx
from mmjax.nn.patches import resize_grid

pytestmark = pytest.mark.usefixtures("quick_compile")

FIXTURES = Path(__file__).parent.parent / "fixtures"


def compute(folder: Path) -> tuple[dict, dict, dict, list[str]]:
    """(ours, recorded, what is left out, remarks) as `conversion.parity.compare` has them."""
    config = json.loads((folder / "config.json").read_text())
    state, recorded = read(folder / "state.safetensors"), load_file(folder / "io.safetensors")
    case = next(case for case in CASES if case.fits(config, set(state.entries)))
    weights = {}
    for stem in case.further:
        if stem.startswith("io"):
            more = load_file(folder / f"{stem}.safetensors")
            recorded |= {f"{stem}.{name}": value for name, value in more.items()}
        else:
            weights[stem] = read(folder / f"{stem}.safetensors")
    with jax.default_matmul_precision("highest"):
        ours, left_out, remarks = case.compute(config | {"weights": weights}, state, recorded)
    return ours, recorded, left_out, remarks


@pytest.mark.parametrize(
    ("name", "count"),
    [("lynx", 28), ("lynx_eva_vit", 12), ("lynx_llama_adapter", 14), ("lynx_resampler", 9)],
)
def test_the_originals(name, count):
    """Every tensor but the inputs agrees, and would not if a number of it were off."""
    ours, recorded, left_out, _ = compute(FIXTURES / name)
    assert set(left_out.values()) == {lynx.INPUT}
    compared = {key.partition(",")[0] for key in ours} & recorded.keys()
    assert compared == recorded.keys() - left_out.keys() and len(compared) == count
    for key, one in ours.items():
        if (wanted := recorded.get(key.partition(",")[0])) is None:
            continue
        good, told = one.against(wanted)
        assert good, f"{key}: {told}"
        off = np.atleast_1d(wanted.copy())
        there = np.ones(off.shape, bool)
        if one.where is not None:
            there = there & one.where.reshape(*one.where.shape, *[1] * (off.ndim - one.where.ndim))
        off[tuple(index[0] for index in np.nonzero(there))] += 1e-3 if off.dtype.kind == "f" else 1
        assert not one.against(off.reshape(wanted.shape))[0], key
    if name == "lynx":
        kinds = ("image", "video", "text")
        assert {f"{kind}_logits, all kinds in one batch" for kind in kinds} <= ours.keys()


def test_what_a_tower_leaves_of_its_file_is_named(tmp_path, capsys):
    """And its positions may be of a finer grid than the model's."""
    folder, other = FIXTURES / "lynx_eva_vit", tmp_path / "shrunk"
    other.mkdir()
    recorded = load_file(folder / "io.safetensors")
    fine = np.random.default_rng(0).normal(size=(1, 26, 44)).astype(np.float32)
    resized = resize_grid(fine[0, 1:].reshape(5, 5, 44), 3).reshape(9, 44).astype(np.float32)
    recorded = {key: recorded[key] for key in ("pixel_values", "patch_embed", "output")}
    recorded["pos_embed_source"] = fine
    recorded["pos_embed_interpolated"] = np.concatenate([fine[0, :1], resized])[None]
    save_file(recorded, other / "io.safetensors")
    for name in ("config.json", "state.safetensors", "source.safetensors"):
        (other / name).write_bytes((folder / name).read_bytes())
    assert main([other]) == 0
    told = capsys.readouterr().out
    assert "4 of 4 agree; 3 of 5 tensors compared" in told
    for key in ("norm.weight", "head.bias", "blocks.3.attn.qkv.weight"):
        assert f"note: source.{key} is left out: " in told
    assert "note: pos_embed: positions of 2 x 2 patches resized to 3 x 3" in told
