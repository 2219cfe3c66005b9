"""Recordings of mPLUG-Owl and of its networks."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from conversion.io import read
from conversion.parity import CASES, main
from conversion.recordings.lynx_networks import INPUT
from conversion.recordings.mplug_owl import _places

pytestmark = pytest.mark.usefixtures("quick_compile")

FIXTURES = Path(__file__).parent.parent / "fixtures"


def compute(folder: Path) -> tuple[dict, dict, dict]:
    """(ours, recorded, what is left out)."""
    config = json.loads((folder / "config.json").read_text())
    state, recorded = read(folder / "state.safetensors"), load_file(folder / "io.safetensors")
    case = next(case for case in CASES if case.fits(config, set(state.entries)))
    files = {stem: folder / f"{stem}.safetensors" for stem in case.further}
    weights = {stem: read(file) for stem, file in files.items() if file.is_file()}
    with jax.default_matmul_precision("highest"):
        ours, left_out, _ = case.compute(config | {"weights": weights}, state, recorded)
    return ours, recorded, left_out


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("mplug_owl_vision", 7),
        ("mplug_owl_abstractor", 5),
        ("mplug_owl", 8),
        ("mplug_owl_lora", 3),
    ],
)
def test_the_originals(name, count):
    """Every tensor but the inputs agrees, and would not if a number of it were off."""
    ours, recorded, left_out = compute(FIXTURES / name)
    assert set(left_out.values()) == {INPUT}
    compared = {key.partition(",")[0] for key in ours} & recorded.keys()
    assert compared == recorded.keys() - left_out.keys() and len(compared) == count
    for key, one in ours.items():
        if (wanted := recorded.get(key.partition(",")[0])) is None:
            continue
        good, told = one.against(wanted)
        assert good, f"{key}: {told}"
        off = np.atleast_1d(wanted.copy())
        off.reshape(-1)[:1] += 1e-3 if off.dtype.kind == "f" else 1
        assert not one.against(off.reshape(wanted.shape))[0], key


def test_nothing_to_predict_is_a_loss_of_0(tmp_path, capsys):
    """Where the original's is no number; and rows may have no picture."""
    folder = FIXTURES / "mplug_owl"
    recorded = load_file(folder / "io.safetensors")
    kept = {name: x for name, x in recorded.items() if "mask" in name or name.endswith("_in")}
    kept["labels_effective"] = recorded["labels_effective"].copy()
    kept["labels_effective"][:, 1:] = -100
    kept["prompt_mask"] = np.zeros_like(recorded["prompt_mask"])
    # One row's pictures are now text.
    ids = recorded["input_ids"].copy()
    ids[1] = np.abs(ids[1])
    kept |= {"input_ids": ids, "num_images": np.array([1, 0])}
    kept |= {"pixel_values": recorded["pixel_values"][:1], "loss": np.array(np.nan, np.float32)}
    kept |= {"query_features": recorded["query_features"][:1]}
    save_file(kept, tmp_path / "io.safetensors")
    for name in ("config.json", "state.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    assert main([tmp_path]) == 0
    told = capsys.readouterr().out
    assert "2 of 2 agree" in told and "left out: upstream's is no number" in told


def test_places_of_pictures():
    starts, slots = _places(np.array([[1, -1, -1, 7, -2, -2, 5], [-1, -1, 3, 4, 5, 6, 7]]), q=2)
    assert starts == [[1, 4], [0]]
    assert slots.tolist() == [[-1, 0, 1, -1, 2, 3, -1], [0, 1, -1, -1, -1, -1, -1]]
    with pytest.raises(ValueError, match="row 0 has 4 places from 1 on, a picture takes 2"):
        _places(np.array([[1, -1, -1, -1, -1, 7]]), q=2)
