"""Scripts as a user calls them."""

import json
import subprocess
import sys

import numpy as np
import pytest
from end_to_end.short import ROOT

from conversion.export import export_checkpoint
from conversion.transfer import import_checkpoint
from mmjax.command import unknown_overrides
from mmjax.data.sources import make_source
from mmjax.train.build import load_run

PICTURE = make_source("easy-vqa", "test", limit=1)[0].media[0].data
QUESTION = "what shape is in the image?"


def call(*arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        **options,
    )


@pytest.fixture(scope="module")
def answer(finished) -> str:
    done = call(
        "scripts/generate.py",
        f"--run={finished.workdir}",
        f"--image={PICTURE}",
        f"--question={QUESTION}",
        "--max_new_tokens=3",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_generate_answers_one_question(answer):
    assert answer.strip() and answer.count("\n") == 1, "the answer alone is on standard output"


def test_generate_answers_a_file_of_questions(finished, answer, tmp_path):
    questions, out = tmp_path / "q.jsonl", tmp_path / "out.jsonl"
    parts = [{"type": "text", "text": QUESTION}, {"type": "image", "image": str(PICTURE)}]
    rows = [{"image": "gone.png", "question": QUESTION}, {"id": 1, "parts": parts}]
    questions.write_text("\n".join(map(json.dumps, rows)))
    done = call(
        "scripts/generate.py",
        f"--run={finished.workdir}",
        f"--jsonl={questions}",
        f"--out={out}",
        "--max_new_tokens=3",
        "--batch_size=1",
    )
    assert done.returncode == 0 and done.stdout == "", done.stderr
    assert "is complete: 1 rows answered, 1 bad, e.g. q.jsonl:1: " in done.stderr
    bad, good = map(json.loads, out.read_text().splitlines())
    assert bad["id"] == "q.jsonl:1" and "gone.png: the file cannot be read" in bad["error"]
    assert good == {"id": 1, "answer": answer.removesuffix("\n")}


def test_generate_leads_a_conversation(finished, answer):
    done = call(
        "scripts/generate.py",
        f"--run={finished.workdir}",
        "--chat",
        "--max_new_tokens=3",
        input=f"/image {PICTURE}\n{QUESTION}\n",
    )
    assert done.returncode == 0, done.stderr
    assert "one question at a time" in done.stdout and done.stdout.endswith(f")\n{answer}")


def test_generate_says_what_is_wrong_with_its_flags():
    done = call("scripts/generate.py", "--run=x", "--question=x", "--num_beams=0", "--top_p=2")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "num_beams must be" in done.stderr and "top_p must be" in done.stderr


def test_generate_fails_if_no_row_could_be_answered(tmp_path):
    """With a stub in the model's place."""
    questions, out = tmp_path / "q.jsonl", tmp_path / "out.jsonl"
    script = (
        "import runpy, sys; sys.path[:0] = ['.', 'tests']\n"
        "from generate.stub import StubModel; from mmjax.train import answering\n"
        "answering.load_model = StubModel\n"
        "runpy.run_path('scripts/generate.py', run_name='__main__')\n"
    )
    questions.write_text("{\n")
    done = call("-c", script, "--run=x", f"--jsonl={questions}", f"--out={out}")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "0 rows answered, 1 bad" in done.stderr and "not JSON" in out.read_text()


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
    defaults = (
        "test.data.pictures=2",
        "align.optimizer.loss_scale=65536",
        "align.data.overlong=error",
        "patience=300",
    )
    assert unknown_overrides([config, *(f"--config.{key}" for key in defaults)]) == []
    (problem,) = unknown_overrides([config, "--config.align.data.picture=2"])
    assert problem == "--config.align.data.picture: no 'picture' here; did you mean pictures?"
    for key in (
        "align.pictures=2",
        "align.data.pictures.many=2",
        "align.loss_scale=1",
        "align.patience=1",
    ):
        assert len(unknown_overrides([config, f"--config.{key}"])) == 1, key
    problems = unknown_overrides(
        ["--config", config[9:], "--config.instruct.stepz=3", "--config.instuct.steps=3"]
    )
    assert len(problems) == 2
    assert "did you mean steps" in problems[0] and "did you mean instruct" in problems[1]
