import ml_dtypes
import numpy as np
import pytest

from mmjax.data.example import BadSample, Media
from mmjax.data.features import FeatureStore, media_of
from mmjax.data.images import clip_preprocess, load_image


def load_frame(media):
    return clip_preprocess(load_image(media), 8)


def mean_colour(frames):
    return frames.astype(np.float32).mean(axis=(1, 2))


def test_compute_pads_to_one_batch_size(source):
    sizes = []

    def tower(frames):
        sizes.append(frames.shape)
        return mean_colour(frames)

    media = media_of(source)
    assert len(media) == 12
    store = FeatureStore.compute(
        media + media[:3], load_frame, tower, batch_size=5, fingerprint="f"
    )
    assert sizes == [(5, 8, 8, 3)] * 3
    assert len(store) == 12 and media[4].key in store and "other" not in store
    keys = [media[7].key, media[2].key, media[7].key]
    np.testing.assert_allclose(store[keys], [[140, 0, 248], [40, 0, 253], [140, 0, 248]], atol=1e-4)


def test_bad_pictures_are_noted(source, tmp_path):
    media = [*media_of(source)[:2], Media("missing", tmp_path / "missing.png")]
    store = FeatureStore.compute(media, load_frame, mean_colour, batch_size=2, fingerprint="f")
    assert len(store) == 2 and "cannot be read" in store.bad["missing"]
    with pytest.raises(BadSample, match="missing: .*cannot be read"):
        store[["missing"]]
    with pytest.raises(BadSample, match="no features are stored"):
        store[["never seen"]]
    with pytest.raises(ValueError, match="none of 1 pictures can be read"):
        FeatureStore.compute(media[2:], load_frame, mean_colour, batch_size=2, fingerprint="f")


def test_save_and_load(source, tmp_path):
    media = [*media_of(source), Media("missing", tmp_path / "missing.png")]

    def half(frames):
        return mean_colour(frames).astype(ml_dtypes.bfloat16)

    store = FeatureStore.compute(media, load_frame, half, batch_size=4, fingerprint="tower 1")
    path = tmp_path / "cache" / "features.npz"
    store.save(path)
    assert [file.name for file in path.parent.iterdir()] == ["features.npz"]
    again = FeatureStore.load(path, "tower 1")
    keys = [item.key for item in media[:12]]
    np.testing.assert_array_equal(again[keys], store[keys])
    assert again[keys].dtype == np.float32 and again.bad == store.bad
    with pytest.raises(ValueError, match="fingerprint tower 1, the tower tower 2"):
        FeatureStore.load(path, "tower 2")


def test_a_failed_save_leaves_the_old_file(source, tmp_path, monkeypatch):
    store = FeatureStore.compute(
        media_of(source), load_frame, mean_colour, batch_size=4, fingerprint="one"
    )
    path = tmp_path / "features.npz"
    store.save(path)
    store.fingerprint = "two"
    monkeypatch.setattr(np, "savez", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        store.save(path)
    assert FeatureStore.load(path, "one").fingerprint == "one"
