"""Progress bars, one for each cell, with the rate in images a second and the time left."""

from __future__ import annotations

import atexit
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID
from rich.text import Text

from harness.report.wording import visible

if TYPE_CHECKING:
    from rich.console import Console

    from harness.report.terminal import CellProgress

_LINES_KEPT_FREE = 4
_STYLE = {"ok": "green", "failed": "bold red"}


class _Name(ProgressColumn):
    def __init__(self, width: int) -> None:
        self._width = width
        super().__init__()

    def render(self, task: Task) -> Text:
        return Text(visible(task.description, self._width), no_wrap=True)


class _Pace(ProgressColumn):
    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        cell: CellProgress = task.fields["cell"]
        text = Text(f"{cell.done}/{cell.total}", style=_STYLE.get(cell.status, ""))
        ending = "failed" if cell.status == "failed" else cell.pace
        return text.append(f"  {ending}", style=_STYLE.get(cell.status, "cyan") if ending == "failed" else "cyan")


class Bars:
    """One bar a cell. When they don't fit the terminal, finished ones make room for those at work and to come."""

    def __init__(self, console: Console, cells: list[CellProgress]) -> None:
        self._progress = Progress(
            _Name(max(20, console.width // 2 - 6)),
            BarColumn(bar_width=max(8, console.width // 8)),
            _Pace(),
            console=console,
            refresh_per_second=4,
        )
        self._room = max(3, console.height - _LINES_KEPT_FREE)
        self._cells = cells
        self._tasks: dict[str, TaskID] = {
            cell.id: self._progress.add_task(cell.id, total=max(cell.total, 1), cell=cell) for cell in cells
        }
        self._make_room()
        self._progress.start()
        # A run that is interrupted tells no observer, and the cursor would stay hidden.
        atexit.register(self.stop)

    def update(self, cell: CellProgress) -> None:
        """Show how far `cell` is now."""
        done = max(cell.total, 1) if cell.status == "ok" else min(cell.done, cell.total)
        self._progress.update(self._tasks[cell.id], completed=done)
        self._make_room()

    def stop(self) -> None:
        """Leave the bars as they are and give the terminal back."""
        atexit.unregister(self.stop)
        self._progress.stop()

    def _make_room(self) -> None:
        if len(self._cells) <= self._room:
            return
        shown = {cell.id for cell in sorted(self._cells, key=_urgency)[: self._room]}
        for cell in self._cells:
            self._progress.update(self._tasks[cell.id], visible=cell.id in shown)


def _urgency(cell: CellProgress) -> tuple[int, float]:
    """Sorts cells at work first, then those to come, then the finished ones from the latest."""
    if cell.status:
        return 2, -(cell.ended or 0.0)
    return (0 if cell.done else 1), 0.0
