"""Denoisers from options, checkpoints and folders in diffusers' format; what is wrong with them in one line."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from harness_diffusion.building import Source, find_source, holder, note, read_blueprint
from harness_diffusion.foreign import Foreign
from harness_diffusion.networks import MLP, UNet
from harness_diffusion.options import DenoiserOptions
from harness_diffusion.processes import DDPM, VP
from torch import nn

from harness import checkpoints
from harness.datasets import DatasetFacts
from harness.errors import HarnessError
from harness.models import ModelContext
from harness.suite import validate_options

FACTS = DatasetFacts("tiny", (1, 8, 8), 17, ("a", "b", "c"))
SMALL: dict[str, Any] = {"network": {"kind": "mlp", "width": 16, "blocks": 1}}
DIT = "DiTTransformer2DModel"
UNET2D: dict[str, Any] = {
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}


def find(folder: Path, facts: DatasetFacts = FACTS, **options: Any) -> Source:
    return find_source(DenoiserOptions.model_validate(options), ModelContext("x", facts, "cpu", folder))


def foreign(**more: Any) -> dict[str, Any]:
    return {"network": {"kind": "diffusers", **more}}


def write(folder: Path, source: Source, name: str = "w.safetensors", **header: Any) -> Path:
    path = folder / name
    denoiser = source.make(1)
    _randomise(denoiser)
    checkpoints.save(path, holder(denoiser).state_dict(), {"notes": {"denoiser": note(source.blueprint)}, **header})
    return path


def _randomise(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for weight in module.parameters():
        weight.data = 0.1 * torch.randn(weight.shape, generator=generator)


def test_options_say_what_is_built(tmp_path: Path) -> None:
    default = find(tmp_path).make()
    assert isinstance(default.network, MLP)
    assert default.process == VP()
    assert (default.parameterisation, default.num_classes, default.null_class) == ("eps", 3, True)
    other = find(
        tmp_path,
        network={"kind": "unet", "channels": [8, 8]},
        process={"kind": "ddpm", "schedule": "cosine", "steps": 50},
        parameterisation="v",
        conditional=False,
    ).make()
    assert isinstance(other.network, UNet)
    assert other.process == DDPM("cosine", 50)
    assert (other.parameterisation, other.num_classes, other.null_class) == ("v", 0, False)


def test_initial_weights_come_from_the_seed_alone(tmp_path: Path) -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first, again, other = (find(tmp_path, **SMALL).make(seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_checkpoint_says_by_itself_what_it_is(tmp_path: Path) -> None:
    made = find(tmp_path, **SMALL, process={"kind": "sub-vp", "beta_max": 15.0}, parameterisation="x0")
    path = write(tmp_path, made)
    found = find(tmp_path, checkpoint="w.safetensors")
    assert found.blueprint == made.blueprint == read_blueprint(path)
    assert found.files == (path,)
    x, y = torch.randn(3, 1, 8, 8), torch.tensor([0, 2, 1])
    original = made.make(1)
    _randomise(original)
    assert torch.equal(found.make().score(x, 0.4, y), original.score(x, 0.4, y))
    assert find(tmp_path, replace(FACTS, class_names=("a", "b")), checkpoint="w.safetensors").blueprint.num_classes == 3


@pytest.mark.parametrize("architecture", ["UNet2DModel", DIT])
def test_a_folder_of_diffusers_gives_its_own_answers(architecture: str, tmp_path: Path) -> None:
    """Step k of the schedule is what the library is told, and the class is the library's."""
    diffusers = pytest.importorskip("diffusers")
    if architecture == "UNet2DModel":
        theirs = diffusers.UNet2DModel(sample_size=8, in_channels=1, out_channels=1, num_class_embeds=4, **UNET2D)
    else:
        theirs = diffusers.DiTTransformer2DModel(
            sample_size=8, in_channels=1, out_channels=2, num_attention_heads=2, attention_head_dim=8, num_layers=1,
            norm_num_groups=4, num_embeds_ada_norm=3,
        )  # fmt: skip
    _randomise(theirs)
    theirs.eval().save_pretrained(tmp_path / "net")
    source = find(tmp_path, **foreign(folder="net"), process={"kind": "ddpm"})
    assert [file.name for file in source.files] == ["diffusion_pytorch_model.safetensors", "config.json"]
    denoiser = source.make()
    x, y, k = torch.randn(2, 1, 8, 8), torch.tensor([2, 0]), torch.tensor([10, 700])
    with torch.no_grad():
        wanted = theirs(x, k, class_labels=y, return_dict=False)[0][:, :1]
        got = denoiser.noise(x, (k + 1.0) / 1000, y)
        null = denoiser.noise(x, (k + 1.0) / 1000)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    assert not torch.isclose(null, wanted).all()
    path = write(tmp_path, source)  # written by us it needs the folder no more
    again = find(tmp_path, checkpoint=path.name)
    assert "folder" not in json.dumps(again.blueprint.model_dump(exclude_none=True))
    assert set(checkpoints.load(path)[0]) == set(theirs.state_dict())
    assert isinstance(again.make().network, Foreign)


