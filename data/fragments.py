"""Fragments of single cells, `chrom start end barcode count`, as 10x writes them, → token sets of barcodes.

The file is read once, in any order of lines, and in bounded memory: what stays is the barcodes' names and counts, and
the pairs (barcode, token) up to a limit, beyond which they are spilled to a temporary file.
"""

import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from chromseek.data.checks import Checker
from chromseek.data.errors import BadArgument, BadData, printable
from chromseek.data.genome import Assembly
from chromseek.data.lines import Block, TextFile
from chromseek.data.pairs import PairSorter
from chromseek.data.regions import Regions
from chromseek.data.rows import Fault, Rows, is_comment, is_header, read_rows, words_of
from chromseek.data.tokens import SetBlock
from chromseek.data.universe import Universe

MATCHING = 0.01  # a list of barcodes of which fewer occur belongs to another sample
_NUMBER = re.compile(r"[-+]?[0-9.]+([eE][-+]?[0-9]+)?")


@dataclass(frozen=True, slots=True)
class FragmentBlock:
    """n fragments in file order."""

    regions: Regions  # (n)
    barcodes: NDArray[np.int32]  # (n) position in FragmentFile.barcodes
    counts: NDArray[np.int64]  # (n) reads of the fragment; 1 where the file has no such column


class FragmentFile:
    """A fragments file that is read once. `barcodes` and `notes` fill while it is read."""

    def __init__(
        self,
        path: str | Path,
        assembly: Assembly,
        *,
        barcodes: Sequence[str] = (),
        rename_chroms: str | None = None,
        on_bad_line: str = "error",
    ) -> None:
        """`barcodes` come first in the numbering; others follow as they appear."""
        self.path = Path(path)
        self.assembly = assembly
        self.barcodes = list(barcodes)
        self.notes: list[str] = []
        self._codes = {name.encode(): code for code, name in enumerate(self.barcodes)}
        self._refused: dict[bytes, Fault] = {}
        self._repeated = 0
        self._rename_chroms, self._on_bad_line = rename_chroms, on_bad_line
        if len(self._codes) < len(self.barcodes):
            ((twice, _),) = Counter(self.barcodes).most_common(1)
            raise BadArgument(
                f"barcode {printable(twice)} is listed twice", code="FRAG-TWICE", got=twice, fix="list each once"
            )

    def blocks(self) -> Iterator[FragmentBlock]:
        """The fragments in blocks of some megabytes of text.

        Raises BadData with the faults of lines at the end, when all are known.
        """
        text = TextFile(self.path)
        wanted = None
        with Checker(
            str(self.path), self.assembly, rename_chroms=self._rename_chroms, on_bad_line=self._on_bad_line
        ) as checker:
            for block in text.blocks():
                wanted = wanted or self._n_columns(block)
                if wanted is None:  # only comments so far
                    continue
                rows, codes = self._known(read_rows(block, wanted, header=checker.n_lines == 0))
                regions, kept = checker.check(rows)
                found = FragmentBlock(
                    regions, codes[kept], rows.counts[kept] if wanted > 4 else np.ones(len(regions), np.int64)
                )
                self._repeated += n_repeats(found)
                yield found
            self.notes += [*text.notes, *checker.finish()]
        if self._repeated:
            self.notes.append(f"{self._repeated:,} fragments repeat the one before")
        index = self.path.with_name(f"{self.path.name}.tbi")
        if index.exists() and index.stat().st_mtime < self.path.stat().st_mtime:
            self.notes.append(f"{printable(index.name)} is older than the file (it is not used)")

    def _n_columns(self, block: Block) -> int | None:
        """How many columns count, 4 or 5, by the first line that holds data; None when there is no such line.

        Raises BadData unless column 4 can be a barcode.
        """
        for place, data in enumerate(io.BytesIO(block.lines)):
            line = data.decode("utf-8", "replace").rstrip("\n")
            if is_comment(line) or is_header(line):
                continue
            words = words_of(line, 4)
            if len(words) < 4 or _NUMBER.fullmatch(words[3]) or words[3] in (".", ""):
                got = words[3] if len(words) > 3 else f"{len(words)} columns"
                raise BadData(
                    f"column 4 must be a barcode, got {printable(got)}",
                    code="FRAG-COLUMNS",
                    file=str(self.path),
                    line=block.line + place,
                    got=got,
                    fix="give fragments (chrom, start, end, barcode, count); if these are regions, pass them as BED",
                )
            return 5 if len(words) > 4 else 4
        return None

    def _known(self, rows: Rows) -> tuple[Rows, NDArray[np.int32]]:
        """Number the barcodes; rows with a bad barcode or count become faults."""
        numbers = np.array([self._code(label) for label in rows.labels], np.int32)
        codes = numbers[rows.barcodes]
        bad = codes < 0
        if len(rows.counts):
            bad |= rows.counts < 1
        if not bad.any():
            return rows, codes
        faults = dict(rows.faults)
        zero = Fault("FRAG-COUNT", "count 0", "column 5 must be the number of reads, 1 or more", "0")
        for row in np.flatnonzero(bad).tolist():
            faults[int(rows.places[row])] = self._refused.get(rows.labels[rows.barcodes[row]], zero)
        good = ~bad
        kept = replace(
            rows,
            places=rows.places[good],
            chroms=rows.chroms[good],
            starts=rows.starts[good],
            ends=rows.ends[good],
            barcodes=rows.barcodes[good],
            counts=rows.counts[good] if len(rows.counts) else rows.counts,
            faults=faults,
        )
        return kept, codes[good]

    def _code(self, label: bytes) -> int:
        """The number of a barcode, a new one for a new barcode, -1 for one that cannot be."""
        code = self._codes.get(label)
        if code is not None:
            return code
        name = label.decode("utf-8", "replace")
        if not name.isprintable() or "\ufffd" in name:
            message = f"barcode {printable(name)} has control characters or is not UTF-8"
            self._refused[label] = Fault("FRAG-BARCODE", message, "use letters, digits and signs", name)
            return -1
        self._codes[label] = len(self.barcodes)
        self.barcodes.append(name)
        return len(self.barcodes) - 1


