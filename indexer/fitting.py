"""Fitting: an encoder made of, or placed by, a sample of the token sets that an atlas has.

What was made lies in the work folder, so that a resumed build has the same encoder.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from chromseek.data.tokens import TokenSets
from chromseek.data.universe import Universe
from chromseek.encoder.base import Encoder, encoder_class, fingerprint, load, save
from chromseek.indexer.durable import checkpoint, sync
from chromseek.indexer.journal import Journal
from chromseek.indexer.progress import progress
from chromseek.indexer.segment import take_sets

FIT_SETS = 20_000  # sets of a kind and
FIT_TOKENS = 12_000_000  # tokens of a kind that an encoder is fitted on, at most
FEW_CELLS = 5  # a value that fewer cells have is not learned
LABELLED = "bag"  # the encoder that learns labels


@dataclass(frozen=True)
class Fitting:
    """Where the token sets lie, and how encoders are made of them; ids that are `deleted` do not take part."""

    journal: Journal
    universe: Universe
    dim: int | None  # None: the encoder's own
    seed: int
    device: str
    dtype: str
    deleted: dict[str, NDArray[np.int64]] = field(default_factory=dict)  # collection → sorted ids

    def primary(self, encoder: Encoder | str) -> Encoder:
        """Fit the encoder of this name; or place a made one, which may not know yet where the kinds of sets lie."""
        if isinstance(encoder, str):
            return self._once("encoder", lambda: self._fitted(encoder))
        if self._has("encoder"):
            return self._once("encoder", _never)
        cells, beds = self._sample("cells"), self._sample("beds")
        if len(cells.tokens) + len(beds.tokens) == 0:
            return encoder  # whose vectors will all be zero
        before = fingerprint(encoder)
        with progress(f"placing {encoder.name}", None):
            placed = encoder.placed(cells, beds, seed=self.seed)
        return placed if fingerprint(placed) == before else self._once("encoder", lambda: placed)

    def labelled(self, label: str) -> tuple[Encoder | None, str | None]:
        """Fit an encoder that tells the values of a column of cells apart; None, and why, where there are none."""
        part = f"label-{hashlib.sha256(label.encode()).hexdigest()[:12]}"
        if self._has(part):
            return self._once(part, _never), None
        codes, names = self._codes(label)
        rows = self._within_tokens("cells", _spread(codes, self.seed))
        if len(np.unique(codes[rows])) < 2:
            return None, f"it has no two values, numbers with decimals aside, that {FEW_CELLS} cells have"
        sets = self._take("cells", rows)

        def fit() -> Encoder:
            made: Encoder = encoder_class(LABELLED).fit_labelled(
                sets, codes[rows], names, self.universe, dim=None, seed=self.seed, device=self.device
            )
            return made

        with progress(f"learning {label}", None):
            return self._once(part, fit), None

    def _has(self, part: str) -> bool:
        return (self.journal.work / part / "done").exists()

    def _once(self, part: str, make: Callable[[], Encoder]) -> Encoder:
        """The encoder that lies in this part of the work folder; it is made where it does not."""
        folder = self.journal.work / part
        if not self._has(part):
            for path in save(make(), folder):
                sync(path)
            checkpoint("encoder-saved")
            (folder / "done").touch()
        return load(folder, self.universe, device=self.device, dtype=self.dtype)

    def _fitted(self, name: str) -> Encoder:
        kind, _, size = name.partition(":")
        cells, beds = self._sample("cells"), self._sample("beds")
        given = {"size": size} if size else {}
        with progress(f"fitting {name}", None):
            made: Encoder = encoder_class(kind).fit(
                cells, beds, self.universe, dim=self.dim, seed=self.seed, device=self.device, **given
            )
        return made

    def _sample(self, name: str) -> TokenSets:
        """Some of the sets of a collection that have tokens, FIT_SETS and about FIT_TOKENS at most."""
        rows = np.flatnonzero(self._alive(name))
        chosen = np.random.default_rng(self.seed).permutation(rows)[:FIT_SETS]
        return self._take(name, self._within_tokens(name, chosen))

    def _within_tokens(self, name: str, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """As many of the rows, taken as they come, as have FIT_TOKENS tokens; sorted, three of them at least."""
        fits = np.cumsum(self._column(name, "n_tokens")[rows]) <= FIT_TOKENS
        fits[:3] = True  # however large they are
        return np.sort(rows[fits])

    def _alive(self, name: str) -> NDArray[np.bool_]:
        """Which rows have tokens and are not deleted, (rows)."""
        alive = self._column(name, "n_tokens") > 0
        gone = self.deleted.get(name, np.empty(0, np.int64))
        return alive & ~np.isin(self._column(name, "id"), gone) if len(gone) else alive

    def _column(self, name: str, column: str) -> NDArray[np.int64]:
        """A column of whole numbers that every row has, (rows)."""
        parts = [np.empty(0, np.int64)]
        for part in self.journal.of(name).parts:
            table = pq.read_table(self.journal.root / part.folder / "rows.parquet", columns=[column])
            parts.append(table.column(0).to_numpy())
        return np.concatenate(parts)

    def _codes(self, label: str) -> tuple[NDArray[np.int64], list[str]]:
        """A column of the cells as codes (rows), -1 for cells to be left out, and the values that they stand for."""
        names: dict[str | None, int] = {}
        parts = [np.empty(0, np.int64)]
        for part in self.journal.of("cells").parts:
            path = self.journal.root / part.folder / "rows.parquet"
            schema = pq.read_schema(path)
            named = label in schema.names and not pa.types.is_floating(schema.field(label).type)
            column = pq.read_table(path, columns=[label]).column(0) if named else pa.nulls(part.n_rows)
            values = pc.dictionary_encode(column.cast(pa.string()), null_encoding="encode")
            for chunk in values.chunks if isinstance(values, pa.ChunkedArray) else [values]:
                known = [names.setdefault(name, len(names)) for name in chunk.dictionary.to_pylist()]
                parts.append(np.array(known, np.int64)[chunk.indices.to_numpy()])
        codes = np.where(self._alive("cells"), np.concatenate(parts), -1)
        counts = np.bincount(codes[codes >= 0], minlength=len(names))
        often = sorted(name for name, code in names.items() if name is not None and counts[code] >= FEW_CELLS)
        place = np.full(len(names) + 1, -1)  # the last is that of code -1
        place[[names[name] for name in often]] = np.arange(len(often))
        return place[codes], often

    def _take(self, name: str, rows: NDArray[np.int64]) -> TokenSets:
        """The token sets of sorted rows."""
        taken, first = [], 0
        for part in self.journal.of(name).parts:
            mine = rows[(rows >= first) & (rows < first + part.n_rows)] - first
            if len(mine):
                taken.append(take_sets(self.journal.root / part.folder, mine))
            first += part.n_rows
        return TokenSets.concat(taken)


def _spread(codes: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """FIT_SETS rows with a code, at most, in random order; rare values are drawn more often than common ones.

    The chance of a row falls with the root of how many rows have its value.
    """
    rows = np.flatnonzero(codes >= 0)
    frequent = np.sqrt(np.bincount(codes[rows])[codes[rows]])
    return rows[np.argsort(np.random.default_rng(seed).exponential(size=len(rows)) * frequent, kind="stable")][
        :FIT_SETS
    ]


def _never() -> Encoder:
    raise AssertionError("what is made already is not made again")
