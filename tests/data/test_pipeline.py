import dataclasses
import itertools
import json
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from PIL import Image

from mmjax.data.example import Example, Media
from mmjax.data.features import FeatureStore, FeatureWriter, compute_features, media_of
from mmjax.data.images import clip_preprocess, load_image, prepare
from mmjax.data.in_words import describe
from mmjax.data.pipeline import Pipeline
from mmjax.data.sequence import Lengths, Overlong
from mmjax.data.sources import make_source
from mmjax.data.templates import (
    Encoded,
    LMEyeCaption,
    LMEyeQuestion,
    PlainText,
    Segment,
    Template,
)

TEMPLATE = LMEyeQuestion(100, 101, num_responses=2)
LENGTHS = Lengths(prefix=10, request=1, target=7)


def make(source, tokenizer, **options):
    defaults = {
        "template": TEMPLATE,
        "lengths": LENGTHS,
        "batch_size": 4,
        "seed": 0,
        "image_size": 8,
    }
    return Pipeline(source, tokenizer=tokenizer, **{**defaults, **options})


def concatenate(batches):
    return jax.tree.map(lambda *rows: np.concatenate(rows), *batches)


def assert_batches_equal(one, two):
    ones, twos = jax.tree.leaves_with_path(one), jax.tree.leaves_with_path(two)
    assert [path for path, _ in ones] == [path for path, _ in twos]
    for (path, a), (_, b) in zip(ones, twos, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=str(path))


def test_a_batch(source, tokenizer):
    batch = make(source, tokenizer, shuffle=False).batch_at(2)
    assert batch.row_id.dtype == np.int64 and batch.row_id.tolist() == [8, 9, 10, 11]
    assert batch.frames.shape == (4, 1, 8, 8, 3) and batch.frames.dtype == np.uint8
    assert batch.frames[1, 0, 0, 0].tolist() == [9 * 20, 0, 255 - 9]
    assert batch.frame_item.tolist() == [[0]] * 4 and batch.frame_time.tolist() == [[-1]] * 4
    assert batch.features is None
    assert batch.prefix.tokens.shape == (4, 10) and batch.target.tokens.shape == (4, 7)
    assert describe(batch, 1, tokenizer) == (
        "row 9\n"
        "prefix   <s> image : <media 0> what is this ?\n"
        "request  <request 0>\n"
        "target   <response 0-1> answer : [two] [</s>]"
    )


def test_describe_shows_weights_and_lines_without_prefix(listed, example, tokenizer):
    source = listed([example(0, question="what is")])
    plain = PlainText(answer_weight=8)
    pipeline = make(source, tokenizer, template=plain, batch_size=1, image_size=None)
    assert (
        describe(pipeline.batch_at(0), 0, tokenizer)
        == "row 0\ntarget   <s> [what] [is] [one x8] [</s> x8]"
    )
    assert pipeline.batch_at(0).frames is None


def test_iterate_equals_batch_at_and_resumes(source, tokenizer):
    pipeline = make(source, tokenizer)
    batches = list(pipeline.iterate(num_steps=8))
    assert len(batches) == 8
    fresh = make(source, tokenizer)
    for step in (5, 0, 7, 3):
        assert_batches_equal(batches[step], fresh.batch_at(step))
    endless = make(source, tokenizer).iterate(start_step=5)
    for step in (5, 6, 7):
        assert_batches_equal(next(endless), batches[step])
    other = make(source, tokenizer, seed=1).batch_at(0)
    assert (other.frames != batches[0].frames).any()


def test_as_many_threads_read_as_are_asked_for(source, tokenizer):
    class Together:
        """Gives a record when twenty threads, more than the default, have asked for one."""

        name, kinds, barrier = source.name, source.kinds, threading.Barrier(20, timeout=20)
        __len__ = lambda self: len(source)  # noqa: E731

        def __getitem__(self, index):
            self.barrier.wait()
            return source[index]

    batches = list(make(Together(), tokenizer, batch_size=1, num_workers=20).iterate(num_steps=40))
    alone = make(source, tokenizer, batch_size=1, num_workers=1)
    for one, two in zip(batches, alone.iterate(num_steps=40), strict=True):
        assert_batches_equal(one, two)


