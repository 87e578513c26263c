"""What requests and answers look like: checked on the way in, documented in /openapi.json on the way out.

A request names no file and no address of the server: what is to be read is in it, as JSON or as an upload.
"""

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, WithJsonSchema

MAX_K = 1_000
MAX_QUERIES = 256
MAX_HITS = MAX_K * MAX_QUERIES  # places in one answer
MAX_CELLS = 100_000  # in one answer of annotate
MAX_VOTES = 10_000_000  # cells times k in one annotation
MAX_COLUMNS = 100
CollectionName = Literal["cells", "regions", "beds"]
_FLOAT32 = float(np.finfo(np.float32).max)
_CONFIG = ConfigDict(extra="forbid", strict=True)

FILTER_SCHEMA: dict[str, Any] = {
    "description": "A condition on metadata columns; null is SQL's: a comparison with null is neither true nor false.",
    "oneOf": [
        {
            "type": "object",
            "required": [word],
            "additionalProperties": False,
            "properties": {
                word: {"type": "array", "minItems": 1, "items": {"$ref": "#/components/schemas/Filter"}},
            },
        }
        for word in ("and", "or")
    ]
    + [
        {
            "type": "object",
            "required": ["not"],
            "additionalProperties": False,
            "properties": {"not": {"$ref": "#/components/schemas/Filter"}},
        },
        {
            "type": "object",
            "required": ["col", "op"],
            "additionalProperties": False,
            "properties": {
                "col": {"type": "string", "description": "A metadata column, as /v1/info lists them."},
                "op": {"enum": ["eq", "ne", "lt", "le", "gt", "ge", "in", "between", "prefix", "is_null"]},
                "value": {
                    "description": "One value; for `in` a list of 1 to 1,000, for `between` [low, high]; "
                    "`is_null` takes none.",
                },
            },
        },
    ],
    "examples": [
        {"and": [{"col": "tissue", "op": "eq", "value": "blood"}, {"col": "n_tokens", "op": "gt", "value": 1000}]},
        {"col": "cell_type", "op": "in", "value": ["B cell", "T cell"]},
    ],
}


def _check_vectors(vectors: list[list[float]]) -> list[list[float]]:
    for row, vector in enumerate(vectors):
        if len(vector) != len(vectors[0]):
            raise ValueError(f"vector {row} has {len(vector)} numbers, vector 0 has {len(vectors[0])}")
        large = np.flatnonzero(np.abs(vector) > _FLOAT32)
        if len(large):
            raise ValueError(f"value {large[0]} of vector {row} is {vector[large[0]]:g}, past the range of float32")
    return vectors


# The pattern is for readers: what does not match is told by the parser, which knows more.
RegionText = Annotated[str, WithJsonSchema({"type": "string", "pattern": r"^[^\s:]+:[0-9,]+-[0-9,]+$"})]


class RegionsQuery(BaseModel):
    """Regions, each a query of its own."""

    model_config = _CONFIG
    regions: list[RegionText] = Field(
        min_length=1,
        max_length=MAX_QUERIES,
        description="Regions as text, 0-based and half-open: chr1:1000-2000.",
        examples=[["chr1:1000000-1000500"]],
    )


class IdsQuery(BaseModel):
    """Rows that the atlas holds, each a query of its own."""

    model_config = _CONFIG
    ids: list[Annotated[int, Field(ge=0, le=2**63 - 1)]] = Field(
        min_length=1, max_length=MAX_QUERIES, description="Ids of stored rows, as hits show them.", examples=[[0, 17]]
    )
    collection: CollectionName | None = Field(
        default=None, description="The collection that the ids are of; the searched one when left out."
    )


class VectorsQuery(BaseModel):
    """Vectors made by the atlas's own encoder, each a query of its own."""

    model_config = _CONFIG
    vectors: Annotated[list[list[float]], AfterValidator(_check_vectors)] = Field(
        min_length=1,
        max_length=MAX_QUERIES,
        description="Rows of finite numbers, as wide as the encoder says in /v1/info; length does not matter.",
        examples=[[[0.12, -0.3, 0.05]]],
    )


class BedQuery(BaseModel):
    """A BED set as text: one query."""

    model_config = _CONFIG
    bed: str = Field(
        min_length=1,
        description="Lines of chrom, start, end, separated by tabs.",
        examples=["chr1\t1000000\t1000500\nchr1\t1010000\t1010500\n"],
    )
    name: str = Field(default="bed", min_length=1, max_length=255, description="What the answer calls the query.")


def _form_of(query: Any) -> str | None:
    """Which of the forms a query has, by the one key that tells."""
    found = [form for form in ("regions", "ids", "vectors", "bed") if isinstance(query, dict) and form in query]
    return found[0] if len(found) == 1 else None


