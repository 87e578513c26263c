"""The plan of a build: everything that can be checked before the work begins is checked here."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chromseek.data.bed import read_bed
from chromseek.data.errors import BadArgument, NotFound, printable
from chromseek.data.genes import Genes
from chromseek.data.genome import assembly as assembly_named
from chromseek.data.liftover import Chain, chain_assemblies
from chromseek.data.sources import ReadOptions, Source, bed_sources, cell_sources, first_regions
from chromseek.data.universe import Universe
from chromseek.encoder.base import Encoder, load
from chromseek.encoder.devices import device_named, dtype_named
from chromseek.encoder.hub import fetched, is_hub_name
from chromseek.indexer.build import Plan
from chromseek.indexer.reencode import Reencoding

if TYPE_CHECKING:
    from chromseek.search.atlas import Atlas

FITTED = ("lsi", "bag", "atacformer:tiny", "atacformer:small", "atacformer:base")  # names of what is fitted here


def plan_build(
    cells: Any,
    beds: Any,
    universe: Any,
    encoder: str | Path | Encoder,
    *,
    labels: str | Sequence[str],
    groups: str | None,
    assembly: str | None,
    genes: str | Path | None,
    dim: int | None,
    keep_tokens: bool,
    seed: int,
    device: str = "auto",
    dtype: str = "auto",
    read: ReadOptions | None,
) -> Plan:
    """Check everything that can be known before work begins: inputs, universe, assembly, encoder, labels."""
    read = read or ReadOptions()
    labels = (labels,) if isinstance(labels, str) else tuple(labels)
    if not any(given is not None and (not isinstance(given, list | tuple) or given) for given in (cells, beds)):
        raise BadArgument("nothing to build from", code="BUILD-NOTHING", fix="give cells=, beds= or both")
    _check_numbers(dim, seed)
    known = None if assembly is None else assembly_named(assembly)
    chosen = encoder_named(encoder, device, dtype)
    _check_dim(chosen, dim)
    if isinstance(chosen, str):
        regions = _universe(universe, cells, read, known)
        if read.blacklist is not None:
            regions = _without_blacklist(regions, read.blacklist)
    else:
        if universe is not None:
            raise BadArgument(
                "a saved encoder has its own universe",
                code="BUILD-UNIVERSE",
                fix="leave universe= out, or fit a new encoder",
            )
        regions = chosen.universe
    if known is not None and known != regions.assembly:
        raise BadArgument(
            f"assembly is {known.name}, but the universe is {regions.assembly.name}",
            code="BUILD-ASSEMBLY",
            got=known.name,
            fix="leave assembly out, or give a universe of it",
        )
    found = sources_of(cells, beds, read, regions.assembly)
    _check_columns(found[0], [*labels, *([groups] if groups else [])])
    table = None if genes is None else Genes.load(genes, regions.assembly)
    return Plan(
        regions, tuple(found[0]), tuple(found[1]), chosen, dim, table, labels, groups, keep_tokens, seed, device, dtype
    )


def plan_reencoding(
    atlas: "Atlas",
    encoder: str | Path | Encoder,
    *,
    chain: str | Path | None,
    genes: str | Path | None,
    dim: int | None,
    seed: int,
    device: str,
    dtype: str,
) -> Reencoding:
    """Check what can be known of a re-encoding before it begins: the encoder, its assembly, the chain."""
    _check_numbers(dim, seed)
    chosen = encoder_named(encoder, device, dtype)
    _check_dim(chosen, dim)
    old = atlas.universe
    new = old if isinstance(chosen, str) or chosen.universe.digest == old.digest else chosen.universe
    leads = None if chain is None else chain_assemblies(chain)
    if leads is not None and leads[1] != new.assembly:
        raise BadArgument(
            f"the chain leads to {leads[1].name}, the encoder is of {new.assembly.name}",
            code="LIFT-ASSEMBLY",
            file=str(chain),
            got=leads[1].name,
            fix=f"give a chain from {old.assembly.name} to {new.assembly.name}",
        )
    if old.assembly != new.assembly and (leads is None or leads[0] != old.assembly):
        raise BadArgument(
            f"the atlas is of {old.assembly.name}, the encoder of {new.assembly.name}",
            code="REENCODE-ASSEMBLY",
            got=new.assembly.name,
            fix=f"give a chain file from {old.assembly.name} to {new.assembly.name} (--liftover)",
        )
    return Reencoding(
        chosen, new, old, atlas.content["primary"],
        None if chain is None or old.assembly == new.assembly else Chain.load(chain, old.assembly, new.assembly),
        None if genes is None else Genes.load(genes, new.assembly),
        dim, seed, device, dtype,
    )  # fmt: skip


def _check_dim(chosen: Encoder | str, dim: int | None) -> None:
    if dim is not None and not isinstance(chosen, str) and dim != chosen.dim:
        message = f"dim is {dim}, but the encoder's vectors have {chosen.dim} dimensions"
        raise BadArgument(message, code="DIM-RANGE", got=dim, fix="leave dim out, or fit a new encoder")


def _check_numbers(dim: int | None, seed: int) -> None:
    if dim is not None:
        _check_number("dim", dim, 2, 4096, "without it the encoder has its own")
    _check_number("seed", seed, 0, 2**32 - 1, "any of them will do")


def _check_number(name: str, value: object, least: int, most: int, fix: str) -> None:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or not least <= value <= most:
        message = f"{name} is {printable(value)}"
        raise BadArgument(
            message, code=f"{name.upper()}-RANGE", got=printable(value), fix=f"choose from {least} to {most}; {fix}"
        )


def encoder_named(encoder: str | Path | Encoder, device: str, dtype: str) -> Encoder | str:
    """An encoder at hand, to run on a device in a precision; or the name of one to fit, when that can be done.

    Raises NotFound for any other name, BadArgument for a device that is not there.
    """
    if not isinstance(encoder, str | Path):
        return encoder.on(device, dtype)
    if encoder in FITTED:
        dtype_named(dtype, device_named(device))
        return str(encoder)
    if str(encoder) and (Path(encoder).is_dir() or is_hub_name(encoder)):
        return load(fetched(str(encoder)), device=device, dtype=dtype)
    raise NotFound(
        f"no encoder {printable(encoder)}",
        code="ENCODER-NAME",
        got=str(encoder),
        fix=f"one of {', '.join(FITTED)}; the folder of a saved encoder; or a name on the hub, org/name",
    )


def _universe(universe: Any, cells: Any, read: ReadOptions, assembly: Any) -> Universe:
    if isinstance(universe, Universe):
        return universe
    if universe is not None:
        bed = read_bed(
            universe,
            assembly=assembly,
            rename_chroms=read.rename_chroms,
            on_bad_line=read.on_bad_line,
            max_regions=read.max_regions,
        )
        return Universe.of(bed.regions)
    if cells is None:
        raise BadArgument(
            "BED sets alone need a universe", code="BUILD-UNIVERSE", fix="give universe=, a BED of all regions"
        )
    return Universe.of(first_regions(cells, read, assembly))


def _without_blacklist(universe: Universe, blacklist: str | Path) -> Universe:
    _, tokens = universe.overlaps(read_bed(blacklist, assembly=universe.assembly).regions)
    keep = np.ones(len(universe), bool)
    keep[tokens] = False
    if not keep.any():
        raise BadArgument(
            "the blacklist covers the whole universe", code="BLACKLIST-ALL", fix="check that it is of this assembly"
        )
    return Universe(universe.regions.take(keep))


def sources_of(cells: Any, beds: Any, read: ReadOptions, assembly: Any) -> tuple[list[Source], list[Source]]:
    """The inputs of a build or an add: cells and BED sets."""
    return (
        [] if cells is None else cell_sources(cells, read, assembly=assembly),
        [] if beds is None else bed_sources(beds, read, assembly=assembly),
    )


def _check_columns(cells: Sequence[Source], columns: Sequence[str]) -> None:
    """Refuse labels and groups that no input of cells has."""
    there = {name for source in cells for name in source.schema.names}
    for column in columns:
        if column not in there:
            raise BadArgument(
                f"no input of cells has a column {printable(column)}",
                code="LABEL-COLUMN",
                got=column,
                fix=f"obs has {', '.join(sorted(there)[:10]) or 'no columns'}",
            )
