"""Write tests/golden/atacformer with the published stack: FOLDER/bin/python benchmarks/reference/make_golden.py

Tiny models of every variant, as geniml's own `save_pretrained` writes them, each with what it makes of ragged inputs
(`expected.safetensors`); and the tokens that gtars makes of made-up files. Run it in the environment of install.sh.
"""

import gzip
import json
import random
from pathlib import Path

import anndata
import geniml.atacformer as published
import numpy as np
import pandas as pd
import torch
from gtars.tokenizers import Tokenizer, tokenize_fragment_file
from safetensors.torch import save_file
from scipy import sparse
from torch import Tensor, nn

GOLDEN = Path(__file__).parents[2] / "tests" / "golden" / "atacformer"
SEED = 20_251
CHROMS = {"chr1": 30, "chr10": 13, "chr2": 10}  # regions on each, in the order of the lines
N = sum(CHROMS.values())
UNK, PAD, CLS = N, N + 1, N + 3
SIZES = (30, 12, 7, 1)  # tokens of the sets
IGNORED = -100
SHAPE = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
IDS = {"pad_token_id": PAD, "cls_token_id": CLS, "eos_token_id": N + 4, "bos_token_id": N + 5, "sep_token_id": N + 6}


def universe_lines() -> list[str]:
    """Made-up regions of hg38, some of which overlap or touch."""
    rng = random.Random(SEED)
    lines = []
    for chrom, count in CHROMS.items():
        start = 10_000
        for _ in range(count):
            start += rng.choice((150, 300, 900, 5_000))
            lines.append(f"{chrom}\t{start}\t{start + rng.choice((300, 301, 600))}")
    return lines


