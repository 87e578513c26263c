"""Calibration: recall and sanity of an atlas version, measured on its own rows and stored in a version of their own."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from chromseek.data.tokens import TokenSets
from chromseek.indexer import build as builder
from chromseek.indexer.content import upgraded
from chromseek.indexer.segment import take_sets
from chromseek.indexer.store import Store
from chromseek.search.measure import N_REGIONS, N_SETS, SEED, choose_probes, sanity

if TYPE_CHECKING:
    from chromseek.search.atlas import Atlas
    from chromseek.search.collection import Collection

Sample = tuple[TokenSets, NDArray[np.float32]]


def calibrate(atlas: "Atlas", store: Store) -> None:
    """Measure the atlas, and commit what was found. Raises Busy where another encoder has taken over meanwhile."""
    collections = {name: atlas.collection(name) for name in atlas.content["collections"]}
    labelled = {label: atlas.label_view(label) for label in atlas.content["label_views"]}
    found = {name: _sample(atlas, store, name) for name in collections}
    samples = {name: sample for name, sample in found.items() if sample is not None}
    measured = {
        "made_at": atlas.version,
        "n_rows": {name: len(collection) for name, collection in collections.items()},
        "n_ever": {name: entry["next_id"] for name, entry in atlas.content["collections"].items()},
        "recall": _recalls(collections),
        "label_recall": _recalls({label: cells for label, cells in labelled.items() if cells is not None}),
        "sanity": sanity(samples, len(atlas.universe)),
    }
    with store.write("calibrate") as writer:
        assert writer.parent is not None
        content = upgraded(writer.parent.content)
        builder.check_primary(store.path, content, atlas.content["primary"])
        manifest = writer.commit(content | {"calibration": measured}, keep=writer.parent.entries)
        builder.keep_cache(store, manifest)


def _recalls(collections: dict[str, "Collection"]) -> dict[str, dict[str, float]]:
    """Lists to probe, and the recall with them, of the collections that have lists."""
    recalls = {}
    for name, collection in collections.items():
        if collection.vectors.n_lists:
            n_probe, reached = choose_probes(collection.vectors)
            recalls[name] = {"n_probe": n_probe, "recall@10": reached}
    return recalls


def _sample(atlas: "Atlas", store: Store, name: str) -> Sample | None:
    """Token sets and vectors of some rows at random; None where the token sets were not kept."""
    collection = atlas.collection(name)
    segments = atlas.content["collections"][name]["segments"]
    assert store.manifest is not None
    if not all(f"{segment['folder']}/tokens.parquet" in store.manifest.entries for segment in segments):
        return None
    live = collection.metadata.where(None)
    live = live[collection.metadata.column("n_tokens").to_numpy()[live] > 0]
    n = min(len(live), N_REGIONS if name == "regions" else N_SETS)
    rows = np.sort(np.random.default_rng(SEED).choice(live, n, replace=False))
    vectors = collection.vectors.get(rows)
    known = vectors.any(axis=1)
    rows, vectors = rows[known], vectors[known]
    parts, first = [], 0
    for segment in segments:
        mine = rows[(rows >= first) & (rows < first + segment["n_rows"])] - first
        if len(mine):
            parts.append(take_sets(atlas.path / segment["folder"], mine))
        first += segment["n_rows"]
    return TokenSets.concat(parts), vectors
