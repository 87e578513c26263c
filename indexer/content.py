"""What the manifest of an atlas says of it: encoders, views, collections; as JSON, and in one layout.

encoders      {view: name, fingerprint, dim, context, long_sets}
primary       the view that searches use
label_views   {label: {view, why}}: the view of the cells that `annotate` uses for it, or why there is none
collections   {name: n_rows, next_id, segments, sources, deletes, quantisers {view: path}, longer {view: sets}}
reencoded     one record for each time that another encoder took over
"""

import json
from typing import Any

from chromseek.data.universe import Universe
from chromseek.encoder.base import Encoder, fingerprint


def upgraded(content: dict[str, Any]) -> dict[str, Any]:
    """Copy the content of a manifest, brought to this layout where an older chromseek wrote it."""
    copied: dict[str, Any] = json.loads(json.dumps(content))
    copied.setdefault("label_views", {})
    copied.setdefault("reencoded", [])
    for entry in copied.get("collections", {}).values():
        if "quantiser" in entry:
            path = entry.pop("quantiser")
            entry["quantisers"] = {} if path is None else {copied["primary"]: path}
        entry.setdefault("longer", {})
    for described in copied.get("encoders", {}).values():
        described.setdefault("context", None)
    return copied


def new_collection() -> dict[str, Any]:
    """The entry of a collection without rows."""
    return {
        "n_rows": 0, "next_id": 0, "segments": [], "sources": [], "deletes": None, "quantisers": {}, "longer": {}
    }  # fmt: skip


def described_universe(universe: Universe, path: str) -> dict[str, Any]:
    """The entry of the universe, whose file is at `path` in the atlas."""
    return {"path": path, "n_regions": len(universe), "digest": universe.digest}


def described_encoder(encoder: Encoder) -> dict[str, Any]:
    """The entry of an encoder."""
    return {
        "name": encoder.name,
        "fingerprint": fingerprint(encoder),
        "dim": encoder.dim,
        "context": encoder.context,
        "long_sets": encoder.config().get("long_sets", "sample"),
    }


def views_of(content: dict[str, Any], collection: str) -> list[str]:
    """The views that a collection has: the primary one and, of cells, those of the labels."""
    labelled = [entry["view"] for entry in content["label_views"].values() if entry["view"] is not None]
    return [*dict.fromkeys([content["primary"], *(labelled if collection == "cells" else [])])]
