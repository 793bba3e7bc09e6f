"""What the model `torch` does with images: normalisation, checks of its outputs, and modules that draw at random."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness_torch.model import RandomTorchClassifier, TorchClassifier, build
from harness_torch.options import TorchOptions
from torch import Tensor, nn

from harness.capabilities import mismatches, offered
from harness.datasets import DatasetFacts
from harness.errors import ModelError
from harness.models import ModelContext, ModelView, prepare
from harness.randomness import draws_for

FACTS = DatasetFacts("squares", (2, 4, 4), 256, ("a", "b", "c"))
MODULES = '''
import torch
from torch import nn

class Stub(nn.Module):
    """Returns what `answer` makes of the images; without weights."""
    def __init__(self, answer):
        super().__init__()
        self.answer = answer
    def forward(self, x):
        return self.answer(x)

def convolutions():
    return nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(20, 3))

class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.step, self.unused, self.both = nn.Linear(32, 32), nn.Linear(1, 1), Both()
    def forward(self, x):
        return self.both(self.step(self.step(x.flatten(1))))[0][:, :3]

class Both(nn.Module):
    def forward(self, x):
        return x, x

def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(32, 3))

def noisy():
    return Stub(lambda x: x.flatten(1)[:, :3] + torch.randn(x.shape[0], 3))

class Drops(nn.Module):
    def forward(self, x):
        return nn.functional.dropout(x, 0.5, training=True)

def with_dropout():
    return nn.Sequential(nn.Flatten(), Drops(), nn.Linear(32, 3))

def with_batch_norm():
    return nn.Sequential(nn.BatchNorm2d(2), nn.Dropout(0.5), nn.Flatten(), nn.Linear(32, 3))

def answers(kind):
    return Stub({
        "vector": lambda x: x.flatten(1)[:, 0],
        "image": lambda x: x,
        "one_row": lambda x: x.flatten(1)[:1, :3],
        "tuple": lambda x: (x.flatten(1), x),
        "labels": lambda x: x.flatten(1).argmax(1, keepdim=True),
        "raises": lambda x: x @ torch.zeros(7, 7),
        "nan": lambda x: torch.where(x.flatten(1)[:, :3] > 0.5, float("nan"), 0.0),
    }[kind])
'''


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_modules_for_test.py").write_text(MODULES)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def make(modules: Path, name: str, **options: Any) -> TorchClassifier:
    table = {"factory": f"my_modules_for_test:{name}", **options}
    return build(TorchOptions.model_validate(table), ModelContext("mine", FACTS, "cpu", modules))


def test_normalisation_is_inside_the_model_and_once(modules: Path) -> None:
    model = make(modules, "linear", normalize={"mean": [0.25, 0.5], "std": [0.5, 2.0]})
    x = torch.rand(3, 2, 4, 4)
    by_hand = torch.stack([(x[:, 0] - 0.25) / 0.5, (x[:, 1] - 0.5) / 2.0], dim=1)
    torch.testing.assert_close(model.logits(x), model.module(by_hand))


def test_normalisation_of_another_number_of_channels(modules: Path) -> None:
    with pytest.raises(ModelError, match="normalize has 3 channels, images of 'squares' have 2"):
        make(modules, "linear", normalize={"mean": [0, 0, 0], "std": [1, 1, 1]})


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("vector", r"returned float32 \(2,\) for 2 images, not logits \(B, K\)"),
        ("image", r"returned float32 \(2, 2, 4, 4\)"),
        ("one_row", r"returned float32 \(1, 3\) for 2 images"),
        ("tuple", "returned a tuple, not a tensor"),
        ("labels", r"returned int64 \(2, 1\)"),
        ("raises", r"raised on images of shape \(2, 2, 4, 4\): RuntimeError"),
    ],
)
def test_outputs_that_are_no_logits(modules: Path, kind: str, text: str) -> None:
    with pytest.raises(ModelError, match=text) as caught:
        make(modules, "answers", factory_args={"kind": kind})
    assert "\n" not in str(caught.value)


def test_nan_is_reported_with_the_number_of_images(modules: Path) -> None:
    model = make(modules, "answers", factory_args={"kind": "nan"})
    x = torch.zeros(4, 2, 4, 4)
    x[1], x[3] = 1, 1
    with pytest.raises(ModelError, match="model 'mine' returned NaN for 2 of 4 images"):
        model.logits(x)


def test_given_number_of_classes_spares_the_probe(modules: Path) -> None:
    assert make(modules, "answers", factory_args={"kind": "raises"}, num_classes=7).num_classes == 7


def test_eval_mode_frozen_weights_and_declared_capabilities(modules: Path) -> None:
    model = prepare(make(modules, "with_batch_norm"), "cpu")
    assert not any(module.training for module in model.modules())
    assert not any(p.requires_grad for p in model.parameters())
    state = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.rand(5, 2, 4, 4)
    first = model.logits(x)
    assert torch.equal(first, model.logits(x))
    torch.testing.assert_close(first[2:3], model.logits(x[2:3]))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert mismatches(model, {"Classifier", "Trainable"}) == []


class TestRandomModules:
    """Modules that draw from torch's global generator, declared with `random = true`."""

    def logits(self, model: Any, x: Tensor, ids: list[int], seed: int = 3, draw: int = 0) -> Tensor:
        draws = draws_for(torch.tensor(ids), seed, "model", "eval").numbered(draw)
        out: Tensor = model.logits(x, draws=draws)
        return out

    def test_an_answer_depends_on_sample_seed_and_draw_alone(self, modules: Path) -> None:
        model = make(modules, "noisy", random=True)
        assert isinstance(model, RandomTorchClassifier)
        assert model.stochastic
        x = torch.rand(4, 2, 4, 4)
        whole = self.logits(model, x, [5, 6, 7, 8])
        assert torch.equal(self.logits(model, x[[2, 0]], [7, 5]), whole[[2, 0]])
        assert not torch.equal(self.logits(model, x, [5, 6, 7, 8], seed=4), whole)
        assert not torch.equal(self.logits(model, x, [5, 6, 7, 8], draw=1), whole)
        same_image = self.logits(model, x[[0, 0]], [5, 6])
        assert not torch.equal(same_image[0], same_image[1])

    def test_the_global_generator_is_put_back(self, modules: Path) -> None:
        model = make(modules, "noisy", random=True)
        torch.manual_seed(0)
        expected = torch.rand(1)
        torch.manual_seed(0)
        self.logits(model, torch.rand(2, 2, 4, 4, generator=torch.Generator()), [0, 1])
        assert torch.equal(torch.rand(1), expected)

    def test_served_by_the_host_with_gradient(self, modules: Path) -> None:
        model = make(modules, "noisy", random=True)
        view = ModelView(model, {"Classifier"}, torch.arange(3), 0, "attack")
        x = torch.rand(3, 2, 4, 4).requires_grad_()
        gradient = view.input_gradient(view.logits(x).sum(dim=1), x)
        assert torch.equal(gradient.flatten(1)[:, :3], torch.ones(3, 3))
        assert view.logits(x[:0], draws_for(torch.arange(0), 0)).shape == (0, 3)


