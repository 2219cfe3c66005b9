"""What sources that read whole files of records share: checking all of them at once."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mmjax.data.example import Example

Parsed = TypeVar("Parsed")
_MAX_SHOWN = 20


class Records:
    """Examples in memory, pictures by reference.

    Attributes:
      name: for messages.
      kinds: ``info["kind"]`` of each example.
      notices: what a user should know about how the records were read.
    """

    def __init__(self, name: str, examples: Sequence[Example], notices: Sequence[str] = ()):
        self.name, self._examples, self.notices = name, examples, tuple(notices)
        self.kinds: Sequence[str] = [example.info.get("kind", "") for example in examples]

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        return self._examples[index]


def parse_all(
    path: Path,
    items: Iterable[tuple[str, Any]],
    parse: Callable[[str, Any], Iterable[Parsed]],
) -> list[Parsed]:
    """What all items, (where, record), become.

    Args:
      path: of the file, for messages.
      items: ``where`` names a record in messages: ``line 3``.
      parse: (where, record) -> its examples, say; raises ValueError that names the field.

    Raises:
      ValueError: bad records (their number, and the first 20 of them), or no records at all.
    """
    found: list[Parsed] = []
    problems: list[str] = []
    for where, record in items:
        try:
            found += parse(where, record)
        except ValueError as error:
            problems.append(f"{where}: {error}")
    if problems:
        shown = "\n  ".join(problems[:_MAX_SHOWN])
        rest = len(problems) - _MAX_SHOWN
        more = f"\n  and {rest} more" if rest > 0 else ""
        kind = problems[0].split()[0]
        raise ValueError(f"{path}: {len(problems)} bad {kind}s\n  {shown}{more}")
    if not found:
        raise ValueError(f"{path} holds no records")
    return found


def existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such data file: {path}")
    return path


def read_list(path: str | Path) -> list[tuple[str, Any]]:
    """The records of a JSON file that is one list.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it is not JSON, or not a list.
    """
    path = existing(path)
    try:
        records = parse_json(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:  # UnicodeDecodeError too
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(records, list):
        raise ValueError(f"{path}: expected a list of records, got {type(records).__name__}")
    return [(f"record {number}", record) for number, record in enumerate(records)]


def parse_json(text: str) -> Any:
    """Raises ValueError that says what is wrong, whatever ``text`` is."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"not JSON ({error.msg} at "
            + (f"line {error.lineno}, " if error.lineno > 1 else "")
            + f"column {error.colno})"
        ) from error
    except RecursionError as error:
        raise ValueError("lists or objects within each other, too deep to be data") from error
    except ValueError as error:
        raise ValueError(f"not JSON that can be read ({error})") from error


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON; leave the field out, or write null")


def as_object(record: Any) -> dict[str, Any]:
    """A copy, to take fields from."""
    if not isinstance(record, dict):
        raise ValueError(f"expected an object, got {type(record).__name__}")
    return dict(record)


def one_of(record: dict[str, Any], *names: str) -> Any:
    """Takes fields that mean the same out of ``record``; None if it has none of them."""
    present = [name for name in names if record.get(name) is not None]
    if len(present) > 1:
        raise ValueError(f"fields {' and '.join(map(repr, present))} mean the same; give one")
    values = {name: record.pop(name, None) for name in names}
    return values[present[0]] if present else None


def text_of(record: dict[str, Any], field: str, *, needed: bool = True) -> str | None:
    """Takes a text field out of ``record``."""
    value = record.pop(field, None)
    if value is None and needed:
        raise ValueError(f"field {field!r} is missing")
    return None if value is None else checked(f"field {field!r}", value)


def checked(what: str, value: Any) -> str:
    """``value``, if it is text that can be written as UTF-8."""
    if not isinstance(value, str):
        raise ValueError(f"{what}: expected text, got {value!r:.60}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{what}: half a character at place {error.start} (a surrogate)") from None
    return value


def id_of(record: dict[str, Any], default: str) -> str:
    value = record.pop("id", None)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"field 'id': expected text or a whole number, got {value!r:.60}")
    return checked("field 'id'", str(value))


def paths_of(value: Any, what: str) -> list[str]:
    """A path or a list of paths; None is none."""
    found = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(item, str) and item for item in found):
        raise ValueError(f"{what}: expected a path or a list of paths, got {value!r:.60}")
    return [checked(what, item) for item in found]


def info_of(record: dict[str, Any]) -> dict[str, str]:
    """The fields that are left, as text."""
    info = {}
    for key, value in record.items():
        if value is None:
            continue
        if not isinstance(value, str | int | float):
            raise ValueError(
                f"field {key!r:.60}: expected text, a number or a boolean, got {value!r:.40}"
            )
        info[key] = checked(f"field {key!r:.60}", str(value))
    return info
