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
    "ood": [{}],
}
ELSEWHERE = {
    "art": "tests/harness/backends, where ART is there",
    "foolbox": "tests/harness/backends, where Foolbox is there",
    "torchattacks": "tests/harness/backends, where torchattacks is there",
    "replay": "needs a run: tests/harness_attacks/test_replay.py",
}
SHIPPED = {t.name for t in HOST.threats if "harness-robustness" in HOST.threats.owners[t.name].origin}


def test_every_shipped_threat_has_a_case() -> None:
    assert set(CASES) | set(ELSEWHERE) == SHIPPED


@parametrize_with_checks(
    check
    for name, cases in CASES.items()
    for options in cases
    for check in threat_checks(name, options, host=HOST, data=synthetic_data((3, 6, 5), 5))
)
def test_conformance(check: Check) -> None:
    check()
