"""Genes: where they start, and which one is nearest to a region. Read from GTF, BED6, or five columns."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chromseek.data.errors import BadData, printable
from chromseek.data.genome import MISFIT, Assembly, is_contig, ucsc_name
from chromseek.data.lines import TextFile
from chromseek.data.regions import Regions

NO_DISTANCE = int(np.iinfo(np.int64).max)  # where a chromosome has no gene: farther than any threshold
_SHOWN_FAULTS = 20
_ATTRIBUTE = re.compile(r'(gene_name|gene_id) "([^"]*)"')


@dataclass(frozen=True, slots=True)
class Genes:
    """n genes of one assembly, in the order of their file."""

    symbols: NDArray[np.object_]  # (n)
    regions: Regions  # (n) gene bodies
    forward: NDArray[np.bool_]  # (n) whether the gene is read towards higher coordinates
    notes: tuple[str, ...] = ()  # what was left out on reading

    @classmethod
    def load(cls, path: str | Path, assembly: Assembly) -> "Genes":
        """Read a gene table, plain or gz: GTF, BED6, or chrom, start, end, symbol, strand.

        Genes on contigs are left out, and the few (0.1 % at most) that run past the end of their chromosome.
        Raises BadData that lists the first bad lines, or when no gene is left.
        """
        reading = _Reading(str(path), assembly)
        for number, line in _lines(path):
            reading.read(number, line)
        return reading.genes()

    def __len__(self) -> int:
        return len(self.symbols)

    @property
    def tss(self) -> Regions:
        """The first base of each gene as it is read, (n)."""
        bodies = self.regions
        starts = np.where(self.forward, bodies.starts, bodies.ends - 1).astype(np.int32)
        return Regions(bodies.assembly, bodies.chroms, starts, starts + np.int32(1))

    def nearest(self, regions: Regions) -> tuple[NDArray[np.object_], NDArray[np.int64]]:
        """The gene whose start is nearest to each region, (q), and the distance in bases, (q).

        The distance is 0 where the region holds the start, negative where it lies upstream of the gene. Ties go to
        the lower coordinate, then to the first in the file. Without a gene on the chromosome: "" and NO_DISTANCE.
        """
        rows, distances = self.nearest_rows(regions)
        symbols = np.append(self.symbols, "")[rows]
        return symbols, distances

    def nearest_rows(self, regions: Regions) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """As `nearest`, with positions in this table, -1 for none: (q), (q)."""
        starts, ends = regions.spans()
        tss = self.tss.spans()[0]
        order = np.argsort(tss, kind="stable")
        tss = tss[order]
        rights = np.searchsorted(tss, starts)
        lefts = np.searchsorted(tss, tss)[rights - 1] if len(tss) else rights  # the first in the file of equal starts
        edges = np.stack([regions.assembly.offsets[regions.chroms], regions.assembly.offsets[regions.chroms + 1]])
        padded = np.append(tss, np.int64(-1))
        left, right = padded[lefts], padded[rights]
        has_left = (rights > 0) & (left >= edges[0])
        has_right = (rights < len(tss)) & (right < edges[1])
        to_left = np.where(has_left, starts - left, NO_DISTANCE)
        to_right = np.where(has_right, np.maximum(right - ends + 1, 0), NO_DISTANCE)
        leftwards = has_left & (to_left <= to_right)
        found = np.where(leftwards, lefts, rights)
        rows = np.append(order, -1)[np.where(has_left | has_right, found, len(tss))]
        distances = np.minimum(to_left, to_right)
        upstream = np.append(self.forward, False)[rows] != leftwards  # a forward gene's upstream is on its left
        return rows, np.where((rows >= 0) & upstream, -distances, distances)


@dataclass(slots=True)
class _Reading:
    """A gene table while it is read."""

    path: str
    assembly: Assembly
    symbols: list[str] = field(default_factory=list)
    places: list[tuple[int, int, int]] = field(default_factory=list)
    forward: list[bool] = field(default_factory=list)
    faults: list[tuple[int, str]] = field(default_factory=list)  # line, what is wrong
    n_faults: int = 0
    n_past: int = 0  # genes past the end of their chromosome
    past: tuple[int, str] = (0, "")  # the first of them
    n_away: int = 0  # on contigs
    transcripts: dict[tuple[str, int, bool], tuple[int, int]] = field(default_factory=dict)

    def read(self, number: int, line: str) -> None:
        """Take one line: a gene, a transcript of a GTF, or one that is passed over."""
        cells = line.split("\t")
        if len(cells) >= 9 and cells[6] in "+-." and "gene_id" in cells[8]:
            self._read_gtf(number, cells)
        elif len(cells) >= 6 and cells[5] in ("+", "-"):
            self._add(number, cells[:3], cells[3], cells[5])
        elif len(cells) >= 5 and cells[4] in ("+", "-"):
            self._add(number, cells[:3], cells[3], cells[4])
        elif len(cells) >= 3 and cells[1].lower() in ("start", "chromstart", "txstart") and number == 1:
            return
        else:
            wanted = "chrom, start, end, symbol, strand, or BED6, or GTF, split by tabs"
            self._fault(number, f"not a gene: {printable(line)} (wanted {wanted})")

    def _read_gtf(self, number: int, cells: list[str]) -> None:
        if cells[2] not in ("gene", "transcript"):
            return
        named = dict(_ATTRIBUTE.findall(cells[8]))
        symbol = named.get("gene_name") or named.get("gene_id", "")
        if not cells[3].isdigit() or cells[3] == "0":
            self._fault(number, f"start {printable(cells[3])} is no whole number from 1")
            return
        place = [cells[0], str(int(cells[3]) - 1), cells[4]]  # GTF counts from 1 and includes the end
        if cells[2] == "gene":
            self._add(number, place, symbol, cells[6])
            return
        checked = self._place(number, place)
        if checked is not None:
            key = (symbol, checked[0], cells[6] != "-")
            start, end = self.transcripts.get(key, checked[1:])
            self.transcripts[key] = (min(start, checked[1]), max(end, checked[2]))

    def _add(self, number: int, place: list[str], symbol: str, strand: str) -> None:
        checked = self._place(number, place)
        if checked is not None:
            self.symbols.append(symbol)
            self.places.append(checked)
            self.forward.append(strand != "-")

    def _place(self, number: int, place: list[str]) -> tuple[int, int, int] | None:
        """Chromosome code, start and end; None for a contig or a fault."""
        chrom = ucsc_name(place[0])
        code = self.assembly.codes.get(chrom)
        if code is None:
            if is_contig(chrom):
                self.n_away += 1
            else:
                near = ", ".join(self.assembly.nearest(chrom))
                self._fault(number, f"unknown chromosome {printable(chrom)} (nearest: {near})")
            return None
        if not all(text.isascii() and text.isdigit() and len(text) < 12 for text in place[1:]):
            self._fault(number, f"start {printable(place[1])} or end {printable(place[2])} is no whole number")
            return None
        start, end = int(place[1]), int(place[2])
        if start >= end:
            self._fault(number, f"start {start} is not before end {end}")
            return None
        if end > self.assembly.lengths[code]:
            length = self.assembly.lengths[code]
            if not self.n_past:
                self.past = (number, f"end {end} is past the end of {chrom} ({length} in {self.assembly.name})")
            self.n_past += 1
            return None
        return code, start, end

    def _fault(self, number: int, message: str) -> None:
        self.n_faults += 1
        if len(self.faults) < _SHOWN_FAULTS:
            self.faults.append((number, message))

    def genes(self) -> Genes:
        """What was read; raises BadData when lines were bad or no gene is left."""
        notes = list[str]()
        if self.n_past > MISFIT * max(len(self.places), len(self.transcripts)):
            self._fault(*self.past)
            self.n_faults += self.n_past - 1
        elif self.n_past:
            line, message = self.past
            notes.append(f"{self.n_past} genes past a chromosome's end left out, such as line {line}: {message}")
        if self.faults:
            line, message = self.faults[0]
            more = "".join(f"; line {number}: {other}" for number, other in self.faults[1:])
            raise BadData(
                f"{self.n_faults} bad lines: {message}{more}",
                code="GENES-LINE",
                file=self.path,
                line=line,
                fix=f"correct or drop the lines; is it a gene table of {self.assembly.name}?",
            )
        if self.n_away:
            notes.append(f"{self.n_away} genes on contigs left out")
        if not self.places:  # a GTF such as UCSC's, which has transcripts only
            for (symbol, code, forward), span in self.transcripts.items():
                self.symbols.append(symbol)
                self.places.append((code, *span))
                self.forward.append(forward)
        if not self.places:
            message = f"no gene on a chromosome of {self.assembly.name} ({self.n_away} on contigs)"
            raise BadData(message, code="GENES-EMPTY", file=self.path, fix="give a GTF or BED6 gene table")
        chroms, starts, ends = np.array(self.places, dtype=np.int64).T
        regions = Regions(self.assembly, chroms.astype(np.int16), starts.astype(np.int32), ends.astype(np.int32))
        return Genes(np.array(self.symbols, dtype=object), regions, np.array(self.forward, dtype=bool), tuple(notes))


def _lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Line numbers and lines that are neither empty, comment, nor track line."""
    for block in TextFile(path).blocks():
        for number, raw in enumerate(block.lines.splitlines(), block.line):
            if raw.strip() and not raw.startswith((b"#", b"track", b"browser")):
                yield number, raw.decode("utf-8", "replace")
