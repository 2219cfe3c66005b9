"""Dense layers of a built module, chosen by their paths and replaced by what does more."""

import re
from collections.abc import Callable

from flax import nnx

from mmjax.nn.dense import Dense


def replace_chosen(
    module: nnx.Module, target: str, make: Callable[[Dense], Dense], what: str
) -> list[str]:
    """Replaces the dense layers of which the whole path matches ``target``, in place; a stack is
    ``layers``, however it is cut. Returns their paths.

    Raises:
      ValueError: none matches; ``what`` wanted them.
    """
    paths = dense_paths(module)
    if not (chosen := [path for path in paths if re.fullmatch(target, whole(path))]):
        raise ValueError(
            f"{what}'s target {target!r} matches no dense layer; there are\n  "
            + "\n  ".join(sorted({whole(path) for path in paths}))
        )
    for path in chosen:
        parent = module
        *before, last = path.split(".")
        for name in before:
            parent = parent[int(name)] if name.isdigit() else getattr(parent, name)
        setattr(parent, last, make(getattr(parent, last)))
    return chosen


def dense_paths(module: nnx.Module) -> list[str]:
    """Of all dense layers of ``module``."""
    found = nnx.iter_modules(module)
    return [".".join(map(str, path)) for path, layer in found if isinstance(layer, Dense)]


def whole(path: str) -> str:
    """The path as it would be if no stack were cut."""
    return re.sub(r"\blayers\.\d+\.", "layers.", path)
