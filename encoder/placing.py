"""Placing: where the vectors of cells, regions and BED sets lie, so that the three can be compared.

Each kind is seen from its own mean (`centred` in base.py). Without that the nearest cells of a BED set are those
that are large, not those that are like it.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from chromseek.data.tokens import TokenSets
from chromseek.encoder.base import KINDS, Kind

MIN_KIND = 20  # fewer sets than this do not make a mean of their kind
UNION = 50  # random cells whose union stands in for a BED set
MAX_REGIONS = 20_000  # regions that the mean is taken of


def singles(regions: NDArray[np.int32]) -> TokenSets:
    """Each region as the set of one."""
    return TokenSets(np.arange(len(regions) + 1), regions)


def kind_means(
    project: Callable[[TokenSets, Kind], NDArray[np.float32]], cells: TokenSets, beds: TokenSets, *, seed: int
) -> NDArray[np.float32]:
    """Take the mean unit vector of each kind, (3, dim), from a sample of non-empty cells and BED sets.

    The regions are some of those that the sample has. A kind with few examples borrows: unions of 50 random cells
    stand in for missing BED sets, and BED sets for missing cells.
    """
    rng = np.random.default_rng(seed)
    seen = np.unique(cells.tokens if len(cells) else beds.tokens)
    regions = np.sort(rng.choice(seen, min(len(seen), MAX_REGIONS), replace=False)).astype(np.int32)
    if len(beds) < MIN_KIND <= len(cells):
        groups = [np.sort(rng.choice(len(cells), UNION)) for _ in range(MIN_KIND)]
        beds = TokenSets.concat([beds, TokenSets.from_lists([cells.take(group).tokens for group in groups])])
    if len(cells) < MIN_KIND:
        cells = TokenSets.concat([cells, beds])
    sets: dict[Kind, TokenSets] = {"cell": cells, "region": singles(regions), "bed": beds}
    return np.stack([project(sets[kind], kind).mean(axis=0) for kind in KINDS])
