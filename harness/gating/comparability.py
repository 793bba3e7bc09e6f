"""Can these runs be held against each other?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.errors import ExitCode, HarnessError

if TYPE_CHECKING:
    from harness.store import Run


class IncompleteRunError(HarnessError):
    """A run that lacks shards: the gate does not speak."""

    exit_code = ExitCode.INCONCLUSIVE


def check_comparable(candidate: Run, baseline: Run) -> None:
    """Raise the reason why two runs cannot be held against each other, if there is one."""
    check_gateable(candidate, "candidate")
    check_gateable(baseline, "baseline")
    ours, theirs = candidate.info["identity"], baseline.info["identity"]
    if ours["hash"] != theirs["hash"]:
        parts = [key for key in ours if key != "hash" and ours[key] != theirs.get(key)]
        said = (
            "; ".join(_part_in_words(part, candidate, baseline) for part in parts) or "other parts than this version's"
        )
        raise HarnessError(
            f"candidate {candidate.folder} and baseline {baseline.folder} are not runs of one suite: {said};"
            " run the candidate's suite for the baseline again, or accept a new baseline"
        )


def check_gateable(run: Run, role: str) -> None:
    """Raise if a run is limited or incomplete; a cell that failed does not make it incomplete."""
    if run.info.get("limited"):
        raise HarnessError(f"{role} {run.folder} was made with --limit and cannot gate; run it without")
    if run.complete():
        return
    failed = {cell["id"] for cell in run.cells() if cell["status"] == "failed"}
    cells = [cell.id for cell in run.reader.cells.values() if cell.role == "cell"]
    lacking = [cell for cell in cells if cell not in failed and not run.reader.is_complete(cell)]
    if lacking:
        more = f" and {len(lacking) - 1} more cells" if len(lacking) > 1 else ""
        raise IncompleteRunError(f"{role} {run.folder} lacks rows of {lacking[0]}{more}; run it again to complete it")


def _part_in_words(part: str, candidate: Run, baseline: Run) -> str:
    if part == "dataset":
        return "the data set differs (other samples)"
    if part in ("threats", "models"):
        noun = part.removesuffix("s")
        ours, theirs = ({str(cell[noun]) for cell in run.cells()} for run in (candidate, baseline))
        sides = (("candidate", ours - theirs), ("baseline", theirs - ours))
        only = [f"only in the {side}: {', '.join(sorted(names)[:3])}" for side, names in sides if names]
        return f"{part} differ ({'; '.join(only) or 'in their options'})"
    return f"{part} differs ({candidate.info['identity'][part]} and {baseline.info['identity'].get(part)})"