def model_of(kind: type, seed: int, **settings: object) -> nn.Module:
    """A model in which no weight is trivially 0 or 1, without dropout."""
    torch.manual_seed(seed)
    config = published.AtacformerConfig(
        vocab_size=N + 7, max_position_embeddings=32, **{"use_pos_embeddings": False} | SHAPE | IDS | settings
    )
    model = kind(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return model


def inputs(seed: int) -> tuple[Tensor, Tensor]:
    """Ragged sets as ids (4, 30), with pads, an <unk>, a <cls> and a repeat; and their mask."""
    rng = np.random.default_rng(seed)
    ids = torch.full((len(SIZES), max(SIZES)), PAD)
    for row, size in enumerate(SIZES):
        ids[row, :size] = torch.from_numpy(rng.choice(N, size, replace=False))
    ids[0, 3], ids[1, 5], ids[2, 0] = UNK, ids[1, 2], CLS
    return ids, ids != PAD


def replaced(ids: Tensor, seed: int) -> Tensor:
    """Which tokens were put in another's place, made up: (4, 30) of 0 and 1, and of -100 for specials."""
    labels = torch.from_numpy((np.random.default_rng(seed).random(ids.shape) < 0.45).astype(np.int64))
    return labels.masked_fill(ids >= N, IGNORED)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Those of all weights that have one."""
    return {
        f"gradient.{name}": weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None
    }


def forward(model: nn.Module, network: nn.Module, seed: int) -> dict[str, Tensor]:
    """The inputs, packed, their contextual vectors (tokens, d), and their pooled vectors (sets, d)."""
    ids, mask = inputs(seed)
    with torch.no_grad():
        contextual = network(ids, attention_mask=mask)[mask]
    expected = {"tokens": ids[mask], "sizes": mask.sum(dim=1), "contextual": contextual}
    if hasattr(model, "encode_tokenized_cells"):
        cells = [row[real].tolist() for row, real in zip(ids, mask, strict=True)]
        expected["pooled"] = model.encode_tokenized_cells(cells, batch_size=3)
    return expected


def detection(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """Logits (tokens), loss and gradients of replaced-token detection."""
    ids, mask = inputs(seed)
    labels = replaced(ids, seed)
    out = model(input_ids=ids, attention_mask=mask, labels=labels)
    out.loss.backward()
    return {"logits": out.logits[mask].detach(), "labels": labels[mask], "loss": out.loss.detach()} | gradients(model)


def triplet(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """The loss of three times four sets, and its gradients."""
    sets = [inputs(seed + place) for place in range(3)]
    flat = [tensor for pair in sets for tensor in pair]
    loss, *_ = model(*flat, return_dict=False)
    loss.backward()
    packed = torch.cat([ids[mask] for ids, mask in sets])
    return {"triplet.tokens": packed, "triplet.loss": loss.detach()} | gradients(model)


def adversarial(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """The loss of batch correction, the batches' logits, and the gradients of what is not frozen."""
    ids, mask = inputs(seed)
    labels, batches = replaced(ids, seed), torch.tensor([2, 0, 1, 2])
    loss, logits, told, _ = model(ids, mask, labels, batches, return_dict=False)
    loss.backward()
    expected = {"logits": logits[mask].detach(), "labels": labels[mask], "batches": batches, "told": told.detach()}
    return expected | {"loss": loss.detach()} | gradients(model)


def write(name: str, model: nn.Module, expected: dict[str, Tensor]) -> None:
    """A folder in the published layout, and what is expected of it."""
    folder = GOLDEN / name
    model.save_pretrained(folder)
    with gzip.GzipFile(folder / "universe.bed.gz", "wb", mtime=0) as file:
        file.write("".join(f"{line}\n" for line in universe_lines()).encode())
    save_file({key: tensor.contiguous() for key, tensor in expected.items()}, folder / "expected.safetensors")


def queries(rng: random.Random, count: int) -> list[tuple[str, int, int]]:
    """Regions that hit several, one or no region, touch one, come twice, or lie elsewhere."""
    lines = [(chrom, int(start), int(end)) for chrom, start, end in (line.split("\t") for line in universe_lines())]
    made = []
    for _ in range(count):
        chrom, start, end = rng.choice(lines)
        made.append(
            rng.choice(
                [
                    (chrom, start - 700, end + 900),
                    (chrom, start + 10, start + 60),
                    (chrom, end, end + 1),
                    (chrom, start - 1, start),
                    (chrom, 1_000_000, 1_000_200),
                    ("chr3", start, end),
                ]
            )
        )
    return [*made, *made[:3]]


def write_tokens() -> None:
    """Files, and the ids that gtars makes of them."""
    folder = GOLDEN / "tokens"
    folder.mkdir(parents=True, exist_ok=True)
    universe = GOLDEN / "bare" / "universe.bed.gz"
    tokenizer = Tokenizer(str(universe))
    rng = random.Random(SEED + 1)
    bed = queries(rng, 40)
    rows = "".join(f"{chrom}\t{start}\t{end}\n" for chrom, start, end in bed)
    (folder / "queries.bed").write_text(rows)
    (folder / "misses.bed").write_text("chr3\t100\t200\nchr1\t1000000\t1000100\n")
    fragments = queries(rng, 60)
    lines = [f"{chrom}\t{start}\t{end}\tcell{rng.randrange(5)}\t1\n" for chrom, start, end in fragments]
    (folder / "fragments.tsv").write_text("".join(lines))
    peaks = queries(rng, 25)[:25]
    filled = np.random.default_rng(SEED).random((6, len(peaks))) < 0.3
    filled[4] = False
    var = pd.DataFrame(peaks, columns=["chr", "start", "end"], index=[f"peak{i}" for i in range(len(peaks))])
    cells = anndata.AnnData(sparse.csr_matrix(filled.astype(np.float32)), var=var)
    specials = {
        name: getattr(tokenizer, f"{name}_token_id") for name in ("unk", "pad", "mask", "cls", "eos", "bos", "sep")
    }
    expected = {
        "specials": specials,
        "queries.bed": tokenizer(str(folder / "queries.bed"))["input_ids"],
        "misses.bed": tokenizer(str(folder / "misses.bed"))["input_ids"],
        "fragments.tsv": dict(sorted(tokenize_fragment_file(str(folder / "fragments.tsv"), tokenizer).items())),
        "peaks": peaks,
        "cells": filled.astype(int).tolist(),
        "cell ids": [one["input_ids"] for one in published.tokenize_anndata(cells, tokenizer)],
    }
    (folder / "expected.json").write_text(json.dumps(expected) + "\n")


def main() -> None:
    detector, clusterer = published.AtacformerForReplacedTokenDetection, published.AtacformerForCellClustering
    correcter = published.AtacformerForUnsupervisedBatchCorrection
    bare = model_of(published.AtacformerModel, 1)
    write("bare", bare, forward(bare, bare, 11))
    for name, seed, positions in (("detection", 2, False), ("positions", 3, True)):
        model = model_of(detector, seed, use_pos_embeddings=positions)
        write(name, model, forward(model, model.atacformer, 10 + seed) | detection(model, 10 + seed))
    masked = model_of(published.AtacformerForMaskedLM, 4)
    write("masked", masked, forward(masked, masked.atacformer, 14))
    cluster = model_of(clusterer, 5)
    write("clustering", cluster, forward(cluster, cluster.atacformer, 15) | triplet(cluster, 25))
    settings = {"num_batches": 3, "lambda_adv": 0.7, "grl_alpha": 0.5, "bc_unfreeze_last_n_layers": 1}
    corrected = model_of(correcter, 6, **settings)
    write("correction", corrected, forward(corrected, corrected.atacformer, 16) | adversarial(corrected, 16))
    write_tokens()


if __name__ == "__main__":
    main()
