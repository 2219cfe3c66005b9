"""How scripts start: what a user can mend is said in a few lines, without a traceback."""

import difflib
import itertools
import os
import sys
from collections.abc import Callable

from absl import app, logging
from ml_collections import ConfigDict
from ml_collections.config_flags.config_flags import ConfigFileFlagParser

from mmjax.data.example import BadSample
from mmjax.data.patience import Stalled

MENDABLE = (ValueError, OSError, FloatingPointError, ModuleNotFoundError, BadSample)


def run(main: Callable[[list[str]], None]) -> None:
    """`absl.app.run`, with JAX and Orbax kept quiet below warnings.

    Errors that a user can mend end the program with their message and exit code 1, Ctrl-C ends it
    with 130.
    """
    if problems := unknown_overrides(sys.argv[1:]):
        sys.exit(f"{len(problems)} unknown config keys:\n  " + "\n  ".join(problems))

    def quiet(argv: list[str]) -> None:
        logging.set_verbosity(logging.WARNING)
        try:
            main(argv)
        except Stalled as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            sys.stdout.flush()
            os._exit(1)  # its threads hang: the interpreter would wait for them
        except MENDABLE as error:
            sys.exit(f"{type(error).__name__}: {error}")
        except KeyboardInterrupt:
            sys.exit(130)

    app.run(quiet)


def unknown_overrides(arguments: list[str]) -> list[str]:
    """What is wrong with each ``--config.key=value`` that names nothing in the config's file, nor
    a setting that it leaves to its default.

    ml_collections itself stops at the first one, with a traceback, or takes all.
    """
    prefix = "--config."
    overrides = [a.removeprefix(prefix).split("=")[0] for a in arguments if a.startswith(prefix)]
    files = [a.removeprefix("--config=") for a in arguments if a.startswith("--config=")]
    files += [file for flag, file in itertools.pairwise(arguments) if flag == "--config"]
    if not overrides or not files:
        return []
    config = ConfigFileFlagParser("config").parse(files[-1])
    return [problem for key in overrides if (problem := _problem(config, key))]


def _problem(config: ConfigDict, key: str) -> str | None:
    from mmjax.train.config import OPTIONAL

    holder, section = config, ""
    for name in key.split("."):
        if not isinstance(holder, ConfigDict) or name not in holder:
            known = list(holder) if isinstance(holder, ConfigDict) else []
            optional = OPTIONAL.get(section, []) if known else []
            if name in optional and f".{key}".endswith(f"{section}.{name}"):
                return None
            known = list(dict.fromkeys([*known, *optional]))
            near = difflib.get_close_matches(name, known, n=3)
            hint = (
                f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(known)}"
            )
            if ".options." in key:
                hint = f"options go with the source's name: SOURCE?{name}=..."
            return f"--config.{key}: no {name!r} here; {hint}"
        holder, section = holder[name], name
    return None
