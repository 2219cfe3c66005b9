"""Imported checkpoints on disk.

config.json    format_version, system, variant, model: the model's config as plain values;
               template: how it is asked (LMEye)
tokenizer/     the language model's, where its folder had one
params/        one Orbax item: the flat dict of parameters
report.json    where every tensor came from, what was ignored or initialised and why
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from conversion.io import Entry, Source, SourceError, completed, read_json

FORMAT_VERSION = 1
SMALL_BYTES = 1 << 20
CHUNK_BYTES = 32 << 20  # what is read and decoded at once


def save_imported(
    folder: str | Path,
    config: Mapping,
    params: Mapping[str, np.ndarray],
    report: Mapping,
    *,
    tokenizer: Sequence[Path] = (),
) -> None:
    """Writes an imported checkpoint; under its name only once it is complete.

    Args:
      config: ``system``, ``variant`` (or None), ``model``, and what else is to be kept; the version
        is added.
      tokenizer: files that go into ``tokenizer/``.

    Raises:
      FileExistsError: ``folder`` exists.
    """
    with completed(Path(folder).absolute()) as temporary:
        _save_params(
            temporary / "params", {path: np.asarray(leaf) for path, leaf in params.items()}
        )
        for name, value in (
            ("config", {"format_version": FORMAT_VERSION, **config}),
            ("report", report),
        ):
            (temporary / f"{name}.json").write_text(json.dumps(value, indent=2) + "\n")
        for file in tokenizer:
            (temporary / "tokenizer").mkdir(exist_ok=True)
            shutil.copy(file, temporary / "tokenizer")


def _save_params(folder: Path, params: dict[str, np.ndarray]) -> None:
    """One Orbax item, written leaf by leaf: by itself Orbax copies all leaves, then has all of them
    on the way."""
    import jax
    import orbax.checkpoint as ocp

    class OneByOne(ocp.type_handlers.NumpyHandler):
        async def serialize(self, values, infos, args=None):
            for value, info, arg in zip(values, infos, args, strict=True):
                for commit in await super().serialize([value], [info], [arg]):
                    commit.result()
            return []

    handler = OneByOne(deepcopy_host_arrays=False)  # nobody changes the arrays meanwhile
    registry = ocp.type_handlers.create_type_handler_registry(
        (np.ndarray, handler),
        (jax.Array, ocp.type_handlers.ArrayHandler()),  # there are none, but Orbax warns without
    )
    chunked = {path: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES) for path in params}
    with ocp.Checkpointer(
        ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
    ) as checkpointer:
        checkpointer.save(folder, args=ocp.args.PyTreeSave(params, save_args=chunked))


def is_imported(folder: Path) -> bool:
    """Whether ``folder`` looks like one (of any version)."""
    config = folder / "config.json"
    return (
        (folder / "params").is_dir() and config.exists() and "format_version" in read_json(config)
    )


def read_imported(folder: str | Path) -> Source:
    """An imported checkpoint as a lazy `Source`; its keys are our paths, its ``config`` is
    config.json.

    Raises:
      SourceError: not such a folder, or of another version.
    """
    import orbax.checkpoint as ocp

    folder = Path(folder).absolute()
    if not is_imported(folder):
        raise SourceError(
            f"{folder}: not an imported checkpoint (config.json with format_version, and params/)"
        )
    config = read_json(folder / "config.json")
    if config["format_version"] != FORMAT_VERSION:
        raise SourceError(
            f"{folder}: format version {config['format_version']}, "
            f"this program reads {FORMAT_VERSION}; import it again from its source"
        )
    if (folder / "tokenizer").is_dir():
        config["tokenizer"] = str(folder / "tokenizer")
    checkpointer = ocp.PyTreeCheckpointer()
    stored = checkpointer.metadata(folder / "params").item_metadata.tree

    def load(path: str) -> np.ndarray:
        args = ocp.args.PyTreeRestore(
            item={path: 0},
            restore_args={path: ocp.RestoreArgs(restore_type=np.ndarray)},
            partial_restore=True,
        )
        return checkpointer.restore(folder / "params", args=args)[path]

    entries = {
        path: Entry(tuple(leaf.shape), np.dtype(leaf.dtype), lambda p=path: load(p))
        for path, leaf in stored.items()
    }
    return Source(str(folder), entries, (folder,), config=config)


def load_imported(folder: str | Path) -> tuple[dict, dict[str, np.ndarray]]:
    """(config.json, flat parameters) of an imported checkpoint. Raises SourceError as
    `read_imported` does."""
    source = read_imported(folder)
    return dict(source.config), {path: entry.load() for path, entry in source.entries.items()}


@contextmanager
def staged(folder: Path) -> Iterator[Callable[[str, np.ndarray], np.ndarray]]:
    """A ``put`` that keeps large leaves in files below ``folder`` instead of memory, until the
    block ends.

    So an import holds a leaf at a time, although Orbax is given the whole dict at once.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".staging-") as temporary:

        def put(path: str, array: np.ndarray) -> np.ndarray:
            if array.nbytes < SMALL_BYTES:
                return array
            file = Path(temporary) / path
            array.tofile(file)
            return np.memmap(file, array.dtype, mode="r", shape=array.shape).view(np.ndarray)

        yield put
