"""Commands that ask an atlas: search, annotate, export."""

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chromseek.data.errors import printable
from chromseek.service import options as o
from chromseek.service import output
from chromseek.service.output import say, tell, time_text, warn

if TYPE_CHECKING:
    from chromseek.search.atlas import Atlas
    from chromseek.search.hits import Hits

SEARCH_EXAMPLES = """\b
Examples:
  chromseek search blood.atlas cells my_cells.h5ad -k 20
  chromseek search blood.atlas cells monocyte_peaks.bed --where "tissue = 'blood'"
  chromseek search blood.atlas beds chr1:1000000-1010000,chr2:5000-9000
  chromseek search blood.atlas regions beds:3 -o regions.bed
  chromseek search blood.atlas cells cells:12,13,14 --centroid --exclude-same donor
  bedtools slop -b 100 -i x.bed -g hg38 | chromseek search blood.atlas beds - --json

\b
A terminal gets a table, a pipe TSV. A query that is a stored row is not its own hit.
"""
ANNOTATE_EXAMPLES = """\b
Examples:
  chromseek annotate blood.atlas my_cells.h5ad --label cell_type -o annotated.h5ad
  chromseek annotate blood.atlas fragments.tsv.gz --label cell_type --label tissue -o labels.tsv

\b
Each label gives obs columns LABEL_pred and LABEL_conf, the share of the neighbours'
weight that agrees (numbers: LABEL_pred and LABEL_sd). An h5ad also gets obsm X_chromseek.
"""
EXPORT_EXAMPLES = """\b
Examples:
  chromseek export blood.atlas cells -o cells.parquet --where "cell_type = 'B'"
  chromseek export blood.atlas cells -o cells.h5ad
  chromseek export blood.atlas regions -o universe.bed.gz

\b
Parquet and h5ad hold the vectors too; BED holds regions only.
"""


def search(
    atlas: o.AtlasPath,
    collection: o.Collection,
    query: o.Queries,
    *,
    k: o.Neighbours = 10,
    where: o.Where = None,
    exact: Annotated[bool, typer.Option("--exact", help="Compare with every row, not the nearest lists.")] = False,
    exclude_same: o.ExcludeSame = None,
    max_distance: Annotated[
        float | None,
        typer.Option("--max-distance", metavar="D", callback=o.within(0, 2), help="Only hits with 1 - score <= D."),
    ] = None,
    centroid: Annotated[bool, typer.Option("--centroid", help="All queries as one: their mean.")] = False,
    unlike: Annotated[
        list[str] | None, typer.Option("--unlike", metavar="QUERY", help="Like the query, but not like this one.")
    ] = None,
    out: o.HitsFile = None,
    receipt: Annotated[
        Path | None, typer.Option("--receipt", metavar="FILE", help="Write what repeats this search, as JSON.")
    ] = None,
    overwrite: o.Overwrite = False,
    json: o.Json = False,
    version: o.Version = None,
    liftover: o.Liftover = None,
    rename_chroms: o.RenameChroms = None,
    on_bad_line: o.OnBadLine = "error",
    layer: o.Layer = None,
) -> None:
    """Find the rows that are most like a query."""
    output.check_output(out, output.HITS, overwrite=overwrite)
    output.check_output(receipt, (), overwrite=overwrite)
    from chromseek.data.sources import ReadOptions
    from chromseek.search.atlas import open as open_atlas
    from chromseek.service.typed_queries import resolved

    read = ReadOptions(rename_chroms, on_bad_line, layer, liftover=liftover)
    with open_atlas(atlas, version=version) as opened:
        chosen = opened.collection(collection)
        asked = resolved(chosen, query, read)
        other = resolved(chosen, unlike, read) if unlike else None
        began = time.perf_counter()
        hits = chosen.search(
            asked, k, where=where, exact=exact, exclude_same=exclude_same, max_distance=max_distance,
            centroid=centroid, unlike=other,
        )  # fmt: skip
        tell_about(hits, time.perf_counter() - began, worries(opened, collection, asked.kind))
        answer(hits, out, receipt, json)


def worries(atlas: "Atlas", collection: str, kind: str | None) -> list[str]:
    """The warnings of an atlas that concern a search of this collection by queries of this kind."""
    mine = f"search {kind}s → {collection} " if kind else "search "
    return [text for text in atlas.warnings() if not text.startswith("search ") or text.startswith(mine)]


