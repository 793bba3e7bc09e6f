"""How the outputs of a model are read where the data have other classes than it: fewer, or one for several of its."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.errors import ModelError, ThreatError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Readout:
    """What each class of the data is among the outputs of the model.

    A class scores as much as the best of its outputs does, so that the class with the largest score is the one that
    holds the model's prediction: right is a prediction in the set. `restricted`: outputs of no class are left out, and
    the model chooses among the classes of the data alone; else all of them together are one further class, the last.

    Attributes:
        groups: the outputs of each class, ascending; no output is in two.
    """

    groups: tuple[tuple[int, ...], ...]
    restricted: bool

    def width(self, outputs: int) -> int:
        """How many classes are told apart, of a model of so many outputs.

        Raises:
            ModelError: the model lacks an output that the data name.
        """
        highest = max(group[-1] for group in self.groups)
        if highest >= outputs:
            raise ModelError(
                f"the data's label_map or classes name class {highest}, but the model has {outputs} classes (0 to"
                f" {outputs - 1})"
            )
        return len(self.groups) + bool(self._rest(outputs))

    def of(self, scores: Tensor) -> Tensor:
        """(B, K) scores of the model's classes -> (B, `width`) scores of the data's."""
        import torch

        groups = [*self.groups, *filter(None, [self._rest(scores.shape[1])])]
        self.width(scores.shape[1])
        if all(len(group) == 1 for group in groups):
            return scores[:, [group[0] for group in groups]]
        order = [output for group in groups for output in group]
        parts = torch.split(scores[:, order], [len(group) for group in groups], dim=1)
        return torch.stack([part.amax(dim=1) for part in parts], dim=1)

    def model_classes(self, y: Tensor) -> Tensor:
        """The model's class for each of the data's classes `y`, int64 (B,).

        Raises:
            ThreatError: one stands for several, or for none.
        """
        import torch

        first = torch.tensor([group[0] for group in self.groups], device=y.device)
        single = torch.tensor([len(group) == 1 for group in self.groups], device=y.device)
        if len(y) and (int(y.max()) >= len(first) or not bool(single[y].all())):
            raise ThreatError("a class of the data stands for several of the model's: there is no one class to ask for")
        return first[y]

    def _rest(self, outputs: int) -> tuple[int, ...]:
        if self.restricted:
            return ()
        claimed = {output for group in self.groups for output in group}
        return tuple(output for output in range(outputs) if output not in claimed)
