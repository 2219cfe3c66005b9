"""The parts that make pairs, by name.

    segmenter    easy-vqa                 the shape and the background, by colour
    text_model   easy-vqa                 one edit of the shape, drawn at random
                 chat-api                 a model behind an OpenAI-compatible address, see
                                          `mmjax.data.differences.chat_api`
    editor       easy-vqa                 draws what the text model easy-vqa describes
    attention    blip-2                   a BLIP-2's, see `mmjax.train.looking`
    filter                                none is built in

    any of them  MODULE:ATTRIBUTE         your own: a class or function that, called with the
                                          options, gives an object as described in
                                          `mmjax.data.differences.interfaces`; MODULE must be
                                          importable (PYTHONPATH=FOLDER)

Options follow the name: ``my.sam:Segmenter?checkpoint=sam.pth&points=16``.
"""

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from mmjax.data.differences.chat_api import ChatAPI
from mmjax.data.differences.easy_vqa import RuleEditor, RuleSegmenter, RuleText
from mmjax.data.sources import options_in

# A text is imported when it is asked for: models are no business of the data.
BUILT_IN: dict[str, dict[str, Callable[..., Any] | str]] = {
    "attention": {"blip-2": "mmjax.train.looking:Blip2Attention"},
    "segmenter": {"easy-vqa": RuleSegmenter},
    "text_model": {"easy-vqa": RuleText, "chat-api": ChatAPI},
    "editor": {"easy-vqa": RuleEditor},
    "filter": {},
}


def load(part: str, name: str) -> Any:
    """The ``part`` (a key of `BUILT_IN`) called ``name``.

    Raises:
      ValueError: there is none; names the part, and those there are.
    """
    path, options = options_in(name)
    make = BUILT_IN[part].get(path, path)
    if isinstance(make, str):
        make = _imported(part, make)
    known = inspect.signature(make).parameters
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
    if unknown := [] if takes_all else sorted(options.keys() - known.keys()):
        there = f"there {'are ' + ', '.join(known) if known else 'is none'}"
        raise ValueError(f"--{part}={name} has no option {', '.join(unknown)}; {there}")
    missing = [p.name for p in known.values() if _is_needed(p) and p.name not in options]
    if missing:
        raise ValueError(f"--{part}={name} needs {', '.join(missing)}: {path}?{missing[0]}=...")
    made = make(**options)
    if not callable(made):
        raise ValueError(
            f"--{part}={name}: what {path} makes cannot be called, as a {part} can; see "
            "mmjax/data/differences/interfaces.py"
        )
    return made


def _imported(part: str, path: str) -> Callable[..., Any]:
    module, colon, attribute = path.partition(":")
    if not colon:
        known = ", ".join([*BUILT_IN[part], "MODULE:ATTRIBUTE"])
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
