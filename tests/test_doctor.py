"""`mmjax doctor`: the report, and what it finds wrong."""

import re
import tomllib
from pathlib import Path

import jax
import pytest

from mmjax import __main__ as program
from mmjax import doctor

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]


def test_a_working_machine(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["mmjax", "doctor"])
    assert program.main() == 0
    report = capsys.readouterr().out
    assert "8 cpu" in report and "All is well." in report
    for name in (
        jax.__version__,
        *PROJECT["optional-dependencies"],
        "tiny llama-multi",
        "tiny llama-clips",
        "easy-VQA",
    ):
        assert name in report, name


def test_every_extra_is_explained():
    assert doctor.EXTRAS.keys() == PROJECT["optional-dependencies"].keys()


def test_what_is_wrong_is_said_with_the_remedy(monkeypatch):
    versions = {"grain": None, "flax": "0.5"}
    version = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: versions.get(name, version(name)))
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.delenv("JAX_PLATFORMS")
    report, problems = doctor.examine()
    assert len(problems) == 3
    for problem in ("grain.*found none", "flax.*found 0.5", r"NVIDIA driver.*\[cuda13\]"):
        assert any(re.search(problem, found) for found in problems), problem
    assert "grain             missing" in report


def test_no_command(monkeypatch):
    monkeypatch.setattr("sys.argv", ["mmjax"])
    with pytest.raises(SystemExit):
        program.main()


@pytest.mark.parametrize(
    "system, library, tunables, says",
    [
        ("always [madvise] never", ("glibc", "2.36"), "", "not used; GLIBC_TUNABLES=glibc.malloc"),
        ("always [madvise] never", ("glibc", "2.36"), "glibc.malloc.hugetlb=1", "used"),
        ("always [madvise] never", ("glibc", "2.34"), "", None),  # cannot ask
        ("always [madvise] never", ("", ""), "", None),
        ("[always] madvise never", ("glibc", "2.36"), "", None),  # nobody needs to ask
    ],
)
def test_huge_pages(system, library, tunables, says, monkeypatch, tmp_path):
    file = tmp_path / "enabled"
    file.write_text(f"{system}\n")
    monkeypatch.setattr(doctor.platform, "libc_ver", lambda: library)
    monkeypatch.setenv("GLIBC_TUNABLES", tunables)
    found = doctor._huge_pages(file)
    assert found is None if says is None else found.startswith(says)
    assert doctor._huge_pages(tmp_path / "another system") is None
