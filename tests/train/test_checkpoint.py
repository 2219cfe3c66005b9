"""Checkpoints: bit-equal, strict, atomic, on any mesh."""

import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from mmjax.train.checkpoint import FORMAT_VERSION, Checkpointer, flatten, read_trainable
from mmjax.train.optim import OptimizerConfig, make_optimizer

META = {"system": "lmeye", "variant": "tiny", "config": {"steps": 10, "names": ["a", "b"]}}


def make_state(seed: int = 0):
    """A flat dict with fp32, bf16 and a scalar, and an optimizer state that is not zero."""
    rng = np.random.default_rng(seed)
    params = {
        "language.layers.q.kernel": jnp.asarray(rng.normal(size=(2, 8, 16)), jnp.float32),
        "language.embedding.added": jnp.asarray(rng.normal(size=(8, 4)), jnp.bfloat16),
        "language.norm.scale": jnp.float32(jnp.pi),
        "image_linear.kernel": jnp.array([jnp.nan, -0.0, jnp.inf, 1e-45] * 2),
    }
    optimizer = make_optimizer(OptimizerConfig(), dict.fromkeys(params, 1.0), 10)
    grads = {path: jnp.ones_like(value) for path, value in params.items()}
    return params, optimizer.update(grads, optimizer.init(params), params)[1]


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def assert_bit_equal(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, e = np.asarray(a), np.asarray(e)
        assert (a.dtype, a.shape) == (e.dtype, e.shape)
        assert a.tobytes() == e.tobytes()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A directory with step 3; tests copy it before they change it."""
    directory = tmp_path_factory.mktemp("run") / "checkpoints"
    checkpointer = Checkpointer(directory, 2)
    assert checkpointer.latest_step() is None
    assert checkpointer.save(3, *make_state(), META)
    checkpointer.close()
    return directory


@pytest.fixture
def directory(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoints")


def test_round_trip_is_bit_equal(saved):
    params, opt_state = make_state()
    checkpointer = Checkpointer(saved, 2)
    assert checkpointer.latest_step() == 3
    restored = checkpointer.restore(None, abstract(params), abstract(opt_state))
    checkpointer.close()
    assert_bit_equal(restored[:2], (params, opt_state))
    assert restored[2] == META | {"format_version": FORMAT_VERSION, "step": 3}


def test_read_trainable_needs_no_optimizer_and_leaves_no_trace(saved):
    before = sorted(saved.rglob("*"))
    trainable, meta = read_trainable(str(saved))
    assert_bit_equal(trainable, make_state()[0])
    assert all(isinstance(value, np.ndarray) for value in trainable.values())
    assert meta["system"] == "lmeye" and meta["step"] == 3
    assert sorted(saved.rglob("*")) == before


def test_saves_what_was_there_although_the_step_reuses_the_memory(tmp_path):
    params = {"kernel": jnp.arange(2_000_000, dtype=jnp.float32)}
    expected = {"kernel": np.array(params["kernel"])}
    overwrite = jax.jit(lambda params: jax.tree.map(lambda x: -x - 1, params), donate_argnums=0)
    checkpointer = Checkpointer(tmp_path, 1)
    checkpointer.save(1, params, {"count": jnp.int32(1)}, META)
    for _ in range(5):
        params = overwrite(params)
    checkpointer.close()
    assert_bit_equal(read_trainable(tmp_path)[0], expected)


def test_restores_onto_another_mesh(tmp_path):
    devices = jax.devices()
    assert len(devices) == 8, "the test suite runs on 8 fake devices"
    meshes = [
        jax.make_mesh(
            shape,
            ("data", "fsdp"),
            axis_types=(AxisType.Auto,) * 2,
            devices=devices[: np.prod(shape)],
        )
        for shape in ((2, 4), (1, 2))
    ]
    values = {"kernel": jnp.arange(64.0).reshape(8, 8), "scale": jnp.arange(8.0)}
    opt_state = {"mu": values, "count": jnp.int32(7)}

    def place(mesh, spec):
        shardings = {"kernel": NamedSharding(mesh, spec), "scale": NamedSharding(mesh, P())}
        return shardings, {"mu": shardings, "count": NamedSharding(mesh, P())}

    first, second = place(meshes[0], P("fsdp", "data")), place(meshes[1], P(None, "fsdp"))
    checkpointer = Checkpointer(tmp_path, 1)
    checkpointer.save(
        1, jax.device_put(values, first[0]), jax.device_put(opt_state, first[1]), META
    )
    wanted = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), (values, opt_state), second
    )
    trainable, state, _ = checkpointer.restore(1, *wanted)
    checkpointer.close()
    assert_bit_equal((trainable, state), (values, opt_state))
    assert jax.tree.map(lambda x: x.sharding, (trainable, state)) == second
    # What was restored may be donated: the arrays own their memory.
    moved = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)(trainable)
    assert_bit_equal(moved, {path: value + 1 for path, value in values.items()})


def test_without_shardings_arrays_come_to_the_default_device(saved):
    params, opt_state = make_state()
    checkpointer = Checkpointer(saved, 2)
    restored = checkpointer.restore(3, *jax.eval_shape(lambda: (params, opt_state)))
    checkpointer.close()
    assert_bit_equal(restored[:2], (params, opt_state))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(restored[:2]))


def test_every_difference_is_listed(saved):
    params, opt_state = make_state()
    params = abstract(params)
    del params["language.norm.scale"]
    params["new.kernel"] = jax.ShapeDtypeStruct((3,), jnp.float32)
    params["language.layers.q.kernel"] = jax.ShapeDtypeStruct((4, 8, 16), jnp.float32)
    params["language.embedding.added"] = jax.ShapeDtypeStruct((8, 4), jnp.float32)
    opt_state = {**abstract(opt_state), "more": jax.ShapeDtypeStruct((), jnp.int32)}
    checkpointer = Checkpointer(saved, 2)
    with pytest.raises(ValueError) as error:
        checkpointer.restore(3, params, opt_state)
    checkpointer.close()
    text = str(error.value)
    assert text.startswith("5 arrays") and "written by system lmeye variant tiny" in text
    assert "trainable: not in the checkpoint: new.kernel float32[3]" in text
    assert "trainable: only in the checkpoint: language.norm.scale float32[]" in text
    assert (
        "layers.q.kernel is float32[2, 8, 16] in the checkpoint, float32[4, 8, 16] is wanted"
        in text
    )
    assert (
        "language.embedding.added is bfloat16[8, 4] in the checkpoint, float32[8, 4] is wanted"
        in text
    )
    assert "optimizer: not in the checkpoint: more int32[]" in text


@pytest.mark.parametrize("mode", ["max", "min"])
def test_keeps_the_latest_and_the_best(tmp_path, mode):
    sign = 1 if mode == "max" else -1
    checkpointer = Checkpointer(tmp_path, 2, best_metric="accuracy", best_mode=mode)
    assert checkpointer.best_step() is None
    for step, accuracy in enumerate([0.1, 0.9, None, float("nan"), 0.3], start=1):
        metrics = None if accuracy is None else {"accuracy": sign * accuracy}
        checkpointer.save(step, {"a": jnp.float32(step)}, {"n": jnp.int32(step)}, META, metrics)
    checkpointer.wait()
    assert sorted(os.listdir(tmp_path)) == ["2", "4", "5"]
    checkpointer.close()
    checkpointer = Checkpointer(tmp_path, 2, best_metric="accuracy", best_mode=mode)
    assert (checkpointer.best_step(), checkpointer.latest_step()) == (2, 5)
    checkpointer.close()
    assert read_trainable(tmp_path, 2)[0]["a"] == 2


def test_what_cannot_be_saved_is_refused_before_anything_is_written(directory):
    state = make_state()
    checkpointer = Checkpointer(directory, 2, best_metric="accuracy")
    assert not checkpointer.save(3, *make_state(seed=1), META)
    with pytest.raises(ValueError, match="cannot save step 2: .* already holds step 3"):
        checkpointer.save(2, *state, META)
    with pytest.raises(ValueError, match="JSON:\n  x: .*set.*\n  y: .*Array"):
        checkpointer.save(4, *state, META | {"x": {1}, "y": jnp.ones(2)})
    with pytest.raises(
        ValueError, match="'accuracy', which is not among the metrics of step 4: loss"
    ):
        checkpointer.save(4, *state, META, {"loss": 1.0})
    checkpointer.close()
    assert os.listdir(directory) == ["3"]
    assert_bit_equal(read_trainable(directory)[0], state[0])


def test_what_a_killed_save_left_is_ignored_and_removed(directory):
    shutil.copytree(directory / "3", directory / "5.orbax-checkpoint-tmp")
    assert read_trainable(directory)[1]["step"] == 3
    checkpointer = Checkpointer(directory, 2)
    assert checkpointer.latest_step() == 3
    assert checkpointer.save(4, *make_state(), META)
    checkpointer.close()
    assert sorted(os.listdir(directory)) == ["3", "4"]


def test_incomplete_checkpoints_are_recognised(directory, caplog):
    shutil.copytree(directory / "3", directory / "4")
    shutil.rmtree(directory / "4" / "optimizer")
    for open_it in (lambda: Checkpointer(directory, 2), lambda: read_trainable(directory)):
        with pytest.raises(
            ValueError,
            match="newest checkpoint, .*4, is incomplete: optimizer missing.*from step 3",
        ):
            open_it()
    shutil.copytree(directory / "3", directory / "5")
    assert read_trainable(directory, 5)[1]["step"] == 3
    assert "ignored incomplete checkpoint" in caplog.text
    with pytest.raises(FileNotFoundError, match=r"step 4 in .*, only of \[3, 5\]"):
        read_trainable(directory, 4)


def test_foreign_directories_are_recognised(saved, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text("{}")
    for open_it in (lambda d: Checkpointer(d, 2), read_trainable):
        with pytest.raises(
            ValueError, match="not a directory of mmjax checkpoints: it holds config.json, model"
        ):
            open_it(tmp_path)
        with pytest.raises(ValueError, match="did you mean .*/checkpoints"):
            open_it(saved.parent)
        with pytest.raises(ValueError, match="single step: pass .*checkpoints and step=3"):
            open_it(saved / "3")
        with pytest.raises(ValueError, match="is a file"):
            open_it(tmp_path / "config.json")
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        read_trainable(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_the_format_version_is_checked(directory):
    file = directory / "3" / "meta" / "metadata"
    meta = json.loads(file.read_text())
    file.write_text(json.dumps(meta | {"format_version": FORMAT_VERSION + 1}))
    with pytest.raises(
        ValueError, match=r"version 2, this mmjax reads up to 1.*system lmeye variant tiny"
    ):
        read_trainable(directory)
    del meta["format_version"]
    file.write_text(json.dumps(meta))
    checkpointer = Checkpointer(directory, 2)
    with pytest.raises(ValueError, match="not written by mmjax"):
        checkpointer.restore(3, *map(abstract, make_state()))
    checkpointer.close()


def test_flatten_names_every_leaf():
    _, opt_state = make_state()
    names = list(flatten(opt_state))
    assert names[0] == "adam.count" and names[-1] == "rate.count"
    assert "adam.nu.language.layers.q.kernel" in names
    with pytest.raises(ValueError, match="2 leaves .* only 1 different"):
        flatten({"a": {"b": 1}, "a.b": 2})


def test_without_room_nothing_is_begun(directory, monkeypatch):
    checkpointer = Checkpointer(directory, 2)
    before = sorted(directory.rglob("*"))
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(
        OSError, match=r"(?s)step 3 is whole.*needs .* KiB, the disk has 100 B left"
    ):
        checkpointer.save(4, *make_state(), META)
    checkpointer.close()
    assert sorted(directory.rglob("*")) == before
