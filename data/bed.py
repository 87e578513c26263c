"""Regions from where users keep them: BED files, frames, pyranges objects, and manifests that list many BED files."""

import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from chromseek.data.checks import Checker
from chromseek.data.errors import BadArgument, BadData, NotFound, printable
from chromseek.data.frames import coordinate_columns, rows_of_columns
from chromseek.data.genome import Assembly, AssemblyGuess, assembly, guess_assembly
from chromseek.data.lines import TextFile
from chromseek.data.regions import Regions
from chromseek.data.rows import Rows, read_rows
from chromseek.data.tables import read_table


@dataclass(frozen=True, slots=True)
class Bed:
    """The regions of one source, in its order, and what was skipped on the way."""

    regions: Regions
    notes: tuple[str, ...]
    n_lines: int  # lines that hold data: regions and skipped ones


def read_bed(
    source: Any,
    *,
    assembly: Assembly | None = None,
    rename_chroms: str | None = None,
    on_bad_line: str = "error",
    max_regions: int = 20_000_000,
) -> Bed:
    """Read the first three columns of a BED file, plain or gz, of a frame, or of a pyranges object.

    Without an assembly it is guessed. Raises BadData with the faults of lines, each by its number.
    """
    frame = source if isinstance(source, pd.DataFrame) else getattr(source, "df", None)
    if frame is not None:
        rows = frame_rows(frame)
        chosen = assembly or fitting("DataFrame", guess_assembly(rows.names, rows.chroms.astype(np.int64), rows.ends))
        with Checker("DataFrame", chosen, rename_chroms=rename_chroms, on_bad_line=on_bad_line, unit="row") as checker:
            regions, _ = checker.check(rows)
            return Bed(regions, checker.finish(), checker.n_lines)
    if not isinstance(source, str | Path):
        raise BadArgument(
            f"cannot read regions from a {type(source).__name__}",
            code="BED-SOURCE",
            got=type(source).__name__,
            fix="give a path, a DataFrame with chrom, start and end, or a pyranges object",
        )
    path = Path(source)
    chosen = assembly or fitting(str(path), guess_file(path, max_regions))
    text = TextFile(path)
    with Checker(str(path), chosen, rename_chroms=rename_chroms, on_bad_line=on_bad_line) as checker:
        parts = []
        for block in text.blocks():
            rows = read_rows(block, 3, header=checker.n_lines == 0)
            parts.append(checker.check(rows)[0])
            check_size(path, checker.n_lines, max_regions)
        notes = checker.finish()
    return Bed(joined(chosen, parts), (*text.notes, *notes), checker.n_lines)


def guess_file(path: Path, max_regions: int) -> AssemblyGuess:
    """Guess the assembly of a file from all of its lines that can be read."""
    if path.exists() and not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():
        raise BadArgument(
            "a pipe can be read only once, so the assembly cannot be guessed",
            code="BED-ASSEMBLY",
            file=str(path),
            fix="give --assembly",
        )
    names: dict[str, int] = {}
    codes, ends = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    seen = 0
    for block in TextFile(path).blocks():
        rows = read_rows(block, 3, header=seen == 0)
        seen += len(rows.places) + len(rows.faults)
        check_size(path, seen, max_regions)
        known = np.array([names.setdefault(name, len(names)) for name in rows.names], np.int64)
        codes.append(known[rows.chroms])
        ends.append(rows.ends)
    return guess_assembly(list(names), np.concatenate(codes), np.concatenate(ends))


def fitting(file: str, guess: AssemblyGuess) -> Assembly:
    """The one assembly that fits.

    Raises BadData with the evidence when none does, or more than one.
    """
    if guess.name is not None:
        return assembly(guess.name)
    evidence = "; ".join(f"{name}: {reason}" for name, reason in guess.evidence.items())
    raise BadData(
        f"cannot tell the assembly ({evidence})", code="BED-ASSEMBLY", file=file, fix="give it with --assembly"
    )


def check_size(path: Path, n_lines: int, max_regions: int) -> None:
    """Raise BadData when a file has more lines than allowed."""
    if n_lines > max_regions:
        raise BadData(
            f"more than {max_regions:,} regions",
            code="BED-SIZE",
            file=str(path),
            fix="raise the limit with --max-regions",
            status=413,
        )


def joined(assembly: Assembly, parts: list[Regions]) -> Regions:
    """One after the other."""
    return Regions(
        assembly,
        np.concatenate([np.empty(0, np.int16), *(part.chroms for part in parts)]),
        np.concatenate([np.empty(0, np.int32), *(part.starts for part in parts)]),
        np.concatenate([np.empty(0, np.int32), *(part.ends for part in parts)]),
    )


def frame_rows(frame: pd.DataFrame) -> Rows:
    """The rows of a frame as those of a file: columns by name, or else the first three.

    Raises BadData when there are fewer than three.
    """
    columns = coordinate_columns(frame) or list(frame.columns[:3])
    if len(columns) < 3:
        raise BadData(
            f"{len(columns)} columns, 3 wanted",
            code="BED-COLUMNS",
            file="DataFrame",
            got=list(frame.columns),
            fix="give columns chrom, start and end",
        )
    return rows_of_columns(frame[columns])


def read_bed_manifest(path: str | Path) -> tuple[list[Path], pa.Table]:
    """Read a table of BED files: their paths from column `path` or `file`, and the other columns as metadata.

    Paths are absolute or relative to the manifest. Raises BadData for a broken table, NotFound for missing files.
    """
    path = Path(path)
    table = read_table(path)
    name = next((name for name in ("path", "file") if name in table.column_names), None)
    if name is None or len(set(table.column_names)) < len(table.column_names):
        what = "no column path or file" if name is None else "two columns have one name"
        columns = printable(", ".join(table.column_names), 200)
        raise BadData(f"{what} among {columns}", code="MANIFEST-COLUMNS", file=str(path), fix="mend the header")
    files = table.column(name).to_pylist()
    if not files or None in files or "" in files:
        what = "no rows" if not files else f"row {next(i for i, f in enumerate(files, 1) if not f)} has no {name}"
        raise BadData(what, code="MANIFEST-EMPTY", file=str(path), fix="list one BED file per row")
    paths = [path.parent / file for file in files]
    missing = [(row, file) for row, file in enumerate(paths, 1) if not file.is_file()]
    if missing:
        row, file = missing[0]
        raise NotFound(
            f"{len(missing)} of {len(paths)} files are missing, first in row {row}: {printable(file, 200)}",
            code="MANIFEST-MISSING",
            file=str(path),
            fix="paths are relative to the manifest's folder, or absolute",
        )
    return paths, table.drop_columns([name])
