"""What an atlas, an estimate and an annotation look like as a few lines of text."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chromseek.data.errors import printable
from chromseek.service.output import LISTED, aligned, size_text, time_text

if TYPE_CHECKING:
    from chromseek.search.estimate import BuildEstimate

WIDTH = 120  # of the tables below
_OWN = ("id", "name", "dataset", "n_tokens", "n_fragments", "coverage", "chrom", "start", "end", "md5")


def info_lines(info: Mapping[str, Any]) -> list[str]:
    """An atlas as text: what it holds, where that came from, and how good its answers are."""
    n_regions, encoder = info["universe"]["n_regions"], info["encoder"]
    return [
        f"{printable(info['path'], 200)}  version {info['version']}",
        f"{info['assembly']}, {n_regions:,} regions, encoder {encoder['name']} ({encoder['dim']} dimensions)",
        "",
        *_collections(info),
        *_views(info),
        "",
        *_sources(info["collections"]),
        *_quality(info["calibration"]),
    ]


def _collections(info: Mapping[str, Any]) -> list[str]:
    entries = info["collections"]
    columns = {
        "collection": list(entries),
        "rows": [f"{entry['rows']:,}" for entry in entries.values()],
        "segments": [entry["segments"] for entry in entries.values()],
        "search": [f"{entry['lists']:,} lists" if entry["lists"] else "exact" for entry in entries.values()],
    }
    lines = _table(columns)
    for name, entry in entries.items():
        users = [printable(column, 40) for column in entry["columns"] if column not in _OWN]
        more = f" and {len(users) - LISTED} more" if len(users) > LISTED else ""
        if users:
            lines.append(f"columns of {name}: {', '.join(users[:LISTED])}{more}")
    return lines


def _views(info: Mapping[str, Any]) -> list[str]:
    """What sets the encoder does not read whole, what re-encodings lost, and the views that annotations use."""
    lines = [*info["longer"], *info["losses"]]
    for label, entry in info["label_views"].items():
        encoder = entry["encoder"]
        what = f"by {encoder['name']} ({encoder['dim']} dimensions)" if encoder else f"none, {entry['why']}"
        lines.append(f"view for the label {printable(label, 40)}: {what}")
    return lines


def _sources(collections: Mapping[str, Any]) -> list[str]:
    """One line per input: how much of it found a place, and how many sets are unusually small or large."""
    found = [(name, s) for name, entry in collections.items() if name != "regions" for s in entry["sources"]]
    if not found:
        return []
    few, many = ("n_below_500", "n_above_100000")
    columns: dict[str, Sequence[Any]] = {
        "source": [printable(s["dataset"], 40) for _, s in found],
        "sets": [f"{s['n_sets']:,} {name}" for name, s in found],
        "coverage": [f"{s['n_placed'] / s['n_source']:.1%}" if s["n_source"] else "" for _, s in found],
        "no token": [f"{s['n_empty']:,}" for _, s in found],
        "< 500 tokens": [f"{s[few]:,}" for _, s in found],
        "> 100,000 tokens": [f"{s[many]:,}" for _, s in found],
    }
    notes = [f"{printable(s['dataset'], 40)}: {note}" for _, s in found for note in s["notes"]]
    more = [f"and {len(notes) - LISTED} notes more (--json has all)"] if len(notes) > LISTED else []
    return [*_table(columns), *notes[:LISTED], *more, ""]


def _quality(calibration: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, entry in calibration.get("recall", {}).items():
        lines.append(f"{name}: recall@10 {entry['recall@10']:.3f} with {entry['n_probe']} lists probed")
    sanity = calibration.get("sanity", {})
    if sanity:
        lines += ["sanity of each direction (0.5 is chance, 1 is best):", *_matrix(sanity)]
    return lines


def _matrix(sanity: Mapping[str, float | None]) -> list[str]:
    """The scores `a → b` as a square, queries down and targets across."""
    pairs = {tuple(direction.split(" → ")): score for direction, score in sanity.items()}
    names = list(dict.fromkeys(source for source, _ in pairs))
    columns: dict[str, Sequence[Any]] = {"query": names}
    for target in names:
        scores = [pairs.get((source, target)) for source in names]
        columns[f"→ {target}"] = ["-" if score is None else f"{score:.2f}" for score in scores]
    return _table(columns)


def next_command(path: Path, info: Mapping[str, Any]) -> str:
    """What to try on an atlas that was just made."""
    atlas = shlex.quote(str(path))
    if info["labels"] and "cells" in info["collections"]:
        return f"chromseek annotate {atlas} YOUR.h5ad --label {shlex.quote(info['labels'][0])} -o annotated.h5ad"
    return f"chromseek search {atlas} {next(iter(info['collections']))} YOUR.bed"


def estimate_lines(found: "BuildEstimate") -> list[str]:
    """What a build would read, and what it takes, as text."""
    columns: dict[str, Sequence[Any]] = {
        "source": [printable(s.dataset, 40) for s in found.sources],
        "sets": ["?" if s.n_sets is None else f"{s.n_sets:,}" for s in found.sources],
        "kind": [f"{s.kind}s" for s in found.sources],
        "tokens": ["?" if s.n_tokens is None else f"{s.n_tokens:,}" for s in found.sources],
        "size": [size_text(s.n_bytes) for s in found.sources],
        "coverage": ["?" if s.coverage is None else f"{s.coverage:.1%}" for s in found.sources],
        "file": [printable(s.label, 200) for s in found.sources],
    }
    return [
        f"{found.assembly}, {found.n_regions:,} regions",
        "",
        *_table(columns),
        "",
        f"disk: about {size_text(found.disk)} ({size_text(found.free)} are free)",
        f"time: about {time_text(found.seconds)} on two cores",
    ]


def annotation(adata: Any, labels: Sequence[str]) -> dict[str, Any]:
    """What an annotation gave, as numbers: per label how many cells got which value, and how sure that is."""
    found: dict[str, Any] = {
        "cells": int(adata.n_obs),
        "without_hits": int(adata.uns["chromseek"]["n_without_hits"]),
        "median_coverage": float(adata.uns["chromseek"]["median_coverage"]),
        "notes": json.loads(adata.uns["chromseek"]["notes"]),
        "labels": {},
    }
    for label in labels:
        predicted = adata.obs[f"{label}_pred"]
        if f"{label}_conf" not in adata.obs:
            found["labels"][label] = {"mean": float(predicted.mean())}
            continue
        sure = adata.obs[f"{label}_conf"]
        counts = predicted.value_counts()
        found["labels"][label] = {
            "unlabelled": int(predicted.isna().sum()),
            "median_confidence": float(sure.median()),
            "values": {
                str(value): {"cells": int(count), "median_confidence": float(sure[predicted == value].median())}
                for value, count in counts[counts > 0].items()
            },
        }
    return found


CAUTION = (
    "Every cell gets a label of the atlas; a type that the atlas lacks gets that of its nearest. "
    "Confidence is the agreement of the neighbours, not a calibrated probability."
)


def annotation_lines(found: Mapping[str, Any]) -> list[str]:
    """An annotation as text."""
    lines = [f"{found['cells']:,} cells; median coverage {found['median_coverage']:.0%}"]
    if found["without_hits"]:
        lines.append(f"{found['without_hits']:,} cells have no hits, and no label")
    for label, entry in found["labels"].items():
        if "mean" in entry:
            lines += ["", f"{printable(label)}: mean {entry['mean']:.4g}"]
            continue
        values = list(entry["values"].items())[:LISTED]
        more = len(entry["values"]) - len(values)
        columns: dict[str, Sequence[Any]] = {
            printable(label): [printable(value) for value, _ in values],
            "cells": [f"{one['cells']:,}" for _, one in values],
            "median confidence": [f"{one['median_confidence']:.2f}" for _, one in values],
        }
        lines += ["", *_table(columns), *([f"and {more} more"] if more else [])]
    return [*lines, "", *found["notes"], CAUTION]


def _table(columns: Mapping[str, Sequence[Any]]) -> list[str]:
    return aligned(columns, WIDTH)[0]
