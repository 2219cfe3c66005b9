"""Scripts as a user calls them."""

import subprocess
import sys

import numpy as np
from end_to_end.short import ROOT

from conversion.transfer import export_checkpoint, import_checkpoint
from mmjax.command import unknown_overrides
from mmjax.data.sources import make_source
from mmjax.train.build import load_run


def call(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
    )


def test_generate_answers_one_question(finished):
    picture = make_source("easy-vqa", "test", limit=1)[0].media[0].data
    done = call(
        "scripts/generate.py",
        f"--run={finished.workdir}",
        f"--image={picture}",
        "--question=what shape is in the image?",
        "--max_new_tokens=3",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip(), "no answer"


def test_exported_and_imported_again_it_is_the_same_model(finished, tmp_path):
    export_checkpoint(finished.workdir, format="original", out=tmp_path / "net")
    assets = ROOT / "mmjax" / "assets" / "tiny"
    sources = [tmp_path / "net" / "checkpoint.pth", assets / "llama", assets / "clip"]
    import_checkpoint(system="lmeye", sources=sources, out=tmp_path / "imported")
    before, _ = load_run(finished.workdir)
    after, stage = load_run(tmp_path / "imported")
    assert stage == "imported" and before.params.keys() == after.params.keys()
    for path, value in before.params.items():
        np.testing.assert_array_equal(value, after.params[path], err_msg=path)
    assert after.tokenizer.fingerprint == before.tokenizer.fingerprint


def test_errors_are_short_and_say_what_to_do(finished, tmp_path):
    done = call("scripts/generate.py", f"--run={tmp_path}", "--image=x.png", "--question=what?")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "neither a run directory" in done.stderr


def test_unknown_overrides_are_named_all_at_once():
    config = f"--config={ROOT / 'configs' / 'lmeye.py'}"
    assert unknown_overrides([config, "--config.instruct.steps=3"]) == []
    problems = unknown_overrides(
        ["--config", config[9:], "--config.instruct.stepz=3", "--config.instuct.steps=3"]
    )
    assert len(problems) == 2
    assert "did you mean steps" in problems[0] and "did you mean instruct" in problems[1]
