"""When APGD looks at its step sizes, and what it decides."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from harness_attacks import apgd
from harness_attacks.apgd_moves import SparseMoves, moves_around


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(100, [22, 41, 57, 70, 80, 87, 93, 99]), (50, [11, 21, 30, 38, 45])],
)
def test_checkpoints_are_the_papers(monkeypatch: pytest.MonkeyPatch, steps: int, expected: list[int]) -> None:
    """p_1 = 0.22, p_(j+1) = p_j + max(p_j - p_(j-1) - 0.03, 0.06) of the steps (section 3.1), in whole steps."""
    seen = checks_of(monkeypatch, {"eps": 0.001, "steps": steps})
    assert [step for step, _ in seen][: len(expected)] == expected


def test_a_step_is_halved_where_the_loss_stalls(monkeypatch: pytest.MonkeyPatch) -> None:
    """The image is soon in its corner: no loss rises any more."""
    seen = checks_of(monkeypatch, {"eps": 0.001, "steps": 100})
    sizes = [size for _, size in seen]
    assert sizes[0] == pytest.approx(0.002)
    assert all(later <= earlier for earlier, later in pairwise(sizes))
    assert sizes[-1] < 0.002 / 16


def checks_of(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> list[tuple[int, float]]:
    """The step at each check and the step size before it, of one sample that stands."""
    from harness.models import ModelView
    from harness.randomness import draws_for
    from harness.threats import Batch

    class Linear:
        num_classes = 2

        def __init__(self) -> None:
            self.calls = 0

        def logits(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            total = x.sum(dim=(1, 2, 3))
            return torch.stack([total, total * 0], dim=1)

    seen: list[tuple[int, float]] = []
    check = apgd._Run._check

    def watched(self: Any, paths: Any, window: int) -> None:
        seen.append((model.calls - 1, float(paths.moves.size[0])))
        check(self, paths, window)

    monkeypatch.setattr(apgd._Run, "_check", watched)
    model = Linear()
    ids = torch.arange(1)
    x = torch.full((1, 1, 4, 4), 0.5)
    batch = Batch(x, ids, ids, draws_for(ids, 0), torch.tensor([[8.0, 0.0]]))
    view = ModelView(model, {"Classifier"}, ids, 0, "attack")
    apgd.APGD(apgd.APGDOptions.model_validate(options)).run(view, batch)
    return seen


def test_sparse_steps_follow_the_support_of_the_best_image() -> None:
    centre = torch.full((2, 1, 4, 5), 0.5)
    moves = moves_around(centre, None, "l1", 1.0)
    assert isinstance(moves, SparseMoves)
    assert moves.share.tolist() == pytest.approx([0.2, 0.2])
    gradient = torch.arange(1.0, 21.0).reshape(1, 1, 4, 5).repeat(2, 1, 1, 1)
    change = moves.next(centre, centre, gradient, first=True) - centre
    assert (change != 0).sum(dim=(1, 2, 3)).tolist() == [4, 4]
    assert change.sum(dim=(1, 2, 3)).tolist() == pytest.approx([1.0, 1.0])

    best = centre.clone()
    best[0, 0, 0, :3] += 0.1  # a support of 3 entries, down from all 20: large steps again, on two entries
    best[1] += 0.01  # all 20 as before: a smaller step
    assert moves.adapt(best).tolist() == [True, False]
    assert moves.size.flatten().tolist() == pytest.approx([1.0, 1 / 1.5])
    change = moves.next(centre, centre, gradient, first=False) - centre
    assert (change != 0).sum(dim=(1, 2, 3)).tolist() == [2, 14]
    for _ in range(20):
        moves.adapt(best)
    assert moves.size.flatten().tolist() == pytest.approx([0.1, 0.1])
