"""What a build would read and what it takes, from headers and first pieces: nothing is written, nothing read whole."""

import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chromseek.data.errors import NotFound
from chromseek.data.sources import Source
from chromseek.indexer.build import FIT_TOKENS, INDEX_FROM, Plan
from chromseek.indexer.manifest import list_versions

LOW_COVERAGE = 0.5
BARCODE_TOKENS = 3_000  # of a barcode in a fragments file, where nothing tells how many barcodes there are
# Bytes on disk, as measured on real and simulated atlases.
TOKEN_BYTES = 2.0
ROW_BYTES = 60  # of metadata, in parquet and in the DuckDB caches of two versions, without the users' columns
COLUMN_BYTES = 6  # for each row and user's column
REGION_BYTES = 90  # names and coordinates, likewise; and the universe twice
CODE_BYTES = 11  # beside the code of a vector, in a view with lists
WIDTHS = {"lsi": 64, "bag": 128, "atacformer:tiny": 64, "atacformer:small": 128, "atacformer:base": 192}
WEIGHT_BYTES = {"lsi": 2, "bag": 2}  # for each region and dimension; others hold float32
# Seconds on two cores, likewise.
START = 8.0
READ_BYTES = {"cell": 15e6, "bed": 14e6}  # read and tokenized per second, compressed as they mostly are
ENCODED_TOKENS = 23e6  # per second, once for every set
FITTED_TOKENS, FITTED_REGIONS = 0.95e6, 45e3  # per second, of the sample and of the universe, for 64 dimensions
BAG_TOKENS = 0.5e6  # per second of the sample that a bag is trained on, all its epochs
NETWORK_TOKENS = 7e3  # per second through the layers of atacformer:base; the time falls with the cube of the width
NETWORK_TRAINING = 3  # times the work of encoding a token, and
NETWORK_TRAINED = 3.3e6  # tokens that a build trains on, at most: five times through the sample, or 100 steps
INDEXED_ROWS = 25e3  # per second, where a view has lists


@dataclass(frozen=True, slots=True)
class SourceEstimate:
    """What one input holds, as far as its first pieces tell; None is not known before it is read."""

    dataset: str
    kind: str
    label: str
    n_sets: int | None
    n_tokens: int | None
    n_bytes: int
    coverage: float | None  # share of its regions, or first fragments, that overlap the universe


@dataclass(frozen=True, slots=True)
class BuildEstimate:
    """What a build would read, and the disk (bytes) and time (seconds) that it takes."""

    assembly: str
    n_regions: int
    sources: tuple[SourceEstimate, ...]
    disk: int
    free: int
    seconds: float  # on two cores
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON."""
        return asdict(self)


def estimate(plan: Plan, path: Path) -> BuildEstimate:
    """Estimate a build into `path`. Raises what reading the first pieces of the inputs raises."""
    sources = tuple(_source(source, plan) for source in (*plan.cells, *plan.beds))
    disk = _disk(plan, sources)
    free = _free(path)
    warnings = _warnings(path, sources, disk, free)
    return BuildEstimate(
        plan.universe.assembly.name,
        len(plan.universe),
        sources,
        disk,
        free,
        _seconds(plan, sources),
        tuple(warnings),
    )


def _source(source: Source, plan: Plan) -> SourceEstimate:
    found = source.estimate(plan.universe)
    return SourceEstimate(
        source.dataset, source.kind, source.label, found.n_sets, found.n_tokens, found.n_bytes, found.coverage
    )


def _rows(source: SourceEstimate) -> int:
    return source.n_sets if source.n_sets is not None else (source.n_tokens or 0) // BARCODE_TOKENS


def _disk(plan: Plan, sources: tuple[SourceEstimate, ...]) -> int:
    """Bytes at the end of the build, when the work folder still has its copy of the encoder."""
    kind, dim = _encoder(plan)
    n_regions = len(plan.universe)
    total = n_regions * (REGION_BYTES + 2 * dim * WEIGHT_BYTES.get(kind, 4)) + _vectors(n_regions, dim)
    n_cells = sum(_rows(source) for source in sources if source.kind == "cell")
    total += len(plan.labels) * (2 * n_regions * WIDTHS["bag"] * 2 + _vectors(n_cells, WIDTHS["bag"]))
    for kind, given in (("cell", plan.cells), ("bed", plan.beds)):
        mine = [source for source in sources if source.kind == kind]
        n_rows = sum(_rows(source) for source in mine)
        n_columns = max((len(source.schema) for source in given), default=0)
        total += _vectors(n_rows, dim) + n_rows * (ROW_BYTES + COLUMN_BYTES * n_columns)
        total += round(TOKEN_BYTES * sum(source.n_tokens or 0 for source in mine))
    return total


def _encoder(plan: Plan) -> tuple[str, int]:
    """The kind of the encoder, `atacformer:small` among them where it is trained here, and the width of its vectors."""
    if isinstance(plan.encoder, str):
        return plan.encoder, plan.dim or WIDTHS[plan.encoder]
    return plan.encoder.name, plan.encoder.dim


def _vectors(n_rows: int, dim: int) -> int:
    """float16 vectors and, in a large view, 8-bit codes with their ids."""
    return n_rows * (2 * dim + (dim + CODE_BYTES if n_rows >= INDEX_FROM else 0))


def _seconds(plan: Plan, sources: tuple[SourceEstimate, ...]) -> float:
    n_tokens = sum(source.n_tokens or 0 for source in sources)
    seconds = START + sum(source.n_bytes / READ_BYTES[source.kind] for source in sources)
    kind, dim = _encoder(plan)
    fitted = min(n_tokens, FIT_TOKENS) if isinstance(plan.encoder, str) else 0
    if kind.startswith("atacformer"):
        trained = min(5 * fitted, NETWORK_TRAINED)
        seconds += (n_tokens + NETWORK_TRAINING * trained) / NETWORK_TOKENS * (dim / WIDTHS["atacformer:base"]) ** 3
    else:
        seconds += (n_tokens + len(plan.universe)) / ENCODED_TOKENS
    if fitted and kind == "lsi":
        seconds += (fitted / FITTED_TOKENS + len(plan.universe) / FITTED_REGIONS) * dim / 64
    if fitted and kind == "bag":
        seconds += fitted / BAG_TOKENS
    seconds += len(plan.labels) * (min(n_tokens, FIT_TOKENS) / BAG_TOKENS + n_tokens / ENCODED_TOKENS)
    indexed = [n for n in (sum(_rows(s) for s in sources if s.kind == "cell"), len(plan.universe)) if n >= INDEX_FROM]
    return seconds + sum(indexed) / INDEXED_ROWS


def _free(path: Path) -> int:
    there = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(there).free


def _warnings(path: Path, sources: tuple[SourceEstimate, ...], disk: int, free: int) -> list[str]:
    found = []
    if _is_taken(path):
        found.append(f"there is something at {path} already: the build will refuse it")
    if disk * 1.2 > free:
        found.append("the disk is too small")
    for source in sources:
        if source.coverage is not None and source.coverage < LOW_COVERAGE:
            found.append(
                f"only {source.coverage:.0%} of the regions of {source.label} overlap the universe: "
                "is it of this assembly, and the universe meant for it?"
            )
    return found


def _is_taken(path: Path) -> bool:
    if not path.is_dir():
        return os.path.lexists(path)
    try:
        return bool(list_versions(path))
    except NotFound:  # no atlas, nor what a stopped build leaves
        return any(path.iterdir())
