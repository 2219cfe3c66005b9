"""What trains, at which rate: rules over parameter paths, learning-rate schedules, AdamW.

AdamW is torch's: decoupled decay of every trained leaf (the papers' recipes all use
`torch.optim.AdamW`), gradients clipped by their global norm once for an optimizer step. The
optimizer's state is an ordinary optax tree with named parts (``adam``, ``rate``), so that its paths
in a checkpoint say what they are.
"""

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import optax

Schedule = Callable[[jax.typing.ArrayLike], jax.Array]


@dataclasses.dataclass(frozen=True)
class TrainRule:
    """One line of the list that says what trains.

    Attributes:
      pattern: regular expression that the whole path must match (`re.fullmatch`).
      mode: ``train`` or ``freeze``.
      multiplier: factor on the learning rate of the paths that this rule trains.
    """

    pattern: str
    mode: Literal["train", "freeze"]
    multiplier: float = 1.0

    def __post_init__(self):
        if self.mode not in ("train", "freeze"):
            raise ValueError(
                f"rule {self.pattern!r}: mode is {self.mode!r}, it must be 'train' or 'freeze'"
            )
        if self.multiplier <= 0:
            raise ValueError(
                f"rule {self.pattern!r}: the learning-rate multiplier is {self.multiplier}, it "
                "must be above 0; use mode 'freeze' for what should not train"
            )
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(
                f"rule {self.pattern!r} is not a regular expression: {error}"
            ) from error


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which paths train; both tuples are sorted.

    Attributes:
      trainable: paths with gradients and optimizer state.
      frozen: all other paths.
      multiplier: learning-rate factor of each trainable path.
    """

    trainable: tuple[str, ...]
    frozen: tuple[str, ...]
    multiplier: dict[str, float]


def select(rules: Sequence[TrainRule], paths: Iterable[str]) -> Selection:
    """Applies ``rules`` to ``paths``; the first rule that matches a path decides.

    Raises:
      ValueError: lists, all at once, the rules that match no path (with similar paths), the rules
        all of whose paths an earlier rule has taken, and the paths that no rule matches. A last
        rule ``.*`` settles the remaining paths, and is the one rule that may find nothing left.
    """
    paths = sorted(paths)
    decided: dict[str, TrainRule] = {}
    problems = []
    for number, rule in enumerate(rules):
        matched = [path for path in paths if re.fullmatch(rule.pattern, path)]
        taken = [path for path in matched if path not in decided]
        is_default = rule.pattern in (".*", ".+") and number == len(rules) - 1
        if not matched:
            problems.append(
                f"rule {rule.pattern!r} ({rule.mode}) matches no parameter; "
                f"{_near(rule.pattern, paths)}"
            )
        elif not taken and not is_default:
            earlier = ", ".join(
                repr(p) for p in dict.fromkeys(decided[path].pattern for path in matched)
            )
            problems.append(
                f"rule {rule.pattern!r} ({rule.mode}) has no effect: its {len(matched)} parameters "
                f"are already taken by {earlier}; the first match wins, so put the narrower rule "
                "first"
            )
        decided.update(dict.fromkeys(taken, rule))
    unmatched = [path for path in paths if path not in decided]
    if unmatched:
        problems.append(
            f"{len(unmatched)} parameters match no rule; end the list with TrainRule('.*', "
            "'freeze') or name them:\n    " + "\n    ".join(unmatched)
        )
    if problems:
        raise ValueError(
            f"{len(problems)} problems with the rules of what trains:\n  " + "\n  ".join(problems)
        )
    trainable = tuple(path for path in paths if decided[path].mode == "train")
    frozen = tuple(path for path in paths if decided[path].mode == "freeze")
    return Selection(trainable, frozen, {path: decided[path].multiplier for path in trainable})


def _near(pattern: str, paths: Sequence[str]) -> str:
    """Names paths that look like ``pattern``, else the modules there are."""
    literal = re.sub(r"\\(.)|[\^$*+?()\[\]|{}]", r"\1", pattern).replace("..", ".").strip(".")
    modules = {path[: match.start()] for path in paths for match in re.finditer(r"\.", path)}
    near = difflib.get_close_matches(literal, sorted(modules.union(paths)), n=3, cutoff=0.5)
    if near:
        return "did you mean " + ", ".join(near) + "?"
    return "the top-level modules are " + ", ".join(sorted({path.split(".")[0] for path in paths}))


SCHEDULES = ("constant", "linear", "cosine", "lavis")


def schedule(
    kind: Literal["constant", "linear", "cosine", "lavis"],
    peak: float,
    *,
    steps: int,
    warmup: int = 0,
    start: float = 0.0,
    end: float = 0.0,
) -> Schedule:
    """Learning rate as a function of the number of optimizer steps already taken; may be jitted.

    Args:
      kind: what follows the warm-up: ``peak`` for ever, or a straight line or half a cosine from it
        to ``end``. ``lavis`` is a cosine that began with step 0: where the warm-up ends, the rate
        jumps to where that cosine is by then (MiniGPT-4 reference, section 7). LAVIS begins a
        warm-up of more than an epoch anew in each, which is left out.
      peak: the highest rate.
      steps: optimizer steps of the whole run, warm-up included; later steps keep the last rate.
      warmup: steps of linear rise. The rate of step i is start + (peak - start) * i / warmup, so
        with ``start`` 0 the first step changes nothing, as in the PyTorch recipes.
      start: rate at step 0 when there is a warm-up.
      end: rate after ``steps``; not used by ``constant``.

    Raises:
      ValueError: if the numbers do not fit together.
    """
    if kind not in SCHEDULES:
        raise ValueError(
            f"the learning-rate schedule is {kind!r}, it must be one of {', '.join(SCHEDULES)}"
        )
    if steps < 1:
        raise ValueError(f"a schedule needs at least 1 step, got steps={steps}")
    if not 0 <= warmup <= steps:
        raise ValueError(
            f"the warm-up of {warmup} steps does not fit a run of {steps} steps: the peak rate "
            f"{peak} would never be reached; lower the warm-up or raise the number of steps"
        )
    if min(peak, start, end) < 0:
        raise ValueError(
            f"learning rates must not be negative, got peak={peak}, start={start}, end={end}"
        )

    floor = end if kind == "lavis" or (kind != "constant" and warmup < steps) else peak
    first = 0 if kind == "lavis" else warmup  # step of the decay's full height

    def rate(step: jax.typing.ArrayLike) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        rising = start + (peak - start) * step / max(warmup, 1)
        if kind == "lavis":
            rising = jnp.minimum(rising, peak)
        progress = jnp.clip((step - first) / max(steps - first, 1), 0.0, 1.0)
        is_line = kind in ("constant", "linear")
        left = 1 - progress if is_line else 0.5 + 0.5 * jnp.cos(jnp.pi * progress)
        return jnp.where(step < warmup, rising, floor + (peak - floor) * left)

    return rate


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its schedule; the defaults are torch's, with clipping.

    Attributes:
      learning_rate: the peak.
      schedule: ``constant``, ``linear``, ``cosine`` or ``lavis``, see `schedule`.
      warmup_steps: optimizer steps of linear rise.
      start_learning_rate: rate at step 0 when there is a warm-up.
      end_learning_rate: rate at the end of a decay.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.
      weight_decay: decoupled, times the learning rate, on every trained leaf...
      decay_exclude: ...but those whose whole path matches this regular expression; "" excludes
        none. LAVIS leaves out biases and norms: ``.*(bias|scale)``.
      clip_norm: largest global norm of the gradients; None leaves them as they are.
      loss_scale: for float16, what the loss is multiplied by at first (65536 in torch), see
        `mmjax.train.step`; None for wider types, which need none.
    """

    learning_rate: float = 1e-4
    schedule: str = "cosine"
    warmup_steps: int = 0
    start_learning_rate: float = 0.0
    end_learning_rate: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    decay_exclude: str = ""
    clip_norm: float | None = 1.0
    loss_scale: float | None = None


