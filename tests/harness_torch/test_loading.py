"""Factories, checkpoints and exported files, and the one line that says what is wrong with them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from harness_torch.loading import find_checkpoint
from harness_torch.model import TorchClassifier, build
from harness_torch.options import TorchOptions
from torch import nn

from harness.datasets import DatasetFacts
from harness.errors import HarnessError, MissingDataError, ModelError
from harness.models import ModelContext

FACTORIES = """
import torch
from torch import nn

def linear(num_classes=3, width=4):
    return nn.Sequential(nn.Flatten(), nn.Linear(16, width), nn.Linear(width, num_classes))

def raises(**arguments):
    raise ValueError("no such depth:\\n18.5")

def not_a_module():
    return [1, 2]

class Box:
    @staticmethod
    def inside():
        return linear()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_nets_for_test.py").write_text(FACTORIES)
    (tmp_path / "broken_for_test.py").write_text("import torch\n1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def make(folder: Path, **options: Any) -> TorchClassifier:
    facts = DatasetFacts("squares", (1, 4, 4), 256, ("a", "b", "c"))
    return build(TorchOptions.model_validate(options), ModelContext("mine", facts, "cpu", folder))


def line(folder: Path, kind: type[HarnessError] = ModelError, **options: Any) -> str:
    """The text of the error that building raises, which must be one line."""
    with pytest.raises(kind) as caught:
        make(folder, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 600
    return text


LINEAR = "my_nets_for_test:linear"


def weights(folder: Path, name: str = "w.pt", wrap: Any = lambda state: state, **arguments: int) -> nn.Module:
    """Write the state dict of a linear model with other weights than a fresh one, and return that model."""
    import my_nets_for_test

    torch.manual_seed(7)
    module: nn.Module = my_nets_for_test.linear(**arguments)
    torch.save(wrap(module.state_dict()), folder / name)
    return module


def test_factory_with_arguments_and_probe(folder: Path) -> None:
    model = make(folder, factory=LINEAR, factory_args={"num_classes": 5})
    assert model.num_classes == 5
    assert model.logits(torch.zeros(2, 1, 4, 4)).shape == (2, 5)
    assert make(folder, factory="my_nets_for_test:Box.inside").num_classes == 3
    assert model.source_modules == ("my_nets_for_test",)
    assert model.files == ()


def test_initial_weights_are_the_same_in_every_process_and_leave_the_global_generator_alone(folder: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first = make(folder, factory=LINEAR)
    assert torch.equal(torch.rand(1), expected)
    second = make(folder, factory=LINEAR)
    x = torch.rand(2, 1, 4, 4)
    assert torch.equal(first.logits(x), second.logits(x))


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.th"])
def test_checkpoint_with_key_and_prefix(folder: Path, name: str) -> None:
    module = weights(folder, name, lambda s: {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in s.items()}})
    model = make(folder, factory=LINEAR, checkpoint=name, key="state_dict", prefix="module.")
    x = torch.rand(2, 1, 4, 4)
    assert torch.equal(model.logits(x), module(x))
    assert model.files == (folder / name,)


def test_safetensors(folder: Path) -> None:
    from safetensors.torch import save_file

    module = weights(folder)
    save_file(module.state_dict(), folder / "w.safetensors")
    x = torch.rand(2, 1, 4, 4)
    assert torch.equal(make(folder, factory=LINEAR, checkpoint="w.safetensors").logits(x), module(x))


def test_missing_files_name_the_path(folder: Path) -> None:
    assert "gone.pt does not exist" in line(folder, MissingDataError, factory=LINEAR, checkpoint="gone.pt")
    assert "gone.pt2 does not exist" in line(folder, MissingDataError, file="gone.pt2")


def test_environment_variables_in_paths(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights(folder)
    monkeypatch.setenv("HARNESS_DATA", str(folder))
    assert make(folder / "elsewhere", factory=LINEAR, checkpoint="$HARNESS_DATA/w.pt").files == (folder / "w.pt",)
    monkeypatch.delenv("HARNESS_DATA")
    text = line(folder, MissingDataError, factory=LINEAR, checkpoint="$HARNESS_DATA/w.pt")
    assert "HARNESS_DATA is not set" in text


def test_unknown_builtin_names_the_nearest(folder: Path) -> None:
    text = line(folder, MissingDataError, checkpoint="builtin:digits-cn")
    assert "did you mean 'digits-cnn'" in text


def test_builtin_checkpoints_of_another_package(folder: Path) -> None:
    found = find_checkpoint("builtin:harness_torch/digits-cnn", folder)
    assert found == find_checkpoint("builtin:digits-cnn", folder)
    assert found.is_file()
    assert "no package 'absent'" in line(folder, MissingDataError, checkpoint="builtin:absent/x")
    assert "no built-in checkpoint 'x'" in line(folder, MissingDataError, checkpoint="builtin:harness_torch/x")


def test_wrong_shapes_name_the_tensors(folder: Path) -> None:
    weights(folder, width=5)
    text = line(folder, factory=LINEAR, checkpoint="w.pt")
    assert "1.weight (5, 16) instead of (4, 16)" in text
    assert "2.weight (3, 5) instead of (3, 4)" in text
    assert "missing" not in text


def test_missing_and_unexpected_tensors_are_named(folder: Path) -> None:
    weights(folder, wrap=lambda s: {("head.bias" if k == "2.bias" else k): v for k, v in s.items()})
    text = line(folder, factory=LINEAR, checkpoint="w.pt")
    assert "missing: 2.bias" in text
    assert "not in the model: head.bias" in text


def test_shapes_and_names_wrong_at_once(folder: Path) -> None:
    weights(folder, wrap=lambda s: {("head.bias" if k == "2.bias" else k): v for k, v in s.items()}, width=5)
    text = line(folder, factory=LINEAR, checkpoint="w.pt")
    assert "1.weight (5, 16)" in text
    assert "missing: 2.bias" in text
    assert "not in the model: head.bias" in text


def test_forgotten_key_is_suggested(folder: Path) -> None:
    weights(folder, wrap=lambda s: {"epoch": 3, "state_dict": s})
    assert "is key = 'state_dict' missing?" in line(folder, factory=LINEAR, checkpoint="w.pt")
    assert "did you mean 'state_dict'" in line(folder, factory=LINEAR, checkpoint="w.pt", key="state_dct")


def test_prefix_that_no_name_has(folder: Path) -> None:
    weights(folder)
    assert "no name begins with prefix 'module.'" in line(folder, factory=LINEAR, checkpoint="w.pt", prefix="module.")


class _Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_pickle_with_code_is_refused_and_not_executed(folder: Path, how: str) -> None:
    mark = folder / "executed"
    if how == "torch":
        torch.save({"w": _Touch(mark)}, folder / "w.pt")
    else:
        (folder / "w.pt").write_bytes(pickle.dumps(_Touch(mark)))
    assert "could run code" in line(folder, factory=LINEAR, checkpoint="w.pt")
    assert not mark.exists()


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"\x08\x00\x00\x00\x00\x00\x00\x00{}"])
def test_damaged_checkpoints(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    assert name in line(folder, HarnessError, factory=LINEAR, checkpoint=name)


def test_a_pickled_module_is_no_set_of_weights(folder: Path) -> None:
    weights(folder)
    import my_nets_for_test

    torch.save(my_nets_for_test.linear(), folder / "whole.pt")
    assert "whole.pt" in line(folder, factory=LINEAR, checkpoint="whole.pt")


def test_factory_errors(folder: Path) -> None:
    raised = line(folder, factory="my_nets_for_test:raises", factory_args={"depth": 18.5})
    assert "'my_nets_for_test:raises' raised ValueError: no such depth: 18.5" in raised
    assert "raised TypeError" in line(folder, factory=LINEAR, factory_args={"wdith": 3})
    assert "there is no module 'no_such_package'" in line(folder, factory="no_such_package.nets:resnet")
    assert "ZeroDivisionError" in line(folder, factory="broken_for_test:net")
    assert "did you mean 'linear'" in line(folder, factory="my_nets_for_test:linaer")
    assert "returned a list" in line(folder, factory="my_nets_for_test:not_a_module")


def test_a_checkpoint_alone_must_name_its_factory(folder: Path) -> None:
    weights(folder)
    assert "give `factory`" in line(folder, checkpoint="w.pt")


class TestPrograms:
    """TorchScript and exported programs."""

    def test_torchscript(self, folder: Path) -> None:
        module = weights(folder)
        torch.jit.trace(module, torch.zeros(2, 1, 4, 4)).save(str(folder / "m.ts"))
        model = make(folder, file="m.ts", normalize={"mean": [0.5], "std": [0.25]})
        x = torch.rand(3, 1, 4, 4)
        torch.testing.assert_close(model.logits(x), module((x - 0.5) / 0.25))
        assert model.files == (folder / "m.ts",)

    def test_exported_program_with_gradient_in_eval_mode(self, folder: Path) -> None:
        from harness.models import prepare

        module = weights(folder)
        batch = torch.export.Dim("batch")
        program = torch.export.export(module.eval(), (torch.zeros(2, 1, 4, 4),), dynamic_shapes=({0: batch},))
        torch.export.save(program, folder / "m.pt2")
        model = prepare(make(folder, file="m.pt2"), "cpu")
        x = torch.rand(3, 1, 4, 4).requires_grad_()
        logits = model.logits(x)
        torch.testing.assert_close(logits, module(x))
        (gradient,) = torch.autograd.grad(logits[:, 0].sum(), x)
        assert gradient.abs().sum() > 0
        assert model.logits(torch.rand(1, 1, 4, 4)).shape == (1, 3)

    def test_a_program_for_one_image_is_found_out_when_built(self, folder: Path) -> None:
        module = weights(folder)
        torch.export.save(torch.export.export(module.eval(), (torch.zeros(1, 1, 4, 4),)), folder / "m.pt2")
        assert "images of shape (2, 1, 4, 4)" in line(folder, file="m.pt2")

    @pytest.mark.parametrize("name", ["m.pt2", "m.ts"])
    def test_not_a_program(self, folder: Path, name: str) -> None:
        (folder / name).write_bytes(b"nothing of the kind")
        assert name in line(folder, file=name)

    def test_pickled_code_in_a_program_is_refused(self, folder: Path) -> None:
        import zipfile

        module = weights(folder)
        torch.export.save(torch.export.export(module.eval(), (torch.zeros(2, 1, 4, 4),)), folder / "m.pt2")
        mark = folder / "executed"
        with zipfile.ZipFile(folder / "m.pt2") as old, zipfile.ZipFile(folder / "evil.pt2", "w") as new:
            for item in old.namelist():
                data = old.read(item)
                if "sample_inputs" in item:
                    import io

                    buffer = io.BytesIO()
                    torch.save({"w": _Touch(mark)}, buffer)
                    data = buffer.getvalue()
                new.writestr(item, data)
        assert "evil.pt2" in line(folder, file="evil.pt2")
        assert not mark.exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "give `factory`, `file`"),
        ({"factory": "a:b", "file": "m.ts"}, "not both"),
        ({"file": "m.ts", "checkpoint": "w.pt"}, "`file` holds a whole model"),
        ({"checkpoint": "w.pt", "factory_args": {"a": 1}}, "`factory_args` needs `factory`"),
        ({"factory": "a:b", "key": "state_dict"}, "need `checkpoint`"),
        ({"factory": "no colon"}, "pattern"),
        ({"factory": "a:b", "normalize": {"mean": [0, 0], "std": [1]}}, "same length"),
        ({"factory": "a:b", "normalize": {"mean": [0], "std": [0]}}, "above 0"),
    ],
)
def test_options_that_contradict_each_other(options: dict[str, Any], expected: str) -> None:
    from pydantic import ValidationError

    with pytest.raises(ValidationError, match=expected):
        TorchOptions.model_validate(options)


def test_every_option_has_a_help_text() -> None:
    from harness_torch.options import Adversarial, FitRecipe, Normalize

    for kind in (TorchOptions, FitRecipe, Adversarial, Normalize):
        for name, field in kind.model_fields.items():
            assert field.description, name
