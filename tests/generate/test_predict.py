"""Files of questions: every row has its line, whatever is wrong with it, and whenever the program
is killed."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from generate.stub import StubAnswerer
from PIL import Image

from mmjax.data.templates import LMEyeQuestion
from mmjax.data.tokenizer import build_word_tokenizer
from mmjax.generate import predict as module
from mmjax.generate.answer import Answerer
from mmjax.generate.chat import pieces
from mmjax.generate.config import GenerationConfig
from mmjax.generate.predict import predict
from mmjax.generate.question import from_command_line, row_seed
from mmjax.nn.param import specs
from mmjax.parallel.mesh import make_mesh
from mmjax.systems.lmeye import LMEye

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        pixels = rng.integers(0, 256, (9, 9, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    return tmp_path


def write(path: Path, *rows) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogateescape")
    return path


def mixed(folder: Path) -> Path:
    """Good rows of every form, bad ones of many kinds, and blank lines."""
    return write(
        folder / "q.jsonl",
        {"id": "first", "image": "a.png", "question": "one?", "answer": "secret"},
        "",
        {"image": "gone.png", "question": "two?"},
        "{broken",
        {"id": 7, "parts": [
            {"type": "text", "text": "is"},
            {"type": "image", "image": "a.png"},
            {"type": "text", "text": "like <image>"},
            {"type": "image", "image": "b.png"},
        ]},
        "   ",
        {"id": "talk", "images": ["a.png", "b.png"], "messages": [
            {"role": "system", "content": "brief"},
            {"role": "user", "content": "<image>one?"},
            {"role": "assistant", "content": "said"},
            {"role": "user", "content": "two?<image>"},
            {"role": "assistant", "content": "secret"},
        ]},
        {"id": "far", "image": "a.png", "question": "too long"},
        {"id": {"deep": 1}, "image": "a.png", "question": "x"},
        {"id": "\ud800", "image": "a.png", "question": "x"},
        {"id": "fields", "img": "a.png"},
        '{"id": "latin", "question": "K\udcff"}',
        {"question": "last?"},
    )  # fmt: skip


def ask(questions: Path, out: Path, answerer=None, **changes):
    settings = dict(model={"parameters": "abc"}, takes_history=False, seed=3) | changes
    return predict(answerer or StubAnswerer(), questions, out, **settings)


def read(out: Path) -> list[dict]:
    return [json.loads(line) for line in out.read_bytes().splitlines()]


def test_every_row_has_its_line(folder):
    answerer, out = StubAnswerer(), folder / "new" / "out.jsonl"
    report = ask(mixed(folder), out, answerer)
    lines = read(out)
    assert [line["id"] for line in lines] == [
        "first", "q.jsonl:3", "q.jsonl:4", 7, "talk", "far", "q.jsonl:9", "q.jsonl:10", "fields",
        "latin", "q.jsonl:13",
    ]  # fmt: skip
    prompts = {0: "user: [a.png] one?", 3: "user: is [a.png] like <image> [b.png]",
               4: "system: brief | user: [a.png] two? [b.png]", 10: "user: last?"}  # fmt: skip
    for row, prompt in prompts.items():
        assert lines[row]["answer"] == f"{row_seed(3, row)}\n0 <{prompt}> \u2028ö"
    errors = {row: line["error"] for row, line in enumerate(lines) if row not in prompts}
    assert errors == {
        1: f"{folder}/gone.png: the file\ncannot be read",
        2: "not JSON (Expecting property name enclosed in double quotes at column 2)",
        5: "its prompt is too long",
        6: "field 'id': expected text or a whole number, got {'deep': 1}",
        7: "field 'id': half a character at place 0 (a surrogate)",
        8: "it has neither a picture (field 'image') nor a video ('video') nor a text (field "
        "'question'), nor 'parts'",
        9: "not UTF-8 text (column 31)",
    }
    assert (report.answered, report.bad, report.was_complete) == (4, 7, False)
    assert str(report).startswith(f"{out} is complete: 4 rows answered, 7 bad, e.g. q.jsonl:3: ")
    assert sorted(path.name for path in out.parent.iterdir()) == [
        "out.jsonl",
        "out.jsonl.origin.json",
    ]


def test_history_is_shown_to_those_who_take_it(folder):
    answerer = StubAnswerer()
    ask(mixed(folder), folder / "out", answerer, takes_history=True)
    talk = "system: brief | user: [a.png] one? | assistant: said | user: two? [b.png]"
    assert talk in answerer.prompts


def test_several_answers_and_their_scores(folder):
    questions = write(folder / "q.jsonl", {"question": "one?"})
    beams = GenerationConfig(num_beams=3, num_return_sequences=2)
    ask(questions, folder / "beams", StubAnswerer(beams))
    drawn = GenerationConfig(do_sample=True, num_return_sequences=2)
    ask(questions, folder / "drawn", StubAnswerer(drawn))
    answers = [f"{row_seed(3, 0)}\n{i} <user: one?> \u2028ö" for i in (0, 1)]
    line = {"id": "q.jsonl:1", "answers": answers}
    assert read(folder / "beams") == [line | {"scores": [-0.5, -1.5]}]
    assert read(folder / "drawn") == [line]


def test_pictures_elsewhere(folder):
    (folder / "sub").mkdir()
    questions = write(folder / "sub" / "q.jsonl", {"image": "a.png", "question": "one?"})
    assert ask(questions, folder / "here").bad == 1
    assert ask(questions, folder / "there", image_root=folder).bad == 0


def test_killed_at_any_byte_it_ends_the_same(folder, monkeypatch):
    """With the same batches; also when it goes on with another batch size."""
    monkeypatch.setattr(module, "BATCHES", 1)
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    rows = [{"id": 1, "question": "a"}, "{", {"id": "ö", "question": "b"}]
    rows += [{"id": i, "question": "c"} for i in range(2)]
    questions, whole, out = write(folder / "q.jsonl", *rows), folder / "whole", folder / "out"
    undisturbed = StubAnswerer(batch_size=2)
    expected = ask(questions, whole, undisturbed)
    data = whole.read_bytes()
    for size in range(len(data) + 1):
        (folder / "out.partial").write_bytes(data[:size])
        shutil.copy(folder / "whole.origin.json", folder / "out.origin.json")
        out.unlink(missing_ok=True)
        answerer = StubAnswerer(batch_size=2 + size % 2)
        report = ask(questions, out, answerer)
        assert out.read_bytes() == data and not (folder / "out.partial").exists(), size
        assert dataclasses.replace(report, out=whole) == expected
        again = len(answerer.asked)
        assert again <= (len(rows) - data[:size].count(b"\n")) / 2 + 1, "only what is missing"
        if answerer.batch_size == 2:
            assert answerer.asked == undisturbed.asked[-again:] * bool(again)


def test_killed_between_files(folder):
    """Before the first line: only the origin is there, or an empty file."""
    questions, whole, out = mixed(folder), folder / "whole", folder / "out"
    ask(questions, whole)
    described = folder / "out.origin.json"
    shutil.copy(folder / "whole.origin.json", described)
    ask(questions, out, seed=4)  # of nothing that was made yet, so it may be another one
    assert json.loads(described.read_text())["seed"] == 4
    out.unlink()
    (folder / "out.partial").touch()
    ask(questions, out)
    assert out.read_bytes() == whole.read_bytes()
    assert described.read_bytes() == (folder / "whole.origin.json").read_bytes()


def test_what_never_reached_the_disk_is_made_again(folder):
    """After a power failure a file may end in zeros."""
    questions, whole, out = mixed(folder), folder / "whole", folder / "out"
    ask(questions, whole)
    data = whole.read_bytes()
    half = data.index(b"\n", len(data) // 2) + 1
    (folder / "out.partial").write_bytes(data[:half] + bytes(40) + b"\n")
    shutil.copy(folder / "whole.origin.json", folder / "out.origin.json")
    ask(questions, out)
    assert out.read_bytes() == data


def test_a_process_killed_in_the_middle(folder):
    questions = write(folder / "q.jsonl", *({"id": i, "question": f"{i}?"} for i in range(64)))
    ask(questions, folder / "whole")
    code = (
        "from pathlib import Path; from generate.stub import StubAnswerer\n"
        "from mmjax.generate.predict import predict\n"
        f"predict(StubAnswerer(pause=0.5), Path({str(questions)!r}), Path({str(folder / 'out')!r}),"
        " model={'parameters': 'abc'}, takes_history=False, seed=3)"
    )
    partial = folder / "out.partial"
    path = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n"
    process = subprocess.Popen([sys.executable, "-c", path + code])
    deadline = time.monotonic() + 120
    while not (partial.exists() and partial.stat().st_size) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "out").exists() and 0 < len(read(partial)) < 64
    ask(questions, folder / "out")
    assert (folder / "out").read_bytes() == (folder / "whole").read_bytes()


@pytest.mark.parametrize("name", ["out", "out.partial"])
def test_what_was_made_from_something_else_is_refused(folder, name):
    questions, out = mixed(folder), folder / "out"
    ask(questions, out)
    started = folder / name
    out.rename(started)
    before = started.read_bytes()
    cases = {
        "seed: 3 there, 4 now": dict(seed=4),
        "settings.max_new_tokens: 64 there, 9 now": dict(
            answerer=StubAnswerer(GenerationConfig(9))
        ),
        "model.parameters: 'abc' there, 'abd' now": dict(model={"parameters": "abd"}),
        f"image_root: None there, {str(folder)!r} now": dict(image_root=folder),
    }
    for difference, changes in cases.items():
        with pytest.raises(ValueError) as caught:
            ask(questions, out, **changes)
        assert str(caught.value) == (
            f"{started} was made from something else; give another --out, or delete {name} and "
            f"out.origin.json to start anew:\n  {difference}"
        )
    questions.write_text(questions.read_text(errors="surrogateescape").strip() + " ",
                         errors="surrogateescape")  # fmt: skip
    with pytest.raises(ValueError, match=r"questions\.sha256: '\w+' there, '\w+' now$"):
        ask(questions, out)
    (folder / "out.origin.json").unlink()
    with pytest.raises(ValueError, match=r"no out\.origin\.json beside it says what it was made"):
        ask(questions, out)
    assert started.read_bytes() == before


def test_a_complete_file_is_left_alone(folder):
    questions, out = mixed(folder), folder / "out"
    first = ask(questions, out)
    before, answerer = (out.stat().st_mtime_ns, out.read_bytes()), StubAnswerer()
    again = ask(questions, out, answerer)
    assert dataclasses.replace(again, was_complete=False) == first and not answerer.prompts
    assert (out.stat().st_mtime_ns, out.read_bytes()) == before
    assert f"{out} was complete already, nothing was done: 4 rows" in str(again)


def test_rows_are_read_as_they_are_needed(folder):
    """One window ahead, and each is written before the next is asked."""

    class Watching(StubAnswerer):
        def answer(self, prompts, seeds):
            seen.append((len(self.prompts), len(read(folder / "out.partial"))))
            return super().answer(prompts, seeds)

    seen = []
    rows = write(folder / "q.jsonl", *({"question": f"{i}?"} for i in range(80)))
    ask(rows, folder / "out", Watching(batch_size=2))
    window = 2 * module.BATCHES
    assert [written for _, written in seen] == [0, 16, 32, 48, 64]
    assert all(asked <= written + 2 * window for asked, written in seen)


def test_files_that_hold_nothing(folder):
    with pytest.raises(FileNotFoundError, match="no such data file"):
        ask(folder / "missing.jsonl", folder / "out")
    with pytest.raises(ValueError, match="q.jsonl holds no records"):
        ask(write(folder / "q.jsonl", "", " "), folder / "out")
    assert not list(folder.glob("out*"))


WORDS = "image : answer what is this one two three four five ? a b c d e f g h"
QUESTIONS = ("what is this ?", "one two three " * 6, "is this a ?", "b", "what ? " * 9, "c d e")


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    config = tiny.lmeye_config(language=tiny.llama_config(added_rows=2, max_positions=48))
    system, mesh = LMEye(config), make_mesh(devices=jax.devices()[:1])
    tokenizer = build_word_tokenizer([WORDS], tmp_path_factory.mktemp("words"))
    assert tokenizer.vocab_size == config.language.vocab_size
    template = LMEyeQuestion(
        config.image_token, config.slot_token, num_responses=config.num_responses
    )
    params = jax.device_put(tiny.random_params(specs(system), seed=2))

    def make(batch_size: int = 4, **settings) -> Answerer:
        settings = GenerationConfig(max_new_tokens=5, **settings)
        size = config.clip.vision.image_size
        return Answerer(
            system, params, tokenizer, template, settings, image_size=size, mesh=mesh,
            batch_size=batch_size,
        )  # fmt: skip

    return make


@pytest.fixture
def questions(folder):
    rows = [
        {"image": f"{'ab'[i % 2]}.png", "question": question}
        for i, question in enumerate(QUESTIONS)
    ]
    long, cut = {"image": "a.png", "question": "e " * 50}, {"image": "cut.png", "question": "e"}
    two = {"images": ["a.png", "b.png"], "question": "e"}
    return write(folder / "q.jsonl", *rows[:3], cut, long, two, *rows[3:])


@pytest.mark.usefixtures("quick_compile")
def test_answers_do_not_depend_on_where_it_was_stopped(make, questions, folder, monkeypatch):
    monkeypatch.setattr(module, "BATCHES", 1)
    answerer = make(do_sample=True, temperature=3.0)
    ask(questions, folder / "whole", answerer)
    lines = read(folder / "whole")
    assert [list(line) for line in lines[3:6]] == [["id", "error"]] * 3
    assert "damaged or cut short" in lines[3]["error"]
    assert "(max_new_tokens) that is more than the model's 48 positions" in lines[4]["error"]
    assert "it has 2 pictures, the template takes exactly 1" in lines[5]["error"]
    answers = [line["answer"] for line in lines if "answer" in line]
    assert len(answers) == len({*answers}) == 6
    data = (folder / "whole").read_bytes()
    for done in (1, 3, 8):
        head = b"".join(data.splitlines(keepends=True)[:done])
        (folder / "out.partial").write_bytes(head + b'{"id"')
        shutil.copy(folder / "whole.origin.json", folder / "out.origin.json")
        ask(questions, folder / "out", answerer)
        assert (folder / "out").read_bytes() == data
        (folder / "out").unlink()
    row = 1
    alone = from_command_line([], str(folder / "b.png"), QUESTIONS[row])
    said = "".join(pieces(answerer, answerer.prompt(alone), row_seed(3, row)))
    assert said == lines[row]["answer"]


@pytest.mark.usefixtures("quick_compile")
def test_beams_have_scores(make, folder):
    questions = write(folder / "q.jsonl", {"image": "a.png", "question": "what is this ?"})
    ask(questions, folder / "out", make(num_beams=3, num_return_sequences=2))
    (line,) = read(folder / "out")
    assert list(line) == ["id", "answers", "scores"] and len({*line["answers"]}) == 2
    assert line["scores"][0] >= line["scores"][1]
