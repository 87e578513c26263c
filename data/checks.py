"""Rows of a file against an assembly: what is kept, what is skipped and counted, what is a fault.

A file of which more than one line in a thousand lies outside its assembly was most likely written for another one,
so that is told first; otherwise the first twenty faults are listed, and all are counted.
"""

import os
import uuid
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

import numpy as np
from numpy.typing import NDArray

from chromseek.data.errors import BadArgument, BadData, StorageError, printable
from chromseek.data.genome import MISFIT, Assembly, guess_assembly, is_contig, ucsc_name
from chromseek.data.regions import Regions
from chromseek.data.rows import Fault, Rows

LISTED = 20
IN_MEMORY = ("DataFrame", "AnnData")  # what stands for a file's name then
REJECTED = "# lines that chromseek left out: line number, reason, text\n"  # the first line of <file>.rejected.tsv
_CONTIG, _UNKNOWN = -1, -2  # in place of a chromosome's code; they index the two entries after the last length


class Checker:
    """Compares the rows of one file with an assembly, block by block; used with `with`, ended by `finish`.

    Where bad lines are skipped, those of a text file are written beside it, to `<file>.rejected.tsv`, which appears
    whole once all has been read, in place of an earlier one. Raises BadData where a file of another kind lies there.
    """

    def __init__(
        self, file: str, assembly: Assembly, *, rename_chroms: str | None, on_bad_line: str, unit: str = "line"
    ) -> None:
        if rename_chroms not in (None, "ensembl"):
            raise BadArgument(
                f"unknown naming {printable(rename_chroms)}", code="RENAME", got=rename_chroms, fix="give ensembl"
            )
        if on_bad_line not in ("error", "skip"):
            raise BadArgument(
                f"unknown choice {printable(on_bad_line)}", code="ON-BAD-LINE", got=on_bad_line, fix="error or skip"
            )
        self.file, self.assembly, self.unit = file, assembly, unit
        self.n_lines = 0  # that hold data
        self.n_zero = 0
        self.n_contigs = 0
        self.n_outside = 0
        self._rename = rename_chroms == "ensembl"
        self._skip = on_bad_line == "skip"
        self._rejected = Path(f"{file}.rejected.tsv") if self._skip and unit == "line" else None
        self._rejects: TextIO | None = None  # a draft of it
        self._faults: list[tuple[int, Fault]] = []
        self._n_faults = 0
        self._notes: dict[str, None] = {}
        self._outside: tuple[int, Fault] | None = None  # the first fault of this kind
        self._codes: dict[str, int] = {}
        self._reach: dict[str, int] = {}  # how far the regions of each name go
        self._limits = np.array([*assembly.lengths, 0, 0], np.int64)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._rejects is None or self._rejected is None:
            return
        draft = Path(self._rejects.name)
        try:
            self._rejects.close()
            if kind is None:
                os.replace(draft, self._rejected)
        except OSError as failure:
            if kind is None:
                raise self._unwritable(self._rejected, failure) from failure
        finally:
            with suppress(OSError):
                draft.unlink(missing_ok=True)

    def check(self, rows: Rows) -> tuple[Regions, NDArray[np.bool_] | slice]:
        """The regions that are kept, and which of the rows they are; the rest is counted."""
        self.n_lines += len(rows.places) + len(rows.faults)
        self._notes.update(dict.fromkeys(sorted(rows.notes)))
        codes = np.array([self._code(name) for name in rows.names], np.int16)[rows.chroms]
        limits = self._limits[codes]
        good = (rows.starts < rows.ends) & (rows.ends <= limits)  # a contig's limit is 0
        reach = np.zeros(len(rows.names), np.int64)
        np.maximum.at(reach, rows.chroms, rows.ends)
        for name, end in zip(rows.names, reach.tolist(), strict=True):
            self._reach[name] = max(end, self._reach.get(name, 0))
        kept: NDArray[np.bool_] | slice = slice(None)
        if rows.faults or not good.all():
            self._sort_out(rows, codes, good)
            kept = good
        starts, ends = rows.starts[kept].astype(np.int32), rows.ends[kept].astype(np.int32)
        return Regions(self.assembly, codes[kept], starts, ends), kept

    def finish(self) -> tuple[str, ...]:
        """What is worth a note, once all has been read.

        Raises BadData for faults, for another assembly, and when nothing is left.
        """
        if self.n_outside > MISFIT * self.n_lines:
            self._check_assembly()
        if self._n_faults and not self._skip:
            raise self._all_faults()
        notes = [*self._notes]
        for count, what in (
            (self._n_faults, f"bad {self.unit}s skipped"),
            (self.n_zero, "regions of length zero skipped"),
            (self.n_contigs, "regions on contigs skipped"),
        ):
            if count:
                notes.append(f"{count:,} {what}")
        if self._n_faults + self.n_zero + self.n_contigs == self.n_lines:
            reasons = f": {', '.join(notes)}" if notes else ""
            raise BadData(f"no regions in file{reasons}", code="BED-EMPTY", file=self.file, fix="check the file")
        return tuple(notes)

    def _code(self, name: str) -> int:
        if name not in self._codes:
            known = self.assembly.codes.get(ucsc_name(name.strip()) if self._rename else name.strip())
            self._codes[name] = known if known is not None else _CONTIG if is_contig(name.strip()) else _UNKNOWN
        return self._codes[name]

    def _sort_out(self, rows: Rows, codes: NDArray[np.int16], good: NDArray[np.bool_]) -> None:
        """Count the rows that are not good by kind, and tell the faults of those that are wrong."""
        zero = ~good & (codes >= 0) & (rows.starts == rows.ends)
        contig = codes == _CONTIG
        wrong = np.flatnonzero(~good & ~zero & ~contig)
        outside = wrong[rows.starts[wrong] < rows.ends[wrong]]
        self.n_zero += int(zero.sum())
        self.n_contigs += int(contig.sum())
        self.n_outside += len(outside)
        if len(outside) and self._outside is None:
            line = rows.first + int(rows.places[outside[0]])
            self._outside = line, self._fault(rows, outside[0])
        places = np.sort(np.concatenate([rows.places[wrong], np.array(list(rows.faults), np.int64)]))
        self._n_faults += len(places)
        told = places if self._rejected else places[: LISTED - len(self._faults)]
        for place in told.tolist():
            fault = rows.faults.get(place) or self._fault(rows, np.searchsorted(rows.places, place))
            if len(self._faults) < LISTED:
                self._faults.append((rows.first + place, fault))
            if self._rejected is not None:
                self._write(self._rejected, f"{rows.first + place}\t{fault.message}\t{rows.line(place)}\n")

    def _fault(self, rows: Rows, row: np.intp) -> Fault:
        name, start, end = rows.names[rows.chroms[row]], int(rows.starts[row]), int(rows.ends[row])
        code, assembly = self._codes[name], self.assembly
        if code == _UNKNOWN:
            return self._unknown(name)
        if start > end:
            return Fault("BED-ORDER", f"start {start} is after end {end}", "swap the columns", f"{start} {end}")
        length = f"{assembly.chroms[code]} ({assembly.lengths[code]} bases in {assembly.name})"
        message = f"end {end} is past the end of {length}"
        return Fault("BED-END", message, f"check that the file is of {assembly.name}", str(end))

    def _unknown(self, name: str) -> Fault:
        if "'" in name or '"' in name:
            return Fault("BED-QUOTES", f"chromosome in quotes: {printable(name)}", "write it without quotes", name)
        if ucsc_name(name) in self.assembly.codes:
            message = f"chromosomes are named like {printable(name)}, in {self.assembly.name} like {ucsc_name(name)}"
            return Fault("BED-NAMING", message, "give --rename-chroms ensembl", name)
        near = ", ".join(self.assembly.nearest(name))
        message = f"unknown chromosome {printable(name)} in {self.assembly.name}"
        return Fault("BED-CHROM", message, f"use a name such as {near}", name)

    def _check_assembly(self) -> None:
        names = list(self._reach)
        guess = guess_assembly(names, np.arange(len(names)), np.array(list(self._reach.values()), np.int64))
        if guess.name in (None, self.assembly.name) or self._outside is None:
            return
        line, fault = self._outside
        share = f"{self.n_outside:,} of {self.n_lines:,} regions lie outside, {self.unit} {line} first"
        raise BadData(
            f"looks like {guess.name}, this is {self.assembly.name}: {share}: {fault.message}",
            code="BED-ASSEMBLY",
            file=self.file,
            line=line,
            got=guess.name,
            fix=f"lift it over from {guess.name} (--liftover), or name its assembly",
        )

    def _all_faults(self) -> BadData:
        (line, first), more = self._faults[0], self._faults[1:]
        listed = "".join(f"\n  {self.unit} {number}: {fault.message}" for number, fault in more)
        if self._n_faults > LISTED:
            listed += f"\n  and {self._n_faults - LISTED:,} more"
        skip = 'on_bad_line="skip"' if self.file in IN_MEMORY else "--on-bad-line skip"
        message = f"{first.message} ({self._n_faults:,} bad {self.unit}s{':' if more else ''}{listed})"
        return BadData(
            first.message if self._n_faults == 1 else message,
            code=first.code,
            file=self.file,
            line=line,
            got=first.got,
            fix=f"{first.fix}, or leave bad {self.unit}s out ({skip})",
        )

    def _write(self, path: Path, text: str) -> None:
        try:
            if self._rejects is None:
                again = self._is_ours(path)
                draft = path.with_name(f".{uuid.uuid4().hex}.rejected.tsv")
                self._rejects = draft.open("x", encoding="utf-8", errors="replace")
                self._rejects.write(REJECTED)
                self._notes[f"bad lines are in {path.name}" + (", in place of an earlier one" if again else "")] = None
            self._rejects.write(text)
        except OSError as error:
            raise self._unwritable(path, error) from error

    def _is_ours(self, path: Path) -> bool:
        """Whether rejected lines of an earlier run lie there; raises BadData for any other file."""
        if not path.exists():
            return False
        if path.is_dir():
            raise IsADirectoryError(None, "a folder has its name")
        if path.is_file():  # to open a pipe could wait for ever
            with path.open("rb") as file:
                if file.read(len(REJECTED)) == REJECTED.encode():
                    return True
        raise BadData(
            f"{path.name} is in the way: it holds no lines that chromseek left out",
            code="BED-REJECTED",
            file=str(path),
            fix="rename it, or mend the bad lines",
        )

    def _unwritable(self, path: Path, error: OSError) -> StorageError:
        return StorageError(
            f"cannot write the rejected lines: {error.strerror}",
            code="BED-REJECTED",
            file=str(path),
            fix="make the folder writable, or mend the file",
            exit_code=73,
        )
