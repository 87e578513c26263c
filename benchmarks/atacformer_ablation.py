"""What in an Atacformer does what: vectors of regions, distillation, context length, labels of BED sets, promoters.

python benchmarks/atacformer_ablation.py regions distil schep dnase_sets bulk geometry --folder FOLDER

regions    quality_directions with regions as sets of one, as their embeddings, and as means in context
distil     what a bag that learnt the vectors of a transformer keeps of it, on SNARE libraries that neither saw
schep      one encoder read at several contexts: clusters of cells and their labels
dnase_sets the same for BED sets of 40,000 regions: one laboratory asks, the other answers
bulk       assay and lineage of BED sets by a linear head on their vectors
geometry   are promoters and other regions apart in the vectors of regions? beside how common a region is

Encoders are tiny and learn by replaced-token detection for a minute or so (distil: from labels, too): the figures
compare ways of reading them, they do not say how good a large one can be. Encoders are kept in FOLDER.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from quality import accuracy, chosen, confused, macro_f1
from quality_data import GRANJA, SCHEP, SNARE, Codes, Split, cells, dnase, manifest, snare
from quality_directions import blood, scored
from quality_methods import LEARNERS, SEED, Learnt, nearest, timed
from report import SHARED, RESULTS
from sklearn.metrics import adjusted_rand_score, roc_auc_score
from sklearn.model_selection import StratifiedKFold

from chromseek.data.bed import read_bed
from chromseek.data.genome import assembly
from chromseek.data.regions import Regions
from chromseek.data.tokens import TokenSets
from chromseek.data.universe import Universe
from chromseek.encoder.atacformer import N_SPECIALS, SIZES, Atacformer, LongSets, Network, Settings
from chromseek.encoder.bag import NO_SETS, Bag
from chromseek.encoder.base import Encoder, load, save
from chromseek.encoder.contextual import region_vectors
from chromseek.encoder.evaluate import clustered, evaluate, linear_head
from chromseek.encoder.labelling import labelled
from chromseek.encoder.lsi import LSI
from chromseek.encoder.placing import singles
from chromseek.encoder.pretrain import pretrained
from chromseek.encoder.training import Optimiser, Run

CONTEXTS = (8192, 4096, 2048, 1024, 512, 256)
CHUNKED = (1024, 256)
BED_CONTEXT = 2048  # where BED sets are read beside cells, none of which is longer
NEIGHBOURS = 15
PROMOTER = 1000  # base pairs from a start of transcription, at most
SECTIONS: dict[str, Callable[["Ablation"], None]] = {}
Vectors = NDArray[np.float32]
Section = Callable[["Ablation"], None]


class Ablation:
    """Where the data are, where encoders are kept, and where figures go."""

    def __init__(self, data: Path, folder: Path, results: Path) -> None:
        self.data, self.folder, self.results = data, folder, results

    def kept(self, name: str, learn: Callable[[], Atacformer]) -> Atacformer:
        """The encoder of that name, trained unless it is in the folder."""
        if not (self.folder / name).is_dir():
            learnt = timed(learn)
            save(learnt.encoder, self.folder / name)
            self.row("training", name, cpu=learnt.cpu)
        encoder = load(self.folder / name, device="cpu", dtype="float32")
        assert isinstance(encoder, Atacformer)
        return encoder

    def row(self, section: str, name: str, **figures: float) -> None:
        """Print a row of a table, and add it to the results."""
        print(f"| {section} | {name} | {' | '.join(f'{key} {value:.3f}' for key, value in figures.items())} |", flush=True)
        self.results.parent.mkdir(parents=True, exist_ok=True)
        with self.results.open("a") as file:
            file.write(json.dumps({"section": section, "name": name, **figures}) + "\n")

    def blood(self) -> Atacformer:
        """A tiny encoder that learnt from all granja cells."""
        read = cells(self.data / GRANJA)
        return self.kept("granja", partial(detecting, read.sets, read.universe, epochs=1))

    def lsi_and_bulk(self) -> tuple[Split, Atacformer]:
        """The DNase sets of one laboratory, and a tiny encoder that learnt from them."""
        split = dnase(self.data)[0]
        return split, self.kept("dnase-uw", partial(detecting, split.train, split.universe, epochs=40, context=1024))


def section(run: Section) -> Section:
    """Make it one of the SECTIONS."""
    SECTIONS[run.__name__] = run
    return run


def detecting(sets: TokenSets, universe: Universe, *, epochs: int, context: int = 8192) -> Atacformer:
    """Learn by replaced-token detection, reading so many tokens of a set; give an encoder that may read 8,192."""
    settings = Settings(len(universe) + N_SPECIALS, max_position_embeddings=context, **SIZES["tiny"])
    run = Run(epochs=epochs, batch_tokens=8192, optimiser=Optimiser(lr=2e-3), seed=SEED)
    learnt = pretrained(sets, universe, settings, run=run)
    network = Network(replace(settings, max_position_embeddings=8192))
    for part in ("embeddings.token_embeddings", "encoder"):  # there are no positions
        network.get_submodule(part).load_state_dict(learnt.network.get_submodule(part).state_dict())
    return Atacformer(universe, network, discriminator=learnt.discriminator)


def read_at(encoder: Atacformer, context: int, long_sets: LongSets = "sample") -> Atacformer:
    """The encoder with another context; placed nowhere yet."""
    return Atacformer(encoder.universe, encoder.network, context=context, long_sets=long_sets)


@section
def regions(ablation: Ablation) -> None:
    """Cells and BED sets lie the same whatever the regions: the directions from regions differ."""
    asked, encoder = blood(ablation.data), read_at(ablation.blood(), BED_CONTEXT)
    for how in ("alone", "static", "contextual"):
        placed = timed(lambda how=how: encoder.placed(*asked.split.as_kinds(), seed=SEED, regions=how))
        LEARNERS[how] = lambda _, placed=placed: placed
        found = scored(how, asked)
        ablation.row(
            "regions", how, bed_to_cell=found.bed_to_cell, cell_to_bed=found.cell_to_bed,
            region_to_cell=found.region_to_cell, region_to_bed=found.region_to_bed, placing_cpu=found.cpu,
        )  # fmt: skip


@section
def distil(ablation: Ablation) -> None:
    """Teachers and the bags that learnt their vectors, on libraries that neither saw."""
    split = snare(ablation.data)[0]
    train, universe = split.train, split.universe
    teachers = {
        "labels": lambda: labelled(train, split.train_codes, split.labels, universe, seed=SEED, device="cpu"),
        "detection": lambda: detecting(train, universe, epochs=3),
    }
    for name, learn in teachers.items():
        teacher = ablation.kept(f"snare-{name}", learn)
        raw = teacher.encode(train, "cell")
        student = timed(lambda raw=raw: Bag.distil(train, raw, universe, seed=SEED, device="cpu"))
        cosines = (teacher.encode(split.test, "cell") * student.encoder.encode(split.test, "cell")).sum(axis=1)
        compared(ablation, split, name, teacher, student, float(cosines.mean()))


def compared(ablation: Ablation, split: Split, name: str, teacher: Encoder, student: Learnt, cosine: float) -> None:
    """The labels that neighbours give and the neighbours shared, teacher, student and, for scale, LSI."""
    lsi = LSI.fit(*split.as_kinds(), split.universe, dim=64, seed=SEED)
    placed = [one.placed(*split.as_kinds(), seed=SEED) for one in (teacher, student.encoder, lsi)]
    shares, rows = [], []
    for encoder in placed:
        known, asked = (encoder.encode(sets, split.kind) for sets in (split.train, split.test))
        said = nearest(known, split.train_codes, asked, NEIGHBOURS, len(split.labels))
        confusion = confused(split.test_codes, said, len(split.labels))
        shares.append((accuracy(confusion), macro_f1(confusion)))
        rows.append(np.argpartition(-(asked @ known.T), NEIGHBOURS - 1, axis=1)[:, :NEIGHBOURS])
    for place, who in enumerate(("teacher", "student", "lsi")):
        right, f1 = shares[place]
        same = np.mean([len(np.intersect1d(a, b)) for a, b in zip(rows[0], rows[place], strict=True)]) / NEIGHBOURS
        ablation.row(
            "distil", f"{name} {who}", accuracy=right, macro_f1=f1, accuracy_kept=right / shares[0][0],
            macro_f1_kept=f1 / shares[0][1], neighbours_kept=float(same),
        )  # fmt: skip
    ablation.row("distil", f"{name} student", cosine=cosine, cpu=student.cpu)


def readings(encoder: Atacformer) -> list[tuple[str, Atacformer]]:
    """The encoder at every context, named."""
    sampled = [(f"sample {context}", read_at(encoder, context)) for context in CONTEXTS]
    return sampled + [(f"chunk {context}", read_at(encoder, context, "chunk")) for context in CHUNKED]


@section
def schep(ablation: Ablation) -> None:
    """Cells of lines and sorted populations: clusters, neighbours and a head, by 5 folds."""
    read = cells(ablation.data / SCHEP)
    codes = pd.factorize(read.obs["cell_type_merged"].astype(str), sort=True)[0]
    encoder = ablation.kept("schep", partial(detecting, read.sets, read.universe, epochs=3))
    for name, reading in readings(encoder):
        learnt = timed(lambda reading=reading: reading.placed(read.sets, NO_SETS, seed=SEED))
        found = evaluate(learnt.encoder.encode(read.sets, "cell"), codes)
        cut = float((read.sets.sizes > reading.context).mean())
        ablation.row(
            "schep", name, cut=cut, ari=found.ari, knn_accuracy=found.knn_accuracy, knn_macro_f1=found.knn_macro_f1,
            linear_macro_f1=found.linear_macro_f1, cpu=learnt.cpu,
        )  # fmt: skip


@section
def dnase_sets(ablation: Ablation) -> None:
    """BED sets of a laboratory named by the nearest of another's; clusters of both together."""
    split, encoder = ablation.lsi_and_bulk()
    every = np.concatenate([split.train_codes, split.test_codes])
    for name, reading in readings(encoder):
        learnt = timed(lambda reading=reading: reading.placed(*split.as_kinds(), seed=SEED))
        known, asked = (learnt.encoder.encode(sets, "bed") for sets in (split.train, split.test))
        confusion = confused(
            split.test_codes, nearest(known, split.train_codes, asked, 1, len(split.labels)), len(split.labels)
        )
        groups = clustered(np.concatenate([known, asked]), len(np.unique(every)), SEED)
        ablation.row(
            "dnase", name, ari=float(adjusted_rand_score(every, groups)), accuracy=accuracy(confusion),
            macro_f1=macro_f1(confusion), cpu=learnt.cpu,
        )  # fmt: skip


