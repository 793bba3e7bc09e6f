"""Options of the model `ib-inn` and of its training. No torch in here: listing options stays quick."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, PlainSerializer, model_validator

from harness.options import Options, option, problem


class IBINNOptions(Options):
    """Which network, with which weights, and how it is asked."""

    checkpoint: str | None = option(
        None, help='weights written by `harness fit ib-inn` (may begin with $HARNESS_DATA), or "builtin:NAME"'
    )
    layout: Literal["digits", "mnist", "cifar10", "imagenet"] | None = option(
        None, help="the network: which blocks, for which images; a checkpoint says it itself"
    )
    mixing: Literal["orthogonal", "permutation"] | None = option(
        None,
        help="what follows each coupling: a random orthogonal matrix (the paper, and the default), or a random"
        " permutation of the channels (the authors' released code); a checkpoint says it itself",
    )
    detector: Literal["one-tailed", "typicality", "two-tailed"] = option(
        "two-tailed",
        help="ood_score: -log p(x); or its distance from the mean of the training images; or a two-tailed test by their"
        " quantiles",
    )
    crops: Literal["centre", "ten"] | None = option(
        None,
        help="for images larger than the layout: classify their centre, or average the posteriors of the four corners,"
        " the centre and their mirror images; log-likelihoods are those of the centre, and bits/dim is refused",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.checkpoint is None and self.layout is None:
            raise problem("give `layout` (digits, mnist, cifar10, imagenet), or a `checkpoint`, which says it")
        return self


def _beta(value: Any) -> Any:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise problem(f"'{value}' is not a number or \"inf\"") from None
    if isinstance(value, (int, float)) and not isinstance(value, bool) and not value >= 0:
        raise problem(f'{value:g} is no weight of L_Y: beta is 0 (no classification) or more, up to "inf"')
    return value


Beta = Annotated[
    float,
    BeforeValidator(_beta),
    PlainSerializer(lambda value: "inf" if math.isinf(value) else value, when_used="json"),
]
"""A number from 0 to infinity, which JSON and TOML write as "inf"."""


class FitRecipe(Options):
    """How `harness fit ib-inn` trains: the loss (L_X + beta L_Y) / (1 + beta)."""

    beta: Beta = option(1.0, help='weight of the classification loss L_Y against the density loss L_X; 0 to "inf"')
    epochs: int = option(100, help="passes over the training data", ge=1)
    batch_size: int = option(128, help="images in a batch", ge=1)
    optimizer: Literal["adam", "sgd"] = option(
        "adam", help="optimiser; sgd has momentum 0.9, adam decoupled weight decay"
    )
    lr: float = option(1e-3, help="highest learning rate", gt=0)
    schedule: Literal["cosine", "constant", "one-cycle", "steps"] = option(
        "cosine",
        help="learning rate over the steps; one-cycle rises over the first 30 %; steps divides by 10 at 60 % and 85 %",
    )
    weight_decay: float = option(0.0, help="weight decay of the subnetworks' matrices", ge=0)
    clip: float = option(8.0, help="largest norm of the gradient", gt=0)
    label_smoothing: float = option(0.05, help="share of the target spread evenly over all classes", ge=0, lt=1)
    shift: int = option(0, help="random shift of the images, up to this far in each direction", unit="pixels", ge=0)
    shift_share: float = option(1.0, help="share of the images that are shifted", gt=0, le=1)
    flip: bool = option(False, help="mirror half of the images left to right, at random")
    plane: bool = option(
        False,
        help="keep the class means in one plane, so that the whole decision space can be drawn; from a checkpoint, of"
        " whose classes the data may have only some, renumbered by label_map",
    )
