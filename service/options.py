"""The arguments that commands share, each described once."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import typer

CollectionName = Literal["cells", "regions", "beds"]
N = TypeVar("N", int, float, int | None, float | None)


def within(low: float, high: float | None = None) -> Callable[[N], N]:
    """A check for an option's number, which names the range that it must lie in."""

    def check(value: N) -> N:
        if value is not None and not low <= value <= (float("inf") if high is None else high):
            allowed = f"{low:,} or more" if high is None else f"from {low:,} to {high:,}"
            raise typer.BadParameter(f"{value:,} is not {allowed}")
        return value

    return check


AtlasPath = Annotated[Path, typer.Argument(metavar="ATLAS", help="The folder of the atlas.", show_default=False)]
Collection = Annotated[CollectionName, typer.Argument(metavar="COLLECTION", show_default=False)]
RowCollection = Annotated[Literal["cells", "beds"], typer.Argument(metavar="COLLECTION", show_default=False)]
Queries = Annotated[
    list[str],
    typer.Argument(
        metavar="QUERY",
        help="A file (h5ad, fragments, BED), regions (chr1:1000-2000,chr2:5-90), stored rows (cells:12,13), "
        "or - for BED on standard input.",
        show_default=False,
    ),
]
Version = Annotated[
    int | None, typer.Option("--version", metavar="N", callback=within(1), help="Open this version, not the newest.")
]
Where = Annotated[
    str | None,
    typer.Option("--where", metavar="FILTER", help="Only rows that match, like: tissue = 'blood' AND n_tokens > 1000"),
]
Neighbours = Annotated[
    int,
    typer.Option("-k", "--k", metavar="N", callback=within(1, 10_000), help="Neighbours for each query, 1 to 10,000."),
]
ExcludeSame = Annotated[
    list[str] | None,
    typer.Option("--exclude-same", metavar="COLUMN", help="Leave out rows with the query's own value (its donor)."),
]
Json = Annotated[bool, typer.Option("--json", help="Write the answer as JSON.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]

Cells = Annotated[
    list[str] | None,
    typer.Option(
        "--cells",
        metavar="FILE...",
        help="h5ad, 10x fragments, or a table of such files (column path; others describe their cells).",
    ),
]
Beds = Annotated[
    list[str] | None,
    typer.Option(
        "--beds",
        metavar="FOLDER|GLOB|TABLE...",
        help="BED files: a folder, a pattern, a table with a column path or file, or the files.",
    ),
]
UniverseFile = Annotated[
    str | None,
    typer.Option("--universe", metavar="BED", help="The regions to stand on; else those of the first cells file."),
]
Encoder = Annotated[
    str,
    typer.Option(
        "--encoder",
        metavar="NAME",
        help="lsi or bag (fitted here), atacformer:tiny, :small or :base (trained here), a folder, or org/name on the "
        "hub.",
    ),
]
Dim = Annotated[
    int | None,
    typer.Option(
        "--dim", metavar="N", callback=within(2, 4096), help="Width of the vectors of what is fitted; else its own."
    ),
]
Seed = Annotated[
    int, typer.Option("--seed", metavar="N", callback=within(0, 4_294_967_295), help="Of everything random.")
]
Genes = Annotated[Path | None, typer.Option("--genes", metavar="GTF|BED", help="Genes: regions get the nearest one.")]
Device = Annotated[
    str, typer.Option("--device", metavar="auto|cpu|cuda", help="Where to encode; auto: a GPU if there is one.")
]
Dtype = Annotated[
    str, typer.Option("--dtype", metavar="auto|float32|bfloat16", help="Precision; auto: bfloat16 on a GPU.")
]
HitsFile = Annotated[
    Path | None,
    typer.Option("-o", "--out", metavar="FILE", help="Write to a .parquet, .tsv, .csv, .h5ad or .bed file."),
]
Liftover = Annotated[
    Path | None,
    typer.Option("--liftover", metavar="CHAIN", help="Chain file to the atlas' assembly, for inputs of another."),
]
Blacklist = Annotated[
    Path | None, typer.Option("--blacklist", metavar="BED", help="Leave out regions that overlap these.")
]
RenameChroms = Annotated[
    Literal["ensembl"] | None,
    typer.Option("--rename-chroms", metavar="ensembl", help="Read chromosomes named 1, 2, .., MT as chr1, .., chrM."),
]
OnBadLine = Annotated[
    Literal["error", "skip"],
    typer.Option("--on-bad-line", metavar="error|skip", help="skip: write bad lines to FILE.rejected.tsv and go on."),
]
Layer = Annotated[str | None, typer.Option("--layer", metavar="NAME", help="Layer of an h5ad to read in place of X.")]
MinFragments = Annotated[
    int,
    typer.Option("--min-fragments", metavar="N", callback=within(0), help="Leave barcodes with fewer fragments out."),
]
MakeUnique = Annotated[bool, typer.Option("--make-unique", help="Number repeated names instead of refusing them.")]
MaxRegions = Annotated[
    int, typer.Option("--max-regions", metavar="N", callback=within(1), help="Refuse BED files with more regions.")
]
MAX_REGIONS = 20_000_000
