"""``import`` and ``export``: whole checkpoints in and out."""

import dataclasses
import functools
import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from conversion.assemble import Folder, Options
from conversion.assemble.networks import folder_of
from conversion.assemble.registry import ASSEMBLIES
from conversion.engine import ConversionError, carry_out, exported, plan, together
from conversion.huggingface import NetworkConfig
from conversion.io import Entry, Source, SourceError, completed, read, write_pth, write_safetensors
from conversion.runs import is_run, read_run
from conversion.store import is_imported, read_imported, save_imported, staged
from mmjax.data.templates import to_json
from mmjax.data.tokenizer import Tokenizer
from mmjax.nn.param import specs
from mmjax.systems.system import config_from_dict, config_to_dict

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
        and the ``net`` file of stage 1 or 2), or minigpt4 and cheetor (see
        `conversion.assemble.pictures`), or lynx (`conversion.assemble.lynx`); sources in any order.
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
    opened = [read_imported(path) if is_imported(Path(path)) else read(path) for path in sources]
    made = ASSEMBLIES[system].assemble(opened, Options(variant, upstream_embedding_img_bug))
    decided = plan(*together(made.parts), specs(made.model), dtype=dtype)
    report = decided.report(dtype)
    report["notices"] += made.notices
    report |= {
        "options": {"dtype": dtype, "upstream_embedding_img_bug": upstream_embedding_img_bug},
        "files": [_file(path) for _, source in made.parts for path in source.files],
    }
    header = {"system": system, "variant": variant, "model": config_to_dict(made.config)}
    if made.template is not None:
        header["template"] = to_json(made.template)
    out.parent.mkdir(parents=True, exist_ok=True)
    with staged(out.parent) as put, tempfile.TemporaryDirectory() as padded:
        folder = made.tokenizer
        if made.pad_token is not None:
            folder = Tokenizer.load(folder).with_pad(made.pad_token, Path(padded))
        tokenizer = [
            file
            for name in TOKENIZER_FILES
            if folder is not None and (file := folder / name).is_file()
        ]
        params = carry_out(decided, dtype=dtype, put=put)
        save_imported(out, header, params, report, tokenizer=tokenizer)
    return report


def _file(path: Path) -> dict:
    """What identifies a source; of an imported folder its report, which has its files' hashes."""
    if path.is_dir():
        path = path / "report.json"
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file": str(path), "bytes": path.stat().st_size, "sha256": digest}


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
        _write_hf(temporary, folder_of(config), params, dtype, max_shard_bytes)


def _write_hf(path: Path, folder: Folder, params, dtype, max_shard_bytes: int) -> None:
    entries = exported(folder.table, params, dtype=dtype)
    write_safetensors(path, entries, max_shard_bytes=max_shard_bytes)
    values = dict(folder.config)
    if len(kinds := {str(entry.dtype) for entry in entries.values()}) == 1:
        values["torch_dtype"] = kinds.pop()
    (path / "config.json").write_text(json.dumps(values, indent=2) + "\n")


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
        ten tensors; MiniGPT-4 and Cheetor: ``language``, and ``blip-2`` with all but Cheetor's
        second look; Lynx: ``language`` without its adapters); ``original`` = what upstream's
        loaders read (LMEye: ``{'net': ...}`` of ``stage`` 1 or 2; BLIP-2: LAVIS's ``eva_vit.pth``
        and ``blip2.pth``; an EVA ViT: the former; MiniGPT-4 and Cheetor: ``{'model': ...}`` of what
        they train; Lynx: likewise, in ``pretrain_lynx.pt`` (stage 1) or ``finetune_lynx.pt``, and
        its tower in EVA's spelling).
      module_prefix: keys as DistributedDataParallel writes them (``original`` only).
      drop_added_rows: leave out rows of added tokens even if they are not zero. Neither format has
        a place for them.

    Raises:
      SourceError, ConversionError, FileExistsError: as in `import_checkpoint`.
    """
    source = read_run(checkpoint) if is_run(Path(checkpoint)) else read_imported(checkpoint)
    system = source.config["system"]
    assembly = ASSEMBLIES[system]
    config = config_from_dict(assembly.config, source.config["model"])
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
    if format == "original" and assembly.original is None:
        raise SourceError(f"the original format of {system} is hf")

    def of(paths: str) -> dict[str, _Leaf]:
        return {path: leaf for path, leaf in params.items() if re.fullmatch(paths, path)}

    with completed(Path(out)) as temporary:
        if format == "original":
            for name, file in assembly.original(config, stage).items():
                entries = exported(file.table, of(file.paths), dtype=dtype)
                kept = dict(container=file.container, module_prefix=module_prefix)
                write_pth(temporary / name, entries, **kept)
        else:
            for name, folder in assembly.folders(config).items():
                (temporary / name).mkdir(exist_ok=True)
                _write_hf(temporary / name, folder, of(folder.paths), dtype, max_shard_bytes)
                if folder.has_tokenizer and (tokenizer := source.config.get("tokenizer")):
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
