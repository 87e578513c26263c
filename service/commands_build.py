"""Commands that make and change atlases: build, add, reencode, delete."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chromseek.data.errors import BadArgument, printable
from chromseek.service import options as o
from chromseek.service.output import if_stopped, say, say_json, tell, time_text, warn

if TYPE_CHECKING:
    from chromseek.search.atlas import Atlas

BUILD_EXAMPLES = """\b
Examples:
  chromseek build blood.atlas --cells cells.h5ad --labels cell_type
  chromseek build blood.atlas --cells a.h5ad b.h5ad --beds peaks/ \\
      --universe universe.bed.gz --labels cell_type --groups donor
  chromseek build pbmc.atlas --cells fragments.tsv.gz --universe ccres.bed --min-fragments 1000
  chromseek build blood.atlas --cells cells.h5ad --encoder atacformer:small --device cuda
  chromseek build blood.atlas --cells cells.h5ad --check

\b
A build that was stopped goes on when the same command is given again.
"""
ADD_EXAMPLES = """\b
Examples:
  chromseek add blood.atlas --cells new_donor.h5ad
  chromseek add blood.atlas --beds more_peaks/*.bed.gz
"""
REENCODE_EXAMPLES = """\b
Examples:
  chromseek reencode blood.atlas --encoder bag
  chromseek reencode blood.atlas --encoder my_encoder/ --device cuda
  chromseek reencode old_hg19.atlas --encoder org/name --liftover hg19ToHg38.over.chain.gz

\b
The version before keeps its vectors until gc.
What was stopped goes on when the same command is given again.
"""
DELETE_EXAMPLES = """\b
Examples:
  chromseek delete blood.atlas cells --where "donor = 'D3' OR n_tokens < 200"
  chromseek delete blood.atlas beds --ids 4,17

\b
Older versions still have what was deleted, until gc removes them.
"""


def build(
    atlas: o.AtlasPath,
    *,
    cells: o.Cells = None,
    beds: o.Beds = None,
    universe: o.UniverseFile = None,
    encoder: o.Encoder = "lsi",
    labels: Annotated[
        list[str] | None,
        typer.Option(
            "--labels", metavar="COLUMN...", help="Columns of cells to annotate by: a view is fitted for each."
        ),
    ] = None,
    groups: Annotated[
        str | None, typer.Option("--groups", metavar="COLUMN", help="Donor or library: what belongs together.")
    ] = None,
    assembly: Annotated[
        str | None, typer.Option("--assembly", metavar="NAME", help="hg19, hg38 or mm10; else told by the regions.")
    ] = None,
    genes: o.Genes = None,
    dim: o.Dim = None,
    drop_tokens: Annotated[
        bool, typer.Option("--drop-tokens", help="Do not keep the cells' regions: smaller, but no other encoder later.")
    ] = False,
    seed: o.Seed = 0,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    check: Annotated[bool, typer.Option("--check", help="Only say what would be read, and what it takes.")] = False,
    liftover: o.Liftover = None,
    rename_chroms: o.RenameChroms = None,
    on_bad_line: o.OnBadLine = "error",
    layer: o.Layer = None,
    min_fragments: o.MinFragments = 0,
    make_unique: o.MakeUnique = False,
    max_regions: o.MaxRegions = o.MAX_REGIONS,
    blacklist: o.Blacklist = None,
    json: o.Json = False,
) -> None:
    """Build an atlas from cells, BED sets, or both."""
    from chromseek.data.sources import ReadOptions

    read = ReadOptions(rename_chroms, on_bad_line, layer, min_fragments, make_unique, liftover, blacklist, max_regions)
    inputs: dict[str, Any] = {
        "cells": single(cells), "beds": single(beds), "universe": universe, "encoder": encoder,
        "labels": labels or [], "groups": groups, "assembly": assembly, "genes": genes,
        "dim": dim, "keep_tokens": not drop_tokens, "seed": seed, "device": device, "dtype": dtype, "read": read,
    }  # fmt: skip
    (_check if check else _build)(atlas, inputs, json)


def _check(path: Path, inputs: dict[str, Any], json: bool) -> None:
    from chromseek.search.build_plan import plan_build
    from chromseek.search.estimate import estimate
    from chromseek.service.summary import estimate_lines

    found = estimate(plan_build(**inputs), path)
    if json:
        say_json(found.to_json())
        return
    for line in estimate_lines(found):
        say(line)
    warn(found.warnings)


def _build(path: Path, inputs: dict[str, Any], json: bool) -> None:
    from chromseek.indexer.manifest import list_versions
    from chromseek.search.atlas import build as build_atlas

    def left() -> str:
        committed = (path / "manifests").is_dir() and list_versions(path)
        state = "the atlas is there, but not measured" if committed else "no atlas is there"
        return f"{state} yet; the same command goes on where it stopped"

    with if_stopped(left):
        _summarised(path, lambda: build_atlas(path, **inputs), json, "built")


def _summarised(path: Path, make: "Callable[[], Atlas]", json: bool, did: str) -> None:
    """Do it, and say what the atlas now is."""
    from chromseek.service.summary import info_lines, next_command

    began = time.monotonic()
    with make() as atlas:
        info = atlas.info()
    warn(info["warnings"])
    if json:
        say_json(info)
        return
    for line in info_lines(info):
        say(line)
    say("")
    say(f"{did} in {time_text(time.monotonic() - began)}. Next:")
    say(f"  {next_command(path, info)}")


def add(
    atlas: o.AtlasPath,
    *,
    cells: o.Cells = None,
    beds: o.Beds = None,
    liftover: o.Liftover = None,
    rename_chroms: o.RenameChroms = None,
    on_bad_line: o.OnBadLine = "error",
    layer: o.Layer = None,
    min_fragments: o.MinFragments = 0,
    make_unique: o.MakeUnique = False,
    max_regions: o.MaxRegions = o.MAX_REGIONS,
    blacklist: o.Blacklist = None,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    json: o.Json = False,
) -> None:
    """Append cells and BED sets, as a new version."""
    from chromseek.data.sources import ReadOptions
    from chromseek.search.atlas import open as open_atlas

    read = ReadOptions(rename_chroms, on_bad_line, layer, min_fragments, make_unique, liftover, blacklist, max_regions)

    def appended() -> "Atlas":
        opened = open_atlas(atlas, device=device, dtype=dtype)
        opened.add(cells=single(cells), beds=single(beds), read=read)
        return opened

    with if_stopped(lambda: "the same command goes on where it stopped, unless info shows the new rows already"):
        _summarised(atlas, appended, json, "added")


def reencode(
    atlas: o.AtlasPath,
    *,
    encoder: o.Encoder,
    liftover: Annotated[
        Path | None,
        typer.Option("--liftover", metavar="CHAIN", help="Chain file to the encoder's assembly, where it is another."),
    ] = None,
    genes: o.Genes = None,
    dim: o.Dim = None,
    seed: o.Seed = 0,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    json: o.Json = False,
) -> None:
    """Put another encoder in place, as a new version.

    From the stored token sets alone: no input is read again.
    """
    from chromseek.search.atlas import open as open_atlas

    def encoded() -> "Atlas":
        opened = open_atlas(atlas)
        opened.reencode(encoder, chain=liftover, genes=genes, dim=dim, seed=seed, device=device, dtype=dtype)
        return opened

    with if_stopped(lambda: "the atlas is as it was, or info shows the new encoder; the same command goes on"):
        _summarised(atlas, encoded, json, "re-encoded")


def delete(
    atlas: o.AtlasPath,
    collection: o.RowCollection,
    *,
    where: o.Where = None,
    ids: Annotated[str | None, typer.Option("--ids", metavar="N,N,...", help="Rows by their ids.")] = None,
    json: o.Json = False,
) -> None:
    """Delete cells or BED sets, as a new version."""
    from chromseek.search.atlas import open as open_atlas

    numbers = None if ids is None else id_numbers(ids)
    with open_atlas(atlas) as opened, if_stopped(lambda: "either all or none of the rows are deleted"):
        n_rows = opened.delete(collection, where=where, ids=numbers)
        warnings, version = opened.warnings(), opened.version
    warn(warnings)
    if json:
        say_json({"deleted": n_rows, "collection": collection, "version": version})
    elif n_rows:
        say(f"deleted {n_rows:,} {collection}; the atlas is at version {version}")
    else:
        tell(f"no {collection} match; the atlas stays at version {version}")


def single(values: list[str] | None) -> str | list[str] | None:
    """One value as itself, many as a list, none as None."""
    return values[0] if values and len(values) == 1 else values or None


def id_numbers(text: str) -> list[int]:
    """Read ids as people write them. Raises BadArgument.

    >>> id_numbers("4, 17")
    [4, 17]
    """
    words = [word.strip() for word in text.split(",")]
    bad = [word for word in words if not (word.isascii() and word.isdigit() and len(word) < 19)]
    if bad:
        raise BadArgument(
            f"not an id: {printable(bad[0]) or 'nothing'}", code="IDS", got=bad[0], fix="write ids as 4,17"
        )
    return [int(word) for word in words]