@pytest.fixture
def data_root() -> Path:
    root = os.environ.get("HARNESS_DATA")
    if not root or not (Path(root) / "models" / "cifar10_resnet20.th").is_file():
        pytest.skip("HARNESS_DATA does not name a folder with models/cifar10_resnet20.th")
    return Path(root)


def cifar_resnet20(data_root: Path) -> TorchClassifier:
    facts = DatasetFacts("cifar10", (3, 32, 32), 256, tuple("0123456789"))
    options = TorchOptions.model_validate(
        {
            "factory": "harness_torch.networks:cifar_resnet20",
            "checkpoint": "models/cifar10_resnet20.th",
            "key": "state_dict",
            "prefix": "module.",
            "normalize": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
        }
    )
    return build(options, ModelContext("resnet20", facts, "cpu", data_root))


def test_a_third_partys_cifar10_resnet20_has_its_measured_accuracy(data_root: Path) -> None:
    """0.915 on the lossless test images 0-999, as measured before with the publisher's own network code."""
    images = np.load(data_root / "cifar10" / "cifar10_test1000_lossless.npz")
    model = prepare(cifar_resnet20(data_root), "cpu")
    x = torch.from_numpy(images["x"]).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        prediction = torch.cat([model.logits(part).argmax(dim=1) for part in x.split(250)])
    assert (prediction.numpy() == images["y"]).mean() == pytest.approx(0.915)


