"""From what was asked to a question that a collection can search with.

Each form of query has its own way in, and none of them opens a file that the sender names: region text is only ever
parsed, and a BED set is what the body holds.
"""

from pathlib import Path

import numpy as np

from chromseek.data.errors import BadData
from chromseek.data.inputs import ReadOptions
from chromseek.search.atlas import Atlas
from chromseek.search.query import QueryEncoder, Question, from_regions, from_vectors
from chromseek.service.bodies import Asked
from chromseek.service.models import (
    AnnotateRequest,
    AnnotateUpload,
    BedQuery,
    IdsQuery,
    Query,
    RegionsQuery,
    SearchRequest,
    SearchUpload,
    VectorsQuery,
)
from chromseek.service.uploads import Upload, upload_folder

MAX_REGIONS = 5_000_000  # of one BED set

AskedSearch = Asked[SearchRequest, SearchUpload]
AskedAnnotate = Asked[AnnotateRequest, AnnotateUpload]


def question_of(atlas: Atlas, collection: str, asked: AskedSearch | AskedAnnotate, folder: Path | None) -> Question:
    """What was asked, as vectors; ids are those of `collection` unless they say otherwise.

    Raises BadData or BadArgument naming what is wrong in it, NotFound for unknown ids.
    """
    options = asked.options
    encoder: QueryEncoder = atlas.encoder
    if isinstance(options, AnnotateRequest | AnnotateUpload):
        encoder = atlas.annotator(options.labels)
    if isinstance(options, SearchRequest | AnnotateRequest):
        return query_question(atlas, encoder, collection, options.query, options.rename_chroms, folder)
    assert asked.upload is not None
    read = ReadOptions(
        rename_chroms=options.rename_chroms,
        layer=options.layer,
        min_fragments=options.min_fragments,
        max_regions=MAX_REGIONS,
    )
    kind = asked.upload.kind() if options.format == "auto" else options.format
    return asked.upload.question(encoder, kind, read)


def query_question(
    atlas: Atlas, encoder: QueryEncoder, collection: str, query: Query, rename_chroms: str | None, folder: Path | None
) -> Question:
    """A query of a JSON body, as vectors of that encoder."""
    match query:
        case RegionsQuery():
            return from_regions(query.regions, encoder)
        case VectorsQuery():
            return from_vectors(np.array(query.vectors, np.float64), encoder.dim)
        case IdsQuery():
            of = query.collection or collection
            return atlas.collection(of).resolve(f"{of}:{','.join(map(str, query.ids))}")
        case BedQuery():
            with upload_folder(folder) as place:
                upload = Upload.of_text(query.bed, query.name, place)
                read = ReadOptions(rename_chroms=rename_chroms, max_regions=MAX_REGIONS)
                return upload.question(encoder, "bed", read)


def check_size(n: int, limit: int, what: str, fix: str) -> None:
    """Raise BadData (413) when an answer would be too large."""
    if n > limit:
        raise BadData(f"{n:,} {what}, at most {limit:,}", code="ANSWER-SIZE", got=n, fix=fix, status=413)
