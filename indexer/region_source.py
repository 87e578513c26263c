"""The universe itself as a source: every region is a set of one token."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from chromseek.data.genes import Genes
from chromseek.data.tokens import SetBlock, TokenSets
from chromseek.data.universe import Universe


class RegionSource:
    """Rows with chrom, start and end and, where genes are given, the nearest one and its distance."""

    dataset, kind, label = "universe", "region", "universe"
    notes: tuple[str, ...] = ()

    def __init__(self, universe: Universe, genes: Genes | None) -> None:
        self._universe, self._genes = universe, genes
        self.n_sets = len(universe)
        self.schema = self._metadata(0, 0).schema

    def identity(self) -> dict[str, Any]:
        """What the journal compares."""
        return {"digest": self._universe.digest}

    def blocks(self, universe: Universe, start: int = 0) -> Iterator[SetBlock]:
        """All regions from `start` on."""
        for first in range(start, len(universe), 65_536):
            stop = min(first + 65_536, len(universe))
            tokens = np.arange(first, stop, dtype=np.int32)
            ones = np.ones(len(tokens), np.int64)
            names = universe.regions.take(slice(first, stop)).names()
            sets = TokenSets(np.arange(len(tokens) + 1), tokens)
            yield SetBlock(names, sets, ones, ones, None, self._metadata(first, stop))

    def _metadata(self, start: int, stop: int) -> pa.Table:
        regions = self._universe.regions.take(slice(start, stop))
        chroms = pa.array(regions.assembly.chroms, pa.string())
        columns = {
            "chrom": pa.DictionaryArray.from_arrays(pa.array(regions.chroms.astype(np.int32)), chroms),
            "start": pa.array(regions.starts),
            "end": pa.array(regions.ends),
        }
        if self._genes is not None:
            symbols, distances = self._genes.nearest(regions)
            nowhere = symbols == ""
            columns["gene"] = pa.array(symbols, pa.string(), mask=nowhere)
            columns["tss_distance"] = pa.array(distances, pa.int64(), mask=nowhere)
        return pa.table(columns)
