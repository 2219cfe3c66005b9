"""``import`` and ``export``: whole checkpoints in and out."""

import dataclasses
import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from conversion.engine import ConversionError, carry_out, exported, plan, together
from conversion.huggingface import NETWORKS, NetworkConfig, config_to_hf, network_of
from conversion.io import Entry, Source, SourceError, completed, read, write_pth, write_safetensors
from conversion.recognise import LMEYE_NET, LMEYE_STAGE1, recognise
from conversion.runs import is_run, read_run
from conversion.store import read_imported, save_imported, staged
from conversion.tables import blip2, eva_vit, lmeye
from mmjax.data.templates import LMEyeQuestion, to_json
from mmjax.models.blip2 import Blip2, Blip2Config
from mmjax.models.clip import ClipConfig
from mmjax.models.llama import LlamaConfig
from mmjax.nn.param import specs, subset
from mmjax.systems.lmeye import LMEye, LMEyeConfig
from mmjax.systems.system import config_from_dict, config_to_dict

CONFIGS = {"lmeye": LMEyeConfig} | {name: network.config for name, network in NETWORKS.items()}
SIZES = ("vocab_size", "num_layers", "embed_dim", "mlp_dim", "num_heads")
ADDED = "embedding.added"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)


def import_checkpoint(
    *,
    system: str,
    sources: Sequence[str | Path],
    out: str | Path,
    variant: str | None = None,
    dtype: str | None = None,
    upstream_embedding_img_bug: bool = False,
) -> dict:
    """Reads ``sources`` into an imported checkpoint at ``out`` and returns its report.

    Args:
      system: llama | clip | blip-2 (one Hugging Face folder; blip-2 also: the files of EVA ViT
        and of BLIP-2 that LAVIS reads, with a variant), or lmeye (folders of a LLaMA and a CLIP
        and the ``net`` file of stage 1 or 2, in any order).
      variant: a published size, which the sources must have; None = whatever they have.
      dtype: of all leaves; None = as in the sources.
      upstream_embedding_img_bug: load as upstream's own loaders do (LMEye reference, Q6).

    Raises:
      SourceError, ConversionError: see `conversion.io` and `conversion.engine`.
      FileExistsError: ``out`` exists.
    """
    out = Path(out)
    if out.exists():
        raise FileExistsError(f"{out} exists already; remove it or choose another --out")
    opened = [read(path) for path in sources]
    if system == "lmeye":
        config, model, parts = _lmeye(opened, variant, upstream_embedding_img_bug)
    elif system == "blip-2" and any(source.config is None for source in opened):
        config, model, parts = _blip2(opened, variant)
    else:
        config, model, parts = _network(system, opened, variant)
    decided = plan(*together(parts), specs(model), dtype=dtype)
    report = decided.report(dtype) | {
        "options": {"dtype": dtype, "upstream_embedding_img_bug": upstream_embedding_img_bug},
        "files": [_file(path) for _, source in parts for path in source.files],
    }
    header = {"system": system, "variant": variant, "model": config_to_dict(config)}
    if isinstance(config, LMEyeConfig):
        template = LMEyeQuestion(config.image_token, config.slot_token, config.num_responses)
        header["template"] = to_json(template)
    tokenizer = [
        file
        for path, source in zip(map(Path, sources), opened, strict=True)
        if source.config is not None and network_of(source.config, path) == "llama"
        for name in TOKENIZER_FILES
        if (file := path / name).is_file()
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    with staged(out.parent) as put:
        params = carry_out(decided, dtype=dtype, put=put)
        save_imported(out, header, params, report, tokenizer=tokenizer)
    return report


def _file(path: Path) -> dict:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file": str(path), "bytes": path.stat().st_size, "sha256": digest}


def _network(system: str, opened: list[Source], variant: str | None):
    if variant is not None:
        raise SourceError(f"{system} has no variants; its config.json gives the sizes")
    if len(opened) != 1:
        raise SourceError(
            f"{system} is imported from one Hugging Face folder, not from {len(opened)} sources"
        )
    (source,) = opened
    if (found := network_of(source.config, source.name)) != system:
        raise SourceError(f"{source.name}: holds a {found}, not a {system}")
    network = NETWORKS[system]
    config = network.from_hf(source.config)
    return config, network.model(config), [(network.table, source)]


def _blip2(opened: list[Source], variant: str | None):
    """(config, model, tables with their sources) from the two files that LAVIS reads."""
    if variant is None:
        raise SourceError("LAVIS's files do not tell how many heads there are; give --variant")
    config = Blip2Config.named(variant)
    tables = {
        "vision": eva_vit.EVA.under(path_prefix="vision.") + eva_vit.EVA_FILE_REST,
        "rest": blip2.BRIDGE + blip2.BRIDGE_FILE_REST,
    }
    roles = {"vision": "patch_embed.proj.weight", "rest": "query_tokens"}
    parts = {}
    for source in opened:
        role = next((role for role, key in roles.items() if key in source.entries), None)
        if role is None:
            raise SourceError(
                f"{source.name}: neither an EVA ViT ({roles['vision']}) nor LAVIS's BLIP-2 "
                f"({roles['rest']})"
            )
        if role in parts:
            raise SourceError(f"{parts[role].name} and {source.name} hold the same part")
        parts[role] = source
    if len(parts) < len(roles):
        raise SourceError(
            "BLIP-2 of LAVIS is made of two files, an EVA ViT and a BLIP-2; "
            f"given: {', '.join(source.name for source in opened)}"
        )
    named = [(tables[role], dataclasses.replace(part, name=role)) for role, part in parts.items()]
    return config, Blip2(config), named


def _lmeye(opened: list[Source], variant: str | None, bug: bool):
    """(config, model, tables with their sources) from whatever the sources turn out to be."""
    named = None if variant is None else LMEyeConfig.named(variant)
    roles: dict[str, Source] = {}
    sizes, table = None, None
    for source in opened:
        if source.config is not None:
            network = network_of(source.config, source.name)
            if network not in ("llama", "clip"):
                raise SourceError(f"{source.name}: holds a {network}, which LMEye has no place for")
            role = {"llama": "language", "clip": "clip"}[network]
        else:
            kind, sizes, _ = recognise(source)
            kinds = {
                LMEYE_NET: lmeye.NET_UPSTREAM_BUG if bug else lmeye.NET,
                LMEYE_STAGE1: lmeye.NET_STAGE1,
            }
            role, table = "net", kinds.get(kind)
            if table is None:
                raise SourceError(
                    f"{source.name}: is a {kind.name}, not a net; a network needs its config.json"
                )
        if role in roles:
            raise SourceError(f"{roles[role].name} and {source.name} are both the {role} part")
        roles[role] = source
    if set(roles) != {"language", "clip", "net"}:
        raise SourceError(
            "LMEye is made of a LLaMA folder, a CLIP folder and a net file; "
            f"given: {', '.join(roles) or 'nothing'}"
        )
    config = _lmeye_config(
        NETWORKS["llama"].from_hf(roles["language"].config),
        NETWORKS["clip"].from_hf(roles["clip"].config),
        sizes=sizes,
        named=named,
    )
    tables = {
        "language": NETWORKS["llama"].table.under(path_prefix="language."),
        "clip": NETWORKS["clip"].table.under(path_prefix="clip."),
        "net": table,
    }
    parts = [
        (tables[role], dataclasses.replace(source, name=role)) for role, source in roles.items()
    ]
    return config, LMEye(config), parts


def _lmeye_config(
    language: LlamaConfig, clip: ClipConfig, *, sizes: LMEyeConfig, named: LMEyeConfig | None
) -> LMEyeConfig:
    """The sources' own sizes; how to compute comes from the named variant."""
    language = dataclasses.replace(language, added_rows=2)
    net = {"num_prompts": sizes.num_prompts, "num_responses": sizes.num_responses}
    if named is None:
        return LMEyeConfig(language=language, clip=clip, **net)
    pairs = {
        "language": (named.language, language),
        "clip.vision": (named.clip.vision, clip.vision),
        "clip.text": (named.clip.text, clip.text),
    }
    if problems := [
        f"{part}.{size} is {getattr(given, size)}, the variant has {getattr(wanted, size)}"
        for part, (wanted, given) in pairs.items()
        for size in SIZES
        if getattr(wanted, size, None) != getattr(given, size, None)
    ]:
        raise ConversionError("the sources are of another size than the variant", problems)
    language = dataclasses.replace(
        language, remat=named.language.remat, attention=named.language.attention
    )
    return dataclasses.replace(named, language=language, clip=clip, **net)


def save_hf(
    folder: str | Path,
    config: NetworkConfig,
    params: Mapping[str, np.ndarray | jax.Array],
    *,
    dtype=None,
    max_shard_bytes: int = 5 << 30,
) -> None:
    """Writes a network as a folder that transformers' ``from_pretrained`` loads.

    Raises:
      ConversionError: parameters that the format has no place for.
      FileExistsError: ``folder`` exists.
    """
    with completed(Path(folder)) as temporary:
        _write_hf(temporary, config, params, dtype=dtype, max_shard_bytes=max_shard_bytes)


def _write_hf(folder: Path, config, params, *, dtype=None, max_shard_bytes: int = 5 << 30) -> None:
    table = next(
        network.table for network in NETWORKS.values() if isinstance(config, network.config)
    )
    entries = exported(table, params, dtype=dtype)
    write_safetensors(folder, entries, max_shard_bytes=max_shard_bytes)
    values = config_to_hf(config)
    if len(kinds := {str(entry.dtype) for entry in entries.values()}) == 1:
        values["torch_dtype"] = kinds.pop()
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n")


def export_checkpoint(
    checkpoint: str | Path,
    *,
    format: str,
    out: str | Path,
    dtype: str | None = None,
    stage: int = 2,
    module_prefix: bool = False,
    drop_added_rows: bool = False,
    max_shard_bytes: int = 5 << 30,
) -> list[str]:
    """Writes an imported checkpoint, or a finished training run, in a format of others.

    Returns the files in the folder ``out``.

    Args:
      format: ``hf`` = folders for transformers (LMEye: ``language`` and ``clip``, without its own
        ten tensors); ``original`` = what upstream's loaders read (LMEye: ``{'net': ...}`` of
        ``stage`` 1 or 2; BLIP-2: LAVIS's ``eva_vit.pth`` and ``blip2.pth``).
      module_prefix: keys as DistributedDataParallel writes them (``original`` only).
      drop_added_rows: leave out rows of added tokens even if they are not zero. Neither format has
        a place for them.

    Raises:
      SourceError, ConversionError, FileExistsError: as in `import_checkpoint`.
    """
    source = read_run(checkpoint) if is_run(Path(checkpoint)) else read_imported(checkpoint)
    system = source.config["system"]
    config = config_from_dict(CONFIGS[system], source.config["model"])
    params = _leaves(source)
    for path in [path for path in params if path.endswith(ADDED)]:
        if not drop_added_rows and np.asarray(params[path]).any():
            raise ConversionError(
                source.name,
                [
                    f"{path} {params[path].shape} is not zero and no format has a place for it; "
                    "--drop-added-rows drops it"
                ],
            )
        del params[path]
    if format == "original" and system not in ("lmeye", "blip-2"):
        raise SourceError(f"the original format of {system} is hf")
    with completed(Path(out)) as temporary:
        if format == "original" and system == "blip-2":
            tower = {path: leaf for path, leaf in params.items() if path.startswith("vision.")}
            rest = {path: leaf for path, leaf in params.items() if path not in tower}
            for name, table, part, container in (
                ("eva_vit", eva_vit.EVA.under(path_prefix="vision."), tower, None),
                ("blip2", blip2.BRIDGE, rest, "model"),
            ):
                entries = exported(table, part, dtype=dtype)
                write_pth(temporary / f"{name}.pth", entries, container=container)
        elif format == "original":
            table = {1: lmeye.NET_STAGE1, 2: lmeye.NET}[stage]
            net = {path: leaf for path, leaf in params.items() if table.fills(path)}
            entries = exported(table, net, dtype=dtype)
            write_pth(
                temporary / "checkpoint.pth", entries, container="net", module_prefix=module_prefix
            )
        else:
            parts = (
                {"": config}
                if system in NETWORKS
                else {"language": config.language, "clip": config.clip}
            )
            for name, part in parts.items():
                (temporary / name).mkdir(exist_ok=True)
                below = subset(params, name) if name else params
                _write_hf(
                    temporary / name, part, below, dtype=dtype, max_shard_bytes=max_shard_bytes
                )
                if name in ("", "language") and (tokenizer := source.config.get("tokenizer")):
                    shutil.copytree(tokenizer, temporary / name, dirs_exist_ok=True)
    return sorted(str(path) for path in Path(out).rglob("*") if path.is_file())


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """An array on disk, read when it is used; what `exported` needs of one."""

    entry: Entry
    load: Callable[[], np.ndarray]

    @property
    def shape(self):
        return self.entry.shape

    @property
    def dtype(self):
        return self.entry.dtype

    def __getitem__(self, row: int) -> np.ndarray:
        return self.load()[row]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self.load(), dtype)


def _leaves(source: Source) -> dict[str, _Leaf]:
    held: dict[str, np.ndarray] = {}  # one leaf: exports go leaf by leaf

    def load(path: str) -> np.ndarray:
        if path not in held:
            held.clear()
            held[path] = source.entries[path].load()
        return held[path]

    return {
        path: _Leaf(entry, functools.partial(load, path)) for path, entry in source.entries.items()
    }