def test_networks_have_the_published_sizes() -> None:
    """He et al. 2016, table 6: ResNet-20 has 0.27 million parameters in 20 layers with weights."""
    from harness_torch.networks import cifar_resnet20 as resnet20
    from harness_torch.networks import digits_cnn

    net = resnet20()
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(270_000, rel=0.01)
    assert sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in net.modules()) == 20
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert digits_cnn()(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_features_are_what_leaves_the_layer_named(modules: Path) -> None:
    x = torch.rand(3, 2, 4, 4)
    plain = make(modules, "convolutions")
    assert plain.features is None
    assert mismatches(plain, {"Classifier", "Features", "Trainable"}) == []
    assert "Features" not in offered(plain, {"Classifier", "Features"})
    maps = plain.module[0]((x - 0.5) / 0.5)
    for layer, wanted in (("0", maps.mean(dim=(2, 3))), ("2", maps.relu().flatten(1))):
        model = make(modules, "convolutions", features=layer, normalize={"mean": [0.5], "std": [0.5]})
        model.module.load_state_dict(plain.module.state_dict())
        view = ModelView(model, offered(model, {"Classifier", "Features"}), torch.arange(3), 0, "eval")
        torch.testing.assert_close(view.features(x), wanted)  # also where the next step works in place
        assert view.forwards.tolist() == [1, 1, 1]
        torch.testing.assert_close(model.logits(x), plain.module[3](maps.relu().flatten(1)))


def test_features_of_the_shipped_networks() -> None:
    digits = DatasetFacts("digits", (1, 8, 8), 17, tuple("0123456789"))
    options = TorchOptions(checkpoint="builtin:digits-cnn", features="6")
    model = build(options, ModelContext("cnn", digits, "cpu", Path()))
    assert model.features is not None
    x = torch.rand(4, 1, 8, 8)
    features = model.features(x)
    assert features.shape == (4, 32)
    torch.testing.assert_close(model.module[7](features), model.logits(x))


def test_a_random_module_gives_the_features_of_its_own_draw(modules: Path) -> None:
    model = make(modules, "with_dropout", random=True, features="1")
    x = torch.rand(4, 2, 4, 4)
    view = ModelView(model, {"Classifier", "Features"}, torch.arange(4), 0, "eval")
    features = view.features(x)
    torch.testing.assert_close(model.module[2](features), view.logits(x))
    index = torch.tensor([2])
    draws = draws_for(torch.arange(4), 0, "model", "eval")[index]
    assert torch.equal(view.features(x[index], draws), features[index])


@pytest.mark.parametrize(
    ("name", "layer", "line"),
    [
        ("Twice", "step", "submodule 'step' of option features ran 2 times for a batch"),
        ("Twice", "unused", "submodule 'unused' of option features ran 0 times for a batch"),
        ("Twice", "both", "submodule 'both' of option features gives no tensor (B, ...) for a batch"),
        ("linear", "fc", "features: the module has no submodule 'fc' (it has 0, 1)"),
    ],
)
def test_a_layer_that_gives_no_features(modules: Path, name: str, layer: str, line: str) -> None:
    with pytest.raises(ModelError) as caught:
        make(modules, name, features=layer).features(torch.rand(2, 2, 4, 4))  # type: ignore[misc]
    assert line in str(caught.value)


def test_the_steps_of_a_file_cannot_be_seen() -> None:
    with pytest.raises(ValueError, match="`features` needs a `factory`"):
        TorchOptions.model_validate({"file": "model.pt2", "features": "fc"})
