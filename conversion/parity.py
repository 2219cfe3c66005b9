"""``python -m conversion parity FOLDER ...``: our numbers against recorded ones, tensor by tensor.

A folder holds what the original PyTorch code computed from tiny random weights:
``state.safetensors`` (original key names), ``io.safetensors`` (inputs, intermediates, outputs,
gradients) and ``config.json``. Which system it is of is told by its content; any sizes will do. The
state goes through the same tables as a real checkpoint.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
from safetensors import SafetensorError
from safetensors.numpy import load_file

from conversion.engine import ConversionError
from conversion.io import Source, SourceError, read
from conversion.recordings import decoding, lavis, lmeye


@dataclasses.dataclass(frozen=True)
class Case:
    """A kind of recording.

    Attributes:
      name: for people.
      fits: (config, keys of the state; or, where there is none, names of what is recorded) ->
        whether this is one.
      compute: (config, state or None, recorded tensors) -> (name -> `Ours`, name -> why it is not
        compared, remarks).
    """

    name: str
    fits: Callable[[Mapping, set[str]], bool]
    compute: Callable


CASES = (
    Case("LMEye stage 2 on LLaMA", lmeye.is_instruct, lmeye.instruct),
    Case("LMEye stage 1 on LLaMA", lmeye.is_align, lmeye.align),
    Case("decoding rules of transformers 4.28", decoding.is_rules, decoding.rules),
    Case("EVA ViT of LAVIS", lavis.is_eva_vit, lavis.eva_vit),
    Case("Q-Former of LAVIS", lavis.is_qformer, lavis.qformer),
)


def main(paths: list[Path]) -> int:
    """Prints one line for each recorded tensor, and totals; 1 if anything is off."""
    failed = 0
    with jax.default_matmul_precision("highest"):
        for path in paths:
            try:
                failed += not compare(Path(path))
            except (
                ConversionError,
                SourceError,
                SafetensorError,
                OSError,
                ValueError,
                KeyError,
            ) as error:
                print(f"{path}: {type(error).__name__}: {error}")
                failed += 1
    print(f"{len(paths) - failed} of {len(paths)} recordings pass")
    return int(failed > 0)


def compare(folder: Path) -> bool:
    """Whether everything that can be compared agrees; prints what was compared and what was not,
    and why."""
    config = json.loads((folder / "config.json").read_text())
    recorded = load_file(folder / "io.safetensors")
    weights = folder / "state.safetensors"
    state: Source | None = read(weights) if weights.is_file() else None
    keys = set(recorded if state is None else state.entries)
    case = next((case for case in CASES if case.fits(config, keys)), None)
    if case is None:
        known = ", ".join(case.name for case in CASES)
        raise ValueError(
            f"no system here knows this recording (variant {config.get('variant')!r}"
            f"{'' if state else ', no state.safetensors'}); "
            f"known: {known}"
        )
    ours, left_out, remarks = case.compute(config, state, recorded)
    print(f"\n{folder}: {case.name}")
    for remark in remarks:
        print(f"  note: {remark}")
    width = max(map(len, recorded))
    verdicts = []
    for name in sorted(recorded):
        if name in left_out:
            print(f"  {name:{width}}  left out: {left_out[name]}")
        elif name not in ours:
            verdicts.append(False)
            print(f"  {name:{width}}  FAIL: recorded, but nothing of ours is compared with it")
        else:
            good, text = ours[name].against(recorded[name])
            verdicts.append(good)
            print(f"  {name:{width}}  {text}  {'ok' if good else 'FAIL'}")
    unrecorded = sorted(ours.keys() - recorded.keys())
    for name in unrecorded:
        print(f"  {name:{width}}  not recorded here")
    print(
        f"  {sum(verdicts)} of {len(verdicts)} agree; "
        f"{len(verdicts)} of {len(recorded)} tensors compared"
    )
    return all(verdicts) and bool(verdicts)
