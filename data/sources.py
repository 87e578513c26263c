"""What a build or an add reads, in whatever form the user has it, as sources of blocks of token sets."""

import glob
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from chromseek.data.bed import read_bed_manifest
from chromseek.data.bed_sources import BedSource
from chromseek.data.cell_sources import NO_COLUMNS, FragmentSource, MatrixSource
from chromseek.data.errors import BadArgument, BadData, ChromseekError, NotFound, printable
from chromseek.data.genome import Assembly
from chromseek.data.inputs import Estimate, ReadOptions, Source, Target, manifest_place, placed, stem, texts_of
from chromseek.data.lines import opened
from chromseek.data.memory_sources import BlockSource, FrameSource, SimulatedSource, simulated_beds
from chromseek.data.regions import Regions
from chromseek.data.simulate import Simulation
from chromseek.data.tables import first_words, is_parquet
from chromseek.data.tokens import SetBlock

__all__ = ["Estimate", "ReadOptions", "Source", "bed_sources", "cell_sources", "first_regions"]

_BED_FILES = (".bed", ".narrowpeak", ".broadpeak", ".gappedpeak")
_MANIFESTS = ("manifest.tsv", "manifest.csv", "manifest.parquet")
_NAMELESS = ("AnnData", "frame", "token sets", "simulation")
_CELLS = "an h5ad, a fragments file, a manifest of such files, an AnnData, a Simulation, or a list of these"
_BEDS = "a folder, a glob, a manifest, BED files, frames, pyranges objects, a Simulation, or a list of these"


def cell_sources(cells: Any, options: ReadOptions, *, assembly: Assembly | None) -> list[Source]:
    """The sources of cells: h5ad, AnnData, fragments, sample manifest, Simulation, source, or a list of these.

    Raises ChromseekError for the first that cannot be read.
    """
    return _numbered(list(_cells(cells, options, assembly)))


def bed_sources(beds: Any, options: ReadOptions, *, assembly: Assembly | None) -> list[Source]:
    """The sources of BED sets: folder, glob, manifest, BED, frame, pyranges, Simulation, source, or a list of these.

    BED files that are listed one by one are one dataset. Raises ChromseekError for the first that cannot be read.
    """
    items = _items(beds)
    target = Target.of(options, assembly, lone=len(items) == 1)
    files: list[Path] = []
    found: list[Source] = []
    for item in items:
        if isinstance(item, Simulation):
            found.append(simulated_beds(item, target))
        elif isinstance(item, SetBlock):
            found.append(BlockSource(item, "bed", target, label="token sets", dataset="beds"))
        elif isinstance(item, pd.DataFrame) or hasattr(item, "df"):
            found.append(FrameSource(item, options, target))
        elif not isinstance(item, str | Path):
            found.append(_given(item, "bed", _BEDS))
        elif (manifest := _manifest_of(Path(item))) is not None:
            found.append(_listed_beds(manifest, str(item), options, target))
        elif Path(item).is_dir():
            found.append(_bed_set(_in_folder(Path(item)), str(item), Path(item).resolve().name, options, target))
        else:
            files.append(Path(item))
    if files:
        label = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1:,} more"
        folders = {file.resolve().parent.name for file in files}
        dataset = stem(files[0]) if len(files) == 1 else folders.pop() if len(folders) == 1 else "beds"
        found.append(_bed_set(files, label, dataset, options, target))
    return _numbered(found)


def first_regions(cells: Any, options: ReadOptions, assembly: Assembly | None) -> Regions:
    """The regions of the first input that has some: the universe of a build when none is given.

    Raises BadArgument when no input has regions.
    """
    for source in _cells(cells, options, assembly):
        regions = getattr(source, "regions", None)
        if isinstance(regions, Regions):
            return regions
    raise BadArgument(
        "a universe is needed: fragments have no regions that could serve",
        code="SOURCE-UNIVERSE",
        fix="give a BED file of regions (universe=, --universe)",
    )


def _cells(cells: Any, options: ReadOptions, assembly: Assembly | None) -> Iterator[Source]:
    items = _items(cells)
    target = Target.of(options, assembly, lone=len(items) == 1)
    for item in items:
        if isinstance(item, Simulation):
            yield SimulatedSource(item, target)
        elif isinstance(item, SetBlock):
            yield BlockSource(item, "cell", target, label="token sets", dataset="cells")
        elif isinstance(item, str | Path):
            yield from _cell_file(item, options, target)
        elif hasattr(item, "isbacked") and hasattr(item, "obs"):
            yield MatrixSource(item, options, target)
        else:
            yield _given(item, "cell", _CELLS)


def _cell_file(path: str | Path, options: ReadOptions, target: Target) -> Iterator[Source]:
    _check_regular(Path(path))
    if _is_hdf5(Path(path)):
        yield MatrixSource(path, options, target)
    elif _is_manifest(Path(path)):
        yield from _samples(Path(path), options, target)
    else:
        yield FragmentSource(path, options, target)


