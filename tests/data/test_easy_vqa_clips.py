import collections
import functools
import re

import numpy as np
import pytest

from mmjax.data.example import Text
from mmjax.data.sources import make_source
from mmjax.data.sources.easy_vqa import COLOURS, SHAPES, captioned, picture
from mmjax.data.sources.easy_vqa_clips import (
    DESCRIBE,
    FORMS,
    KINDS,
    SIDES,
    EasyVQAClips,
)
from mmjax.data.sources.easy_vqa_edits import PALETTE, take_apart
from mmjax.data.video import prepare_video

SPLITS = ("train", "dev", "test")
# What blind guessing gets, and what guessing by the middle frame gets.
BLIND = {
    "direction": 1 / 4, "moving colour": 1 / 8, "moving shape": 1 / 3, "moving": 1 / 2,
    "moving to": 1 / 2, "changing": 1 / 4, "colours": 1 / 56, "from to": 1 / 2, "size": 1 / 2,
}  # fmt: skip
MIDDLE = BLIND | {"moving colour": 1 / 2, "moving shape": 1 / 2, "colours": 1 / 14}


@functools.cache
def asked_records(seed: int) -> list:
    source = EasyVQAClips("dev", num_records=700 * len(KINDS), seed=seed)
    return [source.record(i) for i in range(len(source))]


def test_a_record_is_a_video_and_a_question():
    source = make_source("easy-vqa-clips", "dev", num_records=90)
    assert source.kinds == list(KINDS) * 10
    for i in range(len(source)):
        example, record = source[i], source.record(i)
        (video,) = example.media
        assert video.is_video and len(video.data) == 5
        assert example.turns[0].parts == (video, Text(record.question))
        assert example.text("assistant") == record.answer
        assert example.info == {
            "question": record.question, "answer": record.answer, "kind": source.kinds[i],
        }  # fmt: skip
    keys = [frame.key for i in range(90) for frame in source[i].media[0].data]
    assert len(set(keys)) == 450


def frames_of(example, count=5) -> np.ndarray:
    return prepare_video(example.media[0], 64, count=count).astype(int)


def things_in(frame: np.ndarray) -> list[tuple[str, float, float, int]]:
    """(colour, x, y, longer side) of each shape, by its pixels of one pure colour."""
    found = []
    for colour, rgb in PALETTE.items():
        rows, columns = np.nonzero((frame == rgb).all(-1))
        if len(rows) > 12:
            side = max(np.ptp(rows), np.ptp(columns)) + 1
            found.append(
                (colour, (columns.min() + columns.max()) / 2, (rows.min() + rows.max()) / 2, side)
            )
    return found


@pytest.mark.parametrize("split", SPLITS)
def test_answers_are_true_of_the_pixels(split):
    """Found again from the question's words and what is seen in the first and the last frame."""
    source = EasyVQAClips(split, num_records=18 * len(KINDS))
    for i in range(len(source)):
        frames = frames_of(source[i])
        first, last = things_in(frames[0]), things_in(frames[-1])
        record = source.record(i)
        assert record.answer == answer_to(record, first, last), record


def answer_to(record, first, last) -> str:
    words = record.question.rstrip("?").split()
    if len(first) == 2:
        (moved,) = [
            one
            for one in last
            if abs(one[1:3] - np.array([o[1:3] for o in first if o[0] == one[0]])).max() > 6
        ]
        if "color" in words:
            return moved[0]
        return next(actor.shape for actor in record.clip.actors if actor.colours[0] == moved[0])
    (before,), (after,) = first, last
    x, y = after[1] - before[1], after[2] - before[2]
    side = None
    if max(abs(x), abs(y)) > 12:
        side = ("left", "right")[int(x > 0)] if abs(x) > abs(y) else ("top", "bottom")[int(y > 0)]
    if "side" in words:
        return side
    if "from" in words and "what" not in words:
        named = words[words.index("from") + 1], words[words.index("from") + 3]
        sizes = [("small", "large")[int(one[3] > 15)] for one in (before, after)]
        return "yes" if named in ((before[0], after[0]), tuple(sizes)) else "no"
    if "from" in words:
        return f"{before[0]} to {after[0]}"
    if "what" in words:
        changed = {"color": before[0] != after[0], "size": abs(before[3] - after[3]) > 6}
        changed |= {"place": side is not None, "nothing": True}
        return next(name for name, does in changed.items() if does)
    return "yes" if side is not None and (side in words or not {*words} & {*SIDES}) else "no"


