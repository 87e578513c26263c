"""Real cells and BED sets: one hg19 atlas of three labelled cell sets with three peak sets, and 206 BED sets.

Labels come from the authors' clusters (granja), lines and sorts (schep, corces). Accuracy is 5-fold: a fifth of the
granja cells is searched in the atlas with the other four fifths, through `where=`; the atlas's encoder, which never
sees labels, was fitted on all. Sorted blood populations (BED) are searched among granja's clusters.
"""

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from report import Figure, need_shared, report
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedKFold

import chromseek
from chromseek.search.atlas import Atlas

CELLS = ("granja2019_bmmc_D6T1_hg19", "schep2017_celllines_hg19", "corces2016_aml_hg19")
SORTED = {"Mono": "Mono", "B": "B", "NK": "NK", "CD4": "T", "CD8": "T"}  # CD8 is in some copies of the data only
OPTIONAL = {"CD8"}


def build(folder: Path, shared: Path) -> Atlas:
    """The atlas of all three cell sets, with a fold number for each granja cell."""
    import anndata

    inputs = []
    for name in CELLS:
        adata = anndata.read_h5ad(shared / "cells" / f"{name}.h5ad")
        if name.startswith("granja"):
            fold = np.zeros(adata.n_obs, int)
            splits = StratifiedKFold(5, shuffle=True, random_state=0).split(fold, adata.obs["cell_type"])
            for number, (_, test) in enumerate(splits):
                fold[test] = number
            adata.obs["fold"] = fold
        adata.write_h5ad(folder / f"{name}.h5ad")
        inputs.append(folder / f"{name}.h5ad")
    table = pd.read_csv(shared / "bed" / "manifest.tsv", sep="\t")
    chosen = table[(table.genome == "hg19") & table.file.str.match(r"(dnase|chip|atac_heme)/")].copy()
    chosen["path"] = [str(shared / "bed" / file) for file in chosen.file]
    chosen.drop(columns=["file"]).to_csv(folder / "beds.tsv", sep="\t", index=False)
    universe = shared / "ref" / "heme_peaks_universe_hg19.bed.gz"
    genes = shared / "ref" / "hg19_genes.simba.bed.gz"
    return chromseek.build(
        folder / "heme.atlas", cells=inputs, beds=folder / "beds.tsv", universe=universe, genes=genes,
        labels=["cell_type", "lineage"],
    )  # fmt: skip


def folds(atlas: Atlas, label: str, k: int) -> tuple[float, float]:
    """5-fold accuracy and macro-F1 on granja by neighbours in the atlas."""
    rows = atlas.cells.where("dataset = 'granja2019_bmmc_D6T1_hg19'")
    table = atlas.cells.get(rows, [label, "fold"]).to_pandas()
    predicted = np.empty(len(rows), object)
    for fold in range(5):
        test = (table["fold"] == fold).to_numpy()
        where = f"dataset = 'granja2019_bmmc_D6T1_hg19' AND fold != {fold}"
        hits = atlas.cells.search(rows[test], k, where=where)
        predicted[test] = hits.predict(label)[f"{label}_pred"].to_numpy()
    truth = table[label].astype(str).to_numpy()
    return float((predicted == truth).mean()), float(f1_score(truth, predicted.astype(str), average="macro"))


def main() -> None:
    shared = need_shared()
    figures = []
    with tempfile.TemporaryDirectory() as temporary:
        atlas = build(Path(temporary), shared)
        for label, gate in (("cell_type", 0.71), ("lineage", 0.94)):
            for k in (15, 30):
                accuracy, macro = folds(atlas, label, k)
                figures.append(Figure(f"granja 5-fold accuracy, {label}, LSI, k={k}", accuracy, "", at_least=gate))
                figures.append(Figure(f"granja 5-fold macro-F1, {label}, LSI, k={k}", macro))
        beds = atlas.beds.metadata.take(np.arange(len(atlas.beds)), ["id", "name", "dataset"]).to_pandas()
        for name, lineage in SORTED.items():
            path = shared / "bed" / "atac_heme" / f"{name}.bed.gz"
            if not path.exists() and name in OPTIONAL:
                print(f"{path.name} is not in this copy of the data: no figure for {name}")
                continue
            hits = atlas.cells.search(path, 200, where="dataset = 'granja2019_bmmc_D6T1_hg19'").to_pandas()
            share = float((hits["lineage"] == lineage).mean())
            figures.append(Figure(f"sorted {name} BED -> granja cells: share {lineage} of nearest 200", share, "", 0.9))
        for direction, score in atlas.info()["calibration"]["sanity"].items():
            figures.append(Figure(f"sanity {direction}", float("nan") if score is None else score, "", at_least=0.55))
        stored = {"cells": "cells:5", "regions": "regions:1000", "beds": f"beds:{beds['id'].iloc[0]}"}
        answered = sum(
            int(atlas.collection(target).search(stored[source], 5).n_found[0] == 5)
            for source in stored
            for target in stored
        )
        figures.append(Figure("directions answered with 5 hits, of 9", answered, "", at_least=9))
        report("real", figures)


if __name__ == "__main__":
    main()