def test_the_librarys_label_dropout_is_off(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    config = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "norm_num_groups": 4}
    denoiser = find(tmp_path, **foreign(architecture=DIT, config=config)).make().train()
    _randomise(denoiser)
    x, y = torch.randn(64, 1, 8, 8), torch.zeros(64, dtype=torch.int64)
    torch.testing.assert_close(denoiser.noise(x, 0.5, y), denoiser.eval().noise(x, 0.5, y))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoint": "none.safetensors"}, r"checkpoint .*none\.safetensors does not exist"),
        ({"checkpoint": "$NO_SUCH_PLACE/a.safetensors"}, "the environment variable NO_SUCH_PLACE is not set"),
        ({"checkpoint": "builtin:digit"}, "no built-in checkpoint 'digit'.* \\(there are: "),
        ({"checkpoint": "other.safetensors"}, "other.safetensors holds no denoiser \\(model 'torch' wrote it\\)"),
        ({"checkpoint": "plain.safetensors"}, "plain.safetensors holds no denoiser \\(the harness did not write it\\)"),
        ({"checkpoint": "rgb.safetensors"}, r"is for images of shape \(3, 8, 8\), those of 'tiny' are \(1, 8, 8\)"),
        ({"checkpoint": "deep.safetensors"}, "is of images of 256 grey levels, those of 'tiny' have"),
        ({"checkpoint": "two.safetensors"}, "knows 2 classes, 'tiny' has 3"),
        ({"checkpoint": "small.safetensors", "parameterisation": "v"}, "was made with another `parameterisation`"),
        (
            {"checkpoint": "small.safetensors", "network": {"kind": "mlp"}},
            "made with another `network`: leave it out",
        ),
        ({"checkpoint": "odd.safetensors"}, r"notes\.denoiser\.process"),
        ({"checkpoint": "cut.safetensors"}, "does not fit the network: missing first.weight"),
        ({"checkpoint": "wide.safetensors"}, "does not fit the network: .*size mismatch"),
        ({"network": {"kind": "unet", "channels": [4, 4, 4, 4, 4]}}, "5 resolutions need sides divisible by 16"),
        ({"process": {"kind": "vp", "beta_min": 30.0}}, "process vp: 0 < beta_min <= beta_max"),
        (foreign(folder="missing"), "has no config.json"),
        (foreign(folder="pipe"), "has no config.json; it has unet, of which one is the network"),
        (foreign(folder="pipe/unet"), "has no diffusion_pytorch_model.safetensors"),
        (foreign(folder="vae"), "is of a AutoencoderKL; known are UNet2DModel and DiTTransformer2DModel"),
    ],
    ids=lambda value: None if isinstance(value, str) else "",
)
def test_what_cannot_be_built_is_one_line(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    small = find(tmp_path, **SMALL)
    write(tmp_path, small, "small.safetensors")
    checkpoints.save(tmp_path / "other.safetensors", {"w": torch.zeros(1)}, {"plugin": "torch"})
    checkpoints.save(tmp_path / "plain.safetensors", {"w": torch.zeros(1)}, {})
    write(tmp_path, find(tmp_path, replace(FACTS, shape=(3, 8, 8)), **SMALL), "rgb.safetensors")
    write(tmp_path, find(tmp_path, replace(FACTS, levels=256), **SMALL), "deep.safetensors")
    write(tmp_path, find(tmp_path, replace(FACTS, class_names=("a", "b")), **SMALL), "two.safetensors")
    notes = {"denoiser": note(small.blueprint)}
    odd = {"denoiser": {**notes["denoiser"], "process": {"kind": "vp", "beta": 1}}}
    checkpoints.save(tmp_path / "odd.safetensors", {}, {"notes": odd})
    weights = holder(small.make()).state_dict()
    checkpoints.save(
        tmp_path / "cut.safetensors", {k: v for k, v in weights.items() if k != "first.weight"}, {"notes": notes}
    )
    wide = {k: torch.cat([v, v]) for k, v in weights.items()}
    checkpoints.save(tmp_path / "wide.safetensors", wide, {"notes": notes})
    for folder, kind in (("pipe/unet", "UNet2DModel"), ("vae", "AutoencoderKL")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.json").write_text(json.dumps({"_class_name": kind}))
    (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").touch()
    with pytest.raises(HarnessError, match=message) as caught:
        find(tmp_path, **options).make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"config": {"blok_out_channels": [8]}}, "no argument 'blok_out_channels'; did you mean 'block_out_channels'"),
        ({"config": {**UNET2D, "in_channels": 3}}, "takes 3 channels, the images have 1"),
        ({"config": {**UNET2D, "num_class_embeds": 10}}, "has 10 class embeddings, 4 are wanted"),
        ({"config": {"block_out_channels": [8, 16]}}, "network UNet2DModel: ValueError: "),
        (
            {"architecture": DIT, "config": {"sample_size": 16}},
            "takes 16x16 images, these have 8x8",
        ),
        (
            {"architecture": DIT, "config": {"num_embeds_ada_norm": 1000}},
            "has 1000 class embeddings",
        ),
    ],
)
def test_configs_that_do_not_fit_are_one_line(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    with pytest.raises(HarnessError, match=message) as caught:
        find(tmp_path, **foreign(**options)).make()
    assert "\n" not in str(caught.value)


def test_dit_has_no_unconditional_form(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    with pytest.raises(HarnessError, match="is always told a class"):
        find(tmp_path, **foreign(architecture=DIT), conditional=False).make()


def test_without_diffusers_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(
        HarnessError, match=r"needs the library diffusers: pip install 'harness-robustness\[diffusion\]'"
    ):
        find(tmp_path, **foreign()).make()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"network": {"kind": "mlp", "witdh": 3}}, "witdh"),
        ({"network": {"kind": "resnet"}}, "resnet"),
        ({"process": {"kind": "vp", "std_max": 3}}, "std_max"),
        ({"network": {"kind": "diffusers", "folder": "a", "config": {"x": 1}}}, "give `folder` or `config`, not both"),
    ],
)
def test_options_that_contradict_are_refused(table: dict[str, Any], message: str) -> None:
    _, problems = validate_options(DenoiserOptions, table, "models.x")
    assert len(problems) == 1
    assert message in problems[0]
