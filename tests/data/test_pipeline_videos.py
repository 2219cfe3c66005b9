"""Videos in batches: alone, beside pictures, and from stored features."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from mmjax.data.check import Pictures, check_source
from mmjax.data.example import BadSample, Example, Media, Text, Turn
from mmjax.data.features import FeatureStore, FeatureWriter, compute_features, media_of
from mmjax.data.frames import choose_frames
from mmjax.data.images import prepare
from mmjax.data.pipeline import Pipeline
from mmjax.data.sequence import Lengths
from mmjax.data.sources import make_source
from mmjax.data.templates import Encoded, Segment, Template
from mmjax.data.video import prepare_video

SIZE, F = 8, 3


@dataclasses.dataclass(frozen=True)
class OneSlotEach(Template):
    """One slot for each medium, then the answer."""

    takes_history = False

    def encode(self, example, tokenizer, *, generating=False):
        slots = [Segment((9,), slot=("media", n)) for n in range(len(example.media))]
        answer = [] if generating else [Segment(tuple(tokenizer.encode("one")), is_target=True)]
        return Encoded([*slots, Segment((5,)), *answer], media=example.media)


def colour(number: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (10, 10), (number, 0, 0)).save(data, "PNG")
    return data.getvalue()


def still(number: int) -> Media:
    return Media(f"picture {number}", colour(number))


def moving(number: int, num_frames: int) -> Media:
    """Frame t of it is of the colour ``number + t``."""
    frames = (Media(f"{number}/{t}", colour(number + t)) for t in range(num_frames))
    return Media(f"video {number}", tuple(frames), is_video=True)


def example(name: str, *media: Media) -> Example:
    return Example(name, (Turn("user", (*media, Text("?"))),), {"kind": "k"})


@pytest.fixture
def mixed(listed):
    """A picture, a video, both, and text alone."""
    return listed(
        [
            example("0", still(10)),
            example("1", moving(100, 9)),
            example("2", moving(150, 2), still(20)),
            example("3"),
        ]
    )


def make(source, tokenizer, **options) -> Pipeline:
    settings = dict(batch_size=4, seed=0, image_size=SIZE, pictures=F + 1, num_frames=F)
    lengths = Lengths(target=8)
    return Pipeline(
        source, OneSlotEach(), tokenizer, lengths, **settings | dict(shuffle=False) | options
    )


def shown(batch) -> list[list[int]]:
    return batch.frames[..., 0, 0, 0].tolist()


def test_rows_of_pictures_videos_both_and_neither(mixed, tokenizer):
    batch = make(mixed, tokenizer, frame_choice="first").batch_at(0)
    assert batch.frames.shape == (4, F + 1, SIZE, SIZE, 3)
    assert shown(batch) == [[10, 0, 0, 0], [100, 103, 106, 0], [150, 150, 151, 20], [0, 0, 0, 0]]
    assert batch.frame_item.tolist() == [[0, -1, -1, -1], [0, 0, 0, -1], [0, 0, 0, 1], [-1] * 4]
    assert batch.frame_time.tolist() == [[-1] * 4, [0, 1, 2, -1], [0, 1, 2, -1], [-1] * 4]
    assert batch.target.slots["media"][:, :3].tolist() == [
        [0, -1, -1], [0, -1, -1], [0, 1, -1], [-1, -1, -1],
    ]  # fmt: skip


def test_training_draws_frames_by_seed_and_position(mixed, tokenizer):
    """Not by what was drawn before: a run that goes on draws the same ones."""
    train = make(mixed, tokenizer)
    drawn = [shown(train.batch_at(step))[1][:F] for step in range(20)]
    again = make(mixed, tokenizer)
    assert [shown(again.batch_at(step))[1][:F] for step in reversed(range(20))] == drawn[::-1]
    other = make(mixed, tokenizer, seed=1)
    assert [shown(other.batch_at(step))[1][:F] for step in range(20)] != drawn
    assert len(set(map(tuple, drawn))) > 5
    expected = [
        [100 + n for n in choose_frames(9, F, np.random.default_rng([0, 4 * step + 1]))]
        for step in range(20)
    ]
    assert drawn == expected


def test_evaluation_shows_the_same_frames(mixed, tokenizer):
    asked = make(mixed, tokenizer, generating=True)
    ((batch, _),) = asked.epoch(4)
    assert shown(batch)[1] == [100, 103, 106, 0] == shown(asked.batch_at(5))[1]
    by_chance = [
        make(mixed, tokenizer, generating=True, frame_choice="random", seed=seed)
        for seed in range(9)
    ]
    drawn = [[shown(next(p.epoch(4))[0])[1] for _ in range(2)] for p in by_chance]
    assert all(first == second for first, second in drawn)
    assert len({tuple(first) for first, _ in drawn}) > 1


def test_stored_features_are_those_of_the_frames(mixed, tokenizer, tmp_path):
    """A row of the store for each frame; they tell which medium and time as frames do."""

    def tower(frames):
        return frames[:, 0, 0].astype(np.float32)

    def load(media):
        if media.is_video:
            return prepare_video(media, SIZE, count=F)
        return prepare(media, SIZE)

    with FeatureWriter(tmp_path / "store", fingerprint=None) as writer:
        compute_features(media_of(mixed), load, tower, writer, batch_size=3, num_frames=F)
    store = FeatureStore(tmp_path / "store")
    assert len(store) == 2 + 2 * F and "video 100#2" in store
    batch = make(mixed, tokenizer, features=store, image_size=None).batch_at(0)
    plain = make(mixed, tokenizer, frame_choice="first").batch_at(0)
    assert batch.frames is None
    np.testing.assert_array_equal(batch.features, plain.frames[:, :, 0, 0].astype(np.float32))
    np.testing.assert_array_equal(batch.frame_item, plain.frame_item)
    np.testing.assert_array_equal(batch.frame_time, plain.frame_time)


def test_bad_videos_are_replaced_and_named(mixed, tokenizer):
    def gone():
        raise BadSample("video 1", None, "it is gone")

    mixed.examples[1] = example("1", Media("video 1", gone, is_video=True))
    pipeline = make(mixed, tokenizer)
    assert pipeline.batch_at(0).frames.shape[0] == 4
    (bad,) = pipeline.quarantine
    assert bad["row"] == 1 and bad["reason"] == "video 1: it is gone"
    checked = check_source(make(mixed, tokenizer), Pictures(None), num_samples=4)
    assert [entry["reason"] for entry in checked.bad] == ["video 1: it is gone"]
    assert checked.num_pictures == 4


def test_too_many_frames_and_settings_that_contradict(mixed, tokenizer, tmp_path):
    pipeline = make(mixed, tokenizer, pictures=F)
    pipeline.batch_at(0)
    (bad,) = pipeline.quarantine
    assert bad["reason"] == (
        "it has 4 frames and pictures, data.pictures is 3 (raise data.pictures to keep it)"
    )
    with pytest.raises(ValueError, match="list has videos: say how many frames of each"):
        make(mixed, tokenizer, num_frames=0).batch_at(0)
    with pytest.raises(ValueError, match="frame_choice must be first or random, got 'last'"):
        make(mixed, tokenizer, frame_choice="last")
    with pytest.raises(ValueError, match="videos are shown whole"):
        make(mixed, tokenizer, preparation="crop")
    with FeatureWriter(tmp_path / "store", fingerprint=None) as writer:
        writer.add(["picture 10"], np.zeros((1, 2), np.float32))
    with pytest.raises(ValueError, match="no frame_choice='random'"):
        make(mixed, tokenizer, features=FeatureStore(tmp_path / "store"), frame_choice="random")


def test_clips_and_pictures_in_one_batch(tokenizer):
    source = make_source(
        dict(
            clips=dict(source="easy-vqa-clips", options=dict(num_records=18)),
            pictures=dict(source="easy-vqa", options=dict(limit=18)),
        ),
        "dev",
    )
    weights = dict(clips=1.0, pictures=1.0)
    pipeline = make(source, tokenizer, shuffle=True, weights=weights, pictures=5, num_frames=5)
    batch = pipeline.batch_at(3)
    videos = (batch.frame_time >= 0).sum(axis=1)
    assert sorted(videos.tolist()) == [0, 0, 5, 5] and (batch.frame_item >= -1).all()