def tell_about(hits: "Hits", took: float, warnings: Sequence[str]) -> None:
    """Say on stderr how the search went, and which queries have no answer and why."""
    receipt = hits.receipt
    n_queries = f"{len(hits):,} quer{'y' if len(hits) == 1 else 'ies'}"
    parts = [f"{int(hits.n_found.sum()):,} hits in {receipt['collection']} for {n_queries}", time_text(took)]
    known = hits.coverage[hits.coverage == hits.coverage]  # not NaN, as it is for vectors and stored rows
    if len(known):
        parts.append(f"{'median ' if len(hits) > 1 else ''}coverage {median(known.tolist()):.0%}")
    if receipt["path"] == "lists":
        parts.append(f"recall@10 {receipt['recall@10']:.3f}")
    if isinstance(receipt["query"], dict) and "coherence" in receipt["query"]:
        parts.append(f"coherence {receipt['query']['coherence']:.3f}")
    tell("; ".join(parts))
    for note in receipt.get("notes", []):
        tell(f"note: {note}")
    warn(warnings)
    unanswered = [place for place in range(len(hits)) if hits.n_found[place] == 0]
    for place in unanswered[: output.LISTED]:
        tell(f"no hits for {printable(hits.queries[place])}: {reason(hits, place)}")
    if len(unanswered) > output.LISTED:
        tell(f"no hits for {len(unanswered) - output.LISTED:,} more")


def reason(hits: "Hits", place: int) -> str | None:
    """Why a query has no hits; None when it has some."""
    if hits.n_found[place]:
        return None
    limit = hits.receipt["max_distance"]
    fallback = "no other row to compare with" if limit is None else f"nothing within distance {limit:g}"
    return hits.reasons.get(place, fallback)


def answer(hits: "Hits", out: Path | None, receipt: Path | None, json: bool) -> None:
    """Give the hits: to a file, as JSON, or as a table; and the receipt, if it is wanted."""
    if receipt is not None:
        output.write_json(hits.receipt, receipt)
    if out is not None:
        output.write_hits(hits, out)
        tell(f"wrote {int(hits.n_found.sum()):,} hits to {printable(out, 200)}")
    if json:
        output.say_json(as_json(hits))
    elif out is None:
        output.say_table(hit_columns(hits))


def as_json(hits: "Hits") -> dict[str, Any]:
    """Hits as one JSON object: the receipt, and per query its coverage, its hits, or why there are none."""
    queries: list[dict[str, Any]] = [
        {"query": name, "coverage": float(hits.coverage[place]), "reason": reason(hits, place), "hits": []}
        for place, name in enumerate(hits.queries)
    ]
    owners = hits.found.nonzero()[0].tolist()
    for owner, row in zip(owners, hits.to_arrow().drop_columns(["query"]).to_pylist(), strict=True):
        queries[owner]["hits"].append(row)
    return {"receipt": hits.receipt, "queries": queries}


def hit_columns(hits: "Hits") -> dict[str, list[Any]]:
    """Hits as columns, those first that people look at first; the query only when there are several."""
    table = hits.to_arrow()
    first = ["query"] * (len(hits) > 1) + ["rank", "score", "id"]
    last = ["dataset", "n_tokens", "n_fragments", "coverage", "chrom", "start", "end", "md5"]
    users = [name for name in table.column_names if name not in {"query", *first, *last}]
    return {name: table[name].to_pylist() for name in (*first, *users, *last) if name in table.column_names}


def annotate(
    atlas: o.AtlasPath,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="Cells: h5ad or fragments.", show_default=False)],
    *,
    label: Annotated[list[str], typer.Option("--label", metavar="COLUMN", help="What to predict; repeat for more.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="An .h5ad, or obs as .tsv, .csv, .parquet.")],
    k: o.Neighbours = 30,
    where: o.Where = None,
    exclude_same: o.ExcludeSame = None,
    overwrite: o.Overwrite = False,
    json: o.Json = False,
    version: o.Version = None,
    liftover: o.Liftover = None,
    rename_chroms: o.RenameChroms = None,
    on_bad_line: o.OnBadLine = "error",
    layer: o.Layer = None,
) -> None:
    """Label cells by their neighbours in an atlas."""
    output.check_output(out, output.TABLES, overwrite=overwrite)
    from chromseek.data.sources import ReadOptions
    from chromseek.search.atlas import open as open_atlas
    from chromseek.service.summary import annotation, annotation_lines

    read = ReadOptions(rename_chroms, on_bad_line, layer, liftover=liftover)
    with open_atlas(atlas, version=version) as opened:
        adata = opened.annotate(query, label, k=k, where=where, exclude_same=exclude_same, read=read)
        warn(worries(opened, "cells", "cell"))
    output.write_cells(adata, out)
    found = annotation(adata, label)
    tell(f"wrote {adata.n_obs:,} cells to {printable(out, 200)}")
    if json:
        output.say_json(found)
        return
    for line in annotation_lines(found):
        say(line)


def export(
    atlas: o.AtlasPath,
    collection: o.Collection,
    *,
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="FILE", help="A .parquet, .h5ad, .bed, .tsv or .csv file.")
    ],
    where: o.Where = None,
    overwrite: o.Overwrite = False,
    json: o.Json = False,
    version: o.Version = None,
) -> None:
    """Write rows and their vectors to a file."""
    output.check_output(out, output.HITS, overwrite=overwrite)
    from chromseek.search.atlas import open as open_atlas

    with open_atlas(atlas, version=version) as opened:
        n_rows = opened.export(out, collection, where=where, overwrite=overwrite)
    if json:
        output.say_json({"rows": n_rows, "collection": collection, "file": str(out)})
    else:
        tell(f"wrote {n_rows:,} {collection} to {printable(out, 200)}")
