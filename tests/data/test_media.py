"""Pictures, videos and texts of Lynx: its prompt, their places in a batch, the choice of frames."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from PIL import Image
from safetensors.numpy import load_file

from mmjax.data.batch import Batch, media_places, with_media
from mmjax.data.example import BadSample, Example, Media, Text, Turn
from mmjax.data.frames import choose_frames
from mmjax.data.images import prepare
from mmjax.data.sequence import Lengths, assemble
from mmjax.data.templates import Encoded, LynxPrompt, Segment, from_json, to_json

VIDEO, PICTURE = Media("v", b"", is_video=True), Media("p", b"")


class LetterTokenizer:
    """Each letter is its own id."""

    bos_id, eos_id, pad_id = 1, 2, 0

    def encode(self, text):
        return [ord(letter) for letter in text]


def words(segments: list[Segment]) -> str:
    return "".join(
        f"[{segment.slot[1]}]" if segment.slot else "".join(map(chr, segment.ids))
        for segment in segments
    )


def asked(*turns) -> Example:
    roles = ("user", "assistant")
    return Example("x", tuple(Turn(roles[i % 2], tuple(t)) for i, t in enumerate(turns)))


def test_the_prompt():
    """Reference, section 1.5: media in front, lower case, the last 40 tokens, several turns."""
    encode = LynxPrompt(2, max_prompt=None).encode
    first = [Text("What's THIS? "), VIDEO, Text("{question}")]
    made = encode(asked(first, [Text("A Dog")]), LetterTokenizer())
    prompt = "[0][1]\x01user: what's this? {question}\nbot:"
    assert words(made.target) == f"{prompt}a dog\x02" and made.media == (VIDEO,)
    assert [segment.is_target for segment in made.target] == [False] * 3 + [True]
    more = asked(first, [Text("A Dog")], [Text("Sure?")])
    made = encode(more, LetterTokenizer(), generating=True)
    assert words(made.target) == f"{prompt} a dog\nuser: sure?\nbot:"
    made = LynxPrompt(2).encode(more, LetterTokenizer(), generating=True)
    assert words(made.target) == "[0][1]" + f"{prompt} a dog\nuser: sure?\nbot:"[-40:]
    alone = asked([Text("Hi")], [Text("Yo")])
    assert words(encode(alone, LetterTokenizer()).target) == "\x01user: hi\nbot:yo\x02"
    both = asked([PICTURE, Text("Hi"), VIDEO], [Text("Yo")])
    made = encode(both, LetterTokenizer())
    assert words(made.target).startswith("[0][1][2][3]\x01") and made.media == (PICTURE, VIDEO)
    made = LynxPrompt(0).encode(both, LetterTokenizer())
    assert words(made.target).startswith("\x01user: hi") and made.media == (PICTURE, VIDEO)


def test_the_prompt_has_the_originals_ids():
    """With the tokenizer of the recording, whose rows are padded on the left."""
    folder = Path(__file__).parents[1] / "fixtures" / "lynx"
    recorded = load_file(folder / "io.safetensors")
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    tokenizer = LetterTokenizer()
    tokenizer.encode = model.encode
    prompts = json.loads((folder / "config.json").read_text())["prompts"]
    for prompt, ids, mask in zip(
        prompts, recorded["input_ids"], recorded["input_atts"], strict=True
    ):
        made = LynxPrompt(6).encode(asked([PICTURE, Text(prompt)]), tokenizer, generating=True)
        assert made.target[-1].ids == tuple(ids[mask > 0])


def test_what_the_prompt_does_not_take():
    template = LynxPrompt(2, max_answer=3)
    complete = asked([Text("a")], [Text("b")])
    for example, told in (
        (asked([PICTURE], [Text("a")]), "no user text"),
        (asked([Text("a")]), "no assistant text"),
        (Example("x", (Turn("system", (Text("s"),)), *complete.turns)), "a system text"),
    ):
        with pytest.raises(BadSample, match=told):
            template.encode(example, LetterTokenizer())
    made = template.encode(asked([Text("a")], [Text("long")]), LetterTokenizer())
    assert words(made.target).endswith("bot:lon")
    assert from_json(to_json(template)) == template
    with pytest.raises(ValueError, match="exactly once") as error:
        LynxPrompt(-1, prompt="x", earlier="y", max_prompt=0)
    assert all(told in str(error.value) for told in ("'earlier'", "at least 0", "max_prompt is 0"))


def test_places_of_media():
    """The drawing of `mmjax.data.batch`."""
    item, time = media_places([[None, 3, None], []], 7)
    assert item.tolist() == [[0, 1, 1, 1, 2, -1, -1], [-1] * 7]
    assert time.tolist() == [[-1, 0, 1, 2, -1, -1, -1], [-1] * 7]
    with pytest.raises(ValueError, match="row 0 has 4 frames, there are 3 places"):
        media_places([[4]], 3)
    frames = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8)
    target = assemble([Encoded([Segment((3,))])] * 2, Lengths(1), 0)[2]
    batch = with_media(Batch(np.arange(2), target), [[frames[0], frames[1:4], frames[4]], []], 7)
    np.testing.assert_array_equal(batch.frames[0, :5], frames)
    assert not batch.frames[0, 5:].any() and not batch.frames[1].any()
    np.testing.assert_array_equal(batch.frame_time, time)
    np.testing.assert_array_equal(batch.frame_item, item)


def test_frames_in_training_are_drawn_from_stretches():
    draws = [choose_frames(13, 5, np.random.default_rng(seed)) for seed in range(200)]
    assert len({tuple(draw) for draw in draws}) > 20
    for draw in draws:
        assert draw == sorted(draw) and len(set(draw)) == 5
    assert {draw[0] for draw in draws} == {0, 1, 2} and {draw[4] for draw in draws} == {10, 11, 12}
    assert choose_frames(3, 5, np.random.default_rng(0)) == [0, 0, 1, 1, 2]
    with pytest.raises(ValueError, match="choose 5 frames of 0"):
        choose_frames(0, 5)


def test_center_rounds_where_clip_cuts():
    pixels = np.arange(7 * 4 * 3, dtype=np.uint8).reshape(4, 7, 3)  # 3 columns too many
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    media = Media("p", file.getvalue())
    np.testing.assert_array_equal(prepare(media, 4, "clip"), pixels[:, 1:5])
    np.testing.assert_array_equal(prepare(media, 4, "center"), pixels[:, 2:6])
