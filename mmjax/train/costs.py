"""What a program computes and moves, from its jaxpr alone: the same on every machine.

flops    2 b m n k of every matrix product, 2 (outputs) (window) (inputs) of every convolution, as
         often as the loop around it turns. Elementwise work is left out, as is usual for MFU.
moved    bytes of the operands and results of these products: what a device must at least read and
         write if nothing else stays in its fast memory between them

Loops whose turns are not known (`jax.lax.while_loop`) and kernels written by hand count once. XLA's
own figures count the body of every loop once.
"""

import dataclasses
import math

from jax.extend import core

from mmjax.train.memory import needed

FORMULA = "FLOP: 2 b m n k of every product, convolutions alike, as often as its loop turns"


@dataclasses.dataclass(frozen=True)
class Cost:
    flops: float = 0.0
    moved: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.flops + other.flops, self.moved + other.moved)

    def __mul__(self, times: float) -> "Cost":
        return Cost(self.flops * times, self.moved * times)


def cost(jaxpr: core.Jaxpr) -> Cost:
    """Of all that the outputs depend on."""
    total = Cost()
    for eqn in needed(jaxpr):
        match eqn.primitive.name:
            case "dot_general":
                total += _product(eqn)
            case "conv_general_dilated":
                total += _convolution(eqn)
            case "cond":
                branches = [cost(branch.jaxpr) for branch in eqn.params["branches"]]
                total += max(branches, key=lambda one: one.flops)
            case name:
                times = eqn.params["length"] if name == "scan" else 1
                for inner in _inner(eqn):
                    total += cost(inner) * times
    return total


def _inner(eqn: core.JaxprEqn) -> list[core.Jaxpr]:
    found = []
    for value in eqn.params.values():
        for inner in value if isinstance(value, tuple | list) else (value,):
            if isinstance(inner, core.ClosedJaxpr):
                found.append(inner.jaxpr)
            elif isinstance(inner, core.Jaxpr):
                found.append(inner)
    return found


def _product(eqn: core.JaxprEqn) -> Cost:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    left, out = eqn.invars[0].aval, eqn.outvars[0].aval
    depth = math.prod(left.shape[i] for i in contracted)
    return Cost(2 * math.prod(out.shape) * depth, _moved(eqn))


def _convolution(eqn: core.JaxprEqn) -> Cost:
    kernel, out = eqn.invars[1].aval, eqn.outvars[0].aval
    outputs = kernel.shape[eqn.params["dimension_numbers"].rhs_spec[0]]
    return Cost(2 * math.prod(out.shape) * math.prod(kernel.shape) / outputs, _moved(eqn))


def _moved(eqn: core.JaxprEqn) -> float:
    return sum(math.prod(v.aval.shape) * v.aval.dtype.itemsize for v in (*eqn.invars, *eqn.outvars))