Query = Annotated[
    Annotated[RegionsQuery, Tag("regions")]
    | Annotated[IdsQuery, Tag("ids")]
    | Annotated[VectorsQuery, Tag("vectors")]
    | Annotated[BedQuery, Tag("bed")],
    Discriminator(
        _form_of,
        custom_error_type="query_form",
        custom_error_message="a query has exactly one of regions, ids, vectors and bed; "
        "paths and URLs are not accepted: upload the file",
    ),
]
Where = Annotated[dict[str, Any], WithJsonSchema({"$ref": "#/components/schemas/Filter"})]
Columns = Annotated[list[str], Field(max_length=MAX_COLUMNS)]
Labels = Annotated[list[str], Field(min_length=1, max_length=MAX_COLUMNS)]


class _Choice(BaseModel):
    """What searching and annotating share."""

    model_config = _CONFIG
    where: Where | None = Field(
        default=None, description="Only rows that match, as a filter in JSON (the text form is for the command line)."
    )
    exclude_same: str | Columns | None = Field(
        default=None,
        description="Columns; rows that hold the query's own value there are left out (its donor, its dataset).",
        examples=["donor"],
    )
    rename_chroms: Literal["ensembl"] | None = Field(
        default=None, description="ensembl: the file names chromosomes 1, 2, MT; they are read as chr1, chr2, chrM."
    )


class _Reading(BaseModel):
    """How an uploaded file is read."""

    format: Literal["auto", "bed", "fragments", "h5ad"] = Field(
        default="auto",
        description="What the file is. auto: HDF5 is h5ad; a name that ends in .tsv or .tsv.gz, or says fragments, "
        "is fragments; the rest is BED.",
    )
    layer: str | None = Field(default=None, max_length=255, description="The layer of an h5ad to read in place of X.")
    min_fragments: int = Field(
        default=0, ge=0, le=2**31, description="Barcodes of a fragments file with fewer are left out."
    )


class SearchOptions(_Choice):
    """How to search."""

    k: int = Field(default=10, ge=1, le=MAX_K, description=f"Hits per query, from 1 to {MAX_K:,}.")
    exact: bool = Field(default=False, description="Compare with every allowed row instead of the nearest lists.")
    max_distance: float | None = Field(
        default=None, ge=0, le=2, description="Only hits with 1 - score up to this, from 0 to 2."
    )
    centroid: bool = Field(default=False, description="All queries as one: their mean. The receipt has its coherence.")
    columns: Columns | None = Field(
        default=None, description="The metadata columns of the answer; all of them when left out.", examples=[["name"]]
    )


class SearchRequest(SearchOptions):
    """A search with the query in the body."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"query": {"regions": ["chr1:1000000-1000500"]}, "k": 5},
                {"query": {"ids": [0, 1], "collection": "cells"}, "k": 20, "exclude_same": "donor"},
                {"query": {"bed": "chr1\t1000000\t1000500\nchr1\t1010000\t1010500\n", "name": "peaks"}, "exact": True},
            ]
        }
    )
    query: Query = Field(description="What to search with.")
    unlike: Query | None = Field(
        default=None,
        description="A second query; what the first shares with it is taken out ('like these, not those').",
    )


class SearchUpload(_Reading, SearchOptions):
    """How to search with an uploaded file."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"k": 50, "format": "bed"}]})


class AnnotateOptions(_Choice):
    """How to annotate."""

    labels: Labels = Field(
        description="Metadata columns of the atlas's cells to predict.", examples=[["cell_type", "age"]]
    )
    k: int = Field(default=30, ge=1, le=MAX_K, description=f"Neighbours that vote, from 1 to {MAX_K:,}.")


class AnnotateRequest(AnnotateOptions):
    """An annotation with the query in the body."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"query": {"ids": [0, 1]}, "labels": ["cell_type"], "k": 15}]}
    )
    query: Query = Field(description="What to annotate.")


class AnnotateUpload(_Reading, AnnotateOptions):
    """How to annotate the cells of an uploaded file."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"labels": ["cell_type"], "k": 30}]})


class SearchAnswer(BaseModel):
    """The answer to q queries, k places each, best first. A place without a hit holds id -1, and null elsewhere."""

    version: int = Field(description="The version of the atlas that answered.", examples=[2])
    collection: CollectionName = Field(description="The collection that was searched.")
    queries: list[str] = Field(description="(q) What each query is called.", examples=[["chr1:1000000-1000500"]])
    coverage: list[float | None] = Field(
        description="(q) Share of the query's regions, or fragments, that the atlas's universe has; "
        "null for vectors and ids.",
        examples=[[1.0]],
    )
    reasons: list[str | None] = Field(description="(q) Why a query has no hits; null where nothing is to be said.")
    ids: list[list[int]] = Field(description="(q, k) Ids of the hits.", examples=[[[7, 3]]])
    scores: list[list[float | None]] = Field(description="(q, k) Cosine similarities.", examples=[[[0.91, 0.85]]])
    metadata: dict[str, list[list[Any]]] = Field(
        description="Column by column, (q, k): the metadata of the hits.",
        examples=[{"name": [["AAAC-1", "TTTG-1"]], "cell_type": [["B cell", "T cell"]]}],
    )
    receipt: dict[str, Any] = Field(
        description="Atlas, version, encoder, filter, parameters, path taken and notes: enough to repeat the search."
    )


