"""Tables: prefixes, stacked layers, split stacks."""

from conversion.ops import Transpose
from conversion.rules import Ignore, Init, Rule, Table, Tie, segments

TABLE = Table(
    rules=(
        Rule("h.{layer}.w", "layers.w", Transpose()),
        Rule(("norm", "final_norm"), "norm.scale"),
    ),
    ignore=(Ignore(r"h\.\d+\.mask", "a buffer"),),
    init=(Init(r"extra", "new"),),
    ties=(Tie("head", equals="table"),),
)


def _told(table, shapes):
    return [(binding.keys, [str(slot) for slot in binding.slots]) for binding in table.bind(shapes)]


def test_one_tensor_for_each_layer():
    assert _told(TABLE, {"layers.w": (2, 3, 4), "norm.scale": (3,)}) == [
        (("h.0.w",), ["layers.w[0]"]),
        (("h.1.w",), ["layers.w[1]"]),
        (("norm", "final_norm"), ["norm.scale"]),
    ]


def test_a_split_stack_counts_on():
    shapes = {"layers.0.w": (2, 3, 4), "layers.1.w": (1, 3, 4)}
    assert [slots for _, slots in _told(TABLE, shapes)] == [
        ["layers.0.w[0]"],
        ["layers.0.w[1]"],
        ["layers.1.w[0]"],
    ]
    assert segments("layers.w", shapes) == ["layers.0.w", "layers.1.w"]
    assert TABLE.fills("layers.1.w") and not TABLE.fills("layers.1.x")


def test_under_prefixes_everything():
    table = TABLE.under(source_prefix="a+b.", path_prefix="part.")
    assert _told(table, {"part.layers.w": (1, 3, 4), "part.norm.scale": (3,)}) == [
        (("a+b.h.0.w",), ["part.layers.w[0]"]),
        (("a+b.norm", "a+b.final_norm"), ["part.norm.scale"]),
    ]
    assert table.reads("a+b.h.17.w") and not table.reads("aab.h.17.w") and not table.reads("h.17.w")
    assert table.ignored("a+b.h.3.mask") == "a buffer" and table.ignored("h.3.mask") is None
    assert table.initialised("part.extra").reason == "new" and table.initialised("extra") is None
    assert table.ties == (Tie("a+b.head", equals="a+b.table"),)


def test_a_block_placed_under_a_layer():
    block = Table(rules=(Rule("w", "w"),), ignore=(Ignore("mask", "a buffer"),))
    table = block.under(source_prefix="h.{layer}.", path_prefix="layers.")
    assert _told(table, {"layers.w": (1, 2)}) == [(("h.0.w",), ["layers.w[0]"])]
    assert table.ignored("h.12.mask") == "a buffer"
