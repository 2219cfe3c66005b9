"""A run's model, ready to be asked anything: with the template and the pictures' size and
preparation that it is tested with, or trained with where it is not tested."""

import dataclasses
from pathlib import Path
from typing import Any, TypeVar

from mmjax.data.example import Example
from mmjax.data.templates import Template, from_json, to_json
from mmjax.generate.answer import Answerer
from mmjax.generate.config import GenerationConfig
from mmjax.generate.ranking import Ranker
from mmjax.kernels.decoding import copies_layers
from mmjax.nn.apart import take_apart
from mmjax.train.build import Run, load_tokenizer, read_config, restore
from mmjax.train.evaluation import question_section
from mmjax.train.report import params_hash

T = TypeVar("T", bound=Answerer)


@dataclasses.dataclass(frozen=True)
class Model:
    """
    Attributes:
      run: where it comes from; the language model's layers are kept apart where that is faster.
      template: how it is asked.
      image_size: side of its pictures in pixels; 0 if it takes none.
      preparation: how they are made square.
      num_frames: that it is shown of a video; 0 if it takes none.
    """

    run: Run
    template: Template
    image_size: int
    preparation: str
    num_frames: int = 0

    def answerer(self, config: GenerationConfig, batch_size: int = 1) -> Answerer:
        """Asks it by these settings."""
        return self._asked(Answerer, config, batch_size)

    def ranker(self, batch_size: int = 1) -> Ranker:
        """Asks it how likely answers are; ``batch_size`` questions at once."""
        return self._asked(Ranker, GenerationConfig(max_new_tokens=1), batch_size)

    def _asked(self, kind: type[T], config: GenerationConfig, batch_size: int) -> T:
        return kind(
            self.run.system,
            self.run.params,
            self.run.tokenizer,
            self.template,
            config,
            image_size=self.image_size,
            preparation=self.preparation,
            num_frames=self.num_frames,
            mesh=self.run.mesh,
            batch_size=batch_size,
        )

    def identity(self) -> dict[str, Any]:
        """Tells it from any other model, wherever its files are; reads every parameter."""
        videos = dict(num_frames=self.num_frames) if self.num_frames else {}
        return videos | dict(
            parameters=params_hash(self.run.params),
            tokenizer=self.run.tokenizer.fingerprint,
            template=to_json(self.template),
            image_size=self.image_size,
            preparation=self.preparation,
        )


def asked_section(config: dict, stage: str) -> dict:
    """Which section says how the model is asked as it stands after ``stage``."""
    is_tested = config.get("test") if stage == config["stages"][-1] else config[stage]["eval"]
    return question_section(config, stage) if is_tested else config[stage]


def load_model(
    workdir: Path,
    stage: str | None = None,
    *,
    asked: Example | None = None,
    history: bool = False,
) -> Model:
    """See `load_run` for the first arguments and what it raises.

    Args:
      history: whether the model is to be shown what was said before, even where its template is for
        single questions.

    Raises:
      ValueError: ``history``, and the template has no form for it.
      BadSample: ``asked``, which is to be asked first, does not fit the template; no weights
        are read then.
    """
    config, stages = read_config(workdir, stage)
    section = asked_section(config, stages[-1])
    template = from_json(section["template"])
    if history:
        template = template.with_history()
    if asked is not None:
        template.encode(asked, load_tokenizer(config), generating=True)
    run = restore(config, Path(workdir), stages)
    if copies_layers():
        take_apart(run.params, run.specs, "language.")
    data = section["data"]
    preparation = data.get("preparation", "clip")
    if preparation == "crop":  # random, for training
        preparation = run.system.preparation
    return Model(run, template, data.get("image_size", 0), preparation, data.get("num_frames", 0))