def test_answers_are_balanced():
    counts = collections.defaultdict(collections.Counter)
    for record in asked_records(0):
        counts[record.kind][record.answer] += 1
    for kind, answers in counts.items():
        assert len(answers) == round(1 / BLIND[kind]), kind
        expected = answers.total() / len(answers)
        assert all(abs(count - expected) < 4.5 * expected**0.5 for count in answers.values()), kind
    assert {*counts["direction"]} == {*SIDES}
    assert {*counts["moving colour"]} == {*COLOURS} and {*counts["moving shape"]} == {*SHAPES}


def guessed(seen) -> dict[str, float]:
    """How often the commonest answer to what is ``seen`` of a record is right: counted on 6,300
    records, tried on as many others."""
    answers = collections.defaultdict(collections.Counter)
    for record in asked_records(0):
        answers[seen(record)][record.answer] += 1
    right, count = collections.Counter(), collections.Counter()
    for record in asked_records(1):
        guess = answers[seen(record)].most_common(1)
        right[record.kind] += bool(guess) and guess[0][0] == record.answer
        count[record.kind] += 1
    return {kind: right[kind] / count[kind] for kind in KINDS}


def test_the_wording_gives_nothing_away():
    for kind, share in guessed(lambda record: record.question).items():
        assert share < BLIND[kind] + 0.06, kind