def n_repeats(block: FragmentBlock) -> int:
    """How many fragments are the same as the one before them."""
    regions = block.regions
    columns = (regions.starts, regions.ends, regions.chroms, block.barcodes)
    same = np.ones(max(0, len(regions) - 1), bool)
    for column in columns:
        same &= column[1:] == column[:-1]
    return int(same.sum())


class FragmentSets(Iterator[SetBlock]):
    """The token sets of the barcodes of a fragments file, already read; iterate once."""

    def __init__(
        self,
        names: list[str],
        rows: NDArray[np.int64],
        pairs: PairSorter,
        n_fragments: NDArray[np.int64],
        n_placed: NDArray[np.int64],
        notes: tuple[str, ...],
        *,
        block_size: int,
        block_pairs: int,
    ) -> None:
        self.names = names  # (n)
        self.notes = notes
        self._rows = rows  # (n) their numbers in the file, rising
        self._pairs = pairs
        self._n_fragments = n_fragments  # (n)
        self._n_placed = n_placed  # (n)
        self._block_size, self._block_pairs = block_size, block_pairs
        self._next = 0

    def __len__(self) -> int:
        return len(self.names)

    def __next__(self) -> SetBlock:
        if self._next >= len(self):
            raise StopIteration
        start = self._next
        rows = self._rows[start : start + self._block_size]
        sizes = np.cumsum(self._pairs.sizes(rows))
        stop = start + max(1, int(np.searchsorted(sizes, self._block_pairs, side="right")))
        stop = self._next = min(stop, start + len(rows))
        return SetBlock(
            self.names[start:stop],
            self._pairs.sets(self._rows[start:stop]),
            self._n_fragments[start:stop],
            self._n_placed[start:stop],
            self._n_fragments[start:stop],
            pa.table({"n": self._rows[start:stop]}).select([]),
        )


