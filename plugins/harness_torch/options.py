"""Options of the model `torch` and of its training. No torch in here: listing options stays quick."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import model_validator
from pydantic_core import PydanticCustomError

from harness.options import Amount, Options, option


class Normalize(Options):
    """(x - mean) / std, per channel, applied inside the model."""

    mean: tuple[float, ...] = option(help="mean of each channel, in units of images in [0, 1]", min_length=1)
    std: tuple[float, ...] = option(help="standard deviation of each channel", min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.mean) != len(self.std):
            raise PydanticCustomError("normalize", "mean and std must have the same length")
        if min(self.std) <= 0:
            raise PydanticCustomError("normalize", "every std must be above 0")
        return self


class TorchOptions(Options):
    """Where the module comes from and what goes around it."""

    factory: str | None = option(
        None,
        help='what builds the module: "package.module:callable"; the suite\'s folder is on the import path',
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$",
    )
    factory_args: dict[str, Any] = option(default_factory=dict, help="keyword arguments of the factory")
    file: str | None = option(
        None, help='a whole model in one file: an exported program (".pt2"), or TorchScript (any other ending)'
    )
    checkpoint: str | None = option(
        None,
        help='weights: a ".safetensors", ".pt", ".pth" or ".th" file (may begin with $HARNESS_DATA), or "builtin:NAME"'
        " (of another package builtin:PACKAGE/NAME); enough alone if `harness fit` wrote it",
    )
    key: str | None = option(None, help='entry of the checkpoint that holds the weights, such as "state_dict"')
    prefix: str | None = option(
        None, help='use the weights whose names begin with this, such as "module.", and remove it'
    )
    normalize: Normalize | None = option(None, help="mean and std of each channel, applied inside the model")
    random: bool = option(
        False, help="the module draws from torch's global generator: it is given one image and one seed at a time"
    )
    surrogates: dict[str, str] = option(
        default_factory=dict,
        help='gradients for steps that have none (BPDA): submodule -> "identity", or "package.module:callable", a'
        " differentiable function of the step's input; answers stay as they are",
    )
    features: str | None = option(
        None,
        help="submodule whose output are the model's features, for detectors that work on them: the layer before the"
        ' last linear one, such as "avgpool" or "6"; maps (B, C, H, W) are averaged over space, anything else is'
        " flattened",
        min_length=1,
    )
    num_classes: int | None = option(
        None, help="number of classes; without it one forward pass on a blank image tells", ge=1
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.factory and self.file:
            raise PydanticCustomError("torch", "give `factory` or `file`, not both")
        if self.file and self.checkpoint:
            raise PydanticCustomError("torch", "`file` holds a whole model; `checkpoint` belongs to a `factory`")
        if not (self.factory or self.file or self.checkpoint):
            raise PydanticCustomError("torch", "give `factory`, `file` or a `checkpoint` written by `harness fit`")
        if self.factory_args and not self.factory:
            raise PydanticCustomError("torch", "`factory_args` needs `factory`")
        if self.surrogates and self.file:
            raise PydanticCustomError("torch", "`surrogates` needs a `factory`: the steps of a `file` are fixed")
        if self.features and self.file:
            raise PydanticCustomError("torch", "`features` needs a `factory`: the steps of a `file` cannot be seen")
        if (self.key is not None or self.prefix is not None) and not self.checkpoint:
            raise PydanticCustomError("torch", "`key` and `prefix` need `checkpoint`")
        return self


class Adversarial(Options):
    """The inner maximisation of adversarial training (Madry et al. 2018, equation 2.1), solved by PGD."""

    norm: Literal["linf", "l2"] = option("linf", help="norm of the perturbation, per image over all entries")
    eps: Amount = option(help="radius of the perturbation", unit="[0, 1] pixel units")
    steps: int = option(10, help="gradient steps of the attack", ge=1)
    step_size: Amount | None = option(
        None, help="length of a gradient step; 2.5 eps / steps by default", unit="[0, 1] pixel units"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.eps <= 0 or (self.step_size is not None and self.step_size <= 0):
            raise PydanticCustomError("adversarial", "eps and step_size must be above 0")
        return self


class FitRecipe(Options):
    """How `harness fit` trains a module."""

    epochs: int = option(30, help="passes over the training data", ge=1)
    batch_size: int = option(128, help="images in a batch", ge=1)
    optimizer: Literal["sgd", "adam", "adamw"] = option("adamw", help="optimiser; sgd has Nesterov momentum 0.9")
    lr: float = option(1e-3, help="highest learning rate", gt=0)
    schedule: Literal["cosine", "constant", "one-cycle"] = option(
        "cosine", help="learning rate over the steps; one-cycle rises over the first 30 %"
    )
    weight_decay: float = option(0.0, help="weight decay", ge=0)
    shift: int = option(0, help="random shift of the images, up to this far in each direction", unit="pixels", ge=0)
    flip: bool = option(False, help="mirror half of the images left to right, at random")
    label_smoothing: float = option(0.0, help="share of the target spread evenly over all classes", ge=0, lt=1)
    adversarial: Adversarial | None = option(None, help="train on adversarial images found by PGD")
    validation: float = option(
        0.0, help="share of the data held out, chosen by the seed, to report an accuracy on", ge=0, lt=1
    )
