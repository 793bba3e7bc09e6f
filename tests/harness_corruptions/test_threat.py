"""The threat `corruptions`: its rows, what it takes by default, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness_corruptions.catalogue import ALL, STANDARD, corruptions
from harness_corruptions.threat import Corruptions, CorruptionsOptions, build
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from harness.cli import main
from harness.datasets import DatasetFacts
from harness.errors import HarnessError, MissingDataError, ThreatError
from harness.judge import Judge
from harness.loading import BuiltModel
from harness.models import ModelView
from harness.randomness import Draws, draws_for
from harness.store import load_run
from harness.testing import synthetic_data, toy_model
from harness.threats import Batch, Columns, ThreatContext

OneLine = Callable[[str], str]
DATA = synthetic_data((3, 12, 10), 4)
FEW = {"corruptions": ["impulse_noise", "zoom_blur"], "severities": [2, 4]}


def threat(facts: DatasetFacts = DATA.facts, **options: Any) -> Corruptions:
    return build(CorruptionsOptions.model_validate(options), ThreatContext(facts, DATA.__class__, Path()))


def facts(*shape: int) -> DatasetFacts:
    return DatasetFacts("mine", (shape[0], shape[1], shape[2]), 256, ("a", "b"))


def view_and_batch(built: BuiltModel, ids: Tensor) -> tuple[ModelView, Batch]:
    x, y = DATA.load(ids.numpy())
    judge = Judge(built, x, y, ids, 0, None)
    return built.view(ids, 0, "attack"), Batch(x, y, ids, draws_for(ids, 0, "threat"), judge=judge.shifted)


def rows(ids: Tensor, built: BuiltModel | None = None, **options: Any) -> Columns:
    return threat(**options).run(*view_and_batch(built or toy_model({"Classifier"}, DATA.facts), ids))


def images_judged(ids: Tensor, **options: Any) -> list[Tensor]:
    """What the host is shown, in order."""
    seen: list[Tensor] = []
    view, batch = view_and_batch(toy_model({"Classifier"}, DATA.facts), ids)

    def judge(images: Tensor) -> dict[str, Tensor]:
        seen.append(images.clone())
        return {"confidence": torch.zeros(len(images), dtype=torch.float64)}

    threat(**options).run(view, Batch(batch.x, batch.y, batch.ids, batch.draws, judge=judge))
    return seen


def test_rows_hold_the_clean_images_and_each_corruption_and_severity() -> None:
    ids = torch.tensor([4, 9, 11])
    columns = rows(ids, **FEW)
    assert {name: len(values) for name, values in columns.items()} == dict.fromkeys(columns, 15)
    assert columns["sample_id"].tolist() == [4, 9, 11] * 5
    assert columns["label"].tolist() == DATA.load(ids.numpy())[1].tolist() * 5
    assert columns["corruption"] == ["none"] * 3 + ["impulse_noise"] * 6 + ["zoom_blur"] * 6
    assert columns["severity"].tolist() == [0] * 3 + [2] * 3 + [4] * 3 + [2] * 3 + [4] * 3
    assert columns["group"] == ["none"] * 3 + ["noise"] * 6 + ["blur"] * 6
    assert set(columns["table"]) == {"cifar10-c"}
    assert set(columns["left_out"]) == {""}
    assert {"prediction", "correct", "confidence", "entropy", "ood_score"} <= columns.keys()


def test_the_clean_rows_are_the_host_s_of_the_images_themselves_and_the_rest_of_changed_ones() -> None:
    ids = torch.arange(6)
    columns = rows(ids, **FEW)
    seen = images_judged(ids, **FEW)
    x, y = DATA.load(ids.numpy())
    assert torch.equal(seen[0], x)
    judged = Judge(toy_model({"Classifier"}, DATA.facts), x, y, ids, 0, None)
    for k, images in enumerate(seen):
        part = slice(6 * k, 6 * k + 6)
        for name, values in judged.shifted(images).items():
            assert torch.equal(columns[name][part], values), name
        change = (images - x).flatten(1)
        torch.testing.assert_close(columns["changed_linf"][part], change.abs().amax(dim=1).double())
        torch.testing.assert_close(columns["changed_l2"][part], change.double().norm(dim=1))
    assert (columns["changed_l2"][6:] > 0).all()
    assert (columns["changed_l2"][:6] == 0).all()


def test_a_sample_s_rows_depend_neither_on_its_neighbours_nor_on_what_else_is_asked_for() -> None:
    together = rows(torch.tensor([4, 9, 11]), **FEW)
    alone = rows(torch.tensor([9]), corruptions=["zoom_blur", "impulse_noise"], severities=[4])
    at = [1, 13, 7]  # clean, zoom_blur 4, impulse_noise 4
    for name in ("sample_id", "severity", "confidence", "changed_l2", "ood_score"):
        assert torch.equal(alone[name], together[name][at]), name


def test_corrupted_images_are_stored_in_8_bits_rounded_or_as_in_the_original_truncated() -> None:
    ids, chosen = torch.arange(4), {"corruptions": ["gaussian_noise", "gaussian_blur"], "severities": [3]}
    honest, compat = images_judged(ids, **chosen), images_judged(ids, compat=True, **chosen)
    for images in (*honest[1:], *compat[1:]):
        assert torch.equal((images * 255).round() / 255, images)
    for rounded, truncated in zip(honest[1:], compat[1:], strict=True):
        steps = ((rounded - truncated) * 255).round()
        assert set(steps.unique().tolist()) == {0.0, 1.0}
        assert 0.4 < float(steps.mean()) < 0.6


def test_a_random_corruption_meets_another_draw_in_each_sample_and_each_seed() -> None:
    seen = images_judged(torch.tensor([0, 0, 1]), corruptions=["impulse_noise"], severities=[5])
    hit = seen[1] != seen[0]
    assert torch.equal(hit[0], hit[1])
    assert not torch.equal(hit[0], hit[2])


@pytest.mark.parametrize(
    ("shape", "options", "table"),
    [
        ((3, 32, 32), {}, "cifar10-c"),
        ((3, 65, 32), {}, "imagenet-c"),
        ((3, 32, 32), {"table": "imagenet-c"}, "imagenet-c"),
        ((3, 224, 224), {"table": "cifar10-c"}, "cifar10-c"),
    ],
)
def test_the_table_goes_by_the_size_of_the_images_unless_it_is_named(
    shape: tuple[int, ...], options: dict[str, Any], table: str
) -> None:
    assert threat(facts(*shape), corruptions=["contrast"], **options).table == table


def test_severity_and_table_say_how_strong() -> None:
    weak, strong = (
        rows(torch.arange(5), corruptions=["gaussian_noise"], severities=[1], table=table)["changed_l2"][5:].mean()
        for table in ("cifar10-c", "imagenet-c")
    )
    assert 1.5 < strong / weak < 2.5  # 0.08 and 0.04


def test_a_density_is_judged_by_its_likelihood() -> None:
    columns = rows(torch.arange(5), toy_model({"Density"}, DATA.facts), **FEW)
    assert columns["log_prob"].shape == (25,)
    assert columns["log_prob"].dtype == torch.float64


def test_a_model_that_says_nothing_of_images_is_refused(one_line: OneLine) -> None:
    model, batch = view_and_batch(toy_model({"Classifier"}, DATA.facts), torch.arange(2))
    model.capabilities = frozenset({"Sampler"})
    with pytest.raises(ThreatError, match="neither classifies nor scores") as caught:
        threat(**FEW).run(model, batch)
    one_line(str(caught.value))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"severities": [1, 6]}, "there is no severity 6: they go from 1 to 5"),
        ({"severities": []}, "an empty list corrupts nothing"),
        ({"severities": [2, 2]}, "2 is listed twice"),
        ({"corruptions": ["zoom_blurr"]}, "no corruption is called 'zoom_blurr'; did you mean 'zoom_blur'?"),
        ({"corruptions": ["fog", "fog"]}, "fog is listed twice"),
        ({"corruptions": "fog"}, '"fog" is neither "standard" nor "all" nor a list of names; did you mean ["fog"]?'),
        ({"corruptions": "standart"}, "did you mean 'standard'?"),
        ({"corruptions": 3}, 'expected "standard", "all" or a list of names'),
        ({"backend": "imagecorruptions", "table": "cifar10-c"}, "constants of imagenet-c only"),
    ],
)
def test_a_wrong_option_gets_one_clear_line(options: dict[str, Any], message: str, one_line: OneLine) -> None:
    with pytest.raises(ValidationError) as caught:
        CorruptionsOptions.model_validate(options)
    (problem,) = caught.value.errors()
    assert message in one_line(problem["msg"])


def test_images_that_are_too_small_are_refused(one_line: OneLine) -> None:
    with pytest.raises(HarnessError, match="images of data set 'mine' are 7 x 30 px; 8 x 8 is the least") as caught:
        threat(facts(3, 7, 30))
    one_line(str(caught.value))


def test_images_of_four_channels_have_no_colours(one_line: OneLine) -> None:
    with pytest.raises(HarnessError, match="snow, frost, brightness, jpeg_compression mean nothing") as caught:
        threat(facts(4, 32, 32))
    text = one_line(str(caught.value))
    rest = eval(text.split("corruptions = ")[1])  # what the message tells the user to write
    assert threat(facts(4, 32, 32), corruptions=rest).names == tuple(rest)
    assert len(rest) == 11
    with pytest.raises(HarnessError, match="saturate means nothing for images of 2 channels"):
        threat(facts(2, 32, 32), corruptions=["saturate"])


def test_frost_without_its_textures_is_left_out_of_a_set_and_said_so_but_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, one_line: OneLine
) -> None:
    monkeypatch.setattr("harness_corruptions.frost.frost_problem", lambda: "frost needs X: pip install X")
    standard = threat(facts(3, 32, 32))
    assert standard.names == tuple(name for name in STANDARD if name != "frost")
    assert standard.left_out == "frost needs X: pip install X"
    assert threat(facts(3, 32, 32), corruptions="all").names == tuple(name for name in ALL if name != "frost")
    assert set(rows(torch.arange(2), corruptions="standard", severities=[1])["left_out"]) == {standard.left_out}
    with pytest.raises(MissingDataError, match="pip install X") as caught:
        threat(facts(3, 32, 32), corruptions=["frost", "fog"])
    one_line(str(caught.value))
    assert threat(facts(3, 32, 32), corruptions=["fog"]).left_out == ""


def test_the_plan_and_the_results_say_that_frost_is_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("harness_corruptions.frost.frost_problem", lambda: "frost needs X: pip install X")
    monkeypatch.setenv("COLUMNS", "200")
    arguments = ["run", "corruptions", "--device", "cpu", "--limit", "4", "--set", "threats.corruptions.severities=[1]"]
    with pytest.raises(SystemExit):
        main([*arguments, "--dry-run"])
    assert "note: threat 'corruptions" in (shown := capsys.readouterr().out)
    assert "leaves out: frost needs X: pip install X" in shown
    with pytest.raises(SystemExit):
        main([*arguments, "--out", str(tmp_path / "run"), "--workers", "1"])
    assert "and 1 more: frost needs X: pip install X" in capsys.readouterr().out
    found = load_run(tmp_path / "run")
    assert {cell["left_out"] for cell in found.cells()} == {"frost needs X: pip install X"}
    assert "Left out" in (tmp_path / "run" / "report.html").read_text()


def test_frost_is_there_where_its_textures_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness_corruptions.frost.frost_problem", lambda: "")
    monkeypatch.setattr("harness_corruptions.frost.texture_files", lambda: (Path("frost1.png"),))
    with_frost = threat(facts(3, 32, 32))
    assert with_frost.names == STANDARD
    assert with_frost.files == (Path("frost1.png"),)  # hashed: other textures make other rows
    monkeypatch.setattr("harness_corruptions.frost.frost_problem", lambda: "missing")
    assert with_frost.inputs != threat(facts(3, 32, 32)).inputs  # finished shards of one are not the other's


def test_the_library_is_given_8_bit_images_and_the_samples_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    def corrupt(images: NDArray[np.uint8], name: str, severity: int, draws: Draws | None) -> NDArray[np.uint8]:
        calls.append((images, name, severity, draws))
        return 255 - images

    reference = pytest.importorskip("harness_corruptions.reference")
    monkeypatch.setattr(reference, "corrupt", corrupt)
    monkeypatch.setattr(reference, "library_files", lambda: (Path("corruptions.py"),))
    ids = torch.tensor([4, 9])
    seen = images_judged(ids, backend="imagecorruptions", **FEW)
    calls = calls[1:]  # the first asks whether the library is there
    assert [(name, severity) for _, name, severity, _ in calls] == [
        *(("impulse_noise", 2), ("impulse_noise", 4), ("zoom_blur", 2), ("zoom_blur", 4))
    ]
    x, _ = DATA.load(ids.numpy())
    np.testing.assert_array_equal(calls[0][0], (x * 255).round().byte().permute(0, 2, 3, 1).numpy())
    assert calls[0][3].ids.tolist() == [4, 9]
    torch.testing.assert_close(seen[1], 1 - x, atol=1e-6, rtol=0)
    with_library = threat(backend="imagecorruptions", **FEW)
    assert with_library.table == "imagenet-c"
    assert with_library.files == (Path("corruptions.py"),)
    assert "scipy" in with_library.inputs["versions"]
    with pytest.raises(HarnessError, match="takes images of 1 or 3 channels"):
        threat(facts(4, 32, 32), backend="imagecorruptions", **FEW)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 14)])
def test_every_corruption_takes_small_images_of_one_channel_and_of_three(name: str, shape: tuple[int, ...]) -> None:
    from harness_corruptions.frost import frost_problem

    if name == "frost" and frost_problem():
        pytest.skip(frost_problem())
    ids = torch.arange(3)
    x = draws_for(ids, 0, "x").integers("x", 0, shape, 256).float() / 255
    for compat in (False, True):
        found = list(corruptions()[name].at(x, (1, 5), "cifar10-c", draws_for(ids, 0, "t"), compat=compat))
        alone = list(corruptions()[name].at(x[1:2], (1, 5), "cifar10-c", draws_for(ids[1:2], 0, "t"), compat=compat))
        for images, one in zip(found, alone, strict=True):
            assert images.shape == x.shape
            assert 0 <= images.min() <= images.max() <= 1
            assert torch.equal(images[1:2], one)
