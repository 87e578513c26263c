"""What to say of an answer that may mislead: queries hardly placed on the universe, and hits like nothing."""

import numpy as np
from numpy.typing import NDArray

LEAST_COVERAGE = 0.5  # queries of which less found a token may be of another assembly or peak set


def cautions(
    coverage: NDArray[np.float32], scores: NDArray[np.float32], *, assembly: str, collection: str
) -> list[str]:
    """Sentences for the receipt, from the queries' coverage (q) and the hits' scores (q, k); none when all is well."""
    found = []
    answered = np.isfinite(scores[:, 0])
    low = int(((coverage < LEAST_COVERAGE) & answered).sum())
    if low:
        found.append(
            f"{low:,} of {len(scores):,} queries overlap the universe by less than {LEAST_COVERAGE:.0%}: "
            f"are they of {assembly}? If so, the atlas knows little of their regions"
        )
    unlike = int((answered & (scores[:, 0] <= 0)).sum())
    if unlike:
        found.append(
            f"{unlike:,} of {len(scores):,} queries have no hit above score 0: nothing among the {collection} "
            "resembles them"
        )
    return found
