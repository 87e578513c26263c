"""Tokens exactly as the published models' tokenizer (gtars) defines them: ids with their repeats, and <unk>.

chromseek encodes sets: each token once, and nothing for what hits nothing. The published code keeps order and repeats,
and stands <unk> for a list of regions, or a fragment, that hits no region of the universe. This part is for those who
must have the very same numbers; `duplicates=False` gives each list's ids sorted and once, <unk> among them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from chromseek.data.bed import read_bed
from chromseek.data.errors import BadData
from chromseek.data.h5ad import CellMatrix
from chromseek.data.lines import TextFile
from chromseek.data.matrix import Matrix
from chromseek.data.regions import Regions
from chromseek.data.rows import Rows, read_rows
from chromseek.data.tokens import offsets_of
from chromseek.data.universe import Universe, expand

if TYPE_CHECKING:
    from anndata import AnnData


class SpecialIds(NamedTuple):
    """The ids of the special tokens, in the order in which they follow the regions."""

    unk: int
    pad: int
    mask: int
    cls: int
    eos: int
    bos: int
    sep: int


SPECIALS = SpecialIds._fields


def special_ids(n_regions: int) -> SpecialIds:
    """The ids of the special tokens over a universe of so many regions.

    >>> special_ids(890_704).pad
    890705
    """
    return SpecialIds(*range(n_regions, n_regions + len(SPECIALS)))


@dataclass(frozen=True, slots=True)
class IdLists:
    """Many lists of ids; unlike a token set, a list may have repeats and <unk>."""

    offsets: NDArray[np.int64]  # (n + 1)
    ids: NDArray[np.int64]  # (offsets[-1])

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> NDArray[np.int64]:
        return self.ids[self.offsets[row] : self.offsets[row + 1]]


@dataclass(frozen=True, slots=True)
class FragmentIds:
    """The barcodes of a fragments file, each once, and the ids of each."""

    barcodes: list[str]  # (n)
    lists: IdLists  # (n)


def bed_tokens(source: Regions | str | Path, universe: Universe, *, duplicates: bool = True) -> NDArray[np.int64]:
    """The ids of one list of regions, (t): query by query, each one's hits by position; <unk> where nothing is hit.

    Regions are taken in their order; a BED file's by chromosome name and start, as the reference reads a file.
    """
    if isinstance(source, Regions):
        regions = source
    else:
        regions = read_bed(source, assembly=universe.assembly).regions
        regions = regions.take(np.lexsort((regions.starts, regions.chrom_names().astype(str))))
    _, ids = _Hits(universe).of(regions)
    return _lists(np.zeros(len(ids), np.int64), ids, 1, universe, duplicates=duplicates).ids


def anndata_tokens(
    cells: "AnnData", universe: Universe, *, layer: str | None = None, duplicates: bool = True
) -> IdLists:
    """The ids of each cell of an AnnData in memory: those of its nonzero columns, in the order they are stored in.

    Raises BadData for columns that are no regions of the universe's assembly.
    """
    described = CellMatrix(cells, assembly=universe.assembly, layer=layer, make_unique=True)
    first, count = np.zeros((2, cells.shape[1]), np.int64)
    rows, hits = _Hits(universe).of(described.regions)
    counts = np.bincount(rows, minlength=len(described.regions))
    first[described.region_rows], count[described.region_rows] = offsets_of(counts)[:-1], counts
    owners, ids = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for piece in Matrix(cells.X if layer is None else cells.layers[layer]).pieces():
        filled = piece.values != 0
        columns = piece.places[filled]
        ids.append(hits[expand(first[columns], count[columns])])
        owners.append(np.repeat(piece.first + piece.lines[filled], count[columns]))
    return _lists(np.concatenate(owners), np.concatenate(ids), len(cells), universe, duplicates=duplicates)


def fragment_tokens(path: str | Path, universe: Universe, *, duplicates: bool = True) -> FragmentIds:
    """The ids of each barcode of a fragments file: fragment by fragment, with an <unk> for each that hits nothing.

    The chromosomes are not checked: a fragment on one that the universe lacks hits nothing. All ids are held in memory.
    Raises BadData for the first line that is no fragment of five columns.
    """
    codes: dict[bytes, int] = {}
    hits = _Hits(universe)
    owners, ids = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for block in TextFile(path).blocks():
        rows = read_rows(block, 5, header=False)
        if rows.faults:
            place, fault = min(rows.faults.items())
            line = rows.first + place
            raise BadData(fault.message, code=fault.code, file=str(path), line=line, got=fault.got, fix=fault.fix)
        known = np.array([codes.setdefault(label, len(codes)) for label in rows.labels], np.int64)
        fragments, found = hits.of(_within(rows, universe))
        lost = np.setdiff1d(np.arange(len(rows.places)), fragments)
        fragments = np.concatenate([fragments, lost])
        found = np.concatenate([found, np.full(len(lost), special_ids(len(universe)).unk)])
        order = np.argsort(fragments, kind="stable")
        owners.append(known[rows.barcodes[fragments[order]]])
        ids.append(found[order])
    barcodes = [label.decode("utf-8", "replace") for label in codes]
    lists = _lists(np.concatenate(owners), np.concatenate(ids), len(barcodes), universe, duplicates=duplicates)
    return FragmentIds(barcodes, lists)


def _within(rows: Rows, universe: Universe) -> Regions:
    """Fragments as regions of the universe's assembly, (n); those elsewhere become empty ones that hit nothing."""
    assembly = universe.assembly
    codes = np.array([assembly.codes.get(name, -1) for name in rows.names], np.int16)[rows.chroms]
    ends = np.array(assembly.lengths, np.int64)[codes]
    starts, stops = (np.where(codes < 0, ends, np.minimum(edge, ends)) for edge in (rows.starts, rows.ends))
    return Regions(assembly, codes % len(assembly.chroms), starts.astype(np.int32), stops.astype(np.int32))


class _Hits:
    """Overlaps with a universe in the reference's order."""

    def __init__(self, universe: Universe) -> None:
        starts, ends = universe.regions.spans()
        self._universe = universe
        self._ids = np.lexsort((ends, starts))  # by position
        self._places = np.empty(len(universe), np.int64)
        self._places[self._ids] = np.arange(len(universe))

    def of(self, regions: Regions) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """All pairs of query and id, by query, and within one by the start and end of what is hit: (p), (p)."""
        rows, tokens = self._universe.overlaps(regions)
        keys = np.sort((rows << 32) | self._places[tokens])
        return keys >> 32, self._ids[keys & 0xFFFFFFFF]


def _lists(
    owners: NDArray[np.int64], ids: NDArray[np.int64], n: int, universe: Universe, *, duplicates: bool
) -> IdLists:
    """Gather ids by owner in their order; a list that would be empty gets <unk>."""
    lost = np.setdiff1d(np.arange(n), owners)
    owners = np.concatenate([owners, lost])
    ids = np.concatenate([ids, np.full(len(lost), special_ids(len(universe)).unk)])
    order = np.argsort(owners, kind="stable") if duplicates else np.lexsort((ids, owners))
    owners, ids = owners[order], ids[order]
    if not duplicates:
        fresh = np.ones(len(ids), bool)
        fresh[1:] = (owners[1:] != owners[:-1]) | (ids[1:] != ids[:-1])
        owners, ids = owners[fresh], ids[fresh]
    return IdLists(offsets_of(np.bincount(owners, minlength=n)), ids)
