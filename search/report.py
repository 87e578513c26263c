"""What an atlas says of itself: what it holds, where that came from, how good it is, and what to beware of."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from chromseek.data.errors import printable
from chromseek.indexer.store import Store
from chromseek.search.measure import CHANCE

if TYPE_CHECKING:
    from chromseek.search.atlas import Atlas

STALE = 0.05  # share of rows changed since the calibration from which a warning says so
LOST = 0.5  # share of tokens lost in a re-encoding, likewise
LONGER = 0.01  # share of sets longer than the encoder's context, likewise


def info(atlas: "Atlas") -> dict[str, Any]:
    """What the atlas holds and how good it is, as JSON."""
    content = atlas.content
    collections = {}
    for name, entry in content["collections"].items():
        collection = atlas.collection(name)
        collections[name] = {
            "rows": len(collection),
            "segments": len(entry["segments"]),
            "lists": collection.vectors.n_lists,
            "longer": _longer(content, name),
            "columns": {field.name: str(field.type) for field in collection.schema},
            "sources": entry["sources"],
        }
    return {
        "path": str(atlas.path),
        "version": atlas.version,
        "versions": Store.versions(atlas.path),
        "assembly": content["assembly"],
        "universe": content["universe"],
        "encoder": content["encoders"][content["primary"]],
        "labels": content.get("labels", []),
        "label_views": {label: _label_view(content, label) for label in content["label_views"]},
        "groups": content.get("groups"),
        "collections": collections,
        "longer": [line for name in content["collections"] for line in too_long(content, name)],
        "reencoded": content["reencoded"],
        "losses": [line for record in content["reencoded"] for line in lost(record)],
        "calibration": content.get("calibration", {}),
        "warnings": warnings(atlas),
    }


def _label_view(content: Mapping[str, Any], label: str) -> dict[str, Any]:
    """The view that annotations with a label use: its encoder, or why there is none."""
    entry = content["label_views"][label]
    encoder = None if entry["view"] is None else content["encoders"][entry["view"]]
    return {"encoder": encoder, "why": entry["why"]}


def _longer(content: Mapping[str, Any], name: str) -> int | None:
    """Sets of a collection with more tokens than the primary encoder reads at once; None where it reads any number."""
    longer: int | None = content["collections"][name]["longer"].get(content["primary"])
    return longer


def warnings(atlas: "Atlas") -> list[str]:
    """What a user should know before trusting an answer."""
    content = atlas.content
    calibration = content.get("calibration", {})
    found = [
        f"search {direction} is no better than chance on this atlas (sanity {score}): do not rely on it"
        for direction, score in calibration.get("sanity", {}).items()
        if score is not None and score <= CHANCE
    ]
    changed = _changed_since(atlas, calibration) if calibration else 0.0
    if changed >= STALE:
        found.append(
            f"calibrated at v{calibration['made_at']}, {changed:.0%} of rows since: run `chromseek calibrate` "
            "or atlas.calibrate()"
        )
    if not content.get("keep_tokens", True):
        found.append("the token sets of cells were not kept: no sanity of searches by or of cells was measured")
    for name, entry in content["collections"].items():
        for source in entry["sources"]:
            if source["n_empty"]:
                found.append(f"{source['n_empty']} of {source['n_sets']} {name} of {source['dataset']} have no token")
        found += too_long(content, name, LONGER)
    for label, entry in content["label_views"].items():
        if entry["view"] is None:
            found.append(f"no view was fitted for the label {printable(label)}: {entry['why']}")
    return found + [line for record in content["reencoded"] for line in lost(record) if _grave(record)]


def too_long(content: Mapping[str, Any], name: str, least: float = 0.0) -> list[str]:
    """Say what share of a collection's sets the primary encoder did not read whole, where it is above `least`."""
    encoder, longer = content["encoders"][content["primary"]], _longer(content, name)
    n_rows = content["collections"][name]["n_rows"]
    if not longer or longer <= least * n_rows:
        return []
    how = "they were encoded in chunks" if encoder["long_sets"] == "chunk" else "a sample of them was encoded"
    return [
        f"{longer / n_rows:.{0 if longer >= 0.01 * n_rows else 2}%} of the {name} have more regions than the "
        f"encoder's context of {encoder['context']:,}: {how}"
    ]


def lost(record: Mapping[str, Any]) -> list[str]:
    """Say what a re-encoding over another universe lost, one line per collection."""
    origin = f"v{record['from_version']} ({record['from_assembly']}, {record['from_regions']:,} regions)"
    return [
        f"carried over from {origin}: {_share(found):.1%} of the tokens of the {name} found a place, "
        f"{found['n_emptied']:,} of {found['n_sets']:,} {name} were left empty"
        for name, found in record["losses"].items()
    ]


def _share(found: Mapping[str, int]) -> float:
    return found["n_carried"] / max(1, found["n_old_tokens"])


def _grave(record: Mapping[str, Any]) -> bool:
    return any(_share(found) < 1 - LOST for found in record["losses"].values())


def _changed_since(atlas: "Atlas", calibration: Mapping[str, Any]) -> float:
    """The share of rows added or deleted since a calibration, in the collection that changed most."""
    shares = [0.0]
    for name, entry in atlas.content["collections"].items():
        ever, live = calibration["n_ever"].get(name, 0), calibration["n_rows"].get(name, 0)
        now = len(atlas.collection(name))
        deleted = entry["next_id"] - now
        changed = (entry["next_id"] - ever) + (deleted - (ever - live))
        shares.append(min(1.0, changed / max(1, now)))
    return max(shares)
