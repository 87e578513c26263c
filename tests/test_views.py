"""Views: one that searches use, and for each label one that annotations use; sets longer than an encoder reads."""

import itertools
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from anndata import AnnData
from building import SMALL, build_small, content, given, other_encoder, other_universe, watched

import chromseek
from chromseek.data.errors import BadArgument
from chromseek.data.tokens import TokenSets
from chromseek.encoder import atacformer, bag_training
from chromseek.encoder.atacformer import Atacformer
from chromseek.encoder.bag import Bag
from chromseek.encoder.base import load, save
from chromseek.indexer import ingest, views
from chromseek.search.atlas import Atlas, plan_build
from chromseek.search.collection import Collection

LABELS = ["cell_type", "tissue", "age"]


@pytest.fixture(scope="module", autouse=True)
def _short_lessons() -> Iterator[None]:
    """Training as short as so few cells allow: what is learned here is easy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bag_training, "LEAST_STEPS", 40)
        yield


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small atlas to be copied, with views for cell types and tissues."""
    path = tmp_path_factory.mktemp("template") / "atlas"
    build_small(path, labels=LABELS).close()
    return path


@pytest.fixture
def small(template: Path, tmp_path: Path) -> Iterator[Atlas]:
    """A small atlas of one's own: 150 cells, 12 BED sets, 400 regions."""
    shutil.copytree(template, tmp_path / "small")
    with chromseek.open(tmp_path / "small") as opened:
        yield opened


@pytest.fixture
def query() -> AnnData:
    """Forty cells that the atlas does not have, the last one without a region."""
    (block,) = replace(SMALL, n_cells=190).cells(start=150)
    sets = TokenSets.concat([block.sets.slice(0, 39), TokenSets.from_lists([[]])])
    obs = block.metadata.select(["cell_type", "tissue"]).to_pandas().set_index(pd.Index(block.names))
    cells = AnnData(sets.to_csr(400), obs=obs)
    cells.var_names = SMALL.universe.regions.names()
    return cells


def tokens_of(atlas: Atlas) -> TokenSets:
    """The stored token sets of the cells."""
    folders = [atlas.path / segment["folder"] for segment in atlas.content["collections"]["cells"]["segments"]]
    return TokenSets.from_lists([r for f in folders for r in pq.read_table(f / "tokens.parquet").column(0).to_pylist()])


def view(atlas: Atlas, label: str = "cell_type") -> Collection:
    """The cells by the view of a label."""
    cells = atlas.label_view(label)
    assert cells is not None
    return cells


def whole(atlas: Atlas) -> Atlas:
    """The atlas, when every file of it is as it was written and none is there that no version lists."""
    assert [(problem.path, str(problem)) for problem in atlas.verify()] == []
    return atlas


# What a view is


def test_each_label_has_a_view_that_knows_it(small: Atlas) -> None:
    info = small.info()
    assert info["encoder"]["name"] == "lsi"
    assert [info["label_views"][label]["encoder"]["name"] for label in LABELS[:2]] == ["bag", "bag"]
    assert info["label_views"]["age"]["encoder"] is None
    assert any("no view was fitted for the label age" in warning for warning in small.warnings())
    sets = tokens_of(small)
    truth = small.cells.get(small.cells.ids, ["cell_type"])["cell_type"].to_numpy()
    for label in LABELS[:2]:
        cells = view(small, label)
        assert np.abs(cells.vectors_of(cells.ids) - cells.encoder.encode(sets, "cell")).max() < 1e-3
        assert cells.encoder.universe is small.universe
    assert isinstance(view(small).encoder, Bag)

    def purity(cells: Collection) -> float:
        ids = cells.search(cells.ids, 5).ids
        return float((truth[ids] == truth[:, None]).mean())

    assert purity(view(small)) > purity(small.cells) + 0.1
    assert small.label_view("age") is None
    assert small.label_view("donor") is None


