"""`harness run` on good and bad input: one clear line and the designed exit status, never a traceback."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from harness.cli import _status

TOY = str(Path(__file__).parents[2] / "toy" / "toy_plugin.py")


@pytest.fixture
def harness(
    workplace: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """The program in this process, in the folder of the tiny suite: exit status, standard output, standard error."""
    monkeypatch.chdir(workplace.folder)
    monkeypatch.setenv("COLUMNS", "300")

    def call(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        status = _status(arguments)
        out, error = capfd.readouterr()
        assert "Traceback" not in out + error
        return status, out, error

    return call


def run(*more: str) -> tuple[str, ...]:
    return ("run", "tiny.toml", "--out", "out", "--device", "cpu", "--workers", "1", "-p", TOY, *more)


def failed_cells(place: Any) -> dict[str, str]:
    return {c["id"]: c["error"] for c in place.results()["cells"] if c["status"] == "failed"}


# What goes well


def test_a_run_ends_with_0_and_names_what_it_wrote(harness: Any, workplace: Any) -> None:
    status, out, error = harness(*run())
    assert (status, error) == (0, "")
    for name in ("run.json", "results.json", "report.html"):
        assert f"wrote out/{name}" in out
        assert (workplace.out / name).is_file()


def test_the_second_run_evaluates_nothing_and_writes_the_same(harness: Any, workplace: Any) -> None:
    harness(*run())
    before = (workplace.out / "results.json").read_bytes()
    shards = {p: p.stat().st_mtime_ns for p in workplace.out.rglob("*.parquet")}
    assert harness(*run())[0] == 0
    assert (workplace.out / "results.json").read_bytes() == before
    assert {p: p.stat().st_mtime_ns for p in workplace.out.rglob("*.parquet")} == shards
    assert harness(*run("--fresh"))[0] == 0
    assert (workplace.out / "results.json").read_bytes() == before
    assert not set(shards.values()) & {p.stat().st_mtime_ns for p in workplace.out.rglob("*.parquet")}


def test_a_dry_run_writes_nothing(harness: Any, workplace: Any) -> None:
    status, out, _ = harness(*run("--dry-run"))
    assert status == 0
    assert "toy-attack[eps=0.05]" in out
    assert not workplace.out.exists()


def test_a_dry_run_names_what_is_missing(harness: Any, workplace: Any) -> None:
    workplace.edit('factory = "tiny_nets:Rows"', 'factory = "tiny_nets:Rows"\ncheckpoint = "absent.pt"')
    status, out, _ = harness(*run("--dry-run"))
    assert status == 0
    assert re.search(r"missing: .*absent\.pt does not exist", out)
    workplace.edit('{ name = "toy", samples = 30 }', '"mnist"')
    assert "there is no data root" in harness(*run("--dry-run"))[1]


def test_settings_and_patterns_reach_the_run(harness: Any, workplace: Any) -> None:
    assert harness(*run("--set", "threats.toy-attack.steps=1", "--only", "*[eps=0.2*", "--limit", "5"))[0] == 0
    (cell,) = workplace.results()["cells"]
    assert (cell["id"], cell["params"]["steps"], cell["n"]) == ("rows/toy-attack[eps=0.2,steps=1]/toy", 1, 5)
    assert json.loads((workplace.out / "run.json").read_text())["limited"] is True


# Usage and configuration: status 4, and no run folder is left


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rum", "x"), "harness: 'rum' is not a command; did you mean 'run'?"),
        (run("--sed", "1"), "harness: No such option"),
        (run("--workers", "0"), "harness: Invalid value for '--workers'"),
        (run("--limit", "x"), "harness: Invalid value for '--limit'"),
        (("run",), "harness: Missing argument 'SUITE'"),
        (("run", "absent.toml"), "harness: suite absent.toml: no such file"),
        (("run", "."), "harness: suite .: is a folder; give the suite file"),
        (run("--data-root", "absent"), "harness: data root absent is not a folder (--data-root, or HARNESS_DATA)"),
        (run("-p", "absent.py"), "harness: -p absent.py: no such file"),
        (run("-p", "no_such_module"), "harness: -p no_such_module: cannot be imported: ModuleNotFoundError"),
        (run("-p", "no:nobody"), "harness: -p no:nobody: no installed plugin has this name"),
        (run("-p", "tiny_nets.py"), "harness: -p tiny_nets.py: implements no hook; see docs/writing-a-plugin.md"),
        (run("--device", "tpu"), "harness: --device tpu: expected auto, cpu, cuda or cuda:N"),
        (run("--device", "cuda:99"), "harness: --device cuda:99: there"),
        (run("--executor", "ry"), "harness: 'ry' is not an executor"),
        (run("--set", "suite.seed"), "harness: --set suite.seed: expected key=value"),
        (run("--set", "models.x.y=1"), "harness: --set models.x.y=1: the suite has no 'models.x'"),
    ],
)
def test_wrong_usage_is_one_line_and_4(
    arguments: tuple[str, ...], message: str, harness: Any, workplace: Any, one_line: Any
) -> None:
    status, _, error = harness(*arguments)
    assert one_line(error).startswith(message)
    assert status == 4
    assert not workplace.out.exists()


def test_a_wrong_suite_lists_its_problems_one_a_line(harness: Any, workplace: Any) -> None:
    workplace.edit('plugin = "torch"', 'plugin = "trch"')
    workplace.edit("eps = [0.05, 0.2]", "epz = 0.1")
    status, _, error = harness(*run())
    assert status == 4
    assert error.splitlines() == [
        "harness: tiny.toml: 3 problems",
        "  models.rows plugin: 'trch' is not a model plugin; did you mean 'torch'? (see `harness plugins`)",
        "  threats[1] (toy-attack) eps: missing",
        "  threats[1] (toy-attack) epz: unknown key; did you mean 'eps'?",
    ]


def test_missing_data_are_4(harness: Any, workplace: Any, one_line: Any) -> None:
    workplace.edit('{ name = "toy", samples = 30 }', '"mnist"')
    status, _, error = harness(*run())
    assert status == 4
    assert "there is no data root" in one_line(error)


def test_a_truncated_archive_is_one_line(
    harness: Any, workplace: Any, one_line: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(workplace.folder / "cache"))
    data = workplace.folder / "data" / "mnist"
    data.mkdir(parents=True)
    for name, bytes_ in (("t10k-images-idx3", 100_000), ("t10k-labels-idx1", 1000)):
        (data / f"{name}-ubyte.gz").write_bytes(gzip.compress(bytes(range(256)) * (bytes_ // 256))[:-20])
    workplace.edit('{ name = "toy", samples = 30 }', '"mnist"')
    status, _, error = harness(*run("--data-root", "data"))
    assert status == 4
    assert re.search(r"t10k-(images|labels)-\S+: is truncated or no gzip file", one_line(error))
    assert not list((workplace.folder / "cache").rglob("unpacked/*"))


# A run folder that cannot be used: status 3


@pytest.mark.parametrize("out", ["tiny.toml/out", "/proc/out", "/dev/null/out"])
def test_a_folder_that_cannot_be_written_is_one_line(out: str, harness: Any, one_line: Any) -> None:
    status, _, error = harness(*run("--out", out))
    assert status == 4
    assert re.fullmatch(r"harness: cannot write to .*; choose another --out", one_line(error))


def test_a_folder_in_use_is_one_line(harness: Any, workplace: Any, one_line: Any) -> None:
    from harness.store import RunFolder

    folder = RunFolder(workplace.out)
    folder.create()
    with folder.locked():
        status, _, error = harness(*run())
    assert status == 4
    assert "is in use by another run; wait for it or choose another --out" in one_line(error)


# Nothing to run: status 5


def test_a_suite_in_which_no_cell_can_run_is_5(harness: Any, workplace: Any) -> None:
    workplace.edit('plugin = "torch"\nfactory = "tiny_nets:Rows"', 'plugin = "toy-density"')
    status, _, error = harness(*run("--only", "*toy-attack*"))
    assert status == 5
    assert error.splitlines() == [
        f"harness: skipped rows/toy-attack[eps={eps}]/toy: threat 'toy-attack' needs Classifier,"
        " which model 'rows' does not have"
        for eps in ("0.05", "0.2")
    ]


# Cells that fail: status 3, the reason in results.json, the other cells are there


BAD_MODELS = [
    ('plugin = "torch"\nfactory = "tiny_nets:Rows"\ncheckpoint = "absent.pt"', r"absent\.pt does not exist"),
    ('plugin = "torch"\nfactory = "tiny_nets:Rows"\ncheckpoint = "evil.pt"', r"evil\.pt .*could run code; it was not"),
    ('plugin = "torch"\nfactory = "tiny_nets:Rows"\ncheckpoint = "shape.pt"', r"does not fit the model: wrong shapes"),
    ('plugin = "torch"\nfactory = "tiny_nets:Rows"\ncheckpoint = "half.pt"', r"half\.pt .*(cannot be read|damaged)"),
    ('plugin = "torch"\nfactory = "tiny_nets:Rosw"', r"has no attribute 'Rosw'; did you mean 'Rows'"),
    ('plugin = "torch"\nfactory = "absent_nets:Rows"', r"there is no module 'absent_nets'"),
    ('plugin = "torch"\nfactory = "tiny_nets:raises"', r"factory 'tiny_nets:raises' raised RuntimeError: two lines"),
    ('plugin = "torch"\nfactory = "tiny_nets:Nan"', r"returned NaN for 2 of 2 images"),
    ('plugin = "torch"\nfactory = "tiny_nets:Flat"', r"not logits \(B, K\)"),
    ('plugin = "toy-model"\nkind = "nan"', r"logits are not finite for 8 of 8 images, first sample 0"),
    ('plugin = "toy-model"\nkind = "wrong shape"', r"logits\(\) returned shape \(\d, 2\) for \d images, not \(\d, 3\)"),
    ('plugin = "toy-model"\nkind = "two classes"', r"label 2 is out of range: the model has 2 classes"),
    ('plugin = "toy-model"\nkind = "raises"', r"RuntimeError: a fault of the model"),
    ('plugin = "toy-model"\nkind = "exits"', r"SystemExit: 0"),
    ('plugin = "toy-model"\nkind = "factory exits"', r"SystemExit: 0"),
]  # fmt: skip


@pytest.mark.parametrize(("table", "message"), BAD_MODELS, ids=[m for _, m in BAD_MODELS])
def test_a_bad_model_fails_its_cells_and_no_other(table: str, message: str, harness: Any, workplace: Any) -> None:
    import torch

    nets = """