class AnnotateAnswer(BaseModel):
    """Predictions for q queries, column by column."""

    version: int = Field(description="The version of the atlas that answered.", examples=[2])
    queries: list[str] = Field(description="(q) Names: the barcodes or cell names of an upload.")
    coverage: list[float | None] = Field(
        description="(q) Share of the query's regions, or fragments, that the atlas's universe has."
    )
    reasons: list[str | None] = Field(description="(q) Why a query has no prediction; null where it has one.")
    predictions: dict[str, list[Any]] = Field(
        description="(q) each: `<label>_pred` and its `<label>_conf` (the winner's share of the weight of the "
        "neighbours; not calibrated); for a number `<label>_pred` and its standard deviation `<label>_sd`.",
        examples=[{"cell_type_pred": ["B cell"], "cell_type_conf": [0.93]}],
    )
    receipt: dict[str, Any] = Field(
        description="The search behind it, enough to repeat it; of several labels, that for the first."
    )
    notes: list[str] = Field(description="Labels that no view of the atlas was fitted for, and which view voted.")


class CollectionInfo(BaseModel):
    """One collection."""

    rows: int = Field(description="Rows that can be found.")
    segments: int = Field(description="Segments on disk.")
    lists: int = Field(description="Lists of the index; 0 where every search is exact.")
    longer: int | None = Field(description="Sets longer than the encoder's context; null where it has none.")
    columns: dict[str, str] = Field(description="The metadata columns and their types, for filters.")
    sources: list[dict[str, Any]] = Field(description="What it was built from, with counts.")


class Limits(BaseModel):
    """What one request may ask for."""

    k: int = Field(description="Hits per query, at most.")
    queries: int = Field(description="Queries in one JSON body, at most.")
    hits: int = Field(description="Queries times k in one answer, at most.")
    cells: int = Field(description="Cells of one annotation, at most.")
    neighbours: int = Field(description="Cells times k in one annotation, at most.")
    body_bytes: int = Field(description="The length of a JSON body, at most.")
    upload_bytes: int = Field(description="The length of an upload, at most.")


class Info(BaseModel):
    """What the atlas holds and how good it is."""

    name: str = Field(description="The atlas folder's name.", examples=["blood.atlas"])
    version: int = Field(description="The version that answers.", examples=[2])
    versions: list[int] = Field(description="The versions on disk.", examples=[[1, 2]])
    assembly: str = Field(description="The genome assembly of every region.", examples=["hg38"])
    universe: dict[str, Any] = Field(description="The universe: number of regions and digest.")
    encoder: dict[str, Any] = Field(description="The encoder: name, width of its vectors, fingerprint.")
    labels: list[str] = Field(description="The columns that annotations are meant for.")
    label_views: dict[str, Any] = Field(description="The label-aware encoder of each, or why there is none.")
    groups: str | None = Field(description="The column whose values were left out whole in calibration.")
    collections: dict[str, CollectionInfo] = Field(description="cells, regions and beds, as far as it has them.")
    longer: list[str] = Field(description="Collections that the encoder did not read whole, in words.")
    reencoded: list[dict[str, Any]] = Field(description="Each time that another encoder took over, and what was lost.")
    losses: list[str] = Field(description="The same losses in words.")
    calibration: dict[str, Any] = Field(description="Recall and the sanity of each direction, as measured.")
    warnings: list[str] = Field(description="What to know before trusting an answer.")
    limits: Limits = Field(description="What one request may ask for.")


class Health(BaseModel):
    """The service answers."""

    status: Literal["ok"] = Field(description="Always ok.")
    version: int = Field(description="The version of the atlas that is served.", examples=[2])


class Problem(BaseModel):
    """What is wrong, where, the value that was got, and how to mend it (RFC 9457)."""

    type: str = Field(description="urn:chromseek:problem: and the code.", examples=["urn:chromseek:problem:BED-ORDER"])
    title: str = Field(description="The status in words.", examples=["Unprocessable Content"])
    status: int = Field(description="The HTTP status.", examples=[422])
    detail: str = Field(description="What is wrong, with the value in it.", examples=["start 500 is after end 100"])
    code: str = Field(description="Stable and machine-readable.", examples=["BED-ORDER"])
    file: str | None = Field(description="The uploaded file, by the name that its sender gave it.")
    line: int | None = Field(description="The line of that file, from 1.", examples=[1834])
    got: str | None = Field(description="The value that was got.", examples=["500 100"])
    fix: str | None = Field(description="How to mend it.", examples=["swap the columns"])
    request_id: str = Field(description="The X-Request-ID of the answer.")
