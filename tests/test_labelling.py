"""Learning labels: the transformer starts as the bag it is made of, and names cells that it has not seen."""

from pathlib import Path

import numpy as np
import pytest
import torch

from chromseek.data.errors import BadData
from chromseek.data.simulate import Simulation
from chromseek.data.tokens import SetBlock
from chromseek.encoder.atacformer import N_SPECIALS, Atacformer, Settings
from chromseek.encoder.bag import NO_SETS, Bag
from chromseek.encoder.base import load, save, unit
from chromseek.encoder.labelling import from_bag, labelled
from chromseek.encoder.lsi import LSI

HARD = Simulation(n_cells=900, n_regions=2000, n_beds=30, n_types=6, n_donors=3, n_genes=200, tokens_per_cell=100)
N_TRAIN = 600


@pytest.fixture(scope="module")
def cells() -> SetBlock:
    return next(iter(HARD.cells(block_size=2000)))


@pytest.fixture(scope="module")
def codes(cells: SetBlock) -> np.ndarray:
    return np.unique(cells.metadata["cell_type"].cast("string").to_pylist(), return_inverse=True)[1].astype(np.int64)


@pytest.fixture(scope="module")
def taught(cells: SetBlock, codes: np.ndarray) -> Atacformer:
    classes = [str(code) for code in range(codes.max() + 1)]
    return labelled(cells.sets.slice(0, N_TRAIN), codes[:N_TRAIN], classes, HARD.universe)


def test_it_names_unseen_cells_better_than_lsi(cells: SetBlock, codes: np.ndarray, taught: Atacformer) -> None:
    known, asked = cells.sets.slice(0, N_TRAIN), cells.sets.slice(N_TRAIN, len(cells))
    truth = codes[N_TRAIN:]
    right = {}
    for encoder in (LSI.fit(known, NO_SETS, HARD.universe), taught.placed(known, NO_SETS)):
        scores = encoder.encode(asked, "cell") @ encoder.encode(known, "cell").T
        right[encoder.name] = (codes[scores.argmax(axis=1)] == truth).mean()
    assert right["atacformer"] > right["lsi"]
    assert (taught.logits(asked).argmax(axis=1) == truth).mean() > right["lsi"]


def test_it_starts_as_the_bag(cells: SetBlock, codes: np.ndarray) -> None:
    known = cells.sets.slice(0, N_TRAIN)
    bag = Bag.fit_labelled(known, codes[:N_TRAIN], [str(c) for c in range(6)], HARD.universe, dim=32)
    settings = Settings(len(HARD.universe) + N_SPECIALS, 32, 128, 1, 4)
    start = Atacformer(HARD.universe, from_bag(bag, settings, seed=0))
    with torch.inference_mode():
        raw = bag.network(torch.from_numpy(known.tokens), known.sizes.tolist()).numpy()
    likeness = (start.encode(known, "cell") * unit(raw)).sum(axis=1)
    assert np.median(likeness) > 0.97


def test_seeded_saved_and_loaded(cells: SetBlock, codes: np.ndarray, taught: Atacformer, tmp_path: Path) -> None:
    known = cells.sets.slice(0, N_TRAIN)
    again = labelled(known, codes[:N_TRAIN], taught.classes, HARD.universe)
    for one, other in zip(again.network.parameters(), taught.network.parameters(), strict=True):
        assert torch.equal(one, other)
    save(taught, tmp_path / "encoder")
    loaded = load(tmp_path / "encoder")
    assert isinstance(loaded, Atacformer)
    assert np.array_equal(loaded.logits(cells.sets), taught.logits(cells.sets))


def test_labels_that_teach_nothing(cells: SetBlock) -> None:
    for codes in (np.zeros(len(cells), np.int64), np.full(len(cells), -1)):
        with pytest.raises(BadData) as caught:
            labelled(cells.sets, codes, ["B", "T"], HARD.universe)
        assert caught.value.fix