def raises():
    raise RuntimeError("two\\nlines")


class Nan(Rows):
    def forward(self, x):
        return super().forward(x) * float("nan")


class Flat(Rows):
    def forward(self, x):
        return super().forward(x).sum(dim=1)
"""
    workplace.write((workplace.folder / "tiny_nets.py").read_text() + nets, "tiny_nets.py")
    torch.save({"linear.weight": torch.nn.Linear(2, 2)}, workplace.folder / "evil.pt")
    torch.save({"linear.weight": torch.zeros(4, 9), "linear.bias": torch.zeros(4)}, workplace.folder / "shape.pt")
    (workplace.folder / "half.pt").write_bytes((workplace.folder / "shape.pt").read_bytes()[:500])
    workplace.write(workplace.suite.read_text() + f"\n[models.bad]\n{table}\n")
    status, _, _ = harness(*run())
    assert status == 3
    failed = failed_cells(workplace)
    assert {cell.partition("/")[0] for cell in failed} == {"bad"}
    assert len(failed) == 3
    for text in failed.values():
        assert re.search(message, text)
        assert "\n" not in text
    assert {c["status"] for c in workplace.results()["cells"] if c["model"] == "rows"} == {"ok"}


def test_a_traceback_is_kept_in_the_run_folder_where_the_fault_is_in_code(harness: Any, workplace: Any) -> None:
    workplace.write(workplace.suite.read_text() + '\n[models.bad]\nplugin = "toy-model"\nkind = "raises"\n')
    harness(*run("--only", "bad/clean*"))
    (file,) = (workplace.out / "errors").iterdir()
    text = file.read_text()
    assert text.startswith("bad/clean/toy\n\nTraceback")
    assert "a fault" in text


def test_a_corrupt_image_is_named(harness: Any, workplace: Any) -> None:
    from PIL import Image

    for label in "ab":
        (workplace.folder / "images" / label).mkdir(parents=True)
        for number in range(3):
            Image.new("L", (3, 3), 40 * number).save(workplace.folder / "images" / label / f"{number}.png")
    bad = workplace.folder / "images" / "b" / "1.png"
    bad.write_bytes(bad.read_bytes()[:50])
    table = '{ name = "imagefolder", path = "images", channels = 1, resize = [3, 3] }'
    workplace.edit('{ name = "toy", samples = 30 }', table)
    status, _, error = harness(*run("--data-root", "."))
    assert (status, error) == (3, "")
    assert len(failed_cells(workplace)) == 3
    assert all(re.search(r"images/b/1\.png", text) for text in failed_cells(workplace).values())


# The program itself


def test_an_observer_that_raises_is_logged_and_changes_nothing(harness: Any, workplace: Any, caplog: Any) -> None:
    assert harness(*run())[0] == 0
    before = (workplace.out / "results.json").read_bytes()
    hooks = "".join(
        f"\n@harness.hookimpl\ndef {hook}(event):\n    raise RuntimeError('observer')\n"
        for hook in ("run_started", "shard_finished", "cell_finished", "run_finished")
    )
    workplace.write("import harness\n" + hooks, "observer.py")
    assert harness(*run("-p", "observer.py"))[0] == 0
    assert (workplace.out / "results.json").read_bytes() == before
    assert {r.getMessage() for r in caplog.records} == {
        f"plugin 'observer' failed in {hook}"
        for hook in ("run_started", "shard_finished", "cell_finished", "run_finished")
    }


def test_an_internal_error_is_3_and_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    import harness.cli.schema

    def broken(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a fault of the harness")

    monkeypatch.setattr(harness.cli.schema.command, "callback", broken)
    assert _status(["schema"]) == 3
    error = capfd.readouterr().err
    assert "AssertionError: a fault of the harness" in error
    assert error.splitlines()[-1].startswith("harness: internal error")


def test_help_of_every_option_is_there() -> None:
    from harness.cli.run import command

    text = CliRunner().invoke(command, ["--help"]).output
    for option in ("--out", "--device", "--workers", "--limit", "--set", "--only", "--dry-run", "--fresh", "-p"):
        assert option in text


def test_a_pattern_that_leaves_nothing_to_run_is_5(harness: Any, workplace: Any, one_line: Any) -> None:
    status, _, error = harness(*run("--only", "nothing"))
    assert one_line(error).startswith("harness: --only nothing: no cell matches")
    assert status == 5
    assert not workplace.out.exists()
