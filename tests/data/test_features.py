import json

import ml_dtypes
import numpy as np
import pytest

from mmjax.data.example import BadSample, Media
from mmjax.data.features import FeatureStore, FeatureWriter, compute_features, media_of
from mmjax.data.images import clip_preprocess, load_image

FINGERPRINT = {"weights": "one", "pictures": "8x8"}


def load_frame(media):
    return clip_preprocess(load_image(media), 8)


def mean_colour(frames):
    return frames.astype(np.float32).mean(axis=(1, 2))


def compute(media, folder, *, tower=mean_colour, batch_size=4):
    with FeatureWriter(folder, fingerprint=FINGERPRINT) as writer:
        compute_features(media, load_frame, tower, writer, batch_size=batch_size)
    return FeatureStore(folder)


def test_compute_pads_to_one_batch_size(source, tmp_path):
    sizes = []

    def tower(frames):
        sizes.append(frames.shape)
        return mean_colour(frames)

    media = list(media_of(source))
    assert len(media) == 12
    store = compute(media + media[:3], tmp_path / "store", tower=tower, batch_size=5)
    assert sizes == [(5, 8, 8, 3)] * 3
    assert len(store) == 12 and media[4].key in store and "other" not in store
    keys = [media[7].key, media[2].key, media[7].key]
    np.testing.assert_allclose(store[keys], [[140, 0, 248], [40, 0, 253], [140, 0, 248]], atol=1e-4)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_no_more_pictures_in_memory_than_a_few_batches(source, tmp_path):
    taken = made = 0

    def endless():
        nonlocal taken
        for number, media in enumerate([*media_of(source)] * 20):
            taken += 1
            yield Media(str(number), media.data)

    def tower(frames):
        nonlocal made
        made += len(frames)
        assert taken - made <= 3 * 4
        return mean_colour(frames)

    assert len(compute(endless(), tmp_path / "store", tower=tower)) == 240


def test_bad_pictures_are_noted(source, tmp_path):
    good = list(media_of(source))[:2]
    media = [*good, Media("missing", tmp_path / "missing.png")]
    store = compute(media, tmp_path / "store", batch_size=2)
    assert len(store) == 2 and "cannot be read" in store.bad["missing"]
    with pytest.raises(BadSample, match="missing: it was bad when .*cannot be read"):
        store[["missing"]]
    with pytest.raises(BadSample, match="has no features of this picture"):
        store[["never seen"]]
    with pytest.raises(ValueError, match=r"none of 1 pictures can be read(?s:.*)missing.png"):
        compute(media[2:], tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rows_come_back_as_they_were(source, tmp_path, dtype):
    dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    media = list(media_of(source))
    store = compute(media, tmp_path / "store", tower=lambda x: mean_colour(x).astype(dtype))
    rows = store[[item.key for item in media]]
    assert rows.dtype == dtype and store.shape == (3,)
    frames = np.stack([load_frame(item) for item in media])
    np.testing.assert_array_equal(rows, mean_colour(frames).astype(dtype))


def test_another_tower_is_refused(source, tmp_path):
    store = compute(media_of(source), tmp_path / "store")
    store.check(FINGERPRINT)
    with pytest.raises(ValueError, match=r"(?s)not what this tower.*pictures: 8x8 there, 9x9 here"):
        store.check(FINGERPRINT | {"pictures": "9x9"})


def test_half_a_store_is_never_taken_for_a_whole_one(source, tmp_path):
    def fails(frames):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compute(media_of(source), tmp_path / "store", tower=fails)
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError, match="holds no features"):
        FeatureStore(tmp_path / "store")
    compute(media_of(source), tmp_path / "store")
    with pytest.raises(FileExistsError, match="exists already"):
        compute(media_of(source), tmp_path / "store")
    file = tmp_path / "store" / "features.bin"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match="damaged .12 rows of .3,. float32 are 144 bytes.*143"):
        FeatureStore(tmp_path / "store")
    meta = json.loads((tmp_path / "store" / "meta.json").read_text())
    (tmp_path / "store" / "meta.json").write_text(json.dumps(meta | {"version": 2}))
    with pytest.raises(ValueError, match="version 2"):
        FeatureStore(tmp_path / "store")


def test_rows_must_be_alike(tmp_path):
    with (
        pytest.raises(ValueError, match="2 keys for 1"),
        FeatureWriter(tmp_path / "store", fingerprint=None) as writer,
    ):
        writer.add(["a", "b"], np.zeros((1, 3), np.float32))
    with (
        pytest.raises(ValueError, match="after others"),
        FeatureWriter(tmp_path / "store", fingerprint=None) as writer,
    ):
        writer.add(["a"], np.zeros((1, 3), np.float32))
        writer.add(["b"], np.zeros((1, 4), np.float32))
    assert not (tmp_path / "store").exists()
