"""The conversation: what is said, what the model is shown, and what leaves no trace."""

import io

import jax
import pytest
import tiny
from generate.stub import StubAnswerer
from PIL import Image

from mmjax.data.templates import PlainText
from mmjax.data.tokenizer import build_word_tokenizer
from mmjax.generate import chat as module
from mmjax.generate.answer import Answerer
from mmjax.generate.chat import chat, pieces, typed
from mmjax.generate.config import GenerationConfig
from mmjax.generate.question import row_seed
from mmjax.nn.param import specs
from mmjax.parallel.mesh import make_mesh
from mmjax.systems.foundation import LanguageModel, LanguageModelConfig


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("a.png", "b c.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "cut.png").write_bytes(b"no picture")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def talk(answerer, *lines: str, takes_history: bool = True, seed: int = 0) -> list[str]:
    """What is printed, line by line, after the greeting."""
    out = io.StringIO()
    chat(answerer, iter(lines), out, takes_history=takes_history, seed=seed)
    greeting, *said = out.getvalue().splitlines()
    assert greeting.startswith("/image FILE adds a picture")
    return said


def asked(answerer) -> list[str]:
    return [prompt for call in answerer.asked for prompt, _ in call]


def test_history_is_shown(folder):
    answerer = StubAnswerer()
    said = talk(answerer, "one?", "/image a.png", " two </s>? ", "three?")
    assert said == ["yes, it is", "(picture 1 of the next message: a.png)"] + ["yes, it is"] * 2
    first = "user: one?"
    second = f"{first} | assistant: yes, it is | user: [a.png] two </s>?"
    assert asked(answerer) == [
        first, second, f"{second} | assistant: yes, it is | user: three?"
    ]  # fmt: skip


def test_one_question_at_a_time_keeps_pictures_alone(folder):
    answerer = StubAnswerer()
    lines = ["/image a.png", "/image 'b c.png'", "one?", "two?", "/reset", "three?"]
    greeting, *said = talk(answerer, *lines, takes_history=False)
    assert greeting == module.ALONE
    assert said[:2] == [f"(picture {i} of the next message: {name})"
                        for i, name in enumerate(("a.png", "b c.png"), start=1)]  # fmt: skip
    assert said[4:] == ["(a new conversation)", "yes, it is"]
    pictures = "user: [a.png] [b c.png]"
    assert asked(answerer) == [f"{pictures} one?", f"{pictures} two?", "user: three?"]


def test_mistakes_are_one_line_and_leave_no_trace(folder):
    answerer = StubAnswerer()
    said = talk(
        answerer, "/image", "/image gone.png", "/image cut.png", "/image a.png", "a long one",
        "/nothing", "", "/help me", "one?", "/image a.png", "another long one", "two?",
    )  # fmt: skip
    assert said[0] == "(which picture? /image FILE)"
    assert said[1].startswith("(not added: gone.png: the file cannot be read")
    assert said[2].startswith("(not added: cut.png: no readable JPEG")
    assert said[4] == "(left out, pictures too: the message: its prompt is too long)"
    assert said[5] == "(no command /nothing; /help lists those there are)"
    assert said[6:11] == module.HELP.splitlines()
    assert said[11:13] == ["yes, it is", "(picture 1 of the next message: a.png)"]
    assert said[13] == (
        "(left out, pictures too: the message: its prompt is too long; /reset starts a new "
        "conversation)"
    )
    assert said[14:] == ["yes, it is"]
    assert asked(answerer) == ["user: one?", "user: one? | assistant: yes, it is | user: two?"]


def test_pictures_that_vanish_are_one_line(folder):
    answerer = StubAnswerer()
    lines = iter(["/image a.png", "one?", "two?"])

    def typing():
        for line in lines:
            if line == "one?":
                (folder / "a.png").unlink()
            yield line

    out = io.StringIO()
    chat(answerer, typing(), out, takes_history=True)
    _, _, complaint, answer = out.getvalue().splitlines()
    assert complaint == "(left out, pictures too: a.png: the file cannot be read)"
    assert answer == "yes, it is" and asked(answerer) == ["user: two?"]


@pytest.mark.parametrize(("stop", "heard"), [(0, None), (2, "yes, it")])
def test_stopping_stops_one_answer(stop, heard):
    """What was heard of it stays; an answer of which nothing was heard was not given."""
    answerer = StubAnswerer(stop=stop)
    said = talk(answerer, "one?", "two?")
    assert said == [f"{heard or ''} (stopped)"] * 2
    history = f"user: one? | assistant: {heard} | " if heard else ""
    assert asked(answerer) == ["user: one?", f"{history}user: two?"]


def test_quitting_and_draws():
    answerer = StubAnswerer(GenerationConfig(do_sample=True))
    talk(answerer, "one?", "/reset", "one?", "/quit", "two?", seed=5)
    assert [seed for call in answerer.asked for _, seed in call] == [row_seed(5, 0), row_seed(5, 1)]


def test_beams_are_said_at_once_and_several_answers_are_refused():
    beams = StubAnswerer(GenerationConfig(num_beams=2))
    said = talk(beams, "one?")
    assert "\n".join(said) == f"{row_seed(0, 0)}\n0 <user: one?> \n{'ö'}"
    for settings in (dict(num_beams=2), dict(do_sample=True)):
        config = GenerationConfig(num_return_sequences=2, **settings)
        with pytest.raises(ValueError, match="num_return_sequences = 2: a chat goes on from one"):
            talk(StubAnswerer(config), "one?")


def test_several_answers_to_one_question_are_numbered():
    def said(**settings):
        config = GenerationConfig(num_return_sequences=2, **settings)
        return "".join(pieces(StubAnswerer(config), "x", 7))

    assert said(num_beams=2) == "1  -0.5000  7\n0 <x> \u2028ö\n2  -1.5000  7\n1 <x> \u2028ö"
    assert said(do_sample=True) == "1  7\n0 <x> \u2028ö\n2  7\n1 <x> \u2028ö"


def test_lines_are_typed(monkeypatch, capsys):
    events = iter(["one", KeyboardInterrupt, "two", EOFError])

    def read(invitation):
        event = next(events)
        if isinstance(event, str):
            return event
        raise event

    monkeypatch.setattr("builtins.input", read)
    assert list(typed()) == ["one", "two"]
    assert "Ctrl-D or /quit ends" in capsys.readouterr().out


def test_a_model_that_takes_history_reads_all_of_it(tmp_path, quick_compile):
    words = build_word_tokenizer(["a b c d e f g h i j k l m n o p q r s t"], tmp_path)
    system = LanguageModel(LanguageModelConfig(tiny.llama_config(max_positions=32)))
    answerer = Answerer(
        system,
        jax.device_put(tiny.random_params(specs(system), seed=4)),
        words,
        PlainText(),
        GenerationConfig(max_new_tokens=3),
        image_size=0,
        mesh=make_mesh(devices=jax.devices()[:1]),
    )
    prompts = []
    real = answerer.prompt
    answerer.prompt = lambda example: prompts.append(real(example)) or prompts[-1]
    first, second, complaint = talk(answerer, "a b c", "d", " e" * 30)
    ids = [[i for segment in p.encoded.target for i in segment.ids] for p in prompts]
    assert first and second and ids[0] == [words.bos_id, *words.encode("a b c")]
    assert ids[1] == [*ids[0], *words.encode(first), words.eos_id, *words.encode("d")]
    assert "positions" in complaint and complaint.endswith("/reset starts a new conversation)")


def test_videos_join_the_next_message(folder):
    """An animation needs nothing more than pictures do."""
    frames = [Image.new("RGB", (9, 9), (value, 0, 0)) for value in (0, 90)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    answerer = StubAnswerer()
    said = talk(answerer, "/video", "/video gone.mp4", "/video moving.gif", "what moves?")
    assert said[0] == "(which video? /video FILE)"
    assert said[1].startswith("(not added: gone.mp4: the file cannot be read")
    assert said[2] == "(video 1 of the next message: moving.gif)"
    assert asked(answerer) == ["user: [moving.gif] what moves?"]
