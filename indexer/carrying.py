"""Carrying: the rows and token sets of an atlas, written again over the regions of another universe.

A token becomes those of the regions that its own region overlaps, after liftOver where the assembly is another one.
Ids, names and metadata stay; n_tokens and coverage are those over the new universe. What is lost is counted.
"""

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from chromseek.data.tokens import TokenSets
from chromseek.indexer.ingest import FEW_TOKENS, MANY_TOKENS
from chromseek.indexer.journal import Ingested, Journal, Part
from chromseek.indexer.progress import progress
from chromseek.indexer.segment import GROUP_ROWS, TokenWriter, read_sets
from chromseek.indexer.store import Writer

PIECE = 4_000_000  # tokens carried at a time
COUNTS = ("n_old_tokens", "n_carried", "n_emptied")  # of a source: its tokens before, those that found a place, ...


def carried(sets: TokenSets, table: TokenSets) -> tuple[TokenSets, NDArray[np.int64]]:
    """Token sets over another universe, and how many tokens of each old set found a place there, (n).

    `table` has the new tokens of each old one.

    >>> table = TokenSets.from_lists([[5], [], [5, 6]])
    >>> new, found = carried(TokenSets.from_lists([[0, 1, 2], [1]]), table)
    >>> new.tokens.tolist(), new.sizes.tolist(), found.tolist()
    ([5, 6], [2, 0], [2, 0])
    """
    rows = np.repeat(np.arange(len(sets)), sets.sizes)
    counts = table.sizes[sets.tokens]
    found = np.bincount(rows[counts > 0], minlength=len(sets))
    taken = table.take(sets.tokens.astype(np.int64))
    return TokenSets.from_pairs(np.repeat(rows, counts), taken.tokens, len(sets)), found


class Carrier:
    """Writes the segments of an atlas again, one by one; goes on where the journal says that a killed one stopped."""

    def __init__(self, writer: Writer, journal: Journal, table: TokenSets) -> None:
        self._writer, self._journal, self._table = writer, journal, table

    def carry(self, name: str, entry: dict[str, Any]) -> None:
        """Carry one collection, whose entry in the version before is given."""
        done = self._journal.of(name)
        if not done.reports:
            done.reports = [_empty_report(report) for report in entry["sources"]]
        with progress(f"carrying {name}", entry["n_rows"]) as tick:
            tick(done.n_rows)
            for segment in entry["segments"][len(done.parts) :]:
                folder = self._writer.new_folder("segments")
                self._segment(self._journal.root / segment["folder"], folder, done)
                done.parts.append(Part.of(self._journal.root, folder, segment["n_rows"]))
                self._journal.save()
                tick(segment["n_rows"])
        done.done = True

    def _segment(self, old: Path, new: Path, done: Ingested) -> None:
        """Write one segment again, a row group at a time."""
        with closing(TokenWriter(new)) as tokens, pq.ParquetFile(old / "rows.parquet") as rows:
            groups = (rows.read_row_group(group) for group in range(rows.num_row_groups))
            with pq.ParquetWriter(new / "rows.parquet", rows.schema_arrow, compression="zstd") as out:
                for table, sets in zip(groups, read_sets(old), strict=True):
                    found, sizes = self._sets(sets, tokens)
                    out.write_table(_changed(table, sets, found, sizes), GROUP_ROWS)
                    _count(done.reports, table.column("id").to_numpy(), sets.sizes, found, sizes)

    def _sets(self, sets: TokenSets, out: TokenWriter) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Carry the sets of a row group, in one row group; how many tokens found a place, and new sizes, (n), (n)."""
        parts, found = [], []
        starts = np.flatnonzero(np.diff(sets.offsets[:-1] // PIECE, prepend=-1)).tolist()
        for start, stop in zip(starts, [*starts[1:], len(sets)], strict=True):
            new, placed = carried(sets.slice(start, stop), self._table)
            parts.append(new)
            found.append(placed)
        whole = TokenSets.concat(parts)
        out.add(whole)
        return np.concatenate(found), whole.sizes


def _changed(table: pa.Table, sets: TokenSets, found: NDArray[np.int64], sizes: NDArray[np.int64]) -> pa.Table:
    """The rows with the sizes of their new sets, and of their coverage the share that was carried."""
    share = found / np.maximum(sets.sizes, 1)
    coverage = table.column("coverage").to_numpy() * share
    for name, values in (("n_tokens", sizes), ("coverage", coverage)):
        at = table.schema.get_field_index(name)
        table = table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type, safe=False))
    return table


def _empty_report(report: dict[str, Any]) -> dict[str, Any]:
    """The report of a source before its sets are counted again."""
    again = ("n_empty", f"n_below_{FEW_TOKENS}", f"n_above_{MANY_TOKENS}", *COUNTS)
    return report | dict.fromkeys(again, 0)


def _count(
    reports: list[dict[str, Any]],
    ids: NDArray[np.int64],
    before: NDArray[np.int64],
    found: NDArray[np.int64],
    sizes: NDArray[np.int64],
) -> None:
    """Count the rows of a group, whose ids rise, in the reports of their sources."""
    for report in reports:
        first, last = np.searchsorted(ids, [report["first_id"], report["first_id"] + report["n_sets"]])
        now, old, kept = sizes[first:last], before[first:last], found[first:last]
        report["n_empty"] += int((now == 0).sum())
        report[f"n_below_{FEW_TOKENS}"] += int((now < FEW_TOKENS).sum())
        report[f"n_above_{MANY_TOKENS}"] += int((now > MANY_TOKENS).sum())
        for name, n in zip(COUNTS, (old.sum(), kept.sum(), ((old > 0) & (now == 0)).sum()), strict=True):
            report[name] += int(n)


def losses(reports: list[dict[str, Any]]) -> dict[str, int]:
    """Take the counts out of the reports of a collection and add them up; sets n_placed of each report anew."""
    total = {"n_sets": 0} | dict.fromkeys(COUNTS, 0)
    for report in reports:
        counts = {name: report.pop(name) for name in COUNTS}
        report["n_placed"] = round(report["n_placed"] * counts["n_carried"] / max(1, counts["n_old_tokens"]))
        for name, n in {"n_sets": report["n_sets"], **counts}.items():
            total[name] += n
    return total
