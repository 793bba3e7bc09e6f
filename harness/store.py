"""The run folder: shards of rows written whole, a journal for people, results for programs, and reading it all back."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from harness.checkpoints import write_atomically
from harness.errors import HarnessError, MissingDataError, StoreError

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA = 1
_METADATA = b"harness"
# Columns that describe the stored adversarial image: the union over smaller budgets takes all of them from one row.
_OUTCOME = (
    *("success", "adversarial_prediction", "linf", "l2", "l1", "l0", "adversarial", "success_rounded"),
    *("adversarial_correct_share", "adversarial_ood_score"),
)
# Verdicts of other judges: a sample withstands a budget if it withstands all smaller ones too.
_STANDING = ("robust_at_detector_fpr",)
_FALLEN = ("success_mean", "evades_at_detector_fpr")


class RunFolder:
    """Writes a run. Every file is written whole and renamed into place; the journal alone is appended to."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def create(self) -> None:
        """Make the folder.

        Raises:
            HarnessError: it cannot be made or written to.
        """
        try:
            (self.path / "shards").mkdir(parents=True, exist_ok=True)
            write_atomically(self.path / ".writable", b"")
            (self.path / ".writable").unlink()
        except OSError as error:
            raise HarnessError(
                f"cannot write to {self.path}: {error.strerror or error}; choose another --out"
            ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder against a second run at the same time; the lock goes with the process, however it ends."""
        with self._reporting(self.path / ".lock"):
            lock = (self.path / ".lock").open("a+")
        with lock as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise HarnessError(
                    f"{self.path} is in use by another run; wait for it or choose another --out"
                ) from error
            for part in self.path.rglob(".*.part"):  # what a killed run was writing
                part.unlink(missing_ok=True)
            yield

    def clear(self) -> None:
        """Forget everything computed here before (`--fresh`)."""
        for name in ("shards", "estimates", "errors", "examples", "explanations"):
            shutil.rmtree(self.path / name, ignore_errors=True)
        for name in ("results.json", "run.json", "journal.jsonl", "report.html", "gate.json"):
            with self._reporting(self.path / name):
                (self.path / name).unlink(missing_ok=True)

    def write_json(self, name: str, value: Mapping[str, Any]) -> Path:
        """Write a JSON file of the run folder; keys keep their order, numbers keep all their digits."""
        path = self.path / name
        with self._reporting(path):
            write_atomically(path, (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())
        return path

    def write_error(self, cell: str, text: str) -> Path:
        """Keep a traceback; the file is named by a digest, whatever the cell's id holds."""
        path = self.path / "errors" / f"{hashlib.sha256(cell.encode()).hexdigest()[:16]}.txt"
        with self._reporting(path):
            write_atomically(path, f"{cell}\n\n{text}".encode())
        return path

    def journal(self, event: str, **facts: Any) -> None:
        """Append a line for people: what happened, and when."""
        line = json.dumps({"time": round(time.time(), 3), "event": event, **facts}, ensure_ascii=False)
        path = self.path / "journal.jsonl"
        with self._reporting(path), path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    @contextmanager
    def _reporting(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(f"cannot write {path}: {error.strerror or error}") from error


def shard_path(folder: Path, digest: str, first_id: int) -> Path:
    return folder / "shards" / digest[:16] / f"{first_id}.parquet"


def write_shard(path: Path, columns: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> None:
    """Write rows as Parquet with page checksums, whole or not at all.

    Args:
        columns: 1-D arrays of one length; a 2-D one is stored as a list of fixed length per row.
        facts: JSON kept in the file's metadata (the cell's digest, the samples' digest).

    Raises:
        StoreError: the disk is full, or the folder cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({name: _to_arrow(values) for name, values in columns.items()})
    table = table.replace_schema_metadata({_METADATA: json.dumps(facts, sort_keys=True).encode()})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    try:
        write_atomically(path, sink.getvalue().to_pybytes())
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error


def shard_facts(path: Path) -> dict[str, Any] | None:
    """What a shard file says of itself; None where there is no whole and undamaged file (every page is checked)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        return None
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            facts: dict[str, Any] = json.loads((file.schema_arrow.metadata or {})[_METADATA])
            file.read()
    except (pa.ArrowException, OSError, KeyError, ValueError):
        return None
    return facts


def read_shards(paths: Sequence[Path], columns: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
    """Columns (all by default) of a few shards, one after the other.

    Raises:
        StoreError: one is missing, damaged or lacks a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pa.concat_tables(
            [pq.ParquetFile(path, page_checksum_verification=True).read(columns, use_threads=False) for path in paths]
        )
        return {name: _to_numpy(table.column(name)) for name in columns or table.column_names}
    except (pa.ArrowException, OSError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise StoreError(f"shards in {paths[0].parent} cannot be read ({reason}); delete them and run again") from error


def _to_arrow(values: NDArray[Any]) -> pa.Array:
    import pyarrow as pa

    if values.ndim == 1:
        return pa.array(values)
    flat = np.ascontiguousarray(values.reshape(len(values), -1))
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), flat.shape[1])


def _to_numpy(column: pa.ChunkedArray) -> NDArray[Any]:
    import pyarrow as pa

    array = column.combine_chunks()
    if pa.types.is_fixed_size_list(array.type):
        return np.asarray(array.flatten()).reshape(len(array), array.type.list_size)
    return np.asarray(array.to_numpy(zero_copy_only=False))


@dataclass(frozen=True)
class CellManifest:
    """A planned cell as run.json lists it."""

    id: str
    digest: str
    model: str
    threat: str
    plugin: str
    dataset: str
    params: Mapping[str, Any]
    variants: tuple[str, ...]
    samples: int
    shards: tuple[int, ...]  # first sample id of each
    family: str  # cells of one attack that differ in budget alone
    budget: float | None
    role: Literal["cell", "reference", "probe"] = "cell"
    probes: tuple[ProbeManifest, ...] = ()
    left_out: str = ""  # what the threat could not show, and why
    classes: int = 0  # of the data; 0 where nobody wrote it down

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> CellManifest:
        values: dict[str, Any] = {name: entry[name] for name in cls.__dataclass_fields__ if name in entry}
        values |= {"variants": tuple(entry["variants"]), "shards": tuple(entry["shards"])}
        values["probes"] = tuple(ProbeManifest(**probe) for probe in entry.get("probes", ()))
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "probes": [vars(p) for p in self.probes]}


@dataclass(frozen=True)
class ProbeManifest:
    """A probe of a cell: `cell` is the id of the auxiliary cell with its rows; `error` why there is none."""

    name: str
    judge: Literal["stronger", "unbounded", "guaranteed"]
    advice: str
    cell: str = ""
    error: str = ""


class RowReader:
    """Reads the rows of cells back, column by column."""

    def __init__(self, folder: Path, cells: Iterable[CellManifest]) -> None:
        self.folder = folder
        self.cells = {cell.id: cell for cell in cells}

    def paths(self, cell_id: str) -> list[Path]:
        cell = self.cells[cell_id]
        return [shard_path(self.folder, cell.digest, first) for first in cell.shards]

    def is_complete(self, cell_id: str) -> bool:
        """Whether every planned shard is there."""
        return all(path.is_file() for path in self.paths(cell_id))

    def columns(self, cell_id: str) -> frozenset[str]:
        """Names of the cell's columns; empty where no shard is there."""
        import pyarrow.parquet as pq

        for path in self.paths(cell_id):
            if path.is_file():
                return frozenset(pq.read_schema(path).names)
        return frozenset()

    def raw(
        self, cell_id: str, columns: Iterable[str], ids: NDArray[np.int64] | None = None
    ) -> dict[str, NDArray[Any]]:
        """The rows as the threat gave them, in sample order; with `ids`, only those of these samples.

        Raises:
            StoreError: a shard is missing, damaged or lacks a column.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        wanted = list(dict.fromkeys(columns))
        needed = wanted if ids is None else list(dict.fromkeys([*wanted, "sample_id"]))
        tables = []
        for path in self.paths(cell_id):
            try:
                with pq.ParquetFile(path, page_checksum_verification=True) as file:
                    tables.append(file.read(columns=needed, use_threads=False))
            except (pa.ArrowException, OSError) as error:
                reason = " ".join(str(error).split())
                raise StoreError(f"shard {path} cannot be read ({reason}); delete it and run again") from error
            if tables[-1].num_columns != len(needed):
                missing = sorted(set(needed) - set(tables[-1].column_names))
                raise StoreError(f"cell {cell_id} has no column '{missing[0]}'")
            if ids is not None:
                chosen = np.isin(tables[-1].column("sample_id").to_numpy(), ids)
                tables[-1] = tables[-1].filter(pa.array(chosen))
        try:
            table = pa.concat_tables(tables)
        except pa.ArrowException as error:
            raise StoreError(f"the shards of cell {cell_id} differ in the types of their columns") from error
        return {name: _to_numpy(table.column(name)) for name in wanted}

    def rows(
        self, cell_id: str, columns: Iterable[str], ids: NDArray[np.int64] | None = None
    ) -> dict[str, NDArray[Any]]:
        """The rows, an attack's successes shared with its larger budgets.

        An adversarial image inside a smaller budget is one inside a larger: where the attack failed on a sample that
        it broke at a smaller budget, the row's outcome is that of the smaller one. So robust accuracy never rises
        with eps.
        """
        wanted = list(dict.fromkeys(columns))
        outcome = [name for name in wanted if name in (*_OUTCOME, *_STANDING, *_FALLEN)]
        smaller = self.smaller_budgets(cell_id) if outcome else []
        if not smaller:
            return self.raw(cell_id, wanted, ids)
        rows = self.raw(cell_id, {*wanted, "sample_id", "success"}, ids)
        for other in smaller:
            lesser = self.raw(other, {*outcome, "sample_id", "success"}, ids)
            if len(lesser["sample_id"]):
                _take_over(rows, lesser, outcome)
        return {name: rows[name] for name in wanted}

    def smaller_budgets(self, cell_id: str) -> list[str]:
        """Complete cells of the same attack at smaller budgets, largest first."""
        cell = self.cells[cell_id]
        if not cell.family or cell.budget is None or "success" not in self.columns(cell_id):
            return []
        members = [
            c
            for c in self.cells.values()
            if c.family == cell.family and c.budget is not None and c.budget < cell.budget
        ]
        members.sort(key=lambda c: -(c.budget or 0.0))
        return [c.id for c in members if self.is_complete(c.id)]


def _take_over(rows: dict[str, NDArray[Any]], lesser: Mapping[str, NDArray[Any]], outcome: Sequence[str]) -> None:
    order = np.argsort(lesser["sample_id"])
    place = np.searchsorted(lesser["sample_id"], rows["sample_id"], sorter=order)
    place = order[np.minimum(place, len(order) - 1)]
    shared = lesser["sample_id"][place] == rows["sample_id"]
    for name in (*_STANDING, *_FALLEN):
        if name in outcome:
            column = rows[name].copy()
            both = np.logical_and if name in _STANDING else np.logical_or
            column[shared] = both(column[shared], lesser[name][place[shared]])
            rows[name] = column
    take = shared & ~rows["success"] & lesser["success"][place]
    if take.any():
        for name in {*outcome, "success"}.intersection(_OUTCOME):
            column = rows[name].copy()
            column[take] = lesser[name][place[take]]
            rows[name] = column


class Run:
    """A finished run, read from its folder."""

    def __init__(self, folder: Path, results: dict[str, Any], info: dict[str, Any]) -> None:
        self.folder = folder
        self.results = results
        self.info = info
        self.reader = RowReader(folder, [CellManifest.from_json(c) for c in info["cells"]])

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, {len(self.cells())} cells)"

    def cells(self) -> list[dict[str, Any]]:
        """The entries of results.json."""
        cells: list[dict[str, Any]] = self.results["cells"]
        return cells

    def columns(self, cell_id: str) -> frozenset[str]:
        return self.reader.columns(cell_id)

    def rows(
        self, cell_id: str, columns: Iterable[str], ids: NDArray[np.int64] | None = None
    ) -> dict[str, NDArray[Any]]:
        """Columns of a cell's rows in sample order, of the samples `ids` or of all (see `RowReader.rows`)."""
        return self.reader.rows(cell_id, columns, ids)

    def variants(self, cell_id: str) -> tuple[str, ...]:
        """The columns that, with sample_id, tell the cell's rows apart."""
        return self.reader.cells[cell_id].variants

    def complete(self) -> bool:
        """Whether every planned shard of every cell is there."""
        return all(self.reader.is_complete(c.id) for c in self.reader.cells.values() if c.role == "cell")


def load_run(folder: Path | str) -> Run:
    """Read a run folder.

    Raises:
        MissingDataError: there is no finished run in it.
        HarnessError: its files are damaged or of a newer schema.
    """
    folder = Path(folder)
    documents = []
    for name in ("results.json", "run.json"):
        path = folder / name
        try:
            documents.append(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            what = "no such folder" if not folder.is_dir() else f"no {name} in it: the run did not finish; run it again"
            raise MissingDataError(f"run {folder}: {what}") from None
        except (OSError, ValueError) as error:
            raise HarnessError(f"{path} cannot be read: {error}") from error
        schema = documents[-1].get("schema") if isinstance(documents[-1], dict) else None
        if schema != SCHEMA:
            raise HarnessError(f"{path} has schema {schema}; this harness reads schema {SCHEMA}")
    try:
        found = Run(folder, documents[0], documents[1])
        unknown = {cell["id"] for cell in found.cells() if cell["status"] == "ok"} - found.reader.cells.keys()
    except (KeyError, TypeError) as error:
        raise HarnessError(f"run {folder} is damaged ({type(error).__name__}: {error}); run it again") from error
    if unknown:
        cell = sorted(unknown)[0]
        raise HarnessError(f"run {folder}: results.json and run.json are of different runs ({cell}); run it again")
    return found
