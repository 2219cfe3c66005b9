"""Parameter table, hash, curves, accuracies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from PIL import Image

from mmjax.nn.param import ParamSpec, zeros
from mmjax.train.metrics import MetricsWriter, human_bytes, tree_bytes
from mmjax.train.optim import TrainRule, select
from mmjax.train.report import accuracy_table, parameter_table, params_hash, plot_curves


def test_parameter_table():
    shapes = {
        "clip.vision.kernel": (2, 1024, 1024),
        "image_linear.kernel": (1024, 512),
        "image_linear.bias": (512,),
        "language.embedding.added": (2, 512),
        "language.layers.kernel": (4, 512, 512),
    }
    specs = {
        path: ParamSpec(s, jnp.dtype("float32"), (None,) * len(s), zeros)
        for path, s in shapes.items()
    }
    rules = [TrainRule(r"image_linear\..*|.*\.added", "train"), TrainRule(".*", "freeze")]
    selection = select(rules, specs)
    table = parameter_table(
        specs, selection, dict.fromkeys(selection.frozen, jnp.bfloat16), 3 * 2**20
    )
    assert table.splitlines() == [
        "module        trained  frozen    memory  dtype",
        "----------------------------------------------------------",
        "clip                -    2.1M     4 MiB  bfloat16",
        "image_linear     525k       -     2 MiB  float32",
        "language        1.02k   1.05M     2 MiB  bfloat16, float32",
        "----------------------------------------------------------",
        "parameters       526k   3.15M  8.01 MiB  bfloat16, float32",
        "optimizer                         3 MiB",
        "together                         11 MiB",
        "525,824 of 3,671,552 parameters train (14.3 %)",
    ]


def test_bytes():
    assert (
        tree_bytes({"a": jnp.ones((3, 4)), "b": [jax.ShapeDtypeStruct((5,), jnp.bfloat16)]}) == 58
    )
    assert [human_bytes(n) for n in (0, 512, 1000, 13.4 * 2**30)] == [
        "0 B",
        "512 B",
        "0.977 KiB",
        "13.4 GiB",
    ]


def test_params_hash_is_of_the_values_not_of_their_place():
    params = {"b": jnp.arange(16.0).reshape(8, 2), "a": jnp.ones(3, jnp.bfloat16)}
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))
    sharded = {"a": params["a"], "b": jax.device_put(params["b"], NamedSharding(mesh, P("fsdp")))}
    expected = params_hash(params)
    assert (
        params_hash(sharded)
        == params_hash({k: np.asarray(v) for k, v in params.items()})
        == expected
    )
    assert len(expected) == 64
    changed = [
        params | {"b": params["b"].at[7, 1].add(1e-6)},
        params | {"b": params["b"].reshape(2, 8)},
        params | {"a": params["a"].view(jnp.float16)},
        {"b": params["b"], "c": params["a"]},
        {"b": params["b"]},
    ]
    assert len({expected, *map(params_hash, changed)}) == 6


def test_accuracy_table():
    assert accuracy_table({"yes/no": (90, 100), "color": (1, 4), "shape": (0, 0)}).splitlines() == [
        "kind           correct  count  accuracy %",
        "-----------------------------------------",
        "color                1      4       25.00",
        "shape                0      0           -",
        "yes/no              90    100       90.00",
        "-----------------------------------------",
        "mean of kinds                       57.50",
        "overall             91    104       87.50",
    ]


def test_curves(tmp_path):
    writer = MetricsWriter(tmp_path)
    with pytest.raises(FileNotFoundError):
        plot_curves(writer.path, tmp_path / "curves.png")
    writer.write({"dev/accuracy": 0.1}, stage_index=0, stage="align", step=0)
    with pytest.raises(ValueError, match="no losses"):
        plot_curves(writer.path, tmp_path / "curves.png")
    heights = []
    for index, stage in enumerate(("align", "instruct")):
        for step in (10, 20, 30):
            loss = None if step == 20 else 1.0 / step
            writer.write(
                {"loss": loss, "learning_rate": 1e-3}, stage_index=index, stage=stage, step=step
            )
        writer.write(
            {"dev/accuracy": 0.5, "dev/accuracy/color": 0.1},
            stage_index=index,
            stage=stage,
            step=30,
        )
        plot_curves(writer.path, tmp_path / "curves.png")
        image = Image.open(tmp_path / "curves.png").convert("RGB")
        heights.append(image.size)
        colors = {color for _, color in image.getcolors(maxcolors=2**20)}
        assert (
            31,
            119,
            180,
        ) in colors  # the first stage's line, and the second's once it has begun
        assert ((255, 127, 14) in colors) == (index == 1)
    assert heights[0] == heights[1] == (1200, 1035)


def test_steps_of_stages_follow_one_another():
    from mmjax.train.report import _lines

    record = {"stage_index": 0, "stage": "align", "step": 30, "loss": 1.0}
    lines = _lines(
        [
            record,
            record
            | {"stage_index": 1, "stage": "instruct", "step": 10, "loss": 2.0, "dev/accuracy": 0.5},
            {
                "stage_index": 1,
                "stage": "instruct",
                "step": 20,
                "learning_rate": 0.1,
                "dev/accuracy/color": 0.0,
            },
            {"stage_index": 2, "stage": "test", "step": 20, "eval/accuracy": 0.75},
        ]
    )
    assert lines == {
        "loss": {(0, "align"): [(30, 1.0)], (1, "instruct"): [(40, 2.0)]},
        "learning rate": {(1, "instruct"): [(50, 0.1)]},
        "accuracy": {(1, "instruct: dev"): [(40, 0.5)], (2, "test"): [(50, 0.75)]},
    }
