"""Bag: what it learns from sets, labels and a teacher; saved, loaded, placed; odd sets and bad input."""

from pathlib import Path

import numpy as np
import pytest
import torch

from chromseek.data.errors import BadArgument, BadData
from chromseek.data.simulate import Simulation
from chromseek.data.tokens import SetBlock, TokenSets
from chromseek.encoder import bag, base
from chromseek.encoder.bag import NO_SETS, Bag, Network
from chromseek.encoder.bag_training import Lesson
from chromseek.encoder.contrast import supervised_contrast
from chromseek.encoder.lsi import LSI

HARD = Simulation(n_cells=1500, n_regions=4000, n_beds=30, n_types=8, n_donors=3, n_genes=200, tokens_per_cell=150)
N_TRAIN = 1000


@pytest.fixture(scope="module")
def cells() -> SetBlock:
    """Simulated cells whose types are hard to tell apart."""
    return next(iter(HARD.cells(block_size=2000)))


@pytest.fixture(scope="module")
def codes(cells: SetBlock) -> np.ndarray:
    """The type of each cell."""
    return np.unique(cells.metadata["cell_type"].cast("string").to_pylist(), return_inverse=True)[1]


@pytest.fixture(scope="module")
def classes() -> list[str]:
    return sorted(HARD.types["cell_type"].to_pylist())


@pytest.fixture(scope="module")
def labelled(cells: SetBlock, codes: np.ndarray, classes: list[str]) -> Bag:
    """Taught the types of the first thousand cells."""
    return Bag.fit_labelled(
        cells.sets.slice(0, N_TRAIN), codes[:N_TRAIN], classes, HARD.universe, beds=HARD.beds().sets, dim=32
    )


@pytest.fixture(scope="module")
def self_taught(cells: SetBlock) -> Bag:
    """Taught by the first thousand cells themselves."""
    return Bag.fit(cells.sets.slice(0, N_TRAIN), HARD.beds().sets, HARD.universe, dim=32)


def of_neighbours(encoder: base.Encoder, cells: SetBlock, codes: np.ndarray) -> float:
    """How often 15 nearest training cells vote for the type of a cell that the encoder never saw."""
    vectors = encoder.encode(cells.sets, "cell")
    near = np.argsort(-vectors[N_TRAIN:] @ vectors[:N_TRAIN].T, axis=1)[:, :15]
    votes = [np.bincount(codes[:N_TRAIN][row]).argmax() for row in near]
    return float((np.array(votes) == codes[N_TRAIN:]).mean())


def table_of(n_regions: int, dim: int, seed: int = 0) -> Network:
    """A network of random weights."""
    torch.manual_seed(seed)
    network = Network(n_regions, dim)
    with torch.no_grad():
        network.table.normal_()
        network.narrow.weight.normal_(0, 0.1)
    return network


def test_labels_make_better_neighbours_than_lsi(cells: SetBlock, codes: np.ndarray, labelled: Bag) -> None:
    lsi = LSI.fit(cells.sets.slice(0, N_TRAIN), NO_SETS, HARD.universe, dim=32)
    by_lsi, by_bag = (of_neighbours(encoder, cells, codes) for encoder in (lsi, labelled))
    assert by_bag > by_lsi + 0.03
    guessed = labelled.logits(cells.sets.slice(N_TRAIN, len(cells))).argmax(axis=1)
    assert (guessed == codes[N_TRAIN:]).mean() > by_lsi


def test_sets_alone_teach_more_than_chance(cells: SetBlock, codes: np.ndarray, self_taught: Bag) -> None:
    random = Bag(HARD.universe, table_of(len(HARD.universe), 32)).placed(cells.sets, NO_SETS)
    assert of_neighbours(self_taught, cells, codes) > of_neighbours(random, cells, codes) + 0.15


def test_left_out_regions_lie_nearer_than_others(cells: SetBlock, self_taught: Bag) -> None:
    unseen = cells.sets.slice(N_TRAIN, len(cells))
    shown = TokenSets.from_lists([unseen[row][::2] for row in range(len(unseen))])
    hidden = TokenSets.from_lists([unseen[row][1::2] for row in range(len(unseen))]).to_csr(len(HARD.universe))
    others = hidden[np.roll(np.arange(len(unseen)), 1)]
    regions = TokenSets(np.arange(len(HARD.universe) + 1), np.arange(len(HARD.universe), dtype=np.int32))

    def lead(encoder: Bag) -> float:
        near = encoder.encode(shown, "cell") @ encoder.encode(regions, "region").T
        return float(hidden.multiply(near).sum() / hidden.sum() - others.multiply(near).sum() / others.sum())

    random = Bag(HARD.universe, table_of(len(HARD.universe), 32)).placed(cells.sets, NO_SETS)
    assert lead(self_taught) > 0.005 + lead(random)


