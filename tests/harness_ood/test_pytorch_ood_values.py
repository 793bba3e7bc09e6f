"""Scores and metrics against values recorded from pytorch-ood 0.4.0 (which needs torchvision to run).

Its AUPR is by the trapezoidal rule and ours, as scikit-learn's, a sum over thresholds: up to 0.03 apart on these 110
images. Its Mahalanobis score is half the squared distance under an unshrunk scatter matrix, not divided by n.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness_ood import feature_detectors
from harness_ood.feature_detectors import Mahalanobis, NearestNeighbours, ViM
from harness_ood.scores import SCORES, Asked

from harness.metrics.detection import AUPR_IN, AUPR_OUT, AUROC, FPR_ID_AT_95_TPR_OOD
from harness.models import Reference

RECORDED = json.loads((Path(__file__).parent / "pytorch_ood_values.json").read_text())


def fixed_data() -> dict[str, np.ndarray[Any, Any]]:
    """Features, a last layer, labels, and scores of which many are tied. RandomState's streams never change."""
    state = np.random.RandomState(20)
    labels = np.arange(400) % 4
    centres, spread = state.normal(size=(4, 12)) * 2, state.normal(size=(12, 12)) / 3
    held_out = centres[labels] + state.normal(size=(400, 12)) @ spread
    inside = centres[np.arange(60) % 4] + state.normal(size=(60, 12)) @ spread
    outside = 1.2 * state.normal(size=(50, 12))
    return {
        "labels": labels,
        "held_out": held_out,
        "images": np.concatenate([inside, outside]),
        "weight": state.normal(size=(4, 12)),
        "bias": state.normal(size=4),
        "tied": np.concatenate([state.randint(0, 12, 60), state.randint(4, 16, 50)]).astype(float),
    }


DATA = fixed_data()
LOGITS = DATA["images"] @ DATA["weight"].T + DATA["bias"]


def metric_values(scores: Any) -> dict[str, float]:
    rows = {"sample_id": np.arange(110), "set": np.repeat(["in", "out"], [60, 50]), "ood_score": np.asarray(scores)}
    metrics = {"AUROC": AUROC, "AUPR-OUT": AUPR_OUT, "AUPR-IN": AUPR_IN, "FPR95TPR": FPR_ID_AT_95_TPR_OOD}
    return {name: float(metric.estimate(rows, 0.95)["out"].value or 0) for name, metric in metrics.items()}


@pytest.mark.parametrize("name", ["energy", "entropy", "max-logit", "max-softmax"])
def test_scores_of_logits(name: str) -> None:
    asked = Asked.__new__(Asked)
    asked.logits = torch.from_numpy(LOGITS)
    found = SCORES[name].of(asked)
    if name == "max-softmax":
        found = -1 / (1 + found.exp())  # theirs is minus the largest probability
    np.testing.assert_allclose(found.numpy(), RECORDED["scores"][name], rtol=1e-4, atol=1e-5)


def test_nearest_neighbours() -> None:
    detector = NearestNeighbours.of(Reference({"features": DATA["held_out"]}), torch.zeros(1))
    np.testing.assert_allclose(detector(torch.from_numpy(DATA["images"])), RECORDED["scores"]["knn"], rtol=1e-7)


def test_vim() -> None:
    logits = DATA["held_out"] @ DATA["weight"].T + DATA["bias"]
    detector = ViM.of(Reference({"features": DATA["held_out"], "logits": logits}), torch.zeros(1))
    found = detector(torch.from_numpy(DATA["images"]), torch.from_numpy(LOGITS))
    np.testing.assert_allclose(found, RECORDED["scores"]["vim"], rtol=1e-4, atol=1e-4)


def test_mahalanobis(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = Reference({"features": DATA["held_out"], "label": DATA["labels"]})
    images = torch.from_numpy(DATA["images"])
    shrunk = Mahalanobis.of(reference, torch.zeros(1))
    assert 0 < shrunk.shrinkage < 0.05
    found = metric_values(shrunk(images))["AUROC"]
    assert found == pytest.approx(RECORDED["metrics"]["mahalanobis"]["AUROC"], abs=0.01)

    def plain(centred: torch.Tensor) -> tuple[torch.Tensor, float]:
        return centred.T @ centred / len(centred), 0.0

    monkeypatch.setattr(feature_detectors, "ledoit_wolf", plain)
    score = Mahalanobis.of(reference, torch.zeros(1))(images) / (2 * 400)
    np.testing.assert_allclose(score, RECORDED["scores"]["mahalanobis"], rtol=1e-3)


@pytest.mark.parametrize("name", RECORDED["metrics"])
def test_metrics(name: str) -> None:
    scores = DATA["tied"] if name == "tied" else np.array(RECORDED["scores"][name])
    found, wanted = metric_values(scores), RECORDED["metrics"][name]
    for metric in ("AUROC", "FPR95TPR"):
        assert found[metric] == pytest.approx(wanted[metric], abs=1e-6)
    for metric in ("AUPR-OUT", "AUPR-IN"):
        assert found[metric] == pytest.approx(wanted[metric], abs=0.03)
