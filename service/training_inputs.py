"""What an encoder is trained on or scored by, in whatever form it comes, as one corpus of token sets."""

import time
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from chromseek.data.bed import read_bed
from chromseek.data.errors import BadArgument, NotFound, printable
from chromseek.data.genome import assembly as assembly_named
from chromseek.data.memory_sources import remapped
from chromseek.data.sources import ReadOptions, Source, bed_sources, cell_sources, first_regions
from chromseek.data.tables import is_parquet
from chromseek.data.tokens import SetBlock
from chromseek.data.universe import Universe
from chromseek.encoder.base import Kind
from chromseek.encoder.corpus import PRETOKENIZED, Corpus, is_corpus, parquet_blocks
from chromseek.encoder.training import is_first
from chromseek.indexer.build import deleted_rows
from chromseek.indexer.progress import progress
from chromseek.indexer.segment import OWN_COLUMNS, read_sets
from chromseek.indexer.store import Store
from chromseek.service.output import warn

CORPUS = "corpus"  # the folder that inputs are written to
_BEDS = (".bed", ".bed.gz", ".bed.bgz", ".narrowpeak", ".narrowpeak.gz", ".broadpeak", ".broadpeak.gz")
_WAIT = 0.2  # seconds between looks for what the first process writes
LOW_COVERAGE = 0.5  # of the inputs' regions or fragments; below, a warning says so


def read_inputs(
    inputs: Sequence[str], universe: Universe | None, work: Path, read: ReadOptions, assembly: str | None = None
) -> Corpus:
    """Bring inputs together: one corpus over the same universe is opened where it lies, all else is written to `work`.

    Where torchrun started several processes the first one writes, and the others wait. What `work` has of an
    earlier run is taken as it is. Raises ChromseekError for the first input that cannot be read.
    """
    folder = work / CORPUS
    universe = universe or universe_of(inputs, read, assembly)
    if len(inputs) == 1 and is_corpus(Path(inputs[0])):
        corpus = Corpus.open(inputs[0])
        if corpus.universe.digest == universe.digest:
            return corpus
    if is_first() and not is_corpus(folder):
        return Corpus.write(folder, _counted(inputs, universe, read), universe)
    while not is_corpus(folder):
        time.sleep(_WAIT)
    return Corpus.open(folder)


def kind_of(inputs: Sequence[str]) -> Kind:
    """What the sets are: BED sets where all inputs are BED, else cells."""
    return "bed" if all(_is_beds(Path(one)) for one in inputs) else "cell"


def universe_of(inputs: Sequence[str], read: ReadOptions, assembly: str | None = None) -> Universe:
    """The universe of a corpus or an atlas among the inputs, else the regions of the first one that has some."""
    for path in map(Path, inputs):
        if is_corpus(path):
            return Corpus.open(path).universe
        if _is_atlas(path):
            return _stored_universe(Store.open(path))
    others = [one for one in inputs if not _is_beds(Path(one)) and not _is_pretokenized(Path(one))]
    if not others:
        fix = "give --universe, a BED of all regions"
        raise BadArgument("BED sets and token ids alone need a universe", code="BUILD-UNIVERSE", fix=fix)
    return Universe.of(first_regions(others, read, None if assembly is None else assembly_named(assembly)))


def universe_file(path: Path, read: ReadOptions, assembly: str | None = None) -> Universe:
    """The universe of a BED file, in the order of its lines: the tokens of published files stay what they are."""
    known = None if assembly is None else assembly_named(assembly)
    bed = read_bed(path, assembly=known, rename_chroms=read.rename_chroms, max_regions=read.max_regions)
    return Universe(bed.regions)


def _counted(inputs: Sequence[str], universe: Universe, read: ReadOptions) -> Iterator[SetBlock]:
    n_source = n_placed = 0
    with progress("reading", None) as tick:
        for block in chain.from_iterable(_blocks(one, universe, read) for one in inputs):
            yield block
            n_source, n_placed = n_source + int(block.n_source.sum()), n_placed + int(block.n_placed.sum())
            tick(len(block))
    if n_placed < LOW_COVERAGE * n_source:
        share = n_placed / n_source
        warn([f"{share:.1%} of what the inputs hold lies in the {len(universe):,} regions: is it the same assembly?"])


