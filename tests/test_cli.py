"""Every command of the command line, run in process on the toy atlas: what it says and what it writes."""

import csv
import gzip
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from building import other_encoder

import chromseek
from chromseek.data.tokens import TokenSets
from chromseek.data.universe import Universe
from chromseek.encoder.base import save
from chromseek.encoder.lsi import LSI
from chromseek.search.atlas import Atlas
from chromseek.service.cli import app, main, spread
from chromseek.service.typed_queries import as_query

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(chromseek.__file__).parents[1])}
COMMANDS = (
    "build",
    "add",
    "reencode",
    "delete",
    "search",
    "annotate",
    "export",
    "info",
    "calibrate",
    "verify",
    "gc",
    "serve",
    "demo",
)


class Terminal:
    """Runs commands and keeps what the last one wrote."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.out = self.err = ""

    def run(self, *args: object) -> int:
        self._capsys.readouterr()
        code = main([str(arg) for arg in args])
        self.out, self.err = self._capsys.readouterr()
        return code

    def table(self) -> list[dict[str, str]]:
        return list(csv.DictReader(io.StringIO(self.out), delimiter="\t", quoting=csv.QUOTE_NONE))

    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def terminal(capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(capsys)


@pytest.fixture
def path(atlas: Atlas) -> Path:
    return atlas.path


@pytest.fixture
def own(atlas: Atlas, tmp_path: Path) -> Path:
    """A copy of the toy atlas that may be changed."""
    return Path(shutil.copytree(atlas.path, tmp_path / "own.atlas"))


# Help


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_helps_with_examples(terminal: Terminal, command: str) -> None:
    assert terminal.run(command, "--help") == 0
    assert f"Usage: chromseek {command}" in terminal.out
    assert f"\n    chromseek {command}" in terminal.out.split("Examples:")[1]
    assert max(map(len, terminal.out.splitlines())) <= 110


def test_the_commands_are_those_that_are_documented(terminal: Terminal) -> None:
    assert tuple(command.callback.__name__ for command in app.registered_commands if command.callback) == COMMANDS
    assert terminal.run() == 0
    assert all(f"\n  {command} " in terminal.out for command in COMMANDS)
    assert "..." not in terminal.out.split("Commands:")[1]


def test_version(terminal: Terminal) -> None:
    assert terminal.run("--version") == 0
    assert terminal.out == f"chromseek {chromseek.__version__}\n"


def test_starting_loads_nothing_heavy() -> None:
    code = (
        "import sys; from chromseek.service.cli import main; main(['search', '--help']); "
        "print(sorted({'torch', 'faiss', 'fastapi', 'anndata', 'pandas', 'pyarrow', 'numpy', 'rich'} & {*sys.modules}))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True, env=ENVIRONMENT).endswith("\n[]\n")


# Search


def test_search_gives_a_pipe_what_python_finds(terminal: Terminal, atlas: Atlas, toy_files: dict[str, Path]) -> None:
    assert terminal.run("search", atlas.path, "cells", toy_files["query"], "-k", 3) == 0
    frame = atlas.cells.search(toy_files["query"], 3).to_pandas()
    rows = terminal.table()
    assert [int(row["id"]) for row in rows] == frame["id"].tolist()
    assert [row["query"] for row in rows] == frame["query"].tolist()
    assert [row["cell_type"] for row in rows] == frame["cell_type"].tolist()
    np.testing.assert_allclose([float(row["score"]) for row in rows], frame["score"], atol=1e-6)
    assert {"query", *frame.columns} == {*rows[0]}
    n_queries = len(rows) // 3
    assert f"{3 * n_queries} hits in cells for {n_queries} queries" in terminal.err
    assert "median coverage 100%" in terminal.err


@pytest.mark.parametrize("collection", ["cells", "regions", "beds"])
@pytest.mark.parametrize("query", ["cells:4", "regions:9,10", "beds:2"])
def test_nine_directions(terminal: Terminal, path: Path, collection: str, query: str) -> None:
    assert terminal.run("search", path, collection, query, "-k", 4) == 0
    assert len(terminal.table()) == 4 * len(query.split(","))
    own = {row["id"] for row in terminal.table()} & {*query.split(":")[1].split(",")}
    assert not (query.startswith(collection) and "," not in query and own), "a row is not its own hit"


def test_search_as_json(terminal: Terminal, atlas: Atlas) -> None:
    regions = "chr1:1-30,000,000,chr21:1-5"
    assert terminal.run("search", atlas.path, "beds", regions, "-k", 2, "--json", "--where", "assay = 'ATAC'") == 0
    first, second = terminal.json()["queries"]
    assert (first["query"], first["coverage"], first["reason"]) == ("chr1:1-30,000,000", 1.0, None)
    assert [hit["rank"] for hit in first["hits"]] == [1, 2]
    assert {hit["assay"] for hit in first["hits"]} == {"ATAC"}
    assert first["hits"][0]["n_fragments"] is None
    assert second["hits"] == []
    assert second["reason"] == "no overlap with the universe"
    receipt = terminal.json()["receipt"]
    assert (receipt["collection"], receipt["k"], receipt["version"]) == ("beds", 2, atlas.version)


def test_a_query_without_hits_says_why(terminal: Terminal, path: Path) -> None:
    assert terminal.run("search", path, "cells", "chr21:1-5") == 0
    assert "no hits for chr21:1-5: no overlap with the universe" in terminal.err
    assert terminal.table() == []
    assert terminal.run("search", path, "cells", "beds:1", "--where", "n_tokens < 0") == 0
    assert "no row matches the filter" in terminal.err
    assert terminal.run("search", path, "beds", "beds:1", "--max-distance", 0) == 0
    assert "nothing within distance 0" in terminal.err


def test_standard_input_is_a_bed(
    terminal: Terminal, atlas: Atlas, toy_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = next(toy_files["beds"].glob("*.bed.gz"))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(gzip.decompress(file.read_bytes()))))
    assert terminal.run("search", atlas.path, "cells", "-", "-k", 5, "--json") == 0
    found = terminal.json()
    assert [h["id"] for h in found["queries"][0]["hits"]] == atlas.cells.search(file, 5).ids[0].tolist()
    assert found["receipt"]["query"]["stdin"].startswith("sha256:")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"chr1\t5\t9\nchr1\t9\t5\n")))
    assert terminal.run("search", atlas.path, "cells", "-") == 65
    assert terminal.err.startswith("error[BED-ORDER] stdin:2: ")


def test_many_queries_centroid_and_unlike(terminal: Terminal, atlas: Atlas, toy_files: dict[str, Path]) -> None:
    files = sorted(toy_files["beds"].glob("*.bed.gz"))[:2]
    assert terminal.run("search", atlas.path, "cells", *files, "-k", 2) == 0
    assert [row["id"] for row in terminal.table()] == [
        str(n) for n in atlas.cells.search([*files], 2).ids.ravel().tolist()
    ]
    assert terminal.run("search", atlas.path, "cells", "cells:1,2,3", "--centroid", "-k", 2) == 0
    assert len(terminal.table()) == 2
    assert "coherence 0." in terminal.err
    assert terminal.run("search", atlas.path, "cells", files[0], "--unlike", files[1], "-k", 2) == 0
    want = atlas.cells.search(files[0], 2, unlike=files[1]).ids[0].tolist()
    assert [int(row["id"]) for row in terminal.table()] == want


def test_exclude_same_and_exact(terminal: Terminal, atlas: Atlas) -> None:
    donor = atlas.cells.get([7], ["donor"])["donor"].to_pylist()[0]
    assert terminal.run("search", atlas.path, "cells", "cells:7", "--exclude-same", "donor", "--exact") == 0
    assert donor not in {row["donor"] for row in terminal.table()}
    assert len(terminal.table()) == 10


def test_hits_as_files(terminal: Terminal, atlas: Atlas, tmp_path: Path) -> None:
    hits = atlas.regions.search("beds:1", 5)
    for suffix in ("parquet", "tsv", "csv", "h5ad", "bed", "bed.gz"):
        out = tmp_path / f"hits.{suffix}"
        assert terminal.run("search", atlas.path, "regions", "beds:1", "-k", 5, "-o", out) == 0
        assert terminal.out == ""
        assert f"wrote 5 hits to {out}" in terminal.err
    frame = hits.to_pandas()
    table = pq.read_table(tmp_path / "hits.parquet")
    assert table.column("id").to_pylist() == frame["id"].tolist()
    assert json.loads(table.schema.metadata[b"chromseek"])["collection"] == "regions"
    for suffix, separator in (("tsv", "\t"), ("csv", ",")):
        read = pd.read_csv(tmp_path / f"hits.{suffix}", sep=separator)
        assert read["name"].tolist() == frame["name"].tolist()
    assert anndata.read_h5ad(tmp_path / "hits.h5ad").obs["name"].tolist() == frame["name"].tolist()
    bed = (tmp_path / "hits.bed").read_text()
    assert bed == gzip.decompress((tmp_path / "hits.bed.gz").read_bytes()).decode()
    assert [line.split("\t")[:3] for line in bed.splitlines()] == [
        [row.chrom, str(row.start), str(row.end)] for row in frame.itertuples()
    ]
    assert {file.name for file in tmp_path.iterdir()} == {
        f"hits.{s}" for s in ("parquet", "tsv", "csv", "h5ad", "bed", "bed.gz")
    }


def test_a_receipt_repeats_the_search(terminal: Terminal, atlas: Atlas, tmp_path: Path) -> None:
    receipt = tmp_path / "receipt.json"
    query = ["chr1:1-20000000,chr2:1-20000000", "-k", 3, "--where", "donor != 'D1'"]
    assert terminal.run("search", atlas.path, "cells", *query, "--json", "--receipt", receipt) == 0
    again = atlas.replay(json.loads(receipt.read_text()))
    assert [h["id"] for q in terminal.json()["queries"] for h in q["hits"]] == again.ids.ravel().tolist()


# Annotate and export


def test_annotate_writes_an_h5ad(terminal: Terminal, atlas: Atlas, toy_files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "annotated.h5ad"
    labels = ["--label", "cell_type", "--label", "age"]
    assert terminal.run("annotate", atlas.path, toy_files["query"], *labels, "-o", out) == 0
    adata, truth = anndata.read_h5ad(out), anndata.read_h5ad(toy_files["query"])
    assert adata.X.shape == truth.X.shape
    assert (adata.obs["cell_type_pred"].astype(str) == truth.obs["cell_type"].astype(str)).mean() > 0.5
    assert {"cell_type_conf", "age_pred", "age_sd", "chromseek_coverage"} <= {*adata.obs}
    assert adata.obsm["X_chromseek"].shape == (adata.n_obs, atlas.encoder.dim)
    assert json.loads(adata.uns["chromseek"]["receipt"])["k"] == 30
    assert terminal.out.startswith(f"{adata.n_obs} cells; median coverage 100%\n")
    most = adata.obs["cell_type_pred"].value_counts()
    assert f"{most.index[0]}" in terminal.out
    assert "age: mean" in terminal.out
    assert "age: no view of its own (the atlas was not built with labels= for it)" in terminal.out


def test_annotate_writes_obs_as_tables(
    terminal: Terminal, path: Path, toy_files: dict[str, Path], tmp_path: Path
) -> None:
    for suffix in ("tsv", "csv", "parquet"):
        out = tmp_path / f"labels.{suffix}"
        command = ("annotate", path, toy_files["query"], "--label", "cell_type", "-k", 5, "-o", out, "--json")
        assert terminal.run(*command) == 0
    frames = [
        pd.read_csv(tmp_path / "labels.tsv", sep="\t"),
        pd.read_csv(tmp_path / "labels.csv"),
        pq.read_table(tmp_path / "labels.parquet").to_pandas(),
    ]
    for frame in frames:
        assert frame.columns[0] == "cell"
        assert frame["cell_type_pred"].astype(str).tolist() == frames[0]["cell_type_pred"].tolist()
    found = terminal.json()
    assert found["cells"] == len(frames[0])
    assert sum(one["cells"] for one in found["labels"]["cell_type"]["values"].values()) == found["cells"]


def test_export(terminal: Terminal, atlas: Atlas, tmp_path: Path) -> None:
    out = tmp_path / "cells.parquet"
    assert terminal.run("export", atlas.path, "cells", "-o", out, "--where", "donor = 'D1'", "--json") == 0
    table = pq.read_table(out)
    assert table.column("id").to_pylist() == atlas.cells.where("donor = 'D1'").tolist()
    assert terminal.json()["rows"] == len(table)
    assert terminal.run("export", atlas.path, "regions", "-o", tmp_path / "universe.bed") == 0
    assert len((tmp_path / "universe.bed").read_text().splitlines()) == len(atlas.regions)


# Build, and what changes an atlas


def test_build_add_delete_verify_gc(terminal: Terminal, toy_files: dict[str, Path], tmp_path: Path) -> None:
    built = tmp_path / "new.atlas"
    beds = sorted(toy_files["beds"].glob("*.bed.gz"))
    inputs = ["--cells", toy_files["cells"], "--universe", toy_files["universe"], "--labels", "cell_type"]
    assert terminal.run("build", built, *inputs, "--beds", *beds[:20], "--groups", "donor") == 0
    assert "20 beds" in terminal.out
    assert "sanity of each direction" in terminal.out
    assert f"chromseek annotate {built} YOUR.h5ad --label cell_type" in terminal.out
    assert terminal.run("info", built, "--json") == 0
    n_cells = terminal.json()["collections"]["cells"]["rows"]

    assert terminal.run("build", built, *inputs) == 73
    assert terminal.run("add", built, "--cells", toy_files["query"], "--json") == 0
    assert terminal.json()["collections"]["cells"]["rows"] > n_cells
    assert "warning: calibrated at v1" in terminal.err
    assert terminal.run("delete", built, "cells", "--where", "dataset = 'query'") == 0
    assert terminal.out.startswith("deleted ")
    assert terminal.run("delete", built, "beds", "--ids", "0, 3", "--json") == 0
    assert terminal.json()["deleted"] == 2
    assert terminal.run("delete", built, "cells", "--where", "donor = 'nobody'") == 0
    assert "no cells match" in terminal.err
    assert terminal.run("info", built, "--json") == 0
    assert terminal.json()["collections"]["cells"]["rows"] == n_cells
    assert terminal.json()["collections"]["beds"]["rows"] == 18

    assert terminal.run("gc", built, "--dry-run", "--keep", 1, "--grace-hours", 0) == 0
    planned = terminal.out.splitlines()
    assert "manifests/v00000001.json" in planned
    assert "would be removed" in terminal.err
    assert terminal.run("gc", built, "--keep", 1, "--grace-hours", 0, "--json") == 0
    assert terminal.json()["removed"] == planned
    assert terminal.run("verify", built) == 0
    assert "all as they were written" in terminal.out


def test_reencode(terminal: Terminal, own: Path, tmp_path: Path) -> None:
    assert terminal.run("reencode", own, "--encoder", "lsi", "--dim", 7) == 0
    assert "encoder lsi (7 dimensions)" in terminal.out
    assert "view for the label cell_type: by bag (128 dimensions)" in terminal.out
    assert "re-encoded in " in terminal.out
    with chromseek.open(own) as opened:
        half = Universe(opened.universe.regions.take(slice(None, None, 2)))
        rng, n_cells = np.random.default_rng(0), len(opened.cells)
        sets = TokenSets.from_lists([rng.choice(len(half), 60) for _ in range(40)])
        save(LSI.fit(sets, sets, half, dim=6), tmp_path / "encoder")
        save(other_encoder(), tmp_path / "elsewhere")
    version = len(list((own / "manifests").iterdir()))
    assert terminal.run("reencode", own, "--encoder", tmp_path / "elsewhere") == 65
    assert "overlap the atlas" in terminal.err
    assert len(list((own / "manifests").iterdir())) == version
    assert terminal.run("reencode", own, "--encoder", tmp_path / "encoder") == 0
    assert f"of {n_cells} cells were left empty" in terminal.out
    assert terminal.run("info", own, "--json") == 0
    assert terminal.json()["encoder"]["dim"] == 6
    assert terminal.run("verify", own) == 0


@pytest.mark.parametrize(
    ("options", "exit_code", "words"),
    [
        (["--encoder", "lsy"], 66, "atacformer:small"),
        (["--encoder", "lsi", "--device", "cuda:99"], 64, "--device cpu"),
        (["--encoder", "lsi", "--dtype", "int4"], 64, "bfloat16"),
        (["--encoder", "lsi", "--dim", "1"], 64, "from 2 to 4,096"),
        (["--encoder", "lsi", "--liftover", "nowhere.chain"], 66, "nowhere.chain"),
        ([], 64, "--encoder"),
    ],
)
def test_what_reencode_refuses(terminal: Terminal, path: Path, options: list[str], exit_code: int, words: str) -> None:
    assert terminal.run("reencode", path, *options) == exit_code
    assert words in terminal.err


def test_build_check_writes_nothing(terminal: Terminal, toy_files: dict[str, Path], tmp_path: Path) -> None:
    inputs = ["--cells", toy_files["cells"], "--beds", toy_files["manifest"], "--universe", toy_files["universe"]]
    assert terminal.run("build", tmp_path / "x.atlas", *inputs, "--check") == 0
    assert "disk: about" in terminal.out
    assert terminal.run("build", tmp_path / "x.atlas", *inputs, "--check", "--json") == 0
    cells, beds = terminal.json()["sources"]
    assert (cells["kind"], cells["coverage"]) == ("cell", 1.0)
    assert beds["n_sets"] == 24
    assert not [*tmp_path.iterdir()]


def test_an_older_version(terminal: Terminal, own: Path) -> None:
    assert terminal.run("delete", own, "cells", "--ids", "5") == 0
    assert terminal.run("search", own, "cells", "cells:5") == 66
    assert terminal.run("search", own, "cells", "cells:5", "--version", 2) == 0
    assert terminal.run("info", own, "--version", 9) == 66


def test_info_is_for_people_and_programs(terminal: Terminal, atlas: Atlas) -> None:
    assert terminal.run("info", atlas.path) == 0
    assert "hg38, 3,000 regions, encoder lsi" in terminal.out
    assert "columns of cells: cell_type" in terminal.out
    assert terminal.run("info", atlas.path, "--json") == 0
    assert terminal.json() == json.loads(json.dumps(atlas.info()))


def test_verify_names_what_is_damaged(terminal: Terminal, own: Path) -> None:
    rows = next(own.glob("segments/*/rows.parquet"))
    data = bytearray(rows.read_bytes())
    data[len(data) // 2] ^= 1
    rows.write_bytes(data)
    assert terminal.run("verify", own) == 65
    assert f"{rows.relative_to(own)}: its sha256 should be" in terminal.out
    assert terminal.err.startswith("error[ATLAS-DAMAGED]")
    assert terminal.run("verify", own, "--json") == 65
    assert [p["path"] for p in terminal.json()["problems"] if p["damage"]] == [str(rows.relative_to(own))]
    assert terminal.run("info", own) == 65
    assert "restore the file" in terminal.err


# Arguments


def test_options_take_many_values() -> None:
    assert spread(["add", "a", "--beds", "x", "y", "--cells", "-"]) == [
        "add", "a", "--beds", "x", "--beds", "y", "--cells", "-",
    ]  # fmt: skip
    assert spread(["build", "--cells", "x", "a"]) == ["build", "--cells", "x", "a"]
    assert spread(["search", "a", "cells", "--cells", "x", "y"]) == ["search", "a", "cells", "--cells", "x", "y"]


def test_regions_in_a_row() -> None:
    assert as_query("chr1:1-2, chrX:3-4") == ["chr1:1-2", "chrX:3-4"]
    assert as_query("chr1:1,000-2,000") == "chr1:1,000-2,000"
    assert as_query("a,b.bed") == "a,b.bed"


def test_calibrate_makes_a_version(terminal: Terminal, toy_files: dict[str, Path], tmp_path: Path) -> None:
    built = tmp_path / "few.atlas"
    chromseek.build(built, beds=toy_files["manifest"], universe=toy_files["universe"]).close()
    before = chromseek.open(built).version
    assert terminal.run("calibrate", built) == 0
    assert "sanity of each direction" in terminal.out
    assert chromseek.open(built).version == before + 1