@section
def bulk(ablation: Ablation) -> None:
    """DNase, ChIP and ATAC sets: assay by 5 folds, lineage by 5 folds and with whole sources left out."""
    split, encoder = ablation.lsi_and_bulk()
    table = pd.concat([manifest(ablation.data, folder) for folder in ("dnase", "chip", "atac_heme")])
    found = [read_bed(ablation.data / "bed" / file, assembly=assembly("hg19")).regions for file in table["file"]]
    sets = TokenSets.from_lists([split.universe.tokenize(one)[0] for one in found])
    source = table["file"].str.extract(r"^(.*?/(?:encode_[A-Za-z]+|roadmap)?)")[0]
    groups = pd.factorize(source)[0]
    assay, lineage = (pd.factorize(table[column])[0] for column in ("assay", "lineage"))
    lsi = LSI.fit(*split.as_kinds(), split.universe, dim=64, seed=SEED)
    for name, one in (("atacformer", read_at(encoder, BED_CONTEXT).placed(NO_SETS, sets, seed=SEED)), ("lsi", lsi)):
        vectors = one.encode(sets, "bed")
        for what, codes, left_out in (
            ("assay", assay, None), ("lineage", lineage, None), ("lineage, sources left out", lineage, groups),
        ):  # fmt: skip
            scores = evaluate(vectors, codes, groups=left_out)
            ablation.row(
                "bulk", f"{name} {what}", commonest=float(np.bincount(codes).max() / len(codes)),
                linear_accuracy=scores.linear_accuracy, linear_macro_f1=scores.linear_macro_f1,
                knn_accuracy=scores.knn_accuracy, ari=scores.ari,
            )  # fmt: skip


