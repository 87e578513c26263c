"""Assemblies: their chromosomes, their lengths, and which of them a file was written for."""

import difflib
import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from chromseek.data.errors import BadArgument, printable

_LENGTHS = {
    "hg19": "249250621 243199373 198022430 191154276 180915260 171115067 159138663 146364022 141213431 135534747 "
    "135006516 133851895 115169878 107349540 102531392 90354753 81195210 78077248 59128983 63025520 48129895 "
    "51304566 155270560 59373566 16571",
    "hg38": "248956422 242193529 198295559 190214555 181538259 170805979 159345973 145138636 138394717 133797422 "
    "135086622 133275309 114364328 107043718 101991189 90338345 83257441 80373285 58617616 64444167 46709983 "
    "50818468 156040895 57227415 16569",
    "mm10": "195471971 182113224 160039680 156508116 151834684 149736546 145441459 129401213 124595110 130694993 "
    "122082543 120129022 120421639 124902244 104043685 98207768 94987271 90702639 61431566 171031299 91744698 16299",
}
# Unplaced, unlocalised, alternate and decoy sequences: known, but no place for a token. Of RefSeq's NC_ only the
# virus of hs37d5 is one: NC_000001.11 is a chromosome, and a file named so must fail, not come out empty.
_CONTIG = re.compile(
    r"(chr)?(Un|\w+_(random|alt|fix|hap\d+)$|EBV$|GL\d|KI\d|JH\d|NC_007605|NT_|NW_)|chrUn_|.*_decoy$|hs37d5$"
)
MISFIT = 0.001  # a file with more than this share of its regions outside an assembly was not written for it


@dataclass(frozen=True)
class Assembly:
    """A genome assembly: chromosomes in karyotype order, named `chr1`.., with their lengths in bases."""

    name: str
    chroms: tuple[str, ...]
    lengths: tuple[int, ...]

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """Where each chromosome starts when all are laid end to end, (chromosomes + 1)."""
        return np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])

    @cached_property
    def codes(self) -> dict[str, int]:
        """Chromosome name → its position in `chroms`."""
        return {chrom: code for code, chrom in enumerate(self.chroms)}

    def nearest(self, name: str) -> list[str]:
        """The three chromosome names that look most like this one."""
        return difflib.get_close_matches(name, self.chroms, n=3, cutoff=0.0)


def _assembly(name: str, lengths: str) -> Assembly:
    numbers = tuple(int(n) for n in lengths.split())
    numbered = len(numbers) - 3
    return Assembly(name, (*(f"chr{i + 1}" for i in range(numbered)), "chrX", "chrY", "chrM"), numbers)


ASSEMBLIES = {name: _assembly(name, lengths) for name, lengths in _LENGTHS.items()}


def assembly(name: str) -> Assembly:
    """Look an assembly up by name.

    >>> assembly("hg38").lengths[0]
    248956422
    """
    if name not in ASSEMBLIES:
        raise BadArgument(
            f"unknown assembly {printable(name)}", code="ASSEMBLY", got=name, fix=f"one of {', '.join(ASSEMBLIES)}"
        )
    return ASSEMBLIES[name]


def is_contig(name: str) -> bool:
    """Whether a name is that of a known kind of sequence outside the chromosomes (`chr1_random`, `GL000192.1`)."""
    return _CONTIG.match(name) is not None


def ucsc_name(name: str) -> str:
    """Turn an Ensembl chromosome name into UCSC's; other names stay.

    >>> ucsc_name("1"), ucsc_name("MT"), ucsc_name("chr1")
    ('chr1', 'chrM', 'chr1')
    """
    if name in ("M", "MT"):
        return "chrM"
    return f"chr{name}" if re.fullmatch(r"\d{1,2}|X|Y", name) else name


@dataclass(frozen=True, slots=True)
class AssemblyGuess:
    """Which assemblies a file could have been written for, and why."""

    name: str | None  # the only one that fits, or None
    evidence: dict[str, str]  # assembly → "fits" or what speaks against it


def guess_assembly(chroms: list[str], codes: NDArray[np.int64], ends: NDArray[np.int64]) -> AssemblyGuess:
    """Guess the assembly of regions from chromosome names and lengths.

    `codes` index `chroms`; `ends` are the regions' ends. An assembly fits when no more than 0.1 % of the
    regions that lie on a chromosome run past its end; among those that fit, one that leaves no region
    outside beats one that leaves some.
    """
    names = [ucsc_name(chrom) for chrom in chroms]
    misfits: dict[str, float] = {}
    evidence: dict[str, str] = {}
    for candidate in ASSEMBLIES.values():
        lengths = np.array([candidate.lengths[candidate.codes[n]] if n in candidate.codes else -1 for n in names])
        strange = np.array([n not in candidate.codes and not is_contig(n) for n in names], dtype=bool)
        limit = lengths[codes] if len(codes) else np.empty(0, np.int64)
        past = (limit >= 0) & (ends > limit)
        outside = int(past.sum() + strange[codes].sum()) if len(codes) else 0
        misfits[candidate.name] = outside / max(1, len(codes))
        if outside:
            at = int(np.argmax(past | strange[codes]))
            evidence[candidate.name] = (
                f"{outside} of {len(codes)} regions lie outside, such as {names[codes[at]]} up to {ends[at]}"
            )
        else:
            evidence[candidate.name] = "fits"
    fitting = [name for name, share in misfits.items() if share <= MISFIT]
    clean = [name for name in fitting if misfits[name] == 0]
    best = clean if len(clean) == 1 else fitting
    return AssemblyGuess(best[0] if len(best) == 1 else None, evidence)
