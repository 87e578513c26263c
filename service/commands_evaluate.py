"""Commands that score and describe encoders: `chromseek encoder evaluate` and `info`."""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from chromseek.data.errors import printable
from chromseek.service import options as o
from chromseek.service.commands_encoder import EncoderName, Inputs, encoder_app, read_options
from chromseek.service.output import say, say_json, size_text

EVALUATE_EXAMPLES = """\b
Examples:
  chromseek encoder evaluate mine/ cells.h5ad --label cell_type --groups donor
  chromseek encoder evaluate mine/ peaks/ --label assay --json
"""
INFO_EXAMPLES = """\b
Examples:
  chromseek encoder info mine/
  chromseek encoder info org/name --json
"""


def evaluate(
    encoder: EncoderName,
    inputs: Inputs,
    *,
    label: Annotated[str, typer.Option("--label", metavar="COLUMN", help="What is to be told from the vectors.")],
    groups: Annotated[
        str | None, typer.Option("--groups", metavar="COLUMN", help="Donor or library: left out whole.")
    ] = None,
    folds: Annotated[
        int, typer.Option("--folds", metavar="N", callback=o.within(2, 100), help="Parts left out in turn.")
    ] = 5,
    seed: o.Seed = 0,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    rename_chroms: o.RenameChroms = None,
    layer: o.Layer = None,
    min_fragments: o.MinFragments = 0,
    json: o.Json = False,
) -> None:
    """Score how well labels are told from the vectors of an encoder.

    By nearest neighbours, by a linear head, and by clusters.
    """
    from chromseek.encoder.base import load
    from chromseek.encoder.evaluate import evaluate as scored
    from chromseek.encoder.evaluate import vectors_of
    from chromseek.service.training_inputs import kind_of, read_inputs

    loaded = load(encoder, device=device, dtype=dtype)
    with tempfile.TemporaryDirectory(prefix="chromseek-") as work:
        corpus = read_inputs(inputs, loaded.universe, Path(work), read_options(rename_chroms, layer, min_fragments))
        codes = corpus.labels(label)[0]
        together = None if groups is None else corpus.labels(groups)[0]
        vectors = vectors_of(loaded, corpus.all, kind_of(inputs), seed=seed)
        scores = asdict(scored(vectors, codes, groups=together, folds=folds, seed=seed))
    if json:
        say_json(scores)
        return
    for name, value in scores.items():
        say(f"{name.replace('_', ' '):16}  {f'{value:.4f}' if isinstance(value, float) else f'{value:,}'}")


def info(encoder: EncoderName, *, json: o.Json = False) -> None:
    """Say what an encoder is."""
    from chromseek.encoder.base import fingerprint, load

    loaded = load(encoder, device="cpu", dtype="float32")
    arrays = loaded.arrays()
    told: dict[str, Any] = {
        "name": loaded.name,
        "assembly": loaded.universe.assembly.name,
        "regions": len(loaded.universe),
        "dim": loaded.dim,
        "context": loaded.context,
        "parameters": sum(array.size for array in arrays.values()),
        "bytes": sum(array.nbytes for array in arrays.values()),
        "fingerprint": fingerprint(loaded),
        "settings": loaded.config(),
    }
    if json:
        say_json(told)
        return
    for name, value in told.items():
        shown = size_text(value) if name == "bytes" else f"{value:,}" if isinstance(value, int) else value
        if name != "settings":
            say(f"{name:12}  {'any' if shown is None else shown}")
    for name, value in told["settings"].items():
        say(f"  {name}: {printable(value)}")


encoder_app.command(epilog=EVALUATE_EXAMPLES)(evaluate)
encoder_app.command(epilog=INFO_EXAMPLES)(info)
