"""The final test of a run: the table of its answers, and a page of samples."""

from mmjax.data.features import FeatureStore
from mmjax.data.sources.mixture import named
from mmjax.evaluate.accuracy import is_right
from mmjax.evaluate.runner import Prediction
from mmjax.nn.param import Params
from mmjax.train.build import Run
from mmjax.train.evaluation import evaluate
from mmjax.train.metrics import MetricsWriter
from mmjax.train.pages import picture_or_none, write_samples
from mmjax.train.quarantine import BadSamples
from mmjax.train.report import accuracy_tables

_SHOWN = 60  # samples on the page, about


def final_test(
    run: Run,
    params: Params,
    writer: MetricsWriter,
    bad_samples: BadSamples,
    features: FeatureStore | None,
) -> dict[str, float]:
    """Asks all questions of the ``test`` section; returns the metrics, which are written too."""
    section, stages = run.config["test"], run.config["stages"]
    accuracy, predictions, bad = evaluate(run, params, section, features)
    metrics, steps = accuracy.metrics("eval"), run.config[stages[-1]]["steps"]
    bad_samples.note("test", steps, bad)
    writer.truncate_after(len(stages) - 1, steps)
    writer.write(metrics, stage_index=len(stages), stage="test", step=steps)
    source, split = named(section["data"]["source"]), section["data"]["split"]
    print(f"\nHeld-out questions ({source}, {split})\n")
    print(accuracy_tables(accuracy))
    shown = predictions[:: max(1, len(predictions) // _SHOWN)]
    write_samples(writer.path.with_name("samples.html"), [_sample(each) for each in shown])
    return metrics


def _sample(prediction: Prediction) -> dict:
    example = prediction.example
    return dict(
        images=[picture_or_none(media) for media in example.media],
        question=example.text("user"),
        answer=prediction.answer,
        truth=example.info["answer"],
        kind=example.info.get("kind", ""),
        correct=is_right(prediction),
    )
