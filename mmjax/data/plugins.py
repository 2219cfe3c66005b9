"""Parts by name: what is built in, or a class of your own as ``MODULE:ATTRIBUTE``.

Options follow the name: ``my.sam:Segmenter?checkpoint=sam.pth&points=16``.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from mmjax.data.sources import options_in

# A text is imported when it is asked for: models are no business of the data.
Known = Mapping[str, Callable[..., Any] | str]


def load_part(part: str, name: str, known: Known, *, described: str) -> Any:
    """The ``part`` called ``name``.

    Args:
      part: the flag's name, for messages.
      name: one of ``known``, or ``MODULE:ATTRIBUTE``, options included.
      known: what is built in.
      described: the file that says what such a part gets and gives.

    Raises:
      ValueError: there is none; names the part, and those there are.
    """
    path, options = options_in(name)
    make = known.get(path, path)
    if isinstance(make, str):
        make = _imported(part, make, known)
    takes = inspect.signature(make).parameters
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in takes.values())
    if unknown := [] if takes_all else sorted(options.keys() - takes.keys()):
        there = f"there {'are ' + ', '.join(takes) if takes else 'is none'}"
        raise ValueError(f"--{part}={name} has no option {', '.join(unknown)}; {there}")
    missing = [p.name for p in takes.values() if _is_needed(p) and p.name not in options]
    if missing:
        raise ValueError(f"--{part}={name} needs {', '.join(missing)}: {path}?{missing[0]}=...")
    made = make(**options)
    if not callable(made):
        raise ValueError(
            f"--{part}={name}: what {path} makes cannot be called, as a {part} can; see {described}"
        )
    return made


def _imported(part: str, path: str, built_in: Known) -> Callable[..., Any]:
    module, colon, attribute = path.partition(":")
    if not colon:
        known = ", ".join([*built_in, "MODULE:ATTRIBUTE"])
        raise ValueError(f"no {part} named {path!r}; known: {known}")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"--{part}={path}: {error}; is its folder in PYTHONPATH, and what it needs installed?"
        ) from error
    except AttributeError as error:
        raise ValueError(f"--{part}={path}: {error}") from error
    if not callable(found):
        raise ValueError(f"--{part}={path} is no class or function, but {found!r:.80}")
    return found


def _is_needed(parameter: inspect.Parameter) -> bool:
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return parameter.default is inspect.Parameter.empty and parameter.kind in named
