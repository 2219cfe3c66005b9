"""How torch's layers name their tensors."""

from conversion.ops import Transpose
from conversion.rules import Rule


def linear(source: str, path: str, *, bias: bool = True) -> tuple[Rule, ...]:
    kernel = Rule(f"{source}.weight", f"{path}.kernel", Transpose())
    return (kernel, Rule(f"{source}.bias", f"{path}.bias")) if bias else (kernel,)


def norm(source: str, path: str) -> tuple[Rule, ...]:
    return Rule(f"{source}.weight", f"{path}.scale"), Rule(f"{source}.bias", f"{path}.bias")
