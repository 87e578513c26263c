"""Atacformer gives what the published code gave: vectors, logits, losses, gradients and tokens (made by geniml 0.8.4,
transformers 4.52.4 and gtars 0.3.0; see benchmarks/reference/make_golden.py)."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from scipy import sparse
from torch import Tensor, nn

from chromseek.data.genome import ASSEMBLIES
from chromseek.data.tokens import TokenSets
from chromseek.data.universe import Universe
from chromseek.encoder.atacformer import Atacformer
from chromseek.encoder.attention import pool
from chromseek.encoder.base import load, save
from chromseek.encoder.checkpoint import read_published
from chromseek.encoder.finetune import freeze, reversed_gradient
from chromseek.encoder.pretrain import detection_loss
from chromseek.encoder.reference_tokens import anndata_tokens, bed_tokens, fragment_tokens, special_ids
from chromseek.encoder.training_batches import Batch

GOLDEN = Path(__file__).parent / "golden" / "atacformer"
VARIANTS = ("bare", "detection", "positions", "masked", "clustering", "correction")
LIMIT = 1e-5


def loaded(variant: str) -> tuple[Atacformer, dict[str, Tensor]]:
    """An encoder of a golden folder, and what the published code made of its sets."""
    encoder = load(GOLDEN / variant, device="cpu", dtype="float32")
    assert isinstance(encoder, Atacformer)
    return encoder, load_file(GOLDEN / variant / "expected.safetensors")


def assert_close(found: Tensor, wanted: Tensor) -> None:
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max().item() <= LIMIT


def assert_gradients(modules: dict[str, nn.Module], wanted: dict[str, Tensor]) -> None:
    """Every weight has the published gradient, or none where the published code froze it or does not use it."""
    prefix = "gradient."
    known = {key.removeprefix(prefix): gradient for key, gradient in wanted.items() if key.startswith(prefix)}
    found = {f"{part}.{key}": weight for part, module in modules.items() for key, weight in module.named_parameters()}
    assert known
    assert set(known) == {key for key, weight in found.items() if weight.grad is not None}
    for key, gradient in known.items():
        assert gradient.abs().max() > 0, key
        assert_close(found[key].grad, gradient)  # type: ignore[arg-type]


@pytest.mark.parametrize("variant", VARIANTS)
def test_contextual_and_pooled_vectors(variant: str) -> None:
    encoder, known = loaded(variant)
    sizes = known["sizes"].tolist()
    with torch.inference_mode():
        contextual = encoder.network(known["tokens"], sizes)
    assert_close(contextual, known["contextual"])
    pooled = torch.from_numpy(encoder.pooled(known["tokens"].numpy(), sizes))
    assert_close(pooled, known.get("pooled", pool(known["contextual"], sizes)))


@pytest.mark.parametrize("order", [(3, 2, 1, 0), (0,), (3,), (1, 0, 1)])
def test_a_set_has_its_vector_in_any_company(order: Sequence[int]) -> None:
    encoder, known = loaded("detection")
    sets = known["tokens"].split(known["sizes"].tolist())
    chosen = [sets[row] for row in order]
    pooled = encoder.pooled(torch.cat(chosen).numpy(), [len(one) for one in chosen])
    assert_close(torch.from_numpy(pooled), known["pooled"][list(order)])


def test_encoding_gives_the_published_vectors_at_length_1() -> None:
    encoder, known = loaded("clustering")
    row = int(known["sizes"].tolist().index(30))
    tokens = known["tokens"].split(known["sizes"].tolist())[row]
    real = np.unique(tokens[tokens < len(encoder.universe)].numpy())
    vector = encoder.encode(TokenSets.from_lists([real]), "cell")[0]
    wanted = encoder.pooled(real, [len(real)])[0]
    assert np.abs(vector - wanted / np.linalg.norm(wanted)).max() <= LIMIT


def test_bfloat16_stays_near() -> None:
    encoder, known = loaded("detection")
    sizes = known["sizes"].tolist()
    pooled = encoder.on("cpu", "bfloat16").pooled(known["tokens"].numpy(), sizes)
    wanted = known["pooled"].numpy()
    norms = np.linalg.norm(pooled, axis=1) * np.linalg.norm(wanted, axis=1)
    assert ((pooled * wanted).sum(axis=1) / norms).min() > 0.999
    assert np.abs(pooled - wanted).max() < 0.1


@pytest.mark.parametrize("variant", ["detection", "positions"])
def test_replaced_token_detection(variant: str) -> None:
    encoder, known = loaded(variant)
    network, head, sizes = encoder.network, encoder.discriminator, known["sizes"].tolist()
    assert head is not None
    hidden = network(known["tokens"], sizes)
    assert_close(head(hidden), known["logits"])
    loss = detection_loss(head)(hidden, Batch(known["tokens"], sizes, known["labels"].float()))
    loss.backward()
    assert_close(loss.detach(), known["loss"])
    assert_gradients({"atacformer": network, "discriminator": head}, known)


def test_triplets() -> None:
    encoder, known = loaded("clustering")
    sizes = known["sizes"].tolist() * 3
    anchors, positives, negatives = pool(encoder.network(known["triplet.tokens"], sizes), sizes).chunk(3)
    loss = F.triplet_margin_loss(anchors, positives, negatives, margin=1.0, p=2)
    loss.backward()
    assert_close(loss.detach(), known["triplet.loss"])
    assert_gradients({"atacformer": encoder.network}, known)


def test_batch_correction() -> None:
    read = read_published(GOLDEN / "correction")
    encoder, known = loaded("correction")
    network, head, sizes = encoder.network, encoder.discriminator, known["sizes"].tolist()
    assert head is not None
    adversary = nn.Linear(16, 3)
    adversary.load_state_dict(
        {key: torch.from_numpy(read.arrays[f"batch_prediction_head.{key}"]) for key in ("weight", "bias")}
    )
    freeze(network, 1)
    hidden = network(known["tokens"], sizes)
    told = adversary(reversed_gradient(pool(hidden, sizes), 0.5))
    assert_close(told, known["told"])
    assert_close(head(hidden), known["logits"])
    detected = detection_loss(head)(hidden, Batch(known["tokens"], sizes, known["labels"].float()))
    loss = detected + 0.7 * F.cross_entropy(told, known["batches"])
    loss.backward()
    assert_close(loss.detach(), known["loss"])
    assert_gradients({"atacformer": network, "discriminator": head, "batch_prediction_head": adversary}, known)


@pytest.mark.parametrize("variant", VARIANTS)
def test_saved_folders_give_the_same_vectors(variant: str, tmp_path: Path) -> None:
    encoder, known = loaded(variant)
    save(encoder, tmp_path / "saved")
    again = load(tmp_path / "saved", device="cpu", dtype="float32")
    assert isinstance(again, Atacformer)
    sizes = known["sizes"].tolist()
    assert (again.pooled(known["tokens"].numpy(), sizes) == encoder.pooled(known["tokens"].numpy(), sizes)).all()
    stored = load_file(tmp_path / "saved" / "model.safetensors")
    theirs = load_file(GOLDEN / variant / "model.safetensors")
    prefix = "atacformer." if variant == "bare" else ""
    left_out = {key for key in theirs if key.startswith(("lm_head", "batch_prediction_head"))}
    assert {f"{prefix}{key}" for key in theirs} - left_out == {key for key in stored if not key.startswith("chromseek")}


@pytest.fixture(scope="module")
def universe() -> Universe:
    return read_published(GOLDEN / "bare").universe


@pytest.fixture(scope="module")
def ids() -> dict[str, Any]:
    expected: dict[str, Any] = json.loads((GOLDEN / "tokens" / "expected.json").read_text())
    return expected


def test_special_ids(universe: Universe, ids: dict[str, Any]) -> None:
    assert special_ids(len(universe))._asdict() == ids["specials"]


@pytest.mark.parametrize("name", ["queries.bed", "misses.bed"])
def test_bed_tokens(name: str, universe: Universe, ids: dict[str, Any]) -> None:
    assert bed_tokens(GOLDEN / "tokens" / name, universe).tolist() == ids[name]
    assert bed_tokens(GOLDEN / "tokens" / name, universe, duplicates=False).tolist() == sorted(set(ids[name]))


def test_fragment_tokens(universe: Universe, ids: dict[str, Any]) -> None:
    found = fragment_tokens(GOLDEN / "tokens" / "fragments.tsv", universe)
    assert {name: found.lists[row].tolist() for row, name in enumerate(found.barcodes)} == ids["fragments.tsv"]


def test_cell_tokens(universe: Universe, ids: dict[str, Any]) -> None:
    names = [f"{chrom}:{start}-{end}" for chrom, start, end in ids["peaks"]]
    filled = sparse.csr_matrix(np.array(ids["cells"], np.float32))
    cells = anndata.AnnData(filled, var=pd.DataFrame(index=pd.Index(names)))
    found = anndata_tokens(cells, universe)
    assert [found[row].tolist() for row in range(len(found))] == ids["cell ids"]
    assert universe.assembly is ASSEMBLIES["hg38"]
