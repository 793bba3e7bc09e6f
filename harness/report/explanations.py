"""The explanations of a run that its report embeds."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.explanations import FOLDER, INDEX, read_pictures

if TYPE_CHECKING:
    from harness.store import Run

# As for the examples: beyond this the page would open slowly, and the pictures lie in the folder anyway.
_PICTURE_BYTES = 12_000_000


def made_of(run: Run, model: str) -> str:
    """Digest of what a model's explanations in a run are made of: its cells, which hold model, data and attacks."""
    cells = sorted((cell.id, cell.digest) for cell in run.reader.cells.values() if cell.model == model)
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()[:16]


def state(run: Run) -> bytes:
    """What tells whether a report still shows the explanations that are there."""
    try:
        return (run.folder / FOLDER / INDEX).read_bytes()
    except OSError:
        return b""


def gallery(run: Run) -> tuple[list[dict[str, Any]], str]:
    """The explanations by model and sample, as data URIs, and one line on what is left out, empty if nothing is."""
    try:
        found = read_pictures(run.folder / FOLDER)
    except HarnessError as error:
        return [], str(error)
    current = [e for e in found if e.made_of == made_of(run, e.model)]
    left, missing, omitted = _PICTURE_BYTES, 0, 0
    groups: dict[tuple[str, int | None], dict[str, Any]] = {}
    for explanation in current:
        try:
            blob = explanation.path.read_bytes()
        except OSError:
            missing += 1
            continue
        left -= len(blob)
        if left < 0:
            omitted += 1
            continue
        key = (explanation.model, explanation.sample_id)
        group = groups.setdefault(key, {"model": explanation.model, "sample": explanation.sample_id, "pictures": []})
        uri = "data:image/png;base64," + base64.b64encode(blob).decode()
        group["pictures"].append({"title": explanation.title, "caption": explanation.caption, "uri": uri})
    stale = len(found) - len(current)
    notes = [
        f"{stale} of an earlier state of this run (explain again)" if stale else "",
        f"{missing} whose file is gone" if missing else "",
        f"{omitted} more in the folder {FOLDER}/, because the page would grow too large" if omitted else "",
    ]
    return list(groups.values()), "; ".join(note for note in notes if note)