def test_searches_do_not_know_of_labels(small: Atlas, tmp_path: Path) -> None:
    with build_small(tmp_path / "plain") as plain:
        assert content(plain) == content(small)
        assert len([*plain.path.rglob("vectors.npy")]) + 2 == len([*small.path.rglob("vectors.npy")])
        hits = small.cells.search("beds:1,4", 9)
        assert (hits.ids == plain.cells.search("beds:1,4", 9).ids).all()


def test_labels_that_cannot_be_learned_say_why(tmp_path: Path) -> None:
    names = [f"c{n}" for n in range(40)]
    rare = ["a" if n < 4 else "b" for n in range(40)]
    cells = given(names, same=["x"] * 40, rare=rare, none=[None] * 40, code=[n % 2 for n in range(40)])
    with build_small(tmp_path / "a", cells, None, labels=["same", "rare", "none", "code"]) as built:
        views_of = built.info()["label_views"]
        assert [views_of[name]["encoder"] is None for name in ("same", "rare", "none", "code")] == [True] * 3 + [False]
        assert "no two values" in views_of["rare"]["why"]


class Stop(Exception):
    """What ends a build in the test below."""


@pytest.mark.parametrize(("at", "n_left"), [(1, 1), (13, 0)])
def test_a_stopped_build_keeps_what_it_learned(
    tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch, at: int, n_left: int
) -> None:
    encode, learn, calls = Bag.encode, Bag.fit_labelled, itertools.count()
    learned: list[int] = []

    def encode_some(*args: Any) -> Any:
        if next(calls) == at:  # of ten blocks of cells for each of two labels
            raise Stop
        return encode(*args)

    with monkeypatch.context() as patch:
        patch.setattr(Bag, "encode", encode_some)
        with pytest.raises(Stop):
            build_small(tmp_path / "a", *watched(), labels=LABELS)
    monkeypatch.setattr(Bag, "fit_labelled", lambda *args, **more: learned.append(1) or learn(*args, **more))
    with build_small(tmp_path / "a", *watched(), labels=LABELS) as built, chromseek.open(template) as expected:
        assert len(learned) == n_left
        for label in LABELS[:2]:
            ours, theirs = view(built, label).vectors_of(range(150)), view(expected, label).vectors_of(range(150))
            assert np.abs(ours - theirs).max() < 1e-3
        built.gc(grace_hours=0)
        whole(built)


# Annotations


def test_annotations_ask_the_view_of_their_label(small: Atlas, query: AnnData) -> None:
    truth = query.obs["cell_type"].astype(str).to_numpy()
    written = small.annotate(query, ["cell_type", "tissue", "donor", "age"], k=9)
    for label in ("cell_type", "tissue"):
        hits = view(small, label).search(query, 9)
        assert written.obs[f"{label}_pred"].tolist()[:39] == hits.predict(label)[f"{label}_pred"].tolist()[:39]
    plain = small.cells.search(query, 9)
    assert written.obs["donor_pred"].tolist()[:39] == plain.predict("donor")["donor_pred"].tolist()[:39]
    assert (written.obsm["X_chromseek"] == plain_vectors(small, query)).all()
    said = written.uns["chromseek"]
    assert said["views"] == ["bag", "bag", "primary", "primary"]
    assert [json.loads(one).get("label_view") for one in said["receipts"]] == ["cell_type", "tissue", None]
    assert ["donor: no view" in note or "age: no view" in note for note in json.loads(said["notes"])] == [True, True]
    right = (written.obs["cell_type_pred"].astype(str) == truth)[:39].mean()
    without = (plain.predict("cell_type")["cell_type_pred"].to_numpy() == truth)[:39].mean()
    assert right >= without - 0.05
    assert written.obs["cell_type_pred"].isna().tolist() == [False] * 39 + [True]
    assert said["n_without_hits"] == 1


def plain_vectors(atlas: Atlas, query: AnnData) -> np.ndarray:
    """What searches see of the query."""
    return np.asarray(atlas.cells.resolve(query).vectors)


