"""Reading: inputs become segments of rows and token sets, and a report of what each input held."""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from chromseek.data.errors import BadData, printable
from chromseek.data.sources import Source
from chromseek.data.tokens import SetBlock
from chromseek.data.universe import Universe
from chromseek.indexer.journal import Ingested, Journal, Part
from chromseek.indexer.progress import progress
from chromseek.indexer.region_source import RegionSource
from chromseek.indexer.schemas import join_schemas
from chromseek.indexer.segment import MAX_ROWS, OWN_COLUMNS, SegmentWriter
from chromseek.indexer.store import Writer

FEW_TOKENS, MANY_TOKENS = 500, 100_000  # sets outside are counted and reported
Input = Source | RegionSource


class Ingest:
    """Reads the inputs of a build or an add; goes on where the journal says that a killed one stopped."""

    def __init__(self, writer: Writer, journal: Journal, universe: Universe) -> None:
        self._writer, self._journal, self._universe = writer, journal, universe
        self._next_id = 0

    def read(self, name: str, sources: Sequence[Input], parent: dict[str, Any] | None = None) -> None:
        """Read the sources of one collection into new segments; `parent` is its entry in the version before.

        Raises BadData for a dataset that is there already, and for columns that do not join.
        """
        if not sources:
            return
        parent = parent or {}
        done = self._journal.of(name)
        _check_datasets(sources, parent)
        schema = self._schema(sources, parent)
        self._next_id = parent.get("next_id", 0) + done.n_rows
        writer: SegmentWriter | None = None
        with progress(f"reading {name}", _total(sources)) as tick:
            tick(done.n_rows)
            for source, block in self._blocks(sources, done):
                for piece in _cut(block, 0 if writer is None else writer.n_rows):
                    if writer is not None and writer.n_rows == MAX_ROWS:
                        self._finish(done, writer)
                        writer = None
                    writer = writer or SegmentWriter(self._writer.new_folder("segments"), schema)
                    writer.add(piece, source.dataset, self._next_id)
                    self._next_id += len(piece)
                    done.row += len(piece)
                    _count(done.reports[done.source], piece)
                tick(len(block))
        done.done = True
        if writer is not None:
            self._finish(done, writer)
        else:
            self._journal.save()

    def _blocks(self, sources: Sequence[Input], done: Ingested) -> Iterator[tuple[Input, SetBlock]]:
        """What is still to be read, with a report kept for each source."""
        while not done.done and done.source < len(sources):
            source = sources[done.source]
            if len(done.reports) == done.source:
                done.reports.append(_empty_report(source, self._next_id))
            report = done.reports[done.source]
            before = report["notes"]  # of the rows that a killed run read
            for block in source.blocks(self._universe, done.row):
                report["notes"] = [*dict.fromkeys([*before, *source.notes])]
                yield source, block
            report["notes"] = [*dict.fromkeys([*before, *source.notes])]
            done.source, done.row = done.source + 1, 0

    def _finish(self, done: Ingested, writer: SegmentWriter) -> None:
        """Close a segment and write down that it is finished."""
        writer.close()
        done.parts.append(Part.of(self._journal.root, writer.folder, writer.n_rows))
        self._journal.save()

    def _schema(self, sources: Sequence[Input], parent: dict[str, Any]) -> pa.Schema:
        """The users' columns of all segments, old and new, as one schema."""
        schemas = []
        for segment in parent.get("segments", []):
            old = pq.read_schema(self._writer.file(f"{segment['folder']}/rows.parquet"))
            schemas.append(("the atlas", pa.schema([f for f in old if f.name not in OWN_COLUMNS.names])))
        return join_schemas([*schemas, *((source.label, source.schema) for source in sources)])


def _total(sources: Sequence[Input]) -> int | None:
    """The rows of all sources; None when one does not know its own."""
    known = [source.n_sets for source in sources]
    return None if None in known else sum(n for n in known if n)


def _check_datasets(sources: Sequence[Input], parent: dict[str, Any]) -> None:
    """Refuse a dataset that comes twice, or of which the atlas has rows."""
    there = [report for report in parent.get("sources", []) if report.get("n_deleted", 0) < report["n_sets"]]
    seen = {report["dataset"]: f"the atlas (from {report['label']})" for report in there}
    for source in sources:
        if source.dataset in seen:
            raise BadData(
                f"dataset {printable(source.dataset)} is in {printable(seen[source.dataset], 200)} already",
                code="DATASET-TWICE",
                file=source.label,
                got=source.dataset,
                fix="rename one of the files, name it in a manifest's dataset column, or delete the old rows first",
                status=409,
            )
        seen[source.dataset] = source.label


def _cut(block: SetBlock, filled: int) -> Iterator[SetBlock]:
    """A block in pieces that end where a segment with `filled` rows is full."""
    start = 0
    while start < len(block):
        room = MAX_ROWS - (filled + start) % MAX_ROWS
        stop = min(len(block), start + room)
        yield block.slice(start, stop)
        start = stop


def _empty_report(source: Input, first_id: int) -> dict[str, Any]:
    report: dict[str, Any] = {"dataset": source.dataset, "label": source.label, "first_id": first_id}
    counted = ("n_sets", "n_empty", f"n_below_{FEW_TOKENS}", f"n_above_{MANY_TOKENS}", "n_source", "n_placed")
    return report | dict.fromkeys(counted, 0) | {"notes": []}


def _count(report: dict[str, Any], block: SetBlock) -> None:
    """Add a block to the report of its source: sets outside the token limits are kept, and counted."""
    sizes = block.sets.sizes
    report["n_sets"] += len(block)
    report["n_empty"] += int((sizes == 0).sum())
    report[f"n_below_{FEW_TOKENS}"] += int((sizes < FEW_TOKENS).sum())
    report[f"n_above_{MANY_TOKENS}"] += int((sizes > MANY_TOKENS).sum())
    report["n_source"] += int(block.n_source.sum())
    report["n_placed"] += int(block.n_placed.sum())
