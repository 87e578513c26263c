"""The universe: the regions that tokens stand for, and the overlap kernels that turn other regions into tokens.

An overlap is one base or more of half-open intervals. Universe regions may overlap and nest: they are split into
layers in which starts and ends both rise, so that in each layer the hits of a query are one range of two
binary searches.
"""

import gzip
import hashlib
import io
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from chromseek.data.bed import read_bed
from chromseek.data.errors import BadData
from chromseek.data.genome import Assembly
from chromseek.data.regions import Regions
from chromseek.data.tokens import TokenSets, offsets_of, rising


class Universe:
    """Regions whose position is their token. The order is kept, so that a published universe keeps its ids."""

    def __init__(self, regions: Regions) -> None:
        """Take regions in token order.

        Raises BadData when there are none, or when a region comes twice.
        """
        if len(regions) == 0:
            raise BadData("a universe needs at least one region", code="UNIVERSE-EMPTY", fix="give a BED with regions")
        self.regions = regions
        starts, ends = regions.spans()
        order = np.lexsort((ends, starts))
        starts, ends = starts[order], ends[order]
        twice = np.flatnonzero((starts[1:] == starts[:-1]) & (ends[1:] == ends[:-1]))
        if len(twice):
            name = regions.take(order[twice[:1]]).names()[0]
            raise BadData(
                f"{len(twice)} regions of the universe come twice, such as {name}",
                code="UNIVERSE-TWICE",
                got=name,
                fix="remove the repeats (sort -u)",
            )
        self._layers = layers(starts, ends, order.astype(np.int32))

    @classmethod
    def of(cls, regions: Regions) -> "Universe":
        """Make a universe of any regions: sorted by position, repeats dropped."""
        starts, ends = regions.spans()
        order = np.lexsort((ends, starts))
        starts, ends = starts[order], ends[order]
        first = np.ones(len(order), bool)
        first[1:] = (starts[1:] != starts[:-1]) | (ends[1:] != ends[:-1])
        return cls(regions.take(order[first]))

    @classmethod
    def load(cls, path: str | Path, assembly: Assembly | None = None, **options: Any) -> "Universe":
        """Read a universe from a BED file; the order of its lines is kept. `options` are read_bed's."""
        return cls(read_bed(path, assembly=assembly, **options).regions)

    def save(self, path: str | Path) -> None:
        """Write a gzipped BED with three columns; the same universe always gives the same bytes."""
        regions = self.regions
        chroms = pa.DictionaryArray.from_arrays(pa.array(regions.chroms), pa.array(regions.assembly.chroms))
        table = pa.table({"chrom": chroms.cast(pa.string()), "start": regions.starts, "end": regions.ends})
        text = io.BytesIO()
        options = pa.csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")
        pa.csv.write_csv(table, text, options)
        with open(path, "wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as out:
            out.write(text.getbuffer())

    @property
    def assembly(self) -> Assembly:
        """The assembly whose coordinates the regions have."""
        return self.regions.assembly

    def __len__(self) -> int:
        return len(self.regions)

    @cached_property
    def digest(self) -> str:
        """sha256 of the assembly's name and the regions in token order."""
        regions = self.regions
        digest = hashlib.sha256(regions.assembly.name.encode())
        for column in (regions.chroms.astype("<i2"), regions.starts.astype("<i4"), regions.ends.astype("<i4")):
            digest.update(column.tobytes())
        return digest.hexdigest()

    def overlaps(self, regions: Regions) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """All pairs (query region, token) that share a base: rows (p) and tokens (p).

        Pairs come layer by layer and within a layer by position of the query.
        """
        starts, ends = regions.spans()
        order = None
        if len(starts) > 1 and (starts[1:] < starts[:-1]).any():  # sorted queries are searched 8 times faster
            order = np.argsort(starts)
            starts, ends = starts[order], ends[order]
        rows, tokens = [], []
        for layer_starts, layer_ends, layer_tokens in self._layers:
            first, count = hit_ranges(layer_starts, layer_ends, starts, ends)
            rows.append(np.repeat(np.arange(len(starts)), count))
            tokens.append(layer_tokens[expand(first, count)])
        all_rows, all_tokens = np.concatenate(rows), np.concatenate(tokens)
        return (all_rows if order is None else order[all_rows]), all_tokens

    def tokenize(self, regions: Regions) -> tuple[NDArray[np.int32], int]:
        """The token set of many regions taken as one set, and how many of the regions found a token."""
        rows, tokens = self.overlaps(regions)
        placed = np.zeros(len(regions), bool)
        placed[rows] = True
        return rising(tokens), int(placed.sum())

    def token_map(self, regions: Regions) -> TokenSets:
        """The tokens of each region by itself: a table from the regions of another peak set to this universe."""
        rows, tokens = self.overlaps(regions)
        return TokenSets.from_pairs(rows, tokens, len(regions))


Layer = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]


def layers(starts: NDArray[np.int64], ends: NDArray[np.int64], tokens: NDArray[np.int32]) -> list[Layer]:
    """Split intervals sorted by start into layers in which the ends rise too.

    One layer unless intervals nest; as many as the deepest nest.

    >>> [t.tolist() for _, _, t in layers(np.array([0, 10, 20]), np.array([100, 15, 120]), np.array([0, 1, 2]))]
    [[0, 2], [1]]
    """
    found = []
    while len(starts):
        rising = ends >= np.maximum.accumulate(ends)
        found.append((starts[rising], ends[rising], tokens[rising]))
        starts, ends, tokens = starts[~rising], ends[~rising], tokens[~rising]
    return found


def hit_ranges(
    starts: NDArray[np.int64], ends: NDArray[np.int64], query_starts: NDArray[np.int64], query_ends: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each query, the first interval of a layer that it overlaps and how many follow it, (q), (q)."""
    first = np.searchsorted(ends, query_starts, side="right")
    last = np.searchsorted(starts, query_ends, side="left")
    return first, np.maximum(last - first, 0)


def expand(first: NDArray[np.int64], count: NDArray[np.int64]) -> NDArray[np.int64]:
    """Write ranges out in full.

    >>> expand(np.array([5, 0, 9]), np.array([2, 0, 1])).tolist()
    [5, 6, 9]
    """
    offsets = offsets_of(count)
    return np.arange(offsets[-1]) + np.repeat(first - offsets[:-1], count)
