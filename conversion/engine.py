"""Tables at work: check a whole checkpoint, then move it tensor by tensor, in either direction.

`plan` looks at names and shapes only and raises one `ConversionError` with every problem in it.
`load` fills one leaf after the other (peak memory: a leaf and a tensor), `exported` gives the
source's tensors back, as lazily. What training starts from: `conversion.weights`.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import jax
import numpy as np

from conversion.io import Entry, Source
from conversion.ops import Shape, join_rows, split_rows
from conversion.rules import Binding, Init, Slot, Table
from mmjax.nn.param import ParamSpec, init_params

Put = Callable[[str, np.ndarray], object]
"""``put(path, array)`` places a finished leaf (shards, disk) and returns what stands for it."""


class ConversionError(ValueError):
    """Everything in which a checkpoint and a model do not fit; ``problems`` has one line for
    each."""

    def __init__(self, name: str, problems: Sequence[str]):
        self.problems = list(problems)
        super().__init__(
            f"{name}: {len(self.problems)} problems; another size, system, stage or version?\n  "
            + "\n  ".join(self.problems)
        )


@dataclasses.dataclass(frozen=True)
class Step:
    """One tensor's way: ``key`` of the source, through a binding, into ``slots`` (all of the
    binding's, or the first ones where the source lacks rows that the table initialises).

    With ``is_copy`` an earlier step fills them, and the two must give the same numbers.
    """

    key: str
    binding: Binding
    slots: tuple[Slot, ...]
    is_copy: bool = False


@dataclasses.dataclass(frozen=True)
class Plan:
    """A checked conversion: what is read, what is left aside, what is initialised, and why."""

    source: Source
    specs: Mapping[str, ParamSpec]
    steps: tuple[Step, ...]
    ignored: Mapping[str, str]
    initialised: Mapping[str, Init]
    ties: tuple[tuple[str, str], ...]

    def report(self, dtype=None) -> dict:
        """Counts and reasons, JSON-able."""
        changed = {}
        for step in self.steps:
            before = self.source.entries[step.key].dtype
            if dtype is not None and before != np.dtype(dtype):
                name = f"{before} -> {np.dtype(dtype)}"
                changed[name] = changed.get(name, 0) + 1
        return {
            "source": self.source.name,
            "tensors_read": len({step.key for step in self.steps}),
            "leaves_filled": len({slot.path for step in self.steps for slot in step.slots}),
            "parameters": sum(spec.size for spec in self.specs.values()),
            "ignored": dict(self.ignored),
            "initialised": {path: init.reason for path, init in self.initialised.items()},
            "second_copies": {key: f"equal to {other}" for key, other in self.ties}
            | {step.key: "another tensor's copy" for step in self.steps if step.is_copy},
            "dtype_changes": changed,
            "notices": list(self.source.notices),
        }


def plan(table: Table, source: Source, specs: Mapping[str, ParamSpec], *, dtype=None) -> Plan:
    """Decides what becomes of every source tensor and where every leaf of ``specs`` comes from.

    Where several rules lead to one place (a network that a checkpoint holds twice, or two sources
    that both have it), the first that has its tensor fills it and the others' are compared.

    Args:
      dtype: what the leaves are wanted in; None = as in the source, then the layers of one leaf
        must agree.

    Raises:
      ConversionError: all of: missing or doubly spelled source tensors, unconsumed ones, unfilled
        leaves, shapes.
    """
    bindings = table.bind({path: spec.shape for path, spec in specs.items()})
    problems, steps = [], []
    taken: set[tuple[str, int]] = set()
    absent: dict[tuple[Slot, ...], list[str]] = {}
    given = {key for key in source.entries if not table.overridden(key)}
    for binding in bindings:
        present = [key for key in binding.keys if key in given]
        if len(present) > 1:
            targets = " + ".join(map(str, binding.slots))
            problems.append(f"two spellings of one tensor: {' and '.join(present)} -> {targets}")
            taken |= _places(binding.slots)
        elif present:
            slots = _fitting(table, binding, source.entries[present[0]].shape)
            if isinstance(slots, str):
                problems.append(f"shape: {present[0]} {slots}")
                slots = binding.slots
            else:
                is_copy = _places(slots) <= taken
                steps.append(Step(present[0], binding, slots, is_copy))
            taken |= _places(slots)
        else:
            absent.setdefault(binding.slots, []).extend(binding.keys)
    for slots, keys in absent.items():
        if not all(_places([slot]) <= taken or table.initialised(slot.path) for slot in slots):
            targets = " + ".join(map(str, slots))
            problems.append(f"missing from the source: {' or '.join(keys)} -> {targets}")
    known = {key for binding in bindings for key in binding.keys}
    ignored, ties = {}, []
    for key in source.entries.keys() - (known & given):
        other = next((tie.equals for tie in table.ties if tie.source == key), None)
        if reason := table.ignored(key):
            ignored[key] = reason
        elif other in source.entries:
            ties.append((key, other))
        else:
            problems.append(
                f"not consumed: {key} {source.entries[key].shape}: no rule or no place in the model"
            )
    filled = {slot.path for step in steps for slot in step.slots}
    reached = {slot.path for binding in bindings for slot in binding.slots}
    initialised = {}
    for path in specs.keys() - filled:
        if init := table.initialised(path):
            initialised[path] = init
        elif path not in reached:
            problems.append(f"unfilled: {path} {specs[path].shape}; no rule leads to it")
    if dtype is None:
        problems += _mixed_dtypes(source, steps)
    if problems:
        raise ConversionError(source.name, sorted(problems))
    source = dataclasses.replace(source, notices=(*source.notices, *_remarks(source, steps)))
    return Plan(
        source, specs, tuple(steps), dict(sorted(ignored.items())), initialised, tuple(sorted(ties))
    )


def _fitting(table: Table, binding: Binding, shape: Shape) -> tuple[Slot, ...] | str:
    """The slots that a tensor of this shape fills, or what is wrong with the shape."""
    rule = f"(rule {type(binding.op).__name__} -> {' + '.join(map(str, binding.slots))})"
    try:
        given = binding.op.forward_shape(shape)
    except ValueError as error:
        return f"{rule}: {error}"
    first, *others = binding.slots
    choices = [binding.slots]
    if others and all(table.initialised(slot.path) for slot in others):
        choices.append((first,))
    for slots in choices:
        if given == binding.shape(slots):
            return slots
    wanted = " or ".join(str(binding.op.inverse_shape(binding.shape(slots))) for slots in choices)
    return f"is {shape}, the model wants {wanted} {rule}"


def _remarks(source: Source, steps: Iterable[Step]) -> Iterator[str]:
    """What ops do to tensors besides moving their numbers."""
    for step in steps:
        told = getattr(step.binding.op, "remark", lambda shape: None)
        if remark := told(source.entries[step.key].shape):
            yield f"{step.key}: {remark}"


def _places(slots: Iterable[Slot]) -> set[tuple[str, int]]:
    """(path, row of the leaf) of all that ``slots`` cover."""
    return {
        (slot.path, row)
        for slot in slots
        for row in (range(*slot.shape[:1] or (1,)) if slot.row is None else (slot.row,))
    }


def _mixed_dtypes(source: Source, steps: Iterable[Step]) -> Iterator[str]:
    seen: dict[str, set[str]] = {}
    for step in (step for step in steps if not step.is_copy):
        for slot in step.slots:
            seen.setdefault(slot.path, set()).add(str(source.entries[step.key].dtype))
    for path, names in seen.items():
        if len(names) > 1:
            kinds = ", ".join(sorted(names))
            yield f"dtypes: the layers of {path} are {kinds} in the source; choose one dtype"


def load(
    table: Table,
    source: Source,
    specs: Mapping[str, ParamSpec],
    *,
    dtype=None,
    put: Put | None = None,
    seed: int = 0,
) -> dict[str, np.ndarray | jax.Array]:
    """Reads a checkpoint into a flat dict with exactly the paths of ``specs``.

    Args:
      dtype: None = as in the source.
      put: see `Put`; None = keep the numpy arrays.
      seed: of the leaves that are initialised as the model declares them.

    Raises:
      ConversionError: see `plan`; also second copies that differ, and numbers too large for
        ``dtype``.
    """
    return carry_out(plan(table, source, specs, dtype=dtype), dtype=dtype, put=put, seed=seed)


def together(parts: Sequence[tuple[Table, Source]]) -> tuple[Table, Source]:
    """Several tables and their sources as one; keys become ``<source's name>:<key>``."""
    table = Table()
    entries, files, notices = {}, (), ()
    for part, source in parts:
        prefix = f"{source.name}:"
        table += part.under(source_prefix=prefix)
        entries |= source.under(prefix).entries
        files += source.files
        notices += tuple(f"{source.name}: {notice}" for notice in source.notices)
    return table, Source(" + ".join(source.name for _, source in parts), entries, files, notices)


