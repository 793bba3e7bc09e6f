"""The audit's checks on made-up rows: each flags what it is for, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from harness.audit import COLUMNS, Check, audit, judge_probe, non_monotone

N = 200


def honest_rows() -> dict[str, np.ndarray]:
    """An attack that took half of the samples early and raised the loss of the rest."""
    success = np.arange(N) % 2 == 0
    return {
        "clean_correct": np.ones(N, dtype=bool),
        "success": success,
        "zero_gradient_steps": np.zeros(N, dtype=int),
        "nonfinite_gradient_steps": np.zeros(N, dtype=int),
        "gradient_steps": np.where(success, 7, 40),
        "loss_first": np.full(N, -5.0),
        "loss_last": np.full(N, -1.0),
        "success_step": np.where(success, 7, -1),
        "steps": np.full(N, 40),
        "stochastic": np.zeros(N, dtype=bool),
        "eot": np.ones(N, dtype=int),
        "success_rounded": success.copy(),
        "attack": np.where(success, "apgd-ce", ""),
        "adversarial_ood_score": np.linspace(0, 1.05, N),
        "ood_threshold": np.tile([0.99, 0.95, 0.9], (N, 1)),
        "budget_given": np.ones(N, dtype=bool),
        "refused": np.zeros(N, dtype=bool),
        "replayed": np.ones(N, dtype=int),
        "found": np.ones(N, dtype=bool),
    }


def flags(rows: dict[str, np.ndarray]) -> list[str]:
    return [check.check for check in audit(rows) if not check.ok]


def test_an_honest_attack_passes_every_check():
    checks = audit(honest_rows())
    assert [c.check for c in checks] == [
        "zero_gradients",
        "nonfinite_gradients",
        "loss_not_increasing",
        "not_converged",
        "silent_success",
        "random_without_eot",
        "lost_by_rounding",
        "black_box_wins",
        "fails_without_budget",
        "refused",
        "nothing_shown",
        "detector_ignored",
    ]
    assert all(c.ok and c.message == "" for c in checks)


def test_rows_of_no_iterative_attack_have_no_audit():
    assert audit({"clean_correct": np.ones(5, dtype=bool), "success": np.zeros(5, dtype=bool)}) == []
    assert audit({}) == []


def test_columns_are_those_the_checks_read():
    assert set(COLUMNS) == {*honest_rows(), "evaded", "sample_id", "task_posed", "task_solved"}


@pytest.mark.parametrize(("blind", "flagged"), [(1, False), (4, False), (12, True)])
def test_zero_gradients_are_flagged_where_more_than_one_percent_is_sure(blind, flagged):
    rows = honest_rows()
    rows["zero_gradient_steps"][:blind] = 1
    assert flags(rows) == (["zero_gradients"] if flagged else [])


def test_samples_that_were_not_attacked_count_nowhere():
    rows = honest_rows()
    rows["clean_correct"][: N // 2] = False
    rows["zero_gradient_steps"][: N // 2] = 40
    rows["nonfinite_gradient_steps"][: N // 2] = 40
    rows["loss_last"][: N // 2] = np.nan
    assert flags(rows) == []


def test_one_nonfinite_gradient_is_enough():
    rows = honest_rows()
    rows["nonfinite_gradient_steps"][5] = 1
    assert flags(rows) == ["nonfinite_gradients"]


def test_loss_that_does_not_rise_on_robust_samples_is_flagged():
    rows = honest_rows()
    rows["loss_last"][~rows["success"]] = -5.0
    assert flags(rows) == ["loss_not_increasing"]
    assert "100 of 100" in next(c.message for c in audit(rows) if not c.ok)


def test_a_few_samples_on_a_plateau_raise_no_flag():
    rows = honest_rows()
    rows["loss_last"][np.flatnonzero(~rows["success"])[:10]] = -5.0
    assert flags(rows) == []


def test_flat_loss_of_fallen_samples_is_not_a_failure():
    rows = honest_rows()
    rows["loss_last"][rows["success"]] = -9.0
    assert flags(rows) == []


def test_success_in_the_last_steps_is_flagged():
    rows = honest_rows()
    rows["success_step"] = np.where(rows["success"], 38, -1)
    assert flags(rows) == ["not_converged"]
    rows["success_step"] = np.where(rows["success"], 36, -1)
    assert flags(rows) == []


def test_two_late_successes_of_twenty_prove_nothing_but_five_do():
    rows = {k: v[:40] for k, v in honest_rows().items()}
    rows["success_step"][np.flatnonzero(rows["success"])[:2]] = 40
    assert flags(rows) == []
    rows["success_step"][np.flatnonzero(rows["success"])[:5]] = 40
    assert flags(rows) == ["not_converged"]


@pytest.mark.parametrize(("lost", "flagged"), [(3, False), (8, True)])
def test_images_that_the_attack_believed_in_and_the_host_does_not(lost, flagged):
    rows = honest_rows()
    rows["success"][np.flatnonzero(rows["success"])[:lost]] = False
    rows["loss_last"][:] = 1.0
    assert flags(rows) == (["silent_success"] if flagged else [])
    rows["stochastic"][:] = True
    rows["eot"][:] = 10
    assert flags(rows) == []  # a lucky draw is no lost success


def test_a_random_model_needs_eot():
    rows = honest_rows()
    rows["stochastic"][:] = True
    assert flags(rows) == ["random_without_eot"]
    rows["eot"][:] = 10
    assert flags(rows) == []


@pytest.mark.parametrize(("lost", "flagged"), [(50, False), (70, True)])
def test_images_that_only_fool_between_grey_levels(lost, flagged):
    rows = honest_rows()
    rows["success_rounded"][np.flatnonzero(rows["success"])[:lost]] = False
    assert flags(rows) == (["lost_by_rounding"] if flagged else [])


@pytest.mark.parametrize(("found", "flagged"), [(2, False), (8, True)])
def test_a_black_box_part_that_beats_the_parts_with_gradients(found, flagged):
    rows = honest_rows()
    rows["attack"][np.flatnonzero(rows["success"])[:found]] = "square"
    assert flags(rows) == (["black_box_wins"] if flagged else [])


def test_a_detector_that_rejects_most_adversarial_images_must_be_attacked_too():
    rows = honest_rows()
    rows["adversarial_ood_score"] += 1.0
    assert flags(rows) == ["detector_ignored"]
    assert flags({**rows, "evaded": np.zeros(N, dtype=bool)}) == []


def test_images_that_a_librarys_attack_put_outside_its_budget():
    rows = honest_rows()
    rows["refused"][: N // 4] = True
    assert flags(rows) == ["refused"]
    rows["budget_given"][:] = False  # it looks for the smallest norm, which may well be above eps
    assert flags(rows) == []


def test_an_attack_without_a_budget_that_finds_nothing():
    rows = honest_rows()
    rows["found"][: N // 4] = False
    assert flags(rows) == ["fails_without_budget"]
    rows["clean_correct"][: N // 4] = False
    assert flags(rows) == []


def test_randomness_does_not_matter_where_nothing_is_attacked():
    rows = honest_rows()
    rows["stochastic"][:] = True
    assert flags(rows) == ["random_without_eot"]
    rows["gradient_steps"][:] = 0
    assert "random_without_eot" not in flags(rows)


def test_samples_of_which_there_is_nothing_to_replay():
    rows = honest_rows()
    rows["replayed"][: N // 4] = 0
    assert flags(rows) == ["nothing_shown"]
    rows["clean_correct"][: N // 4] = False
    assert flags(rows) == []


@pytest.mark.parametrize("empty", [0, 1])
def test_cells_without_attacked_samples_pass(empty):
    rows = {k: v[:empty] for k, v in honest_rows().items()}
    rows["clean_correct"] = np.zeros(empty, dtype=bool)
    assert all(c.ok for c in audit(rows))


def cell(eps: float, robust: int, ids: np.ndarray | None = None) -> tuple[float, dict[str, np.ndarray]]:
    ids = np.arange(N) if ids is None else ids
    return eps, {"sample_id": ids, "clean_correct": np.ones(N, dtype=bool), "success": ids >= robust}


def test_robust_accuracy_falling_with_eps_is_fine():
    assert non_monotone([cell(0.3, 10), cell(0.1, 150), cell(0.2, 60)]) == [Check("non_monotone", True, "")]


def test_a_rise_with_eps_is_flagged_with_both_numbers_whatever_the_order_of_rows():
    shuffled = np.random.default_rng(0).permutation(N)
    (check,) = non_monotone([cell(0.3, 60, shuffled), cell(0.1, 100), cell(0.2, 20)])
    assert not check.ok
    assert "10.0% at eps 0.2" in check.message
    assert "30.0% at eps 0.3" in check.message


def test_a_rise_by_a_few_samples_is_noise():
    assert non_monotone([cell(0.1, 100), cell(0.2, 104)])[0].ok
    assert not non_monotone([cell(0.1, 100), cell(0.2, 105)])[0].ok


def probed(stands: int, n: int = 64, right: int = 64) -> dict[str, np.ndarray]:
    ids = np.arange(n)
    return {"sample_id": ids, "clean_correct": ids < right, "success": (ids >= stands) & (ids < right)}


def verdict(judge, rows, probe_rows) -> str:
    check = judge_probe("probe_x", judge, "do this", rows, probe_rows)
    assert check.check == "probe_x"
    assert check.ok == (check.message == "")
    return check.message


@pytest.mark.parametrize(("more", "flagged"), [(0, False), (2, False), (8, True)])
def test_a_probe_that_fools_what_the_attack_did_not(more, flagged):
    message = verdict("stronger", probed(40), probed(40 - more))
    assert bool(message) == flagged
    if flagged:
        assert message.startswith(f"probe 'x' fooled {more} of 64 samples")
        assert message.endswith("; do this")


def test_a_weaker_probe_says_nothing():
    assert verdict("stronger", probed(10), probed(60)) == ""


def test_probe_rows_meet_their_samples_whatever_the_order():
    rows = probed(180, n=N, right=N)
    shuffled = np.random.default_rng(0).permutation(64)
    probe_rows = {name: column[shuffled] for name, column in probed(50).items()}
    assert "14 of 64" in verdict("stronger", rows, probe_rows)


@pytest.mark.parametrize(("stands", "flagged"), [(0, False), (4, False), (10, True)])
def test_nothing_withstands_an_unbounded_budget(stands, flagged):
    assert bool(verdict("unbounded", probed(60), probed(stands))) == flagged


@pytest.mark.parametrize(("solved", "flagged"), [(64, False), (58, False), (50, True)])
def test_guaranteed_images_are_found(solved, flagged):
    ids = np.arange(70)
    probe_rows = {"sample_id": ids, "task_posed": ids < 64, "task_solved": (ids < solved) | (ids >= 64)}
    assert bool(verdict("guaranteed", probed(60), probe_rows)) == flagged
    own = {"sample_id": ids, "clean_correct": ids < 64, "success": ids < solved}
    assert bool(verdict("guaranteed", probed(60), own)) == flagged


@pytest.mark.parametrize("judge", ["stronger", "unbounded", "guaranteed"])
def test_a_probe_without_samples_raises_no_flag(judge):
    assert verdict(judge, probed(5), probed(0, n=3, right=0)) == ""