def read_fragments(
    path: str | Path,
    universe: Universe,
    *,
    barcodes: Sequence[str] | None = None,
    min_fragments: int = 0,
    rename_chroms: str | None = None,
    on_bad_line: str = "error",
    block_size: int = 8192,
    max_pairs_in_memory: int = 16_000_000,
    folder: Path | None = None,
) -> FragmentSets:
    """Read a fragments file: the sets of the listed barcodes in their order, or of all as they first appear.

    A listed barcode that never comes has an empty set. `folder` takes the temporary file. Raises BadData with the
    faults of lines, when barely a listed barcode occurs, and when none has `min_fragments`.
    """
    file = FragmentFile(
        path, universe.assembly, barcodes=barcodes or (), rename_chroms=rename_chroms, on_bad_line=on_bad_line
    )
    listed = None if barcodes is None else len(file.barcodes)
    pairs = PairSorter(max_pairs_in_memory, folder)
    n_fragments = n_placed = np.zeros(0, np.int64)
    for block in file.blocks():
        rows, tokens = universe.overlaps(block.regions)
        placed = np.zeros(len(block.regions), bool)
        placed[rows] = True
        n_fragments = summed(n_fragments, np.bincount(block.barcodes, minlength=len(file.barcodes)))
        n_placed = summed(n_placed, np.bincount(block.barcodes[placed], minlength=len(file.barcodes)))
        codes = block.barcodes[rows]
        if listed is not None:
            tokens, codes = tokens[codes < listed], codes[codes < listed]
        pairs.add(codes, tokens)
    kept, notes = chosen(file, n_fragments, listed, min_fragments)
    return FragmentSets(
        [file.barcodes[row] for row in kept.tolist()],
        kept,
        pairs,
        n_fragments[kept],
        n_placed[kept],
        (*file.notes, *notes),
        block_size=block_size,
        block_pairs=max_pairs_in_memory,
    )


def chosen(
    file: FragmentFile, n_fragments: NDArray[np.int64], listed: int | None, min_fragments: int
) -> tuple[NDArray[np.int64], list[str]]:
    """The barcodes to keep, and notes on those left out.

    Raises BadData when the list is of another sample, and when none passes.
    """
    candidates = np.flatnonzero(n_fragments) if listed is None else np.arange(listed)
    notes = []
    if listed is None and len(candidates) < len(file.barcodes):
        notes.append(f"{len(file.barcodes) - len(candidates):,} barcodes without fragments on chromosomes left out")
    if listed is not None:
        seen, there = np.flatnonzero(n_fragments), int((n_fragments[:listed] > 0).sum())
        if there < MATCHING * min(listed, len(seen)) or there == 0:
            examples = [", ".join(printable(file.barcodes[row]) for row in rows[:3]) for rows in (candidates, seen)]
            share = 100 * there / max(1, min(listed, len(seen)))
            raise BadData(
                f"{there:,} of {listed:,} listed barcodes occur in the file ({share:.1f} %): "
                f"listed {examples[0]}; in the file {examples[1]}",
                code="FRAG-BARCODES",
                file=str(file.path),
                fix="check that both are of one sample and write barcodes alike (prefix, -1)",
            )
        if there < listed:
            notes.append(f"{listed - there:,} listed barcodes have no fragments")
        if len(seen) > there:
            notes.append(f"{len(seen) - there:,} barcodes that are not listed left out")
    kept = candidates[n_fragments[candidates] >= min_fragments]
    if len(kept) == 0:
        raise BadData(
            f"none of {len(candidates):,} barcodes has {min_fragments:,} fragments; "
            f"the largest has {int(n_fragments[candidates].max(initial=0)):,}",
            code="FRAG-CELLS",
            file=str(file.path),
            got=min_fragments,
            fix="lower --min-fragments",
        )
    if len(kept) < len(candidates):
        notes.append(f"{len(candidates) - len(kept):,} barcodes with fewer than {min_fragments:,} fragments left out")
    return kept, notes


def summed(total: NDArray[np.int64], more: NDArray[np.int64]) -> NDArray[np.int64]:
    """Add counts to counts of no greater length."""
    more[: len(total)] += total
    return more