def carry_out(
    plan: Plan, *, dtype=None, put: Put | None = None, seed: int = 0
) -> dict[str, np.ndarray | jax.Array]:
    """Does what `plan` decided; arguments and result as in `load`."""
    put = put or (lambda path, array: array)
    for key, other in plan.ties:
        if not np.array_equal(plan.source.entries[key].load(), plan.source.entries[other].load()):
            raise ConversionError(
                plan.source.name, [f"{key} differs from {other}, but the model ties the two"]
            )
    done, open_leaves = {}, {}
    left = {}
    for step in plan.steps:
        for slot in step.slots:
            left[slot.path] = left.get(slot.path, 0) + 1
    # Module by module, so that few leaves are open at a time: what fills them, then its copies.
    module = lambda step: step.slots[0].path.rsplit(".", 2)[0]  # noqa: E731  of q, k and v alike
    for step in sorted(plan.steps, key=lambda step: (module(step), step.is_copy)):
        entry = plan.source.entries[step.key]
        try:
            whole = step.binding.op.forward(entry.load())
        except ValueError as error:
            raise ConversionError(plan.source.name, [f"{step.key}: {error}"]) from error
        pieces = [whole]
        if len(step.slots) > 1:
            pieces = split_rows(whole, step.binding.lengths, step.binding.cut)
        for slot, piece in zip(step.slots, pieces, strict=True):
            if slot.path not in open_leaves:
                shape = plan.specs[slot.path].shape
                open_leaves[slot.path] = np.empty(shape, np.dtype(dtype or entry.dtype))
            name = f"{plan.source.name}: {step.key}"
            (_compare if step.is_copy else _fill)(open_leaves[slot.path], slot, piece, name)
            left[slot.path] -= 1
            if not left[slot.path]:
                done[slot.path] = put(slot.path, open_leaves.pop(slot.path))
    for path, init in plan.initialised.items():
        done[path] = put(path, _initial(path, plan.specs[path], init, dtype, seed))
    return dict(sorted(done.items()))


