"""Packing: token sets into batches without padding, and sets that are longer than an encoder's context.

A set that is too long is sampled, or cut into chunks, at random; the seed comes from the set's own content, so that
the same cell has the same vector in every build, batch and query.
"""

import zlib

import numpy as np
from numpy.typing import NDArray

from chromseek.data.tokens import TokenSets, offsets_of


def shortened(sets: TokenSets, context: int, seed: int = 0) -> TokenSets:
    """Sample `context` tokens of each set that has more, without replacement; the others stay as they are.

    Another `seed` gives another sample.

    >>> shortened(TokenSets.from_lists([range(5), [7]]), 2).sizes.tolist()
    [2, 1]
    """
    long = np.flatnonzero(sets.sizes > context)
    if len(long) == 0:
        return sets
    keep = np.ones(len(sets.tokens), bool)
    for row in long:
        start, stop = sets.offsets[row], sets.offsets[row + 1]
        chosen = _content_rng(sets.tokens[start:stop], seed).permutation(stop - start)[:context]
        keep[start:stop] = False
        keep[start + chosen] = True
    return TokenSets(offsets_of(np.minimum(sets.sizes, context)), sets.tokens[keep])


def chunked(sets: TokenSets, context: int) -> tuple[TokenSets, NDArray[np.int64]]:
    """Deal the tokens of each set out at random into chunks of equal size, `context` at most.

    Returns the chunks and the set that each is of, (n chunks). An empty set is one empty chunk.

    >>> chunks, owners = chunked(TokenSets.from_lists([range(5), [], [7]]), 2)
    >>> chunks.sizes.tolist(), owners.tolist()
    ([2, 2, 1, 0, 1], [0, 0, 0, 1, 2])
    """
    counts = np.maximum(-(-sets.sizes // context), 1)
    owners = np.repeat(np.arange(len(sets)), counts)
    if len(owners) == len(sets):
        return sets, owners
    parts = []
    for row, count in enumerate(counts):
        tokens = sets[row]
        if count == 1:
            parts.append(tokens)
            continue
        dealt = _content_rng(tokens, 0).permutation(len(tokens))
        parts += [np.sort(tokens[dealt[chunk::count]]) for chunk in range(count)]
    return TokenSets(offsets_of([len(part) for part in parts]), np.concatenate(parts)), owners


def batches(sizes: NDArray[np.int64], budget: int) -> list[NDArray[np.int64]]:
    """Group rows of like size: each batch holds at most `budget` tokens, or one row.

    >>> [batch.tolist() for batch in batches(np.array([5, 1, 4, 2]), 6)]
    [[1, 3], [2], [0]]
    """
    order = np.argsort(sizes, kind="stable")
    cuts, filled = [0], 0
    for place, size in enumerate(sizes[order].tolist()):
        if filled + size > budget and place > cuts[-1]:
            cuts.append(place)
            filled = 0
        filled += size
    return [order[start:stop] for start, stop in zip(cuts, [*cuts[1:], len(order)], strict=True) if stop > start]


def _content_rng(tokens: NDArray[np.int32], seed: int) -> np.random.Generator:
    """A generator that the tokens themselves seed."""
    content = np.ascontiguousarray(tokens, dtype="<i4").tobytes()
    return np.random.default_rng([seed, zlib.crc32(content), len(tokens)])