@section
def geometry(ablation: Ablation) -> None:
    """Area under the curve of a linear head that tells promoters from other regions, 5 folds."""
    read, encoder = cells(ablation.data / GRANJA), ablation.blood()
    codes = promoters(read.universe.regions, ablation.data / "ref" / "hg19_genes.simba.bed.gz").astype(np.int64)
    common = np.log1p(np.bincount(read.sets.tokens, minlength=len(codes)))[:, None].astype(np.float32)
    lsi = LSI.fit(read.sets, NO_SETS, read.universe, dim=64, seed=SEED)
    every = singles(np.arange(len(codes), dtype=np.int32))
    tables = {"how common": common, "lsi": lsi.encode(every, "region"), "alone": encoder.encode(every, "region")}
    for how in ("static", "contextual"):
        found = region_vectors(encoder, read.sets, how, seed=SEED)
        assert found is not None
        tables[how] = found.astype(np.float32)
    for name, vectors in tables.items():
        alike = vectors if name == "how common" else unit_spread(vectors)
        both = np.concatenate([alike, (common - common.mean()) / common.std() * alike.std()], axis=1)
        figures = {"auc": separated(alike, codes), "auc_with_how_common": separated(both, codes)}
        ablation.row("geometry", name, promoters=float(codes.mean()), **figures)