def test_an_epoch_of_steps_visits_all_records(source, tokenizer):
    colours = [
        batch.frames[:, 0, 0, 0, 0] for batch in make(source, tokenizer).iterate(num_steps=3)
    ]
    assert sorted(np.concatenate(colours)) == [20 * number for number in range(12)]


@pytest.mark.parametrize("weights", [None, {"even": 3, "odd": 1}])
def test_hosts_share_the_same_global_batch(example, source, tokenizer, weights, tmp_path):
    source.examples[5] = example(5, tmp_path / "missing.png")  # replaced alike on every host
    whole = [make(source, tokenizer, weights=weights).batch_at(step) for step in range(6)]
    for count in (2, 4):
        parts = [
            make(source, tokenizer, weights=weights, host=(index, count)) for index in range(count)
        ]
        for step, expected in enumerate(whole):
            shares = [part.batch_at(step) for part in parts]
            joined = concatenate(shares)
            assert_batches_equal(joined, expected)


def test_weights_decide_the_kinds(source, tokenizer):
    pipeline = make(source, tokenizer, weights={"even": 3, "odd": 1})
    colours = np.concatenate([pipeline.batch_at(step).frames[:, 0, 0, 0, 0] for step in range(8)])
    assert (colours // 20 % 2 == 1).sum() == 8


def test_bad_records_are_replaced_counted_and_the_same_again(example, source, tokenizer, tmp_path):
    source.examples[3] = example(3, tmp_path / "missing.png")
    source.examples[6] = example(6, source.examples[6].media[0].data, question="")
    one = make(source, tokenizer)
    batches = [one.batch_at(step) for step in range(6)]
    two = make(source, tokenizer)
    for step in reversed(range(6)):  # what has been quarantined before changes nothing
        assert_batches_equal(two.batch_at(step), batches[step])
    quarantine = sorted(one.quarantine, key=lambda entry: entry["row"])
    assert [entry["row"] for entry in quarantine] == [3, 6]  # each once, though met in two epochs
    assert [entry["id"] for entry in quarantine] == ["example 3", "example 6"]
    assert "missing.png: the file cannot be read" in quarantine[0]["reason"]
    assert "no user text" in quarantine[1]["reason"] and quarantine[0]["source"] == "list"


def test_only_the_bad_row_changes(example, source, tokenizer, tmp_path):
    before = [make(source, tokenizer).batch_at(step) for step in range(3)]
    source.examples[3] = example(3, tmp_path / "missing.png")
    after = [make(source, tokenizer).batch_at(step) for step in range(3)]
    changed = [
        (one.frames[row] != two.frames[row]).any()
        for one, two in zip(before, after, strict=True)
        for row in range(4)
    ]
    assert sum(changed) == 1


def test_overlong_policies(example, source, tokenizer):
    long = example(4, source.examples[4].media[0].data, question="what is this? " * 5)
    source.examples[4] = long
    dropping = make(source, tokenizer)
    words = [
        describe(batch, row, tokenizer)
        for batch in dropping.iterate(num_steps=3)
        for row in range(4)
    ]
    assert not any("this ? what" in text for text in words)
    (entry,) = dropping.quarantine
    assert entry["row"] == 4 and "its prefix has 24 tokens, the limit is 10" in entry["reason"]

    cutting = make(source, tokenizer, overlong="truncate_text", shuffle=False)
    text = describe(cutting.batch_at(1), 0, tokenizer)
    assert "prefix   <s> image : <media 0> what is this ? what is\n" in text and "[five]" in text
    assert not cutting.quarantine

    strict = make(source, tokenizer, overlong="error", shuffle=False)
    with pytest.raises(Overlong, match="example 4"):
        strict.batch_at(1)
    with pytest.raises(Overlong, match="example 4"):
        list(strict.iterate(num_steps=2))


def test_too_many_bad_records_stop_the_run(listed, example, tokenizer, tmp_path):
    pictures = [example(number, tmp_path / f"{number}.png") for number in range(3)]
    with pytest.raises(
        ValueError,
        match=r"more than 1 of 3 records cannot be used(?s:.*)record 1 \(example 1\): .*1.png",
    ):
        make(listed(pictures), tokenizer).batch_at(0)

    good = [example(number, question="one") for number in range(300)]
    bad = [example(number, question="one two " * 40) for number in range(300, 500)]
    text = {"template": PlainText(), "lengths": Lengths(target=8), "batch_size": 10}
    pipeline = make(listed(good + bad), tokenizer, **text)
    with pytest.raises(ValueError, match=r"more than 100 of 500(?s:.*)and \d+ more"):
        list(pipeline.iterate(num_steps=100))
    tolerant = make(listed(good + bad), tokenizer, max_bad_fraction=0.5, **text)
    assert len(list(tolerant.iterate(num_steps=50))) == 50
    assert len(tolerant.quarantine) == 200


def test_epoch_in_order_copies_in_place_of_bad_records(example, source, tokenizer, tmp_path):
    for bad in (2, 8, 9, 10, 11):
        source.examples[bad] = example(bad, tmp_path / "missing.png")
    source.examples += [example(n, source.examples[0].media[0].data) for n in (12, 13)]
    pipeline = make(source, tokenizer, seed=7)
    batches = list(pipeline.epoch(4))
    names = [row and row.id for _, rows in batches for row in rows]
    expected = [0, 1, None, 3, 4, 5, 6, 7, None, None, None, None, 12, 13, None, None]
    assert names == [None if number is None else f"example {number}" for number in expected]
    assert np.concatenate([batch.row_id for batch, _ in batches]).tolist() == [
        0, 1, 3, 3, 4, 5, 6, 7, 7, 7, 7, 7, 12, 13, 13, 13,
    ]  # fmt: skip
    first = batches[0][0]
    np.testing.assert_array_equal(first.frames[2], first.frames[3])
    assert sorted(entry["row"] for entry in pipeline.quarantine) == [2, 8, 9, 10, 11]


def test_hosts_share_an_epoch(example, source, tokenizer, tmp_path):
    """Each record once, equally many batches, though one host's first share is all bad."""
    for bad in (0, 1):
        source.examples[bad] = example(bad, tmp_path / "missing.png")
    whole = list(make(source, tokenizer).epoch(8))
    parts = [list(make(source, tokenizer, host=(index, 4)).epoch(8)) for index in range(4)]
    assert [len(part) for part in parts] == [len(whole)] * 4
    for number, (_, examples) in enumerate(whole):
        assert [row for part in parts for row in part[number][1]] == examples
    read = [row for part in parts for _, rows in part for row in rows if row]
    assert len(read) == len(source) - 2


def test_epoch_generating_needs_no_answers(listed, source, tokenizer):
    prompts = [Example(e.id, e.turns[:1], e.info) for e in source.examples]
    pipeline = make(listed(prompts), tokenizer, generating=True)
    for batch, _ in pipeline.epoch(8):
        assert not batch.target.weights.any()
        assert batch.target.segments.sum(axis=1).tolist() == [4] * 8  # two slots and "answer :"
    assert not pipeline.quarantine


@dataclasses.dataclass(frozen=True)
class Album(Template):
    """Any number of pictures, a question, an answer; ``part`` is where the pictures stand."""

    part: str = "prefix"

    def encode(self, example, tokenizer, *, generating=False):
        pictures = [Segment((9,), slot=("media", i)) for i in range(len(example.media))]
        question = Segment(tuple(tokenizer.encode(example.text("user"))))
        answer = Segment(tuple(tokenizer.encode(example.text("assistant"))), is_target=True)
        if self.part == "prefix":
            return Encoded([Segment((8,)), answer], [*pictures, question], media=example.media)
        prefix = [question] if self.part == "target after a prefix" else None
        return Encoded([Segment((8,)), *pictures, answer], prefix, media=example.media)


COUNTS = (2, 0, 3, 1, 0, 0, 0, 0)


@pytest.fixture
def album(listed, example, pictures):
    """Eight records with 2, 0, 3, 1 pictures and then none; pictures 0, 1, 2, ... in order."""
    files = iter(pictures)
    examples = []
    for number, count in enumerate(COUNTS):
        user, answer = example(number, question="what is").turns
        shown = tuple(Media(str(file), file) for file in itertools.islice(files, count))
        turns = (dataclasses.replace(user, parts=(*shown, *user.parts)), answer)
        examples.append(Example(f"example {number}", turns, {"kind": "even"}))
    return listed(examples)


def make_album(source, tokenizer, **options):
    options = dict(template=Album(), lengths=Lengths(prefix=6, target=3), pictures=3) | options
    return make(source, tokenizer, shuffle=False, **options)


def test_rows_with_several_pictures_and_with_none(album, tokenizer):
    batch = make_album(album, tokenizer).batch_at(0)
    assert batch.frames.shape == (4, 3, 8, 8, 3)
    item = [[0, 1, -1], [-1, -1, -1], [0, 1, 2], [0, -1, -1]]
    assert batch.frame_item.tolist() == item and batch.frame_item.dtype == np.int32
    assert (batch.frame_time == -1).all() and batch.frame_time.shape == (4, 3)
    for row, items in enumerate(item):
        for place, number in enumerate(items):
            frame = batch.frames[row, place]
            first = sum(COUNTS[:row]) + place
            assert (frame[..., 0] == (20 * first if number >= 0 else 0)).all()
            assert (frame[..., 2] == (255 - first if number >= 0 else 0)).all()
    slots = batch.prefix.slots["media"]
    assert [slots[row][slots[row] >= 0].tolist() for row in range(4)] == [
        [0, 1],
        [],
        [0, 1, 2],
        [0],
    ]
    ((first, _), (second, examples)) = make_album(album, tokenizer).epoch(4)
    assert_batches_equal(first, batch)
    assert [each.id for each in examples] == [f"example {n}" for n in (4, 5, 6, 7)]
    assert second.frames.shape == batch.frames.shape and not second.frames.any()


def test_a_batch_without_any_picture_is_read_by_the_same_program(album, tokenizer):
    for part in ("prefix", "target"):
        pipeline = make_album(
            album, tokenizer, template=Album(part), lengths=Lengths(prefix=6, target=6)
        )
        some, none = pipeline.batch_at(0), pipeline.batch_at(1)
        assert jax.tree.structure(none) == jax.tree.structure(some)
        assert jax.tree.map(np.shape, none) == jax.tree.map(np.shape, some)
        assert (getattr(none, part).slots["media"] == -1).all()
    elsewhere = Album("target after a prefix")
    with pytest.raises(ValueError, match="Album puts pictures into the target: a template that"):
        make_album(album, tokenizer, template=elsewhere).batch_at(0)


def test_hosts_with_and_without_pictures_share_a_batch(album, tokenizer):
    whole = make_album(album, tokenizer, batch_size=8).batch_at(0)
    parts = [make_album(album, tokenizer, batch_size=8, host=(i, 2)).batch_at(0) for i in range(2)]
    assert not parts[1].frames.any()
    assert_batches_equal(concatenate(parts), whole)


def test_more_pictures_than_places_are_overlong(album, tokenizer):
    pipeline = make_album(album, tokenizer, pictures=2, lengths=Lengths(prefix=4, target=3))
    batch = pipeline.batch_at(0)
    assert batch.frames.shape == (4, 2, 8, 8, 3)
    (entry,) = pipeline.quarantine
    assert entry["id"] == "example 2" and entry["reason"] == (
        "its prefix has 5 tokens, the limit is 4; it has 3 pictures, data.pictures is 2 "
        "(raise the limits in data.lengths and data.pictures to keep it)"
    )
    strict = make_album(album, tokenizer, pictures=2, overlong="error")
    with pytest.raises(
        Overlong, match="it has 3 pictures, data.pictures is 2 .raise data.pictures"
    ):
        strict.batch_at(0)
    nothing = make_album(album, tokenizer, pictures=0, batch_size=1)
    assert nothing.batch_at(1).frames is None
    nothing.batch_at(0)
    assert [entry["id"] for entry in nothing.quarantine] == ["example 0"]


@pytest.fixture
def gradients(listed, example, tmp_path):
    """Six records whose pictures are nowhere alike, so that a crop shows where it was taken."""
    y, x = np.mgrid[:40, :60]
    pixels = np.stack([4 * x, 6 * y, x + y], axis=-1).astype(np.uint8)
    examples = []
    for number in range(6):
        Image.fromarray(np.roll(pixels, 9 * number, axis=1)).save(tmp_path / f"{number}.png")
        examples.append(example(number, tmp_path / f"{number}.png"))
    return listed(examples)


def test_crops_depend_on_seed_and_position_alone(gradients, tokenizer):
    def pipeline(**options):
        return make(gradients, tokenizer, preparation="crop", image_size=16, **options)

    whole = [pipeline().batch_at(step) for step in range(6)]
    resumed = pipeline().iterate(start_step=3)
    for step in (3, 4):
        assert_batches_equal(next(resumed), whole[step])
    for step in (0, 5):
        hosts = [pipeline(host=(index, 2)).batch_at(step) for index in range(2)]
        assert_batches_equal(concatenate(hosts), whole[step])
    seen = {frame.tobytes() for batch in whole for frame in batch.frames[:, 0]}
    assert len(seen) == 24, "each of four visits of a record shows another part"
    in_order = [pipeline(shuffle=False, seed=seed).batch_at(0).frames for seed in (0, 1)]
    assert (in_order[0] != in_order[1]).any()


def test_pictures_of_a_row_are_cropped_apart_and_a_bad_one_changes_no_other(
    gradients, example, tokenizer, tmp_path
):
    (turn, answer), media = gradients.examples[0].turns, gradients.examples[0].media[0]
    twice = dataclasses.replace(turn, parts=(media, media, *turn.parts[1:]))
    gradients.examples[0] = dataclasses.replace(gradients.examples[0], turns=(twice, answer))
    options = dict(template=Album(), lengths=Lengths(prefix=6, target=3), pictures=2)
    options |= dict(preparation="crop", image_size=16, shuffle=False)
    first = make(gradients, tokenizer, **options).batch_at(0).frames
    assert (first[0, 0] != first[0, 1]).any()
    gradients.examples[1] = example(1, tmp_path / "missing.png")
    second = make(gradients, tokenizer, **options).batch_at(0).frames
    np.testing.assert_array_equal(first[[0, 2, 3]], second[[0, 2, 3]])


def test_crops_are_for_training(gradients, tokenizer):
    pipeline = make(gradients, tokenizer, preparation="crop")
    with pytest.raises(ValueError, match="list is to be evaluated: preparation must be clip or"):
        next(pipeline.epoch(4))
    with pytest.raises(ValueError, match="'crop' .* nor with questions"):
        make(gradients, tokenizer, preparation="crop", generating=True)
    with pytest.raises(ValueError, match="preparation is 'zoom'"):
        make(gradients, tokenizer, preparation="zoom")
    squashed = make(gradients, tokenizer, preparation="squash", shuffle=False).batch_at(0).frames
    expected = prepare(gradients.examples[2].media[0], 8, "squash")
    np.testing.assert_array_equal(squashed[2, 0], expected)


def test_features_of_several_pictures(album, tokenizer, tmp_path):
    with FeatureWriter(tmp_path / "store", fingerprint=None) as writer:
        keys = [media.key for media in media_of(album)]
        writer.add(keys, 1 + np.arange(12, dtype=np.float16).reshape(6, 2))
    store = FeatureStore(tmp_path / "store")
    pipeline = make_album(album, tokenizer, features=store, image_size=None)
    features = pipeline.batch_at(0).features
    assert features.dtype == np.float16 and features.shape == (4, 3, 2)
    assert features[..., 0].tolist() == [[1, 3, 0], [0, 0, 0], [5, 7, 9], [11, 0, 0]]
    assert not pipeline.batch_at(1).features.any()


def test_features_take_the_place_of_frames(source, tokenizer, tmp_path):
    with FeatureWriter(tmp_path / "store", fingerprint=None) as writer:
        compute_features(
            media_of(source),
            lambda media: clip_preprocess(load_image(media), 8),
            lambda frames: frames.astype(np.float32).mean(axis=(1, 2)),
            writer,
            batch_size=4,
        )
    store = FeatureStore(tmp_path / "store")
    frames = make(source, tokenizer).batch_at(1)
    features = make(source, tokenizer, features=store, image_size=None).batch_at(1)
    assert features.frames is None and features.features.shape == (4, 1, 3)
    np.testing.assert_allclose(features.features, frames.frames.mean(axis=(2, 3)), atol=1e-4)
    np.testing.assert_array_equal(features.target.tokens, frames.target.tokens)


def test_pictures_known_by_id_come_as_features(tokenizer, tmp_path):
    records = [{"image_id": f"coco-{n}", "caption": "one two"} for n in range(4)]
    (tmp_path / "v1.json").write_text(json.dumps(records))
    with FeatureWriter(tmp_path / "store", fingerprint=None) as writer:
        writer.add(["0", "1", "3"], np.eye(3, dtype=np.float16))
    pipeline = make(
        make_source(f"lmeye-v1:{tmp_path / 'v1.json'}", "train"),
        tokenizer,
        template=LMEyeCaption(100),
        lengths=Lengths(target=5),
        features=FeatureStore(tmp_path / "store"),
        image_size=None,
    )
    ((batch, examples),) = pipeline.epoch(4)
    assert [example is None for example in examples] == [False, False, True, False]
    expected = np.eye(3, dtype=np.float16)[[0, 1, 2, 2], None]  # a copy stands in for the third
    np.testing.assert_array_equal(batch.features, expected)
    (entry,) = pipeline.quarantine
    assert entry["id"] == "v1.json:2" and "has no features of this picture" in entry["reason"]


def test_wrong_options(source, tokenizer):
    with pytest.raises(ValueError, match="cannot be host 2 of 2"):
        make(source, tokenizer, host=(2, 2))
    with pytest.raises(ValueError, match="cannot be host 0 of 3"):
        make(source, tokenizer, host=(0, 3))
    with pytest.raises(ValueError, match="overlong must be"):
        make(source, tokenizer, overlong="cut")
    with pytest.raises(ValueError, match="shuffle=True"):
        make(source, tokenizer, shuffle=False, weights={"even": 1, "odd": 1})
    with pytest.raises(ValueError, match="give image_size, or features"):
        make(source, tokenizer, image_size=None).batch_at(0)


def test_balanced_easy_vqa(tokenizer):
    source = make_source("easy-vqa", "dev")
    yes_no = dict.fromkeys(("plain yes", "plain no", "negated yes", "negated no"), 0.175)
    weights = {"colour": 0.15, "shape": 0.15, **yes_no}
    pipeline = make(source, tokenizer, weights=weights, batch_size=100, image_size=64,
                    lengths=Lengths(prefix=18, request=1, target=10))  # fmt: skip
    words = [
        describe(batch, row, tokenizer)
        for batch in pipeline.iterate(num_steps=4)
        for row in range(100)
    ]
    assert (
        abs(sum(text.count("[yes]") for text in words) - 140) <= 2
    )  # of 400; drawn naturally 37 %
    assert not pipeline.quarantine


def test_importing_the_data_starts_no_backend():
    code = (
        "import mmjax.data.pipeline, jax\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge.backends_are_initialized()\n"
        "import sys; assert 'torch' not in sys.modules and 'tensorflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
