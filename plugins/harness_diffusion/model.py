"""The model `diffusion`: a denoiser that draws images of a class."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from harness.errors import ModelError
from harness.models import ModelContext
from harness.randomness import Draws
from harness_diffusion.building import Source, find_source
from harness_diffusion.options import DenoisingRecipe, DiffusionOptions
from harness_diffusion.sampling import sample
from harness_diffusion.scaling import quantise, to_image

if TYPE_CHECKING:
    from harness.datasets import DatasetSlice
    from harness.training import FitSession


class DiffusionModel(nn.Module):
    """Draws images by running a diffusion process backwards.

    Attributes:
        num_classes: classes that can be asked for.
        files: the files it was built from, for the model's digest.
    """

    def __init__(self, name: str, source: Source, options: DiffusionOptions) -> None:
        super().__init__()
        self.name = name
        self.source = source
        self.options = options
        self.denoiser = source.make()
        self.num_classes = source.blueprint.num_classes
        self.files = source.files

    def sample(self, y: Tensor, *, draws: Draws) -> Tensor:
        """(B, C, H, W) in [0, 1], on the grey levels of the data: image i of class y[i], from stream i of `draws`.

        Raises:
            ModelError: the model knows no such class.
        """
        if self.denoiser.num_classes and len(y) and not 0 <= int(y.min()) <= int(y.max()) < self.num_classes:
            raise ModelError(f"model '{self.name}' knows classes 0 to {self.num_classes - 1}, not {int(y.max())}")
        v = sample(
            lambda x, t: self.denoiser.noise(x, t, y),
            self.denoiser.process,
            self.source.blueprint.shape,
            draws,
            self.options.sampling,
            self.denoiser.smallest_time,
        )
        return quantise(to_image(v), self.source.blueprint.levels)

    def fit(self, data: DatasetSlice, recipe: DenoisingRecipe, session: FitSession) -> None:
        """Train the denoiser anew (from the checkpoint, where the options name one) and write `session.out`."""
        from harness_diffusion.training import fit

        self.denoiser = fit(self.source, data, recipe, session)


def build(options: DiffusionOptions, context: ModelContext) -> DiffusionModel:
    """The model plugin's factory.

    Raises:
        HarnessError: one line: a file is missing or unreadable, or does not fit; diffusers is not installed.
    """
    return DiffusionModel(context.name, find_source(options, context), options)
