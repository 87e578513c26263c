"""What in an Atacformer does what: vectors of regions, distillation, context length, labels of BED sets, promoters.

python benchmarks/atacformer_ablation.py regions distil schep dnase_sets bulk geometry

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
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from quality import accuracy, chosen, confused, macro_f1
from quality_data import GRANJA, SCHEP, Codes, Split, cells, dnase, manifest, snare
from quality_directions import blood, scored
from quality_methods import LEARNERS, SEED, Learnt, nearest, timed
from report import RESULTS, SHARED
from sklearn.metrics import adjusted_rand_score, roc_auc_score
from sklearn.model_selection import StratifiedKFold

from chromseek.data.bed import read_bed
from chromseek.data.genome import assembly
from chromseek.data.regions import Regions
from chromseek.data.tokens import TokenSets
from chromseek.data.universe import Universe
from chromseek.encoder.atacformer import N_SPECIALS, SIZES, Atacformer, LongSets, Network, Settings
from chromseek.encoder.bag import NO_SETS, Bag
from chromseek.encoder.base import Encoder, load, save, unit
from chromseek.encoder.contextual import region_vectors
from chromseek.encoder.evaluate import clustered, evaluate, linear_head
from chromseek.encoder.labelling import labelled
from chromseek.encoder.lsi import LSI
from chromseek.encoder.placing import singles
from chromseek.encoder.pretrain import pretrained
from chromseek.encoder.training import Optimiser, Run

CONTEXTS = (256, 512, 1024, 2048, 4096, 8192)
CHUNKED = (1024, 256)
BED_CONTEXT = 2048  # where BED sets are read beside cells, none of which is longer
NEIGHBOURS = 15
PROMOTER = 1000  # base pairs from a start of transcription, at most
Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Ablation:
    """Where the data are, where encoders are kept, and where figures go."""

    data: Path
    folder: Path
    results: Path

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
        shown = " | ".join(f"{key} {value:.3f}" for key, value in figures.items())
        print(f"| {section} | {name} | {shown} |", flush=True)
        self.results.parent.mkdir(parents=True, exist_ok=True)
        with self.results.open("a") as file:
            file.write(json.dumps({"section": section, "name": name, **figures}) + "\n")

    def blood(self) -> Atacformer:
        """A tiny encoder that learnt from all granja cells."""
        read = cells(self.data / GRANJA)
        return self.kept("granja", partial(detecting, read.sets, read.universe, epochs=1))

    def laboratory(self) -> tuple[Split, Atacformer]:
        """The DNase sets of one laboratory, and a tiny encoder that learnt from them."""
        split = dnase(self.data)[0]
        return split, self.kept("dnase-duke", partial(detecting, split.train, split.universe, epochs=30, context=1024))


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


def distil(ablation: Ablation) -> None:
    """Teachers and the bags that learnt their vectors, on libraries that neither saw."""
    split = snare(ablation.data)[0]
    train, universe = split.train, split.universe
    teachers = {
        "labels": lambda: labelled(train, split.train_codes, split.labels, universe, seed=SEED, device="cpu"),
        "detection": lambda: detecting(train, universe, epochs=2),
    }
    for name, learn in teachers.items():
        teacher = ablation.kept(f"snare-{name}", learn)
        for how, taught in (("raw", teacher), ("placed", teacher.placed(train, NO_SETS, seed=SEED))):
            vectors = taught.encode(train, "cell")
            student = timed(lambda vectors=vectors: Bag.distil(train, vectors, universe, seed=SEED, device="cpu"))
            compared(ablation, split, f"{name} {how}", teacher, student)


def compared(ablation: Ablation, split: Split, name: str, teacher: Encoder, student: Learnt) -> None:
    """Labels by neighbours, and neighbours shared with the teacher; beside LSI, and the teacher on thinned cells."""
    lsi = LSI.fit(*split.as_kinds(), split.universe, dim=64, seed=SEED)
    asked = {
        "teacher": (teacher, split.test), "student": (student.encoder, split.test), "lsi": (lsi, split.test),
        "teacher, fewer tokens": (teacher, thinned(split.test)),
    }  # fmt: skip
    answers = {who: answered(encoder, split, sets) for who, (encoder, sets) in asked.items()}
    vectors, rows, confusion = answers["teacher"]
    for who, (_, found, counts) in answers.items():
        same = [len(np.intersect1d(a, b)) for a, b in zip(rows, found, strict=True)]
        ablation.row(
            "distil", f"{name}: {who}", accuracy=accuracy(counts), macro_f1=macro_f1(counts),
            accuracy_kept=accuracy(counts) / accuracy(confusion), macro_f1_kept=macro_f1(counts) / macro_f1(confusion),
            neighbours_kept=float(np.mean(same)) / NEIGHBOURS,
        )  # fmt: skip
    cosine = float((vectors * answers["student"][0]).sum(axis=1).mean())
    ablation.row("distil", f"{name}: student beside teacher", cosine=cosine, cpu=student.cpu)


def answered(encoder: Encoder, split: Split, asked: TokenSets) -> tuple[Vectors, Codes, NDArray[np.int64]]:
    """Placed by the train cells: the vectors of the asked, their nearest train cells, and the confusion of labels."""
    placed = encoder.placed(*split.as_kinds(), seed=SEED)
    known, vectors = placed.encode(split.train, split.kind), placed.encode(asked, split.kind)
    rows = np.argpartition(-(vectors @ known.T), NEIGHBOURS - 1, axis=1)[:, :NEIGHBOURS]
    said = nearest(known, split.train_codes, vectors, NEIGHBOURS, len(split.labels))
    return vectors, rows, confused(split.test_codes, said, len(split.labels))


def thinned(sets: TokenSets) -> TokenSets:
    """The sets without a tenth of their tokens."""
    rng = np.random.default_rng(SEED)
    return TokenSets.from_lists([tokens[rng.random(len(tokens)) >= 0.1] for tokens in sets])


def from_mean(vectors: Vectors, known: Vectors) -> Vectors:
    """Unit vectors seen from the mean of the known ones, as those of a placed encoder are."""
    return unit(vectors - known.mean(axis=0))


def readings(encoder: Atacformer) -> list[tuple[str, Atacformer]]:
    """The encoder at every context, named."""
    sampled = [(f"sample {context}", read_at(encoder, context)) for context in CONTEXTS]
    return sampled + [(f"chunk {context}", read_at(encoder, context, "chunk")) for context in CHUNKED]


def schep(ablation: Ablation) -> None:
    """Cells of lines and sorted populations: clusters, neighbours and a head, by 5 folds."""
    read = cells(ablation.data / SCHEP)
    codes = pd.factorize(read.obs["cell_type_merged"].astype(str), sort=True)[0]
    encoder = ablation.kept("schep", partial(detecting, read.sets, read.universe, epochs=2))
    for name, reading in readings(encoder):
        begun = time.process_time()
        vectors = reading.encode(read.sets, "cell")
        cpu = time.process_time() - begun
        found = evaluate(from_mean(vectors, vectors), codes)
        ablation.row(
            "schep", name, ari=found.ari, cut=float((read.sets.sizes > reading.context).mean()), cpu=cpu,
            knn_accuracy=found.knn_accuracy, knn_macro_f1=found.knn_macro_f1, linear_macro_f1=found.linear_macro_f1,
        )  # fmt: skip


def dnase_sets(ablation: Ablation) -> None:
    """BED sets of a laboratory named by the nearest of another's; clusters of both together."""
    split, encoder = ablation.laboratory()
    every = np.concatenate([split.train_codes, split.test_codes])
    for name, reading in readings(encoder):
        begun = time.process_time()
        raw = [reading.encode(sets, "bed") for sets in (split.train, split.test)]
        cpu = time.process_time() - begun
        known, asked = (from_mean(vectors, raw[0]) for vectors in raw)
        said = nearest(known, split.train_codes, asked, 1, len(split.labels))
        confusion = confused(split.test_codes, said, len(split.labels))
        groups = clustered(np.concatenate([known, asked]), len(np.unique(every)), SEED)
        ablation.row(
            "dnase", name, ari=float(adjusted_rand_score(every, groups)), accuracy=accuracy(confusion),
            macro_f1=macro_f1(confusion), cpu=cpu,
        )  # fmt: skip