def test_a_receipt_of_an_annotation_repeats_it(small: Atlas, query: AnnData) -> None:
    expected = view(small).search(query, 9)
    receipt = json.loads(json.dumps(expected.receipt))
    again = small.replay(receipt, query)
    assert (again.ids == expected.ids).all()
    small.reencode("lsi", dim=5)
    with pytest.raises(BadArgument, match="the receipt is of version"):
        small.replay(receipt, query)


def test_filters_and_exclusions_hold_in_a_view(small: Atlas) -> None:
    written = small.annotate("cells:0,1,2", "cell_type", k=5, where="donor != 'D1'", exclude_same="tissue")
    hits = view(small).search("cells:0,1,2", 5, where="donor != 'D1'", exclude_same="tissue")
    assert hits.found.any()
    assert written.obs["cell_type_pred"].tolist() == hits.predict("cell_type")["cell_type_pred"].tolist()
    assert not {0, 1, 2} & set(view(small).search("cells:0,1,2", 150).ids[0].tolist()) - {1, 2}


@pytest.mark.parametrize("form", ["vectors", "beds"])
def test_what_has_no_vectors_in_a_view_is_asked_of_the_primary_one(small: Atlas, form: str) -> None:
    asked = small.cells.vectors_of([3, 4]) if form == "vectors" else "beds:1,2"
    written = small.annotate(asked, "cell_type", k=7)
    expected = small.cells.search(asked, 7).predict("cell_type")
    assert written.obs["cell_type_pred"].tolist() == expected["cell_type_pred"].tolist()
    assert "the query has no vectors there" in written.uns["chromseek"]["notes"]
    if form == "beds":
        with pytest.raises(BadArgument, match="no vectors by the view"):
            view(small).search("beds:1", 3)


# What changes an atlas keeps all of its views


def test_added_and_deleted_cells_are_in_every_view(small: Atlas) -> None:
    small.delete("cells", ids=[0, 1])
    small.add(cells=given(["a", "b", "c"]), beds=given(["x"], 1, kind="bed"))
    for label in LABELS[:2]:
        cells = view(small, label)
        assert len(cells) == 151
        added = cells.encoder.encode(tokens_of(small), "cell")[150:]
        assert np.abs(cells.vectors_of([150, 151, 152]) - added).max() < 1e-3
        assert not {0, 1} & set(cells.search([5, 9], 150).ids.ravel().tolist())
    assert len(small.annotate("cells:2,3,150,152", "cell_type").obs) == 4
    whole(small)
    small.gc(grace_hours=0, keep=1)
    whole(small)
    assert len([*(small.path / "encoders").iterdir()]) == 3


@pytest.mark.parametrize("moves", [False, True])
def test_reencoding_fits_the_views_again(small: Atlas, moves: bool) -> None:
    small.add(cells=given([f"n{n}" for n in range(30)], cell_type=["new"] * 30))
    before = view(small).encoder
    small.reencode(other_encoder() if moves else "lsi", **({} if moves else {"dim": 5}))
    after = view(small).encoder
    assert isinstance(before, Bag)
    assert isinstance(after, Bag)
    assert "new" not in before.classes
    assert "new" in after.classes
    assert len(after.universe) == (len(other_universe()) if moves else 400)
    assert len(view(small)) == 180
    assert np.abs(view(small).vectors_of(range(180)) - after.encode(tokens_of(small), "cell")).max() < 1e-3
    written = small.annotate([*range(150, 180)], "cell_type", k=5)
    assert (written.obs["cell_type_pred"] == "new").mean() > 0.7
    whole(small)
    small.gc(grace_hours=0, keep=1)
    assert len([*(whole(small).path / "encoders").iterdir()]) == 3


