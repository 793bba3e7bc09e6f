"""`harness new` writes packages that install, are found and pass the conformance kit."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.cli.new import command, write
from harness.errors import HarnessError, StoreError

KINDS = ("model", "threat")
CLI = "from harness.cli import main; main()"


def new(kind: str, name: str, out: Path) -> Path:
    result = CliRunner().invoke(command, [kind, name, "--out", str(out)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    (folder,) = out.iterdir()
    assert f"next: cd {folder}" in result.output
    return folder


def refused(kind: str, name: str, out: Path) -> str:
    with pytest.raises(HarnessError) as caught:
        CliRunner().invoke(command, [kind, name, "--out", str(out)], catch_exceptions=False)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def install(folder: Path, site: Path) -> None:
    """What installing does as far as the harness can see: the package, and its entry points in a dist-info folder."""
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n", encoding="utf-8"
    )
    lines = [f"{name} = {value}" for name, value in project["entry-points"]["harness"].items()]
    (info / "entry_points.txt").write_text("\n".join(["[harness]", *lines, ""]), encoding="utf-8")


def python(*arguments: str, folder: Path, path: list[Path]) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, path)),
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    environment.pop("PYTEST_ADDOPTS", None)
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize(("kind", "name"), [("model", "my-net"), ("threat", "my_noise")])
def test_a_new_package_works_as_it_is(kind: str, name: str, tmp_path: Path) -> None:
    folder = new(kind, name, tmp_path / "made")
    assert folder.name == f"harness-{name.replace('_', '-')}"
    site = tmp_path / "site"
    install(folder, site)
    done = python("-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", folder=folder, path=[site, folder])
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"test_conformance[{name}-batch_invariance]" in done.stdout
    assert "test_the_harness_finds_it" in done.stdout
    shown = python("-c", CLI, "plugins", "show", name, folder=tmp_path, path=[site, folder])
    assert f"the {kind} {name}" in shown.stdout, shown.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_package_can_be_built(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="building needs hatchling")
    folder = new(kind, "my-thing", tmp_path / "made")
    done = python("-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist"), folder=folder, path=[])
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (tmp_path / "dist").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        points = archive.read("harness_my_thing-0.1.0.dist-info/entry_points.txt").decode()
    assert {"harness_my_thing/__init__.py", f"harness_my_thing/{kind}.py"} <= set(names)
    assert not [n for n in names if n.startswith("tests")]
    assert points.split() == ["[harness]", "my-thing", "=", "harness_my_thing"]


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_to_fill_in(kind: str, tmp_path: Path) -> None:
    folder = new(kind, "my-thing", tmp_path)
    files = [f for f in folder.rglob("*") if f.is_file()]
    assert len(files) == 5
    for file in files:
        assert "$" not in file.read_text(encoding="utf-8"), file


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    folder = new("model", "my-net", tmp_path)
    (folder / "README.md").write_text("mine", encoding="utf-8")
    text = refused("model", "my-net", tmp_path)
    assert text == f"{folder} is there already; nothing was written: choose another name or --out"
    assert (folder / "README.md").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("name", ["9lives", "My-Net", "a b", "net/work", "", "-x", "net-", "ünet", "a--b", "../up"])
def test_names_that_cannot_be(name: str, tmp_path: Path) -> None:
    with pytest.raises(HarnessError) as caught:
        CliRunner().invoke(command, ["model", "--out", str(tmp_path), "--", name], catch_exceptions=False)
    assert str(caught.value).startswith(f"'{name}' is no name for a plugin: ")
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_taken(tmp_path: Path) -> None:
    assert "'torch' is a model already, of plugin 'torch'" in refused("model", "torch", tmp_path)
    assert "'pgd' is a threat already, of plugin 'attacks'" in refused("threat", "pgd", tmp_path)
    assert "a package harness_torch is installed already" in refused("threat", "torch", tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match=r"cannot write .*: Not a directory"):
        write(tmp_path / "file" / "harness-x", {"README.md": "x"})
