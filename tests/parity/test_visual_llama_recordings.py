"""Recordings of Visual-LLaMA: both connectors, one step of stage 1, LoRA."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from conversion.io import read
from conversion.parity import CASES, main
from conversion.recordings.lynx_networks import INPUT

pytestmark = pytest.mark.usefixtures("quick_compile")

FIXTURES = Path(__file__).parent.parent / "fixtures"


def compute(folder: Path) -> tuple[dict, dict, dict]:
    """(ours, recorded, what is left out)."""
    config = json.loads((folder / "config.json").read_text())
    state, recorded = read(folder / "state.safetensors"), load_file(folder / "io.safetensors")
    case = next(case for case in CASES if case.fits(config, set(state.entries)))
    weights = {}
    for stem in case.further:
        if not (file := folder / f"{stem}.safetensors").is_file():
            continue
        if "state" in stem or "adapter" in stem:
            weights[stem] = read(file)
        else:
            recorded |= {f"{stem}.{name}": value for name, value in load_file(file).items()}
    with jax.default_matmul_precision("highest"):
        ours, left_out, _ = case.compute(config | {"weights": weights}, state, recorded)
    return ours, recorded, left_out


@pytest.mark.parametrize(("name", "count"), [("visual_llama", 34), ("visual_llama_lora", 5)])
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


def test_rows_that_were_to_stay_do_shrink_in_the_original():
    """Torch's decay falls on all words; ours trains a leaf that holds the new ones alone."""
    folder = FIXTURES / "visual_llama"
    before = load_file(folder / "state.safetensors")["llm.model.embed_tokens.weight"]
    after = load_file(folder / "train_step.safetensors")["after.llm.model.embed_tokens.weight"]
    np.testing.assert_allclose(after[:340], before[:340] * (1 - 4e-3 * 0.01), rtol=1e-6)


def test_a_folder_without_its_tokens_is_told(tmp_path, capsys):
    for name in ("config.json", "io.safetensors"):
        (tmp_path / name).write_bytes((FIXTURES / "visual_llama" / name).read_bytes())
    assert main([tmp_path]) == 1
    assert "no system here knows this recording" in capsys.readouterr().out