def promoters(found: Regions, genes: Path) -> NDArray[np.bool_]:
    """Which regions come within PROMOTER of a start of transcription, (n)."""
    table = pd.read_csv(genes, sep="\t", names=["chrom", "start", "end", "gene", "strand"])
    table["tss"] = np.where(table["strand"] == "+", table["start"], table["end"])
    near, names = np.zeros(len(found), bool), found.chrom_names()
    for chrom, rows in table.groupby("chrom"):
        here = np.flatnonzero(names == chrom)
        starts = np.sort(rows["tss"].to_numpy())
        first = np.searchsorted(starts, found.starts[here] - PROMOTER)
        near[here] = first < np.searchsorted(starts, found.ends[here] + PROMOTER)
    return near


def unit_spread(vectors: Vectors) -> Vectors:
    """Rows seen from their mean, the mean length 1: a penalty of the head weighs alike on all of them."""
    away = vectors - vectors.mean(axis=0)
    scaled: Vectors = away / np.linalg.norm(away, axis=1).mean()
    return scaled


def separated(vectors: Vectors, codes: Codes) -> float:
    """Area under the curve of a linear head, on rows left out of it."""
    said = np.empty(len(codes))
    for kept, left_out in StratifiedKFold(5, shuffle=True, random_state=SEED).split(vectors, codes):
        said[left_out] = linear_head(vectors[kept], codes[kept]).decision_function(vectors[left_out])
    return float(roc_auc_score(codes, said))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", default=list(SECTIONS))
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--folder", type=Path, default=RESULTS / "atacformer_ablation")
    parser.add_argument("--results", type=Path, default=RESULTS / "atacformer_ablation.jsonl")
    options = parser.parse_args()
    ablation = Ablation(options.data, options.folder, options.results)
    for name in chosen(",".join(options.sections), SECTIONS):
        SECTIONS[name](ablation)


if __name__ == "__main__":
    main()
