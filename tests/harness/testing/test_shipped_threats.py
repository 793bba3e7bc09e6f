"""Every threat that ships with the harness keeps the contract, with options that make it do something."""

from __future__ import annotations

from typing import Any

from harness.host import load_host
from harness.testing import Check, parametrize_with_checks, synthetic_data, threat_checks

HOST = load_host()
CASES: dict[str, list[dict[str, Any]]] = {
    "clean": [{}],
    "pgd": [
        {"norm": "linf", "eps": "16/255", "steps": 4, "restarts": 2},
        {"norm": "l2", "eps": 0.5, "steps": 4, "early_stop": False, "loss": "margin"},
        {"norm": "linf", "eps": 0.2, "steps": 4, "target": "random"},
    ],
    "apgd": [
        {"norm": "linf", "eps": 0.2, "steps": 6},
        {"norm": "l1", "eps": 3, "steps": 6, "loss": "dlr", "targets": 2},
    ],
    "fab": [{"norm": "l2", "eps": 0.5, "steps": 5, "targets": 2}],
    "square": [{"norm": norm, "eps": eps, "queries": 12} for norm, eps in (("linf", 0.2), ("l2", 0.5), ("l1", 3))],
    "cw": [{"steps": 10, "search_steps": 2}, {"paper": "ib-inn", "steps": 10, "median_log_prob": 0.0}],
    "minimal-norm": [{"norm": norm, "steps": 8, "restarts": 2} for norm in ("linf", "l2", "l1")],
    "noise": [{"norm": norm, "eps": eps, "images": 4} for norm, eps in (("linf", 0.2), ("l2", 0.5), ("l1", 3))],
    "unbounded": [{"attack": {"plugin": "pgd", "norm": "l2", "steps": 3}}],
    "binarised": [{"attack": {"plugin": "pgd", "norm": "linf", "eps": 0.1, "steps": 3}, "points": 8}],
    "ood": [{}, {"sets": ["interpolated", "rotated", "blurred"]}],
    "interpolation": [{"points": 5}],
    "bitflip": [{}, {"bit": 7, "off_grid": "round"}],
    "corruptions": [{"corruptions": ["gaussian_noise", "glass_blur", "fog", "jpeg_compression"], "severities": [1, 5]}],
}
SHAPES = {"corruptions": (3, 9, 8)}  # 8 px is the least that they take
ELSEWHERE = {
    "art": "tests/harness/backends, where ART is there",
    "foolbox": "tests/harness/backends, where Foolbox is there",
    "torchattacks": "tests/harness/backends, where torchattacks is there",
    "autoattack": "takes minutes on a random model: tests/harness_attacks/test_autoattack.py; its parts are here",
    "ready-made-corruptions": "needs files: tests/harness_corruptions/test_ready_made.py",
    "replay": "needs a run: tests/harness_attacks/test_replay.py",
}
SHIPPED = {t.name for t in HOST.threats if "harness-robustness" in HOST.threats.owners[t.name].origin}


def test_every_shipped_threat_has_a_case() -> None:
    assert set(CASES) | set(ELSEWHERE) == SHIPPED


@parametrize_with_checks(
    check
    for name, cases in CASES.items()
    for options in cases
    for check in threat_checks(name, options, host=HOST, data=synthetic_data(SHAPES.get(name, (3, 6, 5)), 5))
)
def test_conformance(check: Check) -> None:
    check()