def test_distilled_it_makes_its_teachers_vectors(cells: SetBlock) -> None:
    taught, unseen = cells.sets.slice(0, N_TRAIN), cells.sets.slice(N_TRAIN, len(cells))
    teacher = LSI.fit(taught, NO_SETS, HARD.universe, dim=24)
    student = Bag.distil(taught, teacher.encode(taught, "cell"), HARD.universe)
    assert student.dim == 24
    assert (student.encode(unseen, "cell") * teacher.encode(unseen, "cell")).sum(axis=1).mean() > 0.9


def test_the_same_seed_gives_the_same_weights(cells: SetBlock, codes: np.ndarray, classes: list[str]) -> None:
    few = cells.sets.slice(0, 300)
    made = [Bag.fit_labelled(few, codes[:300], classes, HARD.universe, dim=8, seed=seed) for seed in (3, 3, 4)]
    first, again, other = map(base.fingerprint, made)
    assert first == again != other


def test_unknown_labels_are_left_out(cells: SetBlock, codes: np.ndarray, classes: list[str]) -> None:
    few, known = cells.sets.slice(0, 300), np.arange(300) % 2 == 0
    some = np.where(known, codes[:300], -1)
    given = Bag.fit_labelled(few, some, classes, HARD.universe, dim=8)
    alone = Bag.fit_labelled(few.take(np.flatnonzero(known)), codes[:300][known], classes, HARD.universe, dim=8)
    assert (given.arrays()["table"] == alone.arrays()["table"]).mean() > 0.5  # but for regions that were placed
    assert (given.logits(few) == alone.logits(few)).mean() > 0.9


