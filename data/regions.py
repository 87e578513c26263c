"""Regions: many intervals of one assembly, in columns; 0-based, half-open, as in BED."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chromseek.data.errors import BadArgument, printable
from chromseek.data.genome import Assembly

_REGION = re.compile(r"([^\s:]+):([\d,]+)-([\d,]+)")
_POSITION = re.compile(
    r"[0-9][0-9,]{0,30}"
)  # what int() takes without its commas: ASCII, a digit, not thousands of them


@dataclass(frozen=True, slots=True)
class Regions:
    """n regions of one assembly, in the order they came; each lies within its chromosome."""

    assembly: Assembly
    chroms: NDArray[np.int16]  # (n) position in assembly.chroms
    starts: NDArray[np.int32]  # (n)
    ends: NDArray[np.int32]  # (n)

    def __len__(self) -> int:
        return len(self.starts)

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_] | slice) -> "Regions":
        """The chosen regions."""
        return Regions(self.assembly, self.chroms[rows], self.starts[rows], self.ends[rows])

    def spans(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Starts and ends with all chromosomes laid end to end: one axis for every comparison, (n), (n)."""
        offsets = self.assembly.offsets[self.chroms]
        return offsets + self.starts, offsets + self.ends

    def names(self) -> list[str]:
        """Each region as text, `chr1:1000-2000`."""
        chroms = self.assembly.chroms
        triples = zip(self.chroms.tolist(), self.starts.tolist(), self.ends.tolist(), strict=True)
        return [f"{chroms[c]}:{s}-{e}" for c, s, e in triples]

    def chrom_names(self) -> NDArray[np.object_]:
        """The chromosome of each region, (n)."""
        return np.array(self.assembly.chroms, dtype=object)[self.chroms]

    def to_frame(self) -> pd.DataFrame:
        """A frame with columns chrom, start, end."""
        return pd.DataFrame({"chrom": self.chrom_names(), "start": self.starts, "end": self.ends})

    @classmethod
    def from_text(cls, texts: Iterable[str], assembly: Assembly) -> "Regions":
        """Read regions such as `chr1:1000-2000` or `chr1:1,000-2,000`.

        >>> from chromseek.data.genome import assembly
        >>> Regions.from_text(["chr2:1,000-2,000"], assembly("hg38")).names()
        ['chr2:1000-2000']
        """
        triples = [parse_region(text, assembly) for text in texts]
        columns = np.array(triples, dtype=np.int64).reshape(-1, 3)
        return cls(
            assembly, columns[:, 0].astype(np.int16), columns[:, 1].astype(np.int32), columns[:, 2].astype(np.int32)
        )


def is_region_text(text: str) -> bool:
    """Whether a text has the form `chrom:start-end`."""
    return _REGION.fullmatch(text.strip()) is not None


def parse_region(text: str, assembly: Assembly) -> tuple[int, int, int]:
    """Read one region: chromosome code, start, end.

    Raises BadArgument for another form, an unknown chromosome, start not before end, or an end past the chromosome.
    """
    match = _REGION.fullmatch(text.strip())
    if match is None or not _POSITION.fullmatch(match[2]) or not _POSITION.fullmatch(match[3]):
        raise BadArgument(
            f"not a region: {printable(text)}", code="REGION-FORM", got=text, fix="write it as chr1:1000-2000"
        )
    chrom, start, end = match[1], int(match[2].replace(",", "")), int(match[3].replace(",", ""))
    if chrom not in assembly.codes:
        near = ", ".join(assembly.nearest(chrom))
        raise BadArgument(
            f"unknown chromosome {printable(chrom)} in {assembly.name}",
            code="REGION-CHROM",
            got=chrom,
            fix=f"use a name such as {near}",
        )
    code = assembly.codes[chrom]
    if start >= end:
        raise BadArgument(
            f"start {start} is not before end {end} in {printable(text)}",
            code="REGION-ORDER",
            got=text,
            fix="write the smaller number first",
        )
    if end > assembly.lengths[code]:
        raise BadArgument(
            f"{printable(text)} runs past the end of {chrom} ({assembly.lengths[code]} in {assembly.name})",
            code="REGION-END",
            got=end,
            fix=f"end it by {assembly.lengths[code]}, or check that the region is of {assembly.name}",
        )
    return code, start, end
