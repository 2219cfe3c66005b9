"""Imports go one way. Read off the source, so imports within functions count too.

systems -> models -> nn -> kernels, parallel
train, generate, evaluate -> systems, data
serve -> train, generate, data
conversion -> models, systems, data
"""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

LAYERS = ["mmjax.nn", "mmjax.kernels", "mmjax.parallel"]
NETWORKS = ["mmjax.models", *LAYERS]
SYSTEMS = ["mmjax.systems", "mmjax.data", *NETWORKS]
# part -> what it may import besides itself, of this project
ALLOWED = {
    "mmjax.parallel": [],
    "mmjax.kernels": ["mmjax.parallel"],
    "mmjax.nn": ["mmjax.kernels", "mmjax.parallel"],
    "mmjax.models": LAYERS,
    "mmjax.data": [],
    "mmjax.systems": [*NETWORKS, "mmjax.data.batch"],
    "mmjax.generate": SYSTEMS,
    "mmjax.evaluate": ["mmjax.generate", *SYSTEMS],
    "mmjax.train": ["mmjax.evaluate", "mmjax.generate", "conversion.weights", *SYSTEMS],
    "mmjax.benchmark": ["mmjax.train", "mmjax.generate", "conversion", *SYSTEMS],
    "mmjax.serve": ["mmjax.train.answering", "mmjax.generate", "mmjax.data"],
    "conversion.parity": ["conversion", "mmjax.generate", "mmjax.evaluate", *SYSTEMS],
    # one recording has a step of training
    "conversion.recordings.visual_llama": [
        "mmjax.train.optim",
        "conversion",
        "mmjax.generate",
        *SYSTEMS,
    ],
    "conversion.recordings": ["conversion", "mmjax.generate", "mmjax.evaluate", *SYSTEMS],
    "conversion.runs": ["conversion", "mmjax.train.origin", *SYSTEMS],
    "conversion": SYSTEMS,
    "mmjax.command": ["mmjax"],
    "mmjax.doctor": [],
    "mmjax.__main__": ["mmjax.doctor"],
    "configs": SYSTEMS,
    "scripts": ["mmjax", "conversion"],
}
OURS = ("mmjax", "conversion", "configs", "scripts", "tests")
# package -> where it may be imported
FOREIGN = {
    "torch": ["conversion", "mmjax.benchmark", "tests"],
    "transformers": ["mmjax.data.tokenizer", "conversion", "mmjax.benchmark", "tests"],
    "tensorflow": [],
    "tensorflow_datasets": ["mmjax.data.sources.tfds", "tests"],
    "av": ["mmjax.data.video", "tests"],
    "pyarrow": ["mmjax.data.sources.parquet", "tests"],
    "apache_beam": ["mmjax.data.sources.shards", "tests"],
    "peft": ["mmjax.benchmark", "tests"],
    "qwix": ["conversion.weights"],
    "gguf": ["conversion.gguf_files", "tests"],
    "fastapi": ["mmjax.serve"],
    "gradio": ["mmjax.serve.page", "mmjax.serve.server", "tests"],
    "uvicorn": ["mmjax.serve.server", "scripts.benchmark", "tests"],
    "openai": ["tests"],
    "playwright": ["tests"],
}


def below(name: str, packages) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def sources() -> dict[str, Path]:
    """Dotted name -> file, of everything in the project."""
    files = [path for folder in OURS for path in sorted((ROOT / folder).rglob("*.py"))]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in files}


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {
                "." * node.level + (node.module or "") + f".{alias.name}" for alias in node.names
            }
    return found


@pytest.fixture(scope="module")
def imports() -> list[tuple[str, str]]:
    return [(name, other) for name, path in sources().items() for other in sorted(imported(path))]


def test_the_project_is_seen(imports):
    """The rules below hold for nothing if nothing is found."""
    assert ("mmjax.systems.lmeye", "mmjax.models.llama.LlamaConfig") in imports
    assert ("conversion.torch_files", "torch") in imports
    assert {name.split(".")[1] for name, _ in imports if name.startswith("mmjax.")} >= {
        "nn",
        "data",
        "train",
    }


def test_imports_are_absolute(imports):
    assert [pair for pair in imports if pair[1].startswith(".")] == []


def test_imports_go_one_way(imports):
    wrong = []
    for name, other in imports:
        if not below(other, OURS) or below(name, ["tests"]):
            continue
        part = next((part for part in ALLOWED if below(name, [part])), None)
        if part is None or not below(other, [part, *ALLOWED[part]]):
            wrong.append(f"{name} imports {other}")
    assert wrong == []


def test_heavy_packages_stay_where_they_belong(imports):
    wrong = [
        f"{name} imports {other}"
        for name, other in imports
        for package, places in FOREIGN.items()
        if below(other, [package]) and not below(name, places)
    ]
    assert wrong == []


def test_pickles_are_opened_by_the_converter_and_make_tensors_only():
    loads = ("pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.", "dill.", "joblib.")
    opened = set()
    for name, path in sources().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if below(name, ["tests"]) or not isinstance(node, ast.Call):
                continue
            call = ast.unparse(node.func)
            options = {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert not call.startswith(loads), f"{name}: {ast.unparse(node)}"
            assert options.get("allow_pickle", "False") == "False", f"{name}: {ast.unparse(node)}"
            if call == "torch.load":
                assert options.get("weights_only") == "True", f"{name}: {ast.unparse(node)}"
                opened.add(name)
    assert opened == {"conversion.torch_files", "conversion.features"}


def test_jax_is_all_that_a_model_needs():
    """Outside the standard library."""
    needed = {
        other.split(".")[0]
        for name, path in sources().items()
        if below(name, [*NETWORKS, "mmjax.systems"])
        for other in imported(path)
    }
    assert needed & {"jax", "flax"}
    assert needed - sys.stdlib_module_names <= {"jax", "flax", "numpy", "mmjax"}