def learning_rate(config: OptimizerConfig, total_steps: int) -> Schedule:
    """The schedule of ``config`` over ``total_steps``, for the optimizer and for the log."""
    return schedule(
        config.schedule,
        config.learning_rate,
        steps=total_steps,
        warmup=config.warmup_steps,
        start=config.start_learning_rate,
        end=config.end_learning_rate,
    )


def make_optimizer(
    config: OptimizerConfig, multipliers: Mapping[str, float], total_steps: int
) -> optax.GradientTransformation:
    """AdamW for the flat dict of trainable parameters.

    Args:
      config: the settings; any object with these attributes will do.
      multipliers: path -> factor on its learning rate, for exactly the paths that train
        (`Selection.multiplier`). As in a torch parameter group, the factor also scales the decay.
      total_steps: optimizer steps of the whole run, for the schedule.

    Raises:
      ValueError: if nothing trains, or, when it is traced, if the parameters are not those of
        ``multipliers``.
    """
    if not multipliers:
        raise ValueError("no parameter trains: every rule that matches says 'freeze'")

    def decayed(params: Mapping[str, jax.Array]) -> dict[str, bool]:
        return {path: not re.fullmatch(config.decay_exclude, path) for path in params}

    clip = (
        optax.identity()
        if config.clip_norm is None
        else optax.clip_by_global_norm(config.clip_norm)
    )
    return optax.named_chain(
        ("clip", clip),
        ("adam", optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)),
        (
            "decay",
            optax.add_decayed_weights(
                config.weight_decay, mask=decayed if config.decay_exclude else None
            ),
        ),
        ("multiplier", _scale_by_path(dict(multipliers))),
        ("rate", optax.scale_by_learning_rate(learning_rate(config, total_steps))),
    )


def _scale_by_path(multipliers: Mapping[str, float]) -> optax.GradientTransformation:
    def scale(updates: Mapping[str, jax.Array], params=None) -> dict[str, jax.Array]:
        del params
        strangers = sorted(updates.keys() ^ multipliers.keys())
        if strangers:
            raise ValueError(
                "the optimizer was made for other parameters; these are only on one side:\n  "
                + "\n  ".join(strangers)
            )
        return {path: update * multipliers[path] for path, update in updates.items()}

    return optax.stateless(scale)