def coarse(actor, time: float, clip, grid: int = 16) -> tuple:
    """What one frame shows of a shape: colour, shape, size, place by squares of ``grid`` pixels."""
    now = time >= clip.change
    x, y = (
        center + (2 * time - 1) * 12 * step
        for center, step in zip(actor.center, SIDES.get(actor.side, (0, 0)), strict=True)
    )
    return actor.colours[now], actor.shape, actor.sizes[now], int(x // grid), int(y // grid)


@pytest.mark.parametrize(
    "seen",
    [
        lambda record: tuple(coarse(actor, 0.5, record.clip)[3:] for actor in record.clip.actors),
        lambda record: coarse(record.clip.actors[0], 0.5, record.clip, 4)[3:],
        lambda record: tuple(coarse(actor, 0.5, record.clip)[:1] for actor in record.clip.actors),
        lambda record: tuple(coarse(actor, 0.5, record.clip)[1:3] for actor in record.clip.actors),
    ],
    ids=["places", "place", "colour", "shape and size"],
)
def test_the_middle_frame_gives_nothing_away(seen):
    """More than one of two shapes, or one of two colours."""
    for kind, share in guessed(lambda record: (record.question, *seen(record))).items():
        assert share < MIDDLE[kind] + 0.06, kind


def test_the_first_and_the_last_frame_do():
    """As the docstring says: what is far left goes right."""
    for time in (0.0, 1.0):
        shares = guessed(
            lambda record, time=time: (
                record.kind, coarse(record.clip.actors[0], time, record.clip, 4)[3:]
            )
        )  # fmt: skip
        assert shares["direction"] > 0.9


def test_one_frame_is_the_middle_one():
    five, three, one = (EasyVQAClips("dev", num_records=60, frames=n) for n in (5, 3, 1))
    for i in range(60):
        assert one.record(i) == five.record(i)
        frames = frames_of(five[i])
        (video,) = one[i].media
        assert video.is_video and len(video.data) == 1
        np.testing.assert_array_equal(frames_of(one[i]), np.stack([frames[2]] * 5))
        np.testing.assert_array_equal(frames_of(three[i], 3), frames[[0, 2, 4]])


def test_a_record_depends_on_seed_and_number_alone():
    long, short = (EasyVQAClips("dev", num_records=number) for number in (300, 40))
    backwards = {i: short[i] for i in reversed(range(40))}
    for i in range(40):
        assert backwards[i].info == long[i].info
        assert backwards[i].media[0].key == long[i].media[0].key
        np.testing.assert_array_equal(frames_of(backwards[i]), frames_of(long[i]))
    for other in (EasyVQAClips("dev", seed=1), EasyVQAClips("train")):
        assert sum(other.record(i).clip == long.record(i).clip for i in range(40)) == 0
        assert {other[i].media[0].key for i in range(40)}.isdisjoint(
            long[i].media[0].key for i in range(40)
        )


def test_captions_and_other_wordings_are_of_the_same_clips():
    asked, told, one = (
        EasyVQAClips("dev", num_records=36, **options)
        for options in ({}, dict(task="caption"), dict(wordings="one"))
    )
    wordings = {}
    for i in range(36):
        record = asked.record(i)
        assert told.record(i).clip == one.record(i).clip == record.clip
        assert told[i].media[0].key == asked[i].media[0].key
        same = one.record(i)
        assert (same.kind, same.answer) == (record.kind, record.answer)
        names = "|".join((*COLOURS, *SIDES, "small", "large"))
        wordings.setdefault(same.kind, set()).add(re.sub(names, "X", same.question))
    assert all(len(forms) == 1 for forms in wordings.values())
    # Frames differ, so features of one must not pass for the other's.
    assert EasyVQAClips("dev", frames=1)[0].media[0].key != asked[0].media[0].key


def test_shapes_are_those_of_the_splits_pictures():
    """Held-out ones are never trained on; each shape and colour is what its picture's facts say."""
    shown = {}
    for split in SPLITS:
        source, facts = EasyVQAClips(split, num_records=900), dict(captioned(split))
        actors = [actor for i in range(900) for actor in source.record(i).clip.actors]
        for actor in actors:
            assert facts[actor.picture].shape == actor.shape
            assert facts[actor.picture].colour == actor.colours[0]
        shown[split] = {picture(split, actor.picture).key for actor in actors}
        assert len(shown[split]) > 300
    assert not shown["train"] & shown["dev"]
    assert not (shown["train"] | shown["dev"]) & shown["test"]


def test_nothing_leaves_the_picture():
    source = EasyVQAClips("dev", num_records=180)
    for i in range(len(source)):
        for frame in frames_of(source[i]):
            background = np.median(frame.reshape(-1, 3), axis=0)
            border = np.concatenate([frame[0], frame[-1], frame[:, 0], frame[:, -1]])
            assert (border == background).all(), source.record(i)


def test_every_picture_can_lend_its_shape():
    for number in (number for number, facts in captioned("dev") if facts.colour and facts.shape):
        from PIL import Image

        parts = take_apart(np.asarray(Image.open(picture("dev", number).data).convert("RGB")))
        assert (parts.alpha >= 0.5).any()


def test_captions():
    source = make_source("easy-vqa-clips?task=caption&num_records=600", "dev")
    assert source.kinds == ["caption"] * 600
    texts = {source.record(i).answer for i in range(600)}
    assert all(source.record(i).question == DESCRIBE for i in range(600)) and len(texts) > 300
    words = {word.strip(".") for text in texts for word in text.split()}
    assert words == {
        *COLOURS, *SHAPES, *SIDES, "small", "large", "a", "is", "there", "picture", "of", "moving",
        "changing", "from", "to", "the", "not", "and",
    }  # fmt: skip
    by_change = EasyVQAClips("dev", num_records=18)
    clip = by_change.record(0).clip  # a direction
    actor = clip.actors[0]
    assert clip.caption(0) == f"a {actor.colours[0]} {actor.shape} is moving to the {actor.side}."
    clip = by_change.record(6).clip  # two colours
    actor = clip.actors[0]
    said = f"a {actor.shape} changing from {actor.colours[0]} to {actor.colours[1]}."
    assert clip.caption(1) == f"there is {said}" and clip.caption(2) == f"a picture of {said}"
    assert len(FORMS) == 3


def test_what_cannot_be_made():
    with pytest.raises(ValueError, match="task must be 'question' or 'caption', got 'answer'"):
        make_source("easy-vqa-clips", "dev", task="answer")
    with pytest.raises(ValueError, match="frames must be at least 1, got 0"):
        make_source("easy-vqa-clips?frames=0", "dev")
    (notice,) = EasyVQAClips("dev").notices
    assert notice.startswith("45 pictures lend no shape") and notice.endswith("365 do")
