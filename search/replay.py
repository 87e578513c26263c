"""Repeat a search from its receipt."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chromseek.data.errors import BadArgument, printable
from chromseek.data.inputs import file_identity
from chromseek.data.sources import ReadOptions
from chromseek.search.hits import Hits

if TYPE_CHECKING:
    from chromseek.search.atlas import Atlas

AGAIN = "give it again: replay(receipt, query), and unlike= where there was one"


def replay(atlas: "Atlas", receipt: Mapping[str, Any], query: Any, unlike: Any) -> Hits:
    """Run the search of a receipt on this atlas.

    Raises BadArgument when atlas and receipt differ in version or encoder, or a file was changed, so that an answer is
    not mistaken for the same one; and when the query has to be given again.
    """
    label = receipt.get("label_view")
    view = atlas.content["primary"] if label is None else atlas.content["label_views"].get(label, {}).get("view")
    encoder = atlas.content["encoders"].get(view, {}).get("fingerprint")
    for what, ours in (("version", atlas.version), ("encoder", encoder)):
        if receipt.get(what) != ours:
            raise BadArgument(
                f"the receipt is of {what} {printable(receipt.get(what))}, this atlas of {ours}",
                code="RECEIPT-OTHER",
                got=receipt.get(what),
                fix=f"open that version with chromseek.open(path, version={printable(receipt.get('version'))})",
            )
    described, other = receipt.get("query"), None
    if isinstance(described, Mapping) and "unlike" in described:
        described, other = described["like"], described["unlike"]
    centroid = isinstance(described, Mapping) and "centroid of" in described
    if isinstance(described, Mapping) and centroid:
        described = described["centroid of"]
    searched = atlas.collection(str(receipt["collection"])) if label is None else atlas.label_view(label)
    assert searched is not None  # the encoder would not have been the same
    return searched.search(
        _again(described) if query is None else query,
        receipt["k"],
        where=receipt["where"],
        exact=receipt["exact"],
        exclude_same=receipt["exclude_same"],
        max_distance=receipt["max_distance"],
        centroid=centroid,
        unlike=_again(other) if unlike is None and other is not None else unlike,
        read=_read(described) or _read(other),
    )


def _again(described: Any) -> Any:
    """The query that a receipt describes. Raises BadArgument where it does not hold it, or its file was changed."""
    match described:
        case {"regions": regions}:
            return regions
        case {"stored": collection, "ids": ids}:
            return f"{collection}:{','.join(map(str, ids))}"
        case {"named": name, "query": query}:
            return {name: _again(query)}
        case {"path": path, "size": size, "mtime_ns": changed}:
            found = file_identity(path)
            if (found["size"], found["mtime_ns"]) != (size, changed):
                raise BadArgument(
                    "the file was changed since the search",
                    code="RECEIPT-FILE",
                    file=path,
                    fix="give the query itself to search with what it is now: replay(receipt, query)",
                )
            return path
        case [{"named": _}, *_]:
            return {name: query for one in described for name, query in _again(one).items()}
        case [_, *_]:
            return [_again(one) for one in described]
    raise BadArgument("the receipt does not hold the query itself", code="RECEIPT-QUERY", fix=AGAIN)


def _read(described: Any) -> ReadOptions | None:
    """How the files of a query were read."""
    if isinstance(described, Mapping):
        if "query" in described:
            return _read(described["query"])
        chosen: dict[str, Any] = dict(described.get("read", {}))
        chosen |= {name: Path(chosen[name]) for name in ("liftover", "blacklist") if name in chosen}
        return ReadOptions(**chosen)
    if isinstance(described, Sequence) and not isinstance(described, str) and described:
        return _read(described[0])
    return None