def _samples(manifest: Path, options: ReadOptions, target: Target) -> Iterator[Source]:
    """The files that a sample manifest lists; columns without a meaning of their own are metadata of all cells."""
    files, table = read_bed_manifest(manifest)
    target, in_rows = target.among(files), is_parquet(manifest)
    known = [name for name in ("obs", "dataset") if name in table.column_names]  # sample stays: people filter by it
    columns = {name: texts_of(table, name) for name in ("obs", "dataset", "sample", "assembly", "genome")}
    for row, file in enumerate(files):
        cell = {name: texts[row] for name, texts in columns.items()}
        constants = table.slice(row, 1).drop_columns(known) if table.num_columns else NO_COLUMNS
        dataset = cell["dataset"] or cell["sample"]
        named = cell["assembly"] or cell["genome"]
        try:
            _check_regular(file)
            if not _is_hdf5(file):
                obs = None if cell["obs"] is None else manifest.parent / cell["obs"]
                yield FragmentSource(file, options, target, dataset=dataset, obs=obs, constants=constants, named=named)
            elif cell["obs"] is None:
                yield MatrixSource(file, options, target, dataset=dataset, constants=constants, named=named)
            else:
                fix = "leave its obs empty: an h5ad has its own"
                raise BadData("an obs table is for fragments", code="SOURCE-OBS", file=str(file), fix=fix)
        except ChromseekError as error:
            raise placed(error, manifest_place(manifest, row, in_rows=in_rows), str(file)) from error


def _listed_beds(manifest: Path, label: str, options: ReadOptions, target: Target) -> BedSource:
    files, table = read_bed_manifest(manifest)
    folder = manifest.stem == "manifest"
    dataset = manifest.resolve().parent.name if folder else stem(manifest)
    return BedSource(files, table, options, target, label=label, dataset=dataset or "beds", manifest=manifest)


def _bed_set(files: list[Path], label: str, dataset: str, options: ReadOptions, target: Target) -> BedSource:
    for file in files:
        _check_regular(file)
    return BedSource(files, None, options, target, label=label, dataset=dataset or "beds")


def _in_folder(folder: Path) -> list[Path]:
    """The BED files of a folder, sorted by name."""
    found = [file for file in folder.iterdir() if not file.name.startswith(".") and _is_bed_name(file)]
    if not found:
        fix = f"give a folder with files that end in {', '.join(_BED_FILES)} (or these and .gz), or a manifest"
        raise NotFound("no BED files in this folder", code="SOURCE-EMPTY", file=str(folder), fix=fix)
    return sorted(found)


def _manifest_of(path: Path) -> Path | None:
    """The manifest that a path is, or that lies in the folder that it is; None for anything else."""
    if path.is_dir():
        return next((path / name for name in _MANIFESTS if (path / name).is_file()), None)
    if _is_bed_name(path):
        return None
    _check_regular(path)
    return path if _is_manifest(path) else None


def _is_bed_name(path: Path) -> bool:
    name = path.name.lower()
    return name.removesuffix(".gz").removesuffix(".bgz").endswith(_BED_FILES)


def _is_manifest(path: Path) -> bool:
    """Whether a file is a table of files: Parquet, CSV, or text with a column path or file."""
    if path.suffix.lower() in (".csv", ".parquet", ".pq") or is_parquet(path):
        return True
    return not {"path", "file"}.isdisjoint(first_words(path))


def _is_hdf5(path: Path) -> bool:
    with opened(path) as raw:
        return raw.read(4) == b"\x89HDF" or path.suffix.lower() in (".h5ad", ".h5")


def _check_regular(path: Path) -> None:
    if path.exists() and not path.is_dir() and not stat.S_ISREG(path.stat().st_mode):
        raise BadArgument(
            "a pipe can be read only once", code="SOURCE-PIPE", file=str(path), fix="write it to a file first"
        )


def _items(given: Any) -> list[Any]:
    """What was given as a flat list; a text with `*`, `?` or `[` that is no file is a glob."""
    if given is None:
        return []
    if isinstance(given, list | tuple):
        return [item for one in given for item in _items(one)]
    if not isinstance(given, str) or not glob.has_magic(given) or Path(given).exists():
        return [given]
    found = sorted(glob.glob(given, recursive=True))
    if not found:
        raise NotFound(f"no file matches {printable(given, 200)}", code="SOURCE-EMPTY", fix="check the pattern")
    return found


def _given(item: Any, kind: str, accepted: str) -> Any:
    """An object that is a source already; raises BadArgument for anything else."""
    parts = ("dataset", "label", "schema", "n_sets", "notes", "identity", "blocks", "estimate")
    if getattr(item, "kind", None) == kind and all(hasattr(item, part) for part in parts):
        return item
    raise BadArgument(
        f"cannot read {'cells' if kind == 'cell' else 'BED sets'} from a {type(item).__name__}",
        code="SOURCE-KIND",
        got=type(item).__name__,
        fix=f"give {accepted}",
    )


def _numbered(sources: list[Any]) -> list[Source]:
    """Tell apart by number the datasets of things in memory, which have no file's name."""
    nameless = [one for one in sources if one.label in _NAMELESS]
    shared = {name for name, count in Counter(one.dataset for one in nameless).items() if count > 1}
    for number, one in enumerate(nameless, 1):
        if one.dataset in shared:
            one.dataset = f"{one.dataset}-{number}"
    return sources