def _fill(leaf: np.ndarray, slot: Slot, piece: np.ndarray, name: str) -> None:
    target = leaf[...] if slot.row is None else leaf[slot.row : slot.row + 1]
    with np.errstate(over="ignore"):
        target[...] = piece
    narrowed = target.dtype.itemsize < piece.dtype.itemsize or target.dtype == np.float16
    if (
        narrowed
        and target.dtype != piece.dtype
        and not np.isfinite(target).all()
        and np.isfinite(piece).all()
    ):
        raise ConversionError(
            name,
            [
                f"numbers too large for {target.dtype} in {slot}; "
                f"keep {piece.dtype} or take bfloat16"
            ],
        )


def _compare(leaf: np.ndarray, slot: Slot, piece: np.ndarray, name: str) -> None:
    """As far as the narrower of the two dtypes tells."""
    there = leaf[...] if slot.row is None else leaf[slot.row]
    narrow = min(there.dtype, piece.dtype, key=lambda dtype: dtype.itemsize)
    if not np.array_equal(there.astype(narrow), piece.astype(narrow), equal_nan=True):
        raise ConversionError(
            name,
            [
                f"differs from the tensor that fills {slot}, though the two are copies of each "
                "other: files of two models mixed, or one of them trained on?"
            ],
        )


def _initial(path: str, spec: ParamSpec, init: Init, dtype, seed: int) -> np.ndarray:
    dtype = np.dtype(dtype or spec.dtype)
    if init.zeros:
        return np.zeros(spec.shape, dtype)
    return np.asarray(init_params({path: spec}, seed)[path]).astype(dtype)


def exported(
    table: Table, params: Mapping[str, np.ndarray | jax.Array], *, dtype=None
) -> dict[str, Entry]:
    """The source's tensors, lazily: the table read backwards; each key in its first spelling.

    Raises:
      ConversionError: a parameter that no rule leads to.
    """
    shapes = {path: tuple(value.shape) for path, value in params.items()}
    bindings = table.bind(shapes)
    reached = {slot.path for binding in bindings for slot in binding.slots}
    if lost := sorted(params.keys() - reached):
        raise ConversionError("export", [f"no rule for {path} {shapes[path]}" for path in lost])
    entries = {}
    for binding in bindings:
        shape = binding.op.inverse_shape(binding.shape())
        kind = np.dtype(dtype or params[binding.slots[0].path].dtype)
        entries[binding.keys[0]] = Entry(
            shape, kind, lambda b=binding, k=kind: _unfill(b, params, k)
        )
    return entries


def _unfill(
    binding: Binding, params: Mapping[str, np.ndarray | jax.Array], dtype: np.dtype
) -> np.ndarray:
    pieces = [
        np.asarray(params[slot.path] if slot.row is None else params[slot.path][slot.row])
        for slot in binding.slots
    ]
    before = binding.op.inverse(join_rows(pieces, binding.cut))
    with np.errstate(over="ignore"):
        after = before.astype(dtype, copy=False)
    if after is not before and not np.isfinite(after).all() and np.isfinite(before).all():
        raise ConversionError(
            binding.keys[0], [f"numbers too large for {dtype}; keep {before.dtype}"]
        )
    return after


def export(
    table: Table, params: Mapping[str, np.ndarray | jax.Array], *, dtype=None
) -> Iterator[tuple[str, np.ndarray]]:
    """(key, array) of every tensor of `exported`, one in memory at a time."""
    for key, entry in exported(table, params, dtype=dtype).items():
        yield key, entry.load()