def test_large_views_have_lists_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "MAX_ROWS", 64)
    monkeypatch.setattr(views, "INDEX_FROM", 160)
    with build_small(tmp_path / "a", labels="cell_type") as built:
        assert (built.cells.vectors.n_lists, view(built).vectors.n_lists) == (0, 0)
        built.add(cells=given([f"n{n}" for n in range(20)]))  # now the cells are as many as lists are worth it
        assert built.cells.vectors.n_lists > 0
        assert view(built).vectors.n_lists > 0
        built.calibrate()
        calibration = built.info()["calibration"]
        assert calibration["recall"]["cells"]["recall@10"] > 0.9
        assert calibration["label_recall"]["cell_type"]["recall@10"] > 0.9
        assert view(built).search([3], 4).receipt["recall@10"] == calibration["label_recall"]["cell_type"]["recall@10"]
        whole(built)


# Sets longer than the context


def network(context: int, **more: object) -> Atacformer:
    """A small transformer over the small universe, untrained, that reads this many tokens at once."""
    torch.manual_seed(0)
    settings = atacformer.Settings(400 + atacformer.N_SPECIALS, 16, 32, 1, 2, max_position_embeddings=context)
    return Atacformer(SMALL.universe, atacformer.Network(settings), **more)  # type: ignore[arg-type]


def test_sets_longer_than_the_context_are_counted(small: Atlas, query: AnnData) -> None:
    sizes = tokens_of(small).sizes
    small.reencode(network(45))
    longer = int((sizes > 45).sum())
    assert 0 < longer < 150
    assert small.info()["collections"]["cells"]["longer"] == longer
    assert small.info()["collections"]["regions"]["longer"] == 0
    said = small.info()["longer"][0]
    assert said.startswith(
        f"{longer / 150:.0%} of the cells have more regions than the encoder's context of 45: a sample"
    )
    assert said in small.warnings()
    small.add(cells=given([f"n{n}" for n in range(30)]))  # of 40 regions
    assert small.info()["collections"]["cells"]["longer"] == longer
    n_queries = int((np.diff(query.X.indptr) > 45).sum())
    notes = small.cells.search(query, 3).receipt["notes"]
    assert f"{n_queries} of 40 queries have more regions than the encoder's context of 45" in notes
    small.reencode(network(45, long_sets="chunk"))
    assert small.info()["longer"][0].endswith("they were encoded in chunks")
    small.reencode("lsi")
    assert small.info()["longer"] == []


def test_a_network_without_means_is_placed(small: Atlas, tmp_path: Path) -> None:
    save(network(400), tmp_path / "encoder")
    unplaced = load(tmp_path / "encoder")
    raw = unplaced.encode(tokens_of(small), "cell")
    with build_small(tmp_path / "a", universe=None, dim=None, encoder=tmp_path / "encoder") as built:
        placed = built.cells.vectors_of(range(150))
        assert np.abs(placed - built.encoder.encode(tokens_of(built), "cell")).max() < 2e-3
        assert np.abs(placed.mean(axis=0)).max() < 0.2 < np.abs(raw.mean(axis=0)).max()
        assert built.info()["encoder"]["context"] == 400
        primary = built.content["primary"]
        whole(built)
    with build_small(tmp_path / "a2", universe=None, dim=None, encoder=tmp_path / "encoder") as again:
        assert again.content["primary"] == primary
    small.reencode(tmp_path / "encoder")
    assert small.content["primary"] == primary


def test_names_of_what_is_fitted(small: Atlas) -> None:
    options = {
        "labels": (),
        "groups": None,
        "assembly": None,
        "genes": None,
        "dim": None,
        "keep_tokens": True,
        "seed": 0,
    }
    for name in ("lsi", "bag", "atacformer:tiny", "atacformer:small", "atacformer:base"):
        plan = plan_build(SMALL, SMALL, SMALL.universe, name, read=None, **options)  # type: ignore[arg-type]
        assert (plan.encoder, plan.dim) == (name, None)
    small.reencode("bag", dim=16)
    assert (small.info()["encoder"]["name"], small.encoder.dim) == ("bag", 16)
    whole(small)
