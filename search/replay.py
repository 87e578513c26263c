"""Repeat a search from its receipt."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from chromseek.data.errors import BadArgument
from chromseek.search.hits import Hits

if TYPE_CHECKING:
    from chromseek.search.atlas import Atlas


def replay(atlas: "Atlas", receipt: Mapping[str, Any], query: Any) -> Hits:
    """Run the search of a receipt on this atlas.

    Raises BadArgument when atlas and receipt differ in version or encoder, so that an answer is not mistaken for the
    same one, and when the query has to be given again.
    """
    encoder = atlas.content["encoders"][atlas.content["primary"]]["fingerprint"]
    for what, ours in (("version", atlas.version), ("encoder", encoder)):
        if receipt.get(what) != ours:
            raise BadArgument(
                f"the receipt is of {what} {receipt.get(what)}, this atlas of {ours}",
                code="RECEIPT-OTHER",
                got=receipt.get(what),
                fix=f"open that version with chromseek.open(path, version={receipt.get('version')})",
            )
    described = receipt.get("query")
    if query is None and isinstance(described, Mapping):
        if "regions" in described:
            query = described["regions"]
        elif "stored" in described:
            query = f"{described['stored']}:{','.join(map(str, described['ids']))}"
        elif "path" in described and described["path"] not in ("AnnData", "frame"):
            query = described["path"]
    if query is None:
        raise BadArgument(
            "the receipt does not hold the query itself",
            code="RECEIPT-QUERY",
            fix="give it again: replay(receipt, query)",
        )
    collection = atlas.collection(str(receipt["collection"]))
    return collection.search(
        query,
        receipt["k"],
        where=receipt["where"],
        exact=receipt["exact"],
        exclude_same=receipt["exclude_same"],
        max_distance=receipt["max_distance"],
    )
