"""What many tests share: the real data where it lies beside the checkout, and one toy atlas built from files."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import chromseek
from chromseek.data.simulate import toy
from chromseek.search.atlas import Atlas

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `shared` beside the checkout; CHROMSEEK_SHARED names another one."""
    folder = Path(os.environ.get("CHROMSEEK_SHARED", ROOT.parent / "shared"))
    if not (folder / "data" / "README.md").is_file():
        pytest.skip("the real data (../shared/data) are not here")
    return folder


@pytest.fixture(scope="session")
def toy_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The files of the toy simulation: cells, query (the held-out donor), universe, beds, manifest, genes."""
    return toy().write(tmp_path_factory.mktemp("toy") / "files")


@pytest.fixture(scope="session")
def atlas(toy_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Atlas]:
    """The toy atlas, built from its files: 500 cells, 24 BED sets, 3,000 regions. Read it, never change it."""
    path = tmp_path_factory.mktemp("atlas") / "toy.atlas"
    with chromseek.build(
        path,
        cells=toy_files["cells"],
        beds=toy_files["manifest"],
        universe=toy_files["universe"],
        labels=["cell_type"],
        groups="donor",
        genes=toy_files["genes"],
    ) as built:
        yield built