def bulk(ablation: Ablation) -> None:
    """DNase, ChIP and ATAC sets: assay by 5 folds, lineage by 5 folds and with whole sources left out."""
    split, encoder = ablation.laboratory()
    table = pd.concat([manifest(ablation.data, folder) for folder in ("dnase", "chip", "atac_heme")])
    found = [read_bed(ablation.data / "bed" / file, assembly=assembly("hg19")).regions for file in table["file"]]
    sets = TokenSets.from_lists([split.universe.tokenize(one)[0] for one in found])
    source = table["file"].str.extract(r"^(.*?/(?:encode_[A-Za-z]+|roadmap)?)")[0]
    groups = pd.factorize(source)[0]
    assay, lineage = (pd.factorize(table[column])[0] for column in ("assay", "lineage"))
    lsi = LSI.fit(*split.as_kinds(), split.universe, dim=64, seed=SEED)
    questions = (("assay", assay, None), ("lineage", lineage, None), ("lineage, sources left out", lineage, groups))
    for name, one in (("atacformer", read_at(encoder, BED_CONTEXT).placed(NO_SETS, sets, seed=SEED)), ("lsi", lsi)):
        vectors = one.encode(sets, "bed")
        for what, codes, left_out in questions:
            scores = evaluate(vectors, codes, groups=left_out)
            ablation.row(
                "bulk", f"{name} {what}", commonest=float(np.bincount(codes).max() / len(codes)),
                linear_accuracy=scores.linear_accuracy, linear_macro_f1=scores.linear_macro_f1,
                knn_accuracy=scores.knn_accuracy, ari=scores.ari,
            )  # fmt: skip


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
        away = vectors - vectors.mean(axis=0)
        away /= np.linalg.norm(away, axis=1).mean()  # the penalty of the head weighs alike on all of them
        both = np.concatenate([away, (common - common.mean()) / common.std() * away.std()], axis=1)
        ablation.row("geometry", name, auc=separated(away, codes), auc_with_how_common=separated(both, codes))


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


def separated(vectors: Vectors, codes: Codes) -> float:
    """Area under the curve of a linear head, on rows left out of it."""
    said = np.empty(len(codes))
    for kept, left_out in StratifiedKFold(5, shuffle=True, random_state=SEED).split(vectors, codes):
        said[left_out] = linear_head(vectors[kept], codes[kept]).decision_function(vectors[left_out])
    return float(roc_auc_score(codes, said))


SECTIONS = {one.__name__: one for one in (regions, distil, schep, dnase_sets, bulk, geometry)}


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
