"""What there is to say of programs that were compiled ahead: tables, lines for a file, and what
would make them fit."""

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax

from mmjax.parallel.chips import Chip, chip_of
from mmjax.parallel.collectives import Traffic
from mmjax.train.ahead import Compiled, compiled
from mmjax.train.costs import Cost
from mmjax.train.report import human_bytes, text_table


def suggestion(config: dict, stage: str, devices: list[jax.Device], **asked) -> str:
    """The first of `changes` with which everything fits, as flags to add."""
    for flags, changed in changes(config, stage, len(devices)):
        try:
            made, problem = compiled(changed, stage, devices, **asked)
        except ValueError:  # such a mesh does not fit the batch or a parameter
            continue
        if not problem:
            most = max(one.memory for one in made)
            return f"It fits ({human_bytes(most)} of a device) with {' '.join(flags)}"
    return "No other mesh, remat or accumulation makes it fit: take a larger slice"


def changes(config: dict, stage: str, count: int) -> Iterator[tuple[list[str], dict]]:
    """(flags, the config with them), the cheapest first: weights in shards, layers computed again,
    a batch read in slices, layers in shards; each beside those before it."""
    flags: dict[str, str] = {}

    def now() -> tuple[list[str], dict]:
        changed = copy.deepcopy(config)
        for key, value in flags.items():
            holder, names = changed, key.split(".")
            for name in names[:-1]:
                holder = holder[name]
            old = holder.get(names[-1])
            holder[names[-1]] = type(old)(value) if old is not None else value
        return [f"--config.{key}={value}" for key, value in flags.items()], changed

    def mesh(data: int, fsdp: int, tensor: int) -> dict[str, str]:
        return {"mesh.data": str(data), "mesh.fsdp": str(fsdp), "mesh.tensor": str(tensor)}

    if config["preset"] == "dp" or config["mesh"]["fsdp"] != -1:
        flags |= {"preset": "fsdp"} | mesh(1, -1, 1)
        yield now()
    if config["model"].get("language", {}).get("remat", "full") != "full":
        flags |= {"model.language.remat": "full"}
        yield now()
    rows, slices = config[stage]["batch_size"], config[stage]["accumulation"]
    while slices * 2 * count <= rows and rows % (slices * 2) == 0:
        slices *= 2
        flags |= {f"{stage}.accumulation": str(slices)}
        yield now()
    for tensor in (2, 4):
        flags |= {"preset": "fsdp_tp"} | mesh(1, -1, tensor)
        yield now()


def page(made: list[Compiled], chip: Chip) -> str:
    """Tables of what was compiled: memory, work, bounds."""
    if not made:
        return ""
    whole = f"of {human_bytes(chip.memory)}"
    rows = [["one device", "rows", "held", "temporary", "together", whole, "compiled in"]]
    for one in made:
        sizes = map(human_bytes, (one.held, one.temporary, one.memory))
        part = f"{100 * one.memory / chip.memory:.0f} %"
        rows.append([one.name, str(one.rows), *sizes, part, f"{one.seconds:.0f} s"])
    work = [["one device", "TFLOP", "useful", "products", "memory", "links", "MFU at best"]]
    for one in made:
        bounds = [f"{1000 * seconds:.3g} ms" for seconds in one.bounds(chip).values()]
        useful = f"{100 * one.useful.flops / max(one.cost.flops, 1):.0f} %"
        low, high = one.utilisation(chip)
        mfu = f"{100 * low:.0f} to {100 * high:.0f} %"
        work.append([one.name, f"{one.cost.flops / 1e12:.3g}", useful, *bounds, mfu])
    sent = [f"{one.name}: {_sent(one.traffic)}" for one in made]
    kernels = [f"{one.name}: {'; '.join(one.kernels) or 'none'}" for one in made]
    table = lambda lines: text_table(lines[0], lines[1:], [], align="<" + ">" * (len(lines[0]) - 1))  # noqa: E731
    lists = {"Sent between devices": sent, "Attention": kernels}
    lists = ["\n".join([head, *lines]) for head, lines in lists.items()]
    return "\n\n".join(["", table(rows), table(work), *lists])


def _sent(traffic: Mapping[str, Traffic]) -> str:
    each = [f"{one.count:,} {kind} ({human_bytes(one.size)})" for kind, one in traffic.items()]
    return ", ".join(each) or "nothing"


def facts(
    name: str, config: dict, stage: str, topology: str, made: list[Compiled], problem: str | None
) -> dict[str, Any]:
    """A JSON-able line; ``name`` is the config's file and variant."""
    return dict(
        config=name,
        stage=stage,
        topology=topology,
        mesh=config["mesh"],
        preset=config["preset"],
        accumulation=config[stage]["accumulation"],
        jax=jax.__version__,
        libtpu=_version("libtpu"),
        programs=[dataclasses.asdict(one) for one in made],
        problem=problem,
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def overview(lines: list[dict[str, Any]]) -> str:
    """A table in Markdown of what `facts` gave."""
    head = ["config, stage", "slice", "mesh", "rows", "GiB of a device", "TFLOP", "sent"]
    head += ["a step at least", "MFU at best"]
    table = [" | ".join(head), " | ".join(["---"] * len(head))]
    for line in lines:
        name, chip = f"`{line['config']}`, {line['stage']}", chip_of(line["topology"])
        sizes = " x ".join(f"{k}={v}" for k, v in line["mesh"].items() if v != 1)
        for values in line["programs"]:
            one = _compiled_from(values)
            if one.name != "step":
                continue
            low, high = one.utilisation(chip)
            cells = [
                name,
                line["topology"],
                f"{line['preset']} {sizes}",
                f"{one.rows} in {line['accumulation']}",
                f"{one.memory / 2**30:.1f} of {chip.memory / 2**30:.0f}",
                f"{one.cost.flops / 1e12:.1f}",
                human_bytes(sum(each.size for each in one.traffic.values())),
                f"{max(one.bounds(chip).values()):.2f} s",
                f"{100 * low:.0f}-{100 * high:.0f} %",
            ]
            table.append(" | ".join(cells))
        if line["problem"]:
            table.append(
                f"`{line['config']}`, {line['stage']} | {line['topology']} | {line['problem']}"
            )
    return "\n".join(f"| {row} |" for row in table)


def _compiled_from(values: dict[str, Any]) -> Compiled:
    """The inverse of `dataclasses.asdict`."""
    traffic = {kind: Traffic(**one) for kind, one in values["traffic"].items()}
    costs = {name: Cost(**values[name]) for name in ("cost", "useful")}
    kernels = tuple(values.get("kernels", ()))  # files of earlier versions have none
    return Compiled(**values | costs | dict(traffic=traffic, kernels=kernels))
