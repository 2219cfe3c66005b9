"""How each kind of recording is replayed; `conversion.parity` compares."""

import dataclasses

import numpy as np

TOLERANCE = 1e-4  # absolute; all recordings are float32
# tensors of ours; those that are not compared, each with the reason; remarks
Replayed = tuple[dict[str, "Ours"], dict[str, str], list[str]]


@dataclasses.dataclass(frozen=True)
class Ours:
    """What we compute for a recorded tensor.

    Attributes:
      value: array of its shape.
      where: bool over the leading axes, the places to compare (attended positions); None =
        everywhere.
      exact: whether it must be equal (token ids).
    """

    value: np.ndarray
    where: np.ndarray | None = None
    exact: bool = False

    def against(self, recorded: np.ndarray) -> tuple[bool, str]:
        """(whether it agrees, what to print)."""
        value = np.asarray(self.value)
        if value.shape != recorded.shape:
            return False, f"shape {value.shape}, recorded {recorded.shape}"
        if self.exact:
            return bool(
                (value == recorded).all()
            ), f"{value.shape} {int((value != recorded).sum())} ids differ"
        with np.errstate(invalid="ignore"):
            error = np.abs(value.astype(np.float64) - recorded.astype(np.float64))
        error = np.where(value == recorded, 0, error)  # of two infinities
        if self.where is not None:
            error = error[self.where]
        worst = float(error.max()) if error.size else 0.0
        return (
            worst <= TOLERANCE,
            f"{value.shape} max abs error {worst:.1e}",
        )  # NaN compares false: a failure
