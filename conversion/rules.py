"""Tables: which tensor of a checkpoint is which parameter of ours. Bookkeeping, no arrays.

    Rule("model.layers.{layer}.mlp.up_proj.weight", "layers.mlp.up.kernel", Transpose())

says that layer i's tensor is row i of our stacked leaf, transposed. The same table serves a stack
that is stored in segments (``layers.0.mlp.up.kernel``, ``layers.1...``): `bind` finds them among
the model's paths.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping

from conversion.ops import IDENTITY, Op, Positions, Shape, fitted

LAYER = "{layer}"


@dataclasses.dataclass(frozen=True)
class Rule:
    """One kind of tensor.

    Attributes:
      source: its key; ``{layer}`` stands for the layer's number. Several spellings: all are read,
        the first is written.
      path: our leaf; stacked over layers if the key names a layer. Several: the op's result is cut
        along axis ``cut`` among them (vocabulary rows); those that the model does not have are
        passed over.
      op: from the source's layout to ours.
      every: the source's layers 0, every, 2 * every, ... are our rows 0, 1, 2, ...
    """

    source: str | tuple[str, ...]
    path: str | tuple[str, ...]
    op: Op = IDENTITY
    every: int = 1
    cut: int = 0

    @property
    def spellings(self) -> tuple[str, ...]:
        return (self.source,) if isinstance(self.source, str) else self.source

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.path,) if isinstance(self.path, str) else self.path


@dataclasses.dataclass(frozen=True)
class Ignore:
    """Source keys (regex) that are not read, and why; with ``overrides`` not even where a rule
    would read them."""

    source: str
    reason: str
    overrides: bool = False


@dataclasses.dataclass(frozen=True)
class Init:
    """Our paths (regex) that the source need not fill, and why: zeros, or as the model declares
    them."""

    path: str
    reason: str
    zeros: bool = False


@dataclasses.dataclass(frozen=True)
class Tie:
    """A source key that may appear as a second copy of another, when the model has no leaf for
    it."""

    source: str
    equals: str


@dataclasses.dataclass(frozen=True)
class Slot:
    """Where a piece of a tensor goes: a leaf, or one row of a stacked leaf. ``shape`` is the
    piece's."""

    path: str
    row: int | None
    shape: Shape

    def __str__(self) -> str:
        return self.path if self.row is None else f"{self.path}[{self.row}]"


@dataclasses.dataclass(frozen=True)
class Binding:
    """A rule for one tensor of one model: the key's spellings, and the slots that it fills, in
    order, side by side along axis ``cut``."""

    keys: tuple[str, ...]
    slots: tuple[Slot, ...]
    op: Op
    cut: int = 0

    @property
    def lengths(self) -> list[int]:
        """Of the slots along the axis."""
        return [slot.shape[self.cut] for slot in self.slots]

    def shape(self, slots: tuple[Slot, ...] | None = None) -> Shape:
        """Of the slots, or of some of them, together."""
        first, *others = slots or self.slots
        shape = list(first.shape)
        for slot in others:
            shape[self.cut] += slot.shape[self.cut]
        return tuple(shape)