@pytest.mark.parametrize("which", ["labelled", "self_taught"])
def test_saved_and_loaded_it_is_the_same(
    which: str, cells: SetBlock, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    encoder: Bag = request.getfixturevalue(which)
    base.save(encoder, tmp_path / "bag")
    loaded = base.load(tmp_path / "bag")
    assert isinstance(loaded, Bag)
    assert base.fingerprint(loaded) == base.fingerprint(encoder)
    assert loaded.classes == encoder.classes
    some = cells.sets.slice(0, 100)
    for kind in base.KINDS:
        assert (loaded.encode(some, kind) == encoder.encode(some, kind)).all()


def test_vectors_are_unit_and_empty_sets_zero(labelled: Bag) -> None:
    sets = TokenSets.from_lists([[1, 2, 3], [], [5], []])
    for kind in base.KINDS:
        norms = np.linalg.norm(labelled.encode(sets, kind), axis=1)
        assert norms == pytest.approx([1, 0, 1, 0], abs=1e-5)
    assert labelled.encode(NO_SETS, "cell").shape == (0, 32)
    shares = labelled.probabilities(sets)
    assert shares.sum(axis=1) == pytest.approx([1, 0, 1, 0], abs=1e-5)
    assert labelled.probabilities(NO_SETS).shape == (0, len(labelled.classes))


def test_the_mean_of_each_kind_is_taken_off(cells: SetBlock, labelled: Bag) -> None:
    assert np.linalg.norm(labelled.encode(cells.sets, "cell").mean(axis=0)) < 0.2


def test_regions_only_in_bed_sets_lie_with_these(cells: SetBlock) -> None:
    half = len(HARD.universe) // 2
    low = TokenSets.from_lists([tokens[tokens < half] for tokens in map(cells.sets.__getitem__, range(500))])
    beds = HARD.beds().sets
    encoder = Bag.fit(low, beds, HARD.universe, dim=16)
    in_beds = np.unique(beds.tokens)
    found = encoder.encode(TokenSets(np.arange(len(in_beds) + 1), in_beds), "region")
    assert (np.linalg.norm(found, axis=1) > 0.99).all()
    near = encoder.encode(beds, "bed") @ found[in_beds >= half].T
    own = beds.to_csr(len(HARD.universe)).toarray()[:, in_beds[in_beds >= half]] > 0
    assert near[own].mean() > near[~own].mean() + 0.1
    never = np.setdiff1d(np.arange(half, len(HARD.universe)), in_beds)[:3].astype(np.int32)
    assert not encoder.encode(TokenSets(np.arange(len(never) + 1), never), "region").any()


def test_placing_is_done_once(cells: SetBlock, self_taught: Bag) -> None:
    before = base.fingerprint(self_taught)
    assert base.fingerprint(self_taught.placed(cells.sets.slice(0, 30), NO_SETS, seed=5)) == before
    assert Bag(HARD.universe, table_of(4000, 8)).placed(NO_SETS, NO_SETS).arrays().keys().isdisjoint({"means"})


def test_blocks_of_the_table_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    encoder = Bag(HARD.universe, table_of(4000, 16))
    sets = TokenSets.from_lists([rng.choice(4000, size) for size in (900, 0, 1200, 3, 2000, 0)])
    table = encoder.arrays()["table"].astype(np.float64)
    expected = sets.to_csr(4000) @ table
    whole = encoder._sums(sets).numpy()
    monkeypatch.setattr(bag, "BLOCK_BITS", 9)
    monkeypatch.setattr(bag, "MIN_PIECE", 1)
    assert encoder._sums(sets).numpy() == pytest.approx(expected, abs=1e-2)
    assert whole == pytest.approx(expected, abs=1e-2)
    vectors = encoder.encode(sets, "cell")
    monkeypatch.setattr(bag, "TOKENS", 1000)
    assert encoder.encode(sets, "cell") == pytest.approx(vectors, abs=1e-5)


def test_bfloat16_is_near_float32(cells: SetBlock, self_taught: Bag) -> None:
    exact = self_taught.encode(cells.sets, "cell")
    rough = self_taught.on("cpu", "bfloat16").encode(cells.sets, "cell")
    assert (self_taught.on("cpu", "float32").encode(cells.sets, "cell") == exact).all()
    assert 0.99 < (rough * exact).sum(axis=1).min() < 0.999999


def test_a_lesson_drops_tokens_and_hides_what_is_asked(cells: SetBlock) -> None:
    lesson = Lesson(cells.sets, 0.3, 0, 128)
    assert sorted(map(len, lesson.plan(0))) == [128] * 11
    rows = lesson.plan(1)[0]
    batch = lesson.make(rows, np.random.default_rng(0))
    again = lesson.make(rows, np.random.default_rng(0))
    assert torch.equal(batch.tokens, again.tokens)
    share = np.array(batch.sizes) / cells.sets.sizes[rows]
    assert 0.5 < share.mean() < 0.7
    assert share.max() < 1
    ends = np.cumsum(batch.sizes)
    assert batch.targets is not None
    for place, row in enumerate(rows):
        shown = batch.tokens[ends[place] - batch.sizes[place] : ends[place]].numpy()
        asked = batch.targets[place].numpy()
        assert np.isin(asked, cells.sets[row]).all()
        assert not np.isin(asked, shown).any()


def test_the_contrast_is_least_where_labels_lie_together() -> None:
    codes = torch.tensor([0, 0, 1, 1, 2])
    together = torch.eye(3)[codes]
    apart = torch.eye(3)[torch.tensor([0, 1, 0, 1, 2])]
    assert supervised_contrast(together, codes) < supervised_contrast(apart, codes)
    assert supervised_contrast(together[[0, 2, 4]], torch.tensor([0, 1, 2])) == 0


def test_bad_input_is_refused(cells: SetBlock, codes: np.ndarray, classes: list[str]) -> None:
    few, universe = cells.sets.slice(0, 50), HARD.universe
    for wrong, message in (
        (codes[:49], r"\(49,\) int64 labels do not fit 50 sets"),
        (codes[:50].astype(float), "float64 labels do not fit"),
        (codes[:50] + len(classes), "but there are 8 classes"),
        (np.arange(50) - 9, "labels run from -9"),
    ):
        with pytest.raises(BadArgument, match=message):
            Bag.fit_labelled(few, wrong, classes, universe)
    for told in (np.full(50, -1), np.zeros(50, int)):
        with pytest.raises(BadData, match=r"the labels have [01] classes among"):
            Bag.fit_labelled(few, told, classes, universe)
    with pytest.raises(BadArgument, match=r"\(49, 4\) vectors cannot teach 50 sets"):
        Bag.distil(few, np.ones((49, 4)), universe)
    with pytest.raises(BadArgument, match="vectors cannot teach"):
        Bag.distil(few, np.full((50, 4), np.nan), universe)
    with pytest.raises(BadData, match="too few"):
        Bag.fit(TokenSets.from_lists([[1], []]), NO_SETS, universe)


def test_weights_that_do_not_fit_are_refused(labelled: Bag, self_taught: Bag) -> None:
    arrays, config = labelled.arrays(), labelled.config()
    with pytest.raises(BadArgument, match="learned no labels"):
        self_taught.logits(NO_SETS)
    for changed in (
        {"table": arrays["table"][:-1]},
        {"table": arrays["table"].ravel()},
        {"means": arrays["means"][:2]},
        {"head.weight": arrays["head.weight"][:-1]},
        {"norm.weight": arrays["norm.weight"][:-1]},
        {"more": arrays["means"]},
    ):
        with pytest.raises(BadData):
            Bag.from_parts(config, arrays | changed, HARD.universe)
    with pytest.raises(BadData, match="the weights lack a table"):
        Bag.from_parts(config, {}, HARD.universe)
    with pytest.raises(BadData, match="no classes"):
        Bag.from_parts({}, arrays, HARD.universe)