def _blocks(one: str, universe: Universe, read: ReadOptions) -> Iterator[SetBlock]:
    """The blocks of one input, over the universe."""
    path = Path(one)
    if is_corpus(path):
        corpus = Corpus.open(path)
        yield from _mapped(_of_corpus(corpus), corpus.universe, universe, one)
    elif _is_atlas(path):
        store = Store.open(path)
        yield from _mapped(_of_atlas(store), _stored_universe(store), universe, one)
    elif _is_pretokenized(path):
        yield from parquet_blocks(path, universe)
    else:
        sources: Sequence[Source]
        if _is_beds(path):
            sources = bed_sources([one], read, assembly=universe.assembly)
        else:
            sources = cell_sources([one], read, assembly=universe.assembly)
        for source in sources:
            yield from source.blocks(universe)


def _of_corpus(corpus: Corpus, size: int = 8192) -> Iterator[SetBlock]:
    for start in range(0, len(corpus), size):
        rows = corpus.rows.slice(start, size)
        sets = corpus.sets(np.arange(start, start + len(rows)))
        names = rows.column("name").to_pylist()
        yield SetBlock(names, sets, sets.sizes, sets.sizes, None, rows.drop_columns(["name"]))


def _of_atlas(store: Store) -> Iterator[SetBlock]:
    """The cells of an atlas, or its BED sets where it has no cells; deleted ones left out."""
    assert store.manifest is not None
    content = store.manifest.content
    name = "cells" if "cells" in content["collections"] else "beds"
    if not content.get("keep_tokens", True) and name == "cells":
        fix = "train on the files that it was built from"
        raise BadArgument("the atlas was built without tokens", code="ATLAS-TOKENS", file=str(store.path), fix=fix)
    entry = content["collections"][name]
    gone = deleted_rows(store, entry)
    first = 0
    for segment in entry["segments"]:
        rows = pq.read_table(store.file(f"{segment['folder']}/rows.parquet"))
        own = [column for column in OWN_COLUMNS.names if column not in ("dataset", "name")]
        at = 0
        for sets in read_sets(store.file(f"{segment['folder']}/tokens.parquet").parent):
            alive = np.ones(len(sets), bool) if gone is None else ~gone[first : first + len(sets)]
            kept = rows.slice(at, len(sets)).filter(pa.array(alive))
            sets, n = sets.take(np.flatnonzero(alive)), len(sets)
            names = kept.column("name").to_pylist()
            yield SetBlock(names, sets, sets.sizes, sets.sizes, None, kept.drop_columns(["name", *own]))
            first, at = first + n, at + n


def _mapped(blocks: Iterator[SetBlock], own: Universe, wanted: Universe, label: str) -> Iterator[SetBlock]:
    """Blocks over another universe, token by token by overlap; the same where the universe is the same."""
    if own.digest == wanted.digest:
        yield from blocks
        return
    if own.assembly != wanted.assembly:
        raise BadArgument(
            f"{printable(label, 200)} is {own.assembly.name}, the universe is {wanted.assembly.name}",
            code="BUILD-ASSEMBLY",
            got=own.assembly.name,
            fix="give inputs of the same assembly",
        )
    table = wanted.token_map(own.regions)
    for block in blocks:
        yield remapped(block, table)


def _stored_universe(store: Store) -> Universe:
    assert store.manifest is not None
    content = store.manifest.content
    return Universe.load(store.file(content["universe"]["path"]), assembly_named(content["assembly"]))


def _is_atlas(path: Path) -> bool:
    return (path / "FORMAT.json").is_file()


def _is_beds(path: Path) -> bool:
    if is_corpus(path) or _is_atlas(path):
        return False
    return path.is_dir() or path.name.lower().endswith(_BEDS)


def _is_pretokenized(path: Path) -> bool:
    if not path.is_file():
        if path.exists() or "*" in str(path):
            return False
        raise NotFound("no such file", code="FILE-MISSING", file=str(path), fix="check the path")
    return is_parquet(path) and PRETOKENIZED in pq.read_schema(path).names
