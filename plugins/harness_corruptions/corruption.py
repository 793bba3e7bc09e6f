"""What a corruption is: a change of an image by five severities, its random part drawn apart from its use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from harness_corruptions.levels import from_levels, rounded, to_levels, truncated

if TYPE_CHECKING:
    from torch import Tensor

    from harness.randomness import Draws

Group = Literal["noise", "blur", "weather", "digital", "extra"]
Table = Literal["imagenet-c", "cifar10-c"]
Parameters = tuple[float, ...]
Drawn = Mapping[str, "Tensor"]
"""The random numbers of n images by name, (n, ...) each; empty for a corruption without randomness."""


@dataclass(frozen=True)
class Corruption:
    """One corruption of Hendrycks & Dietterich 2019 (arXiv 1903.12261).

    Attributes:
        name: as in ImageNet-C, ``gaussian_noise``.
        group: of the 15 that mCE averages, which of the four; or "extra".
        apply: ``apply(x, parameters, drawn, compat) -> (n, C, H, W)``: float32 images in [0, 1] -> corrupted ones,
            clipped to [0, 1] and not yet rounded to grey levels; with `on_levels` uint8 images -> whole grey levels, 0
            to 255, of any type. `compat` asks for the quirks of the original code that published numbers contain.
        draw: ``draw(draws, number, shape, parameters) -> Drawn``: its random numbers for images of ``shape`` (C, H, W),
            the `number`-th of each name; None for a corruption without randomness.
        severities: parameters of severities 1 to 5 by table.
        grey: what it means for an image of one channel, in a few words; "" where nothing is special about it.
        shared_draws: whether `draw` does not look at the parameters, so that what it draws serves every severity.
        on_levels: whether `apply` works on images of 8 bits; turning them into floats and back would cost as much.
    """

    name: str
    group: Group
    apply: Callable[[Tensor, Parameters, Drawn, bool], Tensor]
    draw: Callable[[Draws, int, tuple[int, ...], Parameters], Drawn] | None
    severities: Mapping[Table, tuple[Parameters, ...]]
    grey: str = ""
    shared_draws: bool = False
    on_levels: bool = False

    @property
    def extra(self) -> bool:
        """Whether it is one of the four that mCE leaves out."""
        return self.group == "extra"

    def at(
        self, x: Tensor, severities: Sequence[int], table: Table, draws: Draws, *, compat: bool = False
    ) -> Iterator[Tensor]:
        """The images at each of some severities, in 8 bits: rounded, or, with `compat`, truncated as the original does.

        An image meets the same random numbers at every severity, where their number does not depend on it (as that of
        snow and glass blur does).

        Args:
            x: float32 (n, C, H, W) in [0, 1], taken in 8 bits as well.
            severities: of 1 to 5.
            draws: the random streams of the n images.
        """
        x = to_levels(x) if self.on_levels else rounded(x)
        drawn: Drawn | None = None
        for severity in severities:
            parameters = self.severities[table][severity - 1]
            if drawn is None or not self.shared_draws:
                drawn = self.draw(draws, 0, tuple(x.shape[1:]), parameters) if self.draw else {}
            yield self._in_8_bits(self.apply(x, parameters, drawn, compat), compat)

    def once(self, x: Tensor, parameters: Parameters, drawn: Drawn, compat: bool) -> Tensor:
        """The images for these parameters and random numbers, both sides as in `at`."""
        x = to_levels(x) if self.on_levels else rounded(x)
        return self._in_8_bits(self.apply(x, parameters, drawn, compat), compat)

    def _in_8_bits(self, images: Tensor, compat: bool) -> Tensor:
        if self.on_levels:
            return from_levels(images)
        return truncated(images) if compat else rounded(images)