@dataclasses.dataclass(frozen=True)
class Table:
    """All rules of a network or system. Tables are placed with `under` and joined with ``+``."""

    rules: tuple[Rule, ...] = ()
    ignore: tuple[Ignore, ...] = ()
    init: tuple[Init, ...] = ()
    ties: tuple[Tie, ...] = ()

    def __add__(self, other: "Table") -> "Table":
        return Table(
            rules=self.rules + other.rules,
            ignore=self.ignore + other.ignore,
            init=self.init + other.init,
            ties=self.ties + other.ties,
        )

    def under(self, *, source_prefix: str = "", path_prefix: str = "") -> "Table":
        """The same table for a network that is a part: ``source_prefix="clip.",
        path_prefix="clip."``."""
        keys, paths = _pattern(source_prefix).pattern, re.escape(path_prefix)
        return Table(
            rules=tuple(
                dataclasses.replace(
                    rule,
                    source=tuple(source_prefix + key for key in rule.spellings),
                    path=tuple(path_prefix + path for path in rule.paths),
                )
                for rule in self.rules
            ),
            ignore=tuple(
                dataclasses.replace(entry, source=keys + entry.source) for entry in self.ignore
            ),
            init=tuple(Init(paths + entry.path, entry.reason, entry.zeros) for entry in self.init),
            ties=tuple(
                Tie(source_prefix + tie.source, source_prefix + tie.equals) for tie in self.ties
            ),
        )

    def half(self, path_prefix: str | tuple[str, ...], reason: str) -> "Table":
        """What leads to paths that start so (with any of several); all other keys are ignored, for
        this reason."""
        rules = [all(path.startswith(path_prefix) for path in rule.paths) for rule in self.rules]
        others = (rule for rule, kept in zip(self.rules, rules, strict=True) if not kept)
        return dataclasses.replace(
            self,
            rules=tuple(rule for rule, kept in zip(self.rules, rules, strict=True) if kept),
            ignore=self.ignore
            + tuple(
                Ignore(_pattern(spelling).pattern, reason)
                for rule in others
                for spelling in rule.spellings
            ),
        )

    def bind(self, shapes: Mapping[str, Shape]) -> list[Binding]:
        """The table for a model with these leaves, one binding for each source tensor, in the order
        of the rules."""
        return [binding for rule in self.rules for binding in _bind(rule, shapes)]

    def reads(self, key: str) -> bool:
        """Whether some rule reads a key of this name (whatever the number of layers)."""
        return self._read.fullmatch(key) is not None

    @functools.cached_property
    def _read(self) -> re.Pattern[str]:
        """Of all keys that are read; one pattern, since checkpoints and tables are long."""
        spellings = (spelling for rule in self.rules for spelling in rule.spellings)
        return re.compile("|".join(_pattern(spelling).pattern for spelling in spellings) or "(?!)")

    def ignored(self, key: str) -> str | None:
        """Why ``key`` is not read, or None."""
        return next(
            (entry.reason for entry in self.ignore if re.fullmatch(entry.source, key)), None
        )

    def overridden(self, key: str) -> bool:
        """Whether ``key`` is not read although a rule would."""
        return any(entry.overrides and re.fullmatch(entry.source, key) for entry in self.ignore)

    def initialised(self, path: str) -> Init | None:
        """Why ``path`` may be left unfilled, or None."""
        return next((entry for entry in self.init if re.fullmatch(entry.path, path)), None)

    def fills(self, path: str) -> bool:
        """Whether some rule leads to ``path``, stacked in segments or not."""
        whole = re.sub(r"\blayers\.\d+\.", "layers.", path)
        return any(whole == p for rule in self.rules for p in rule.paths)


@functools.cache
def _pattern(spelling: str) -> re.Pattern[str]:
    return re.compile(re.escape(spelling).replace(re.escape(LAYER), r"\d+"))


def _bind(rule: Rule, shapes: Mapping[str, Shape]) -> Iterable[Binding]:
    if LAYER not in rule.spellings[0]:
        slots = tuple(
            Slot(path, None, tuple(shapes[path])) for path in rule.paths if path in shapes
        )
        if slots:
            yield Binding(rule.spellings, slots, _op(rule, slots), rule.cut)
        return
    columns = [rows for path in rule.paths if (rows := _rows(path, shapes))]
    for row, slots in enumerate(zip(*columns, strict=True)):
        layer = str(row * rule.every)
        keys = tuple(key.replace(LAYER, layer) for key in rule.spellings)
        yield Binding(keys, slots, _op(rule, slots), rule.cut)


def _op(rule: Rule, slots: tuple[Slot, ...]) -> Op:
    return fitted(rule.op, [slot.shape for slot in slots])


def segments(path: str, shapes: Mapping[str, Shape]) -> list[str]:
    """The leaves that hold ``a.layers.b``: itself, or, of a split stack, ``a.layers.0.b``,
    ``a.layers.1.b``, ..."""
    if path in shapes:
        return [path]
    head, _, tail = path.rpartition("layers.")
    leaves = []
    while (leaf := f"{head}layers.{len(leaves)}.{tail}") in shapes:
        leaves.append(leaf)
    return leaves


def same_paths(paths: Iterable[str], shapes: Mapping[str, Shape]) -> Table:
    """For a source that is ours: its paths are the model's, however the stacks are cut. A ViT's
    positions are resized where the model's grid is another one: it goes on at another resolution.
    """
    return Table(rules=tuple(_same_path(path, shapes) for path in paths))


def _same_path(path: str, shapes: Mapping[str, Shape]) -> Rule:
    if re.fullmatch(r"(.*\.)?vision\.position", path):
        return Rule(path, path, Positions(is_ours=True))
    return Rule(path, tuple(segments(path, shapes)))


def _rows(path: str, shapes: Mapping[str, Shape]) -> list[Slot]:
    leaves = segments(path, shapes)
    return [
        Slot(leaf, row, tuple(shapes[leaf][1:]))
        for leaf in leaves
        for row in range(shapes[leaf][0])
    ]
