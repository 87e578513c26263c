"""The demo: simulate an atlas as files, build it from them, ask it five questions, and say how right it was."""

import json
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import typer

from chromseek.data.errors import BadArgument, StorageError, printable
from chromseek.data.simulate import ORIGIN, Simulation, toy
from chromseek.indexer.durable import remove
from chromseek.indexer.lock import writing
from chromseek.search import plot
from chromseek.search.atlas import Atlas, build
from chromseek.service import demo_questions as questions
from chromseek.service.demo_questions import Answer, Material
from chromseek.service.output import aligned, plain, say, time_text

if TYPE_CHECKING:
    from anndata import AnnData

MARKER = "THIS-IS-A-DEMO.txt"
MARK = "Made by `chromseek demo`. All of it is simulated, and the next `chromseek demo` here replaces it.\n"
PICTURES = ("umap_cell_types.png", "umap_confidence.png", "confusion_matrix.png")
WRITTEN = ("data", "demo.atlas", "report.json", *PICTURES)  # what a new demo replaces; other files stay
SIZES = {
    "tiny": toy(),
    "small": Simulation(n_cells=4000, n_regions=30_000, n_beds=100, n_types=12, tokens_per_cell=1000, n_genes=1000),
    "full": Simulation(),
}
MAP_QUERY, MAP_ATLAS = 2000, 2500  # cells on the maps, at most
WIDTH = 118  # of the tables


@dataclass
class Stages:
    """How long each part took."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Time a part."""
        began = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - began


def run(size: str, folder: Path) -> None:
    """Run the whole demo in a folder: tiny, small or full.

    Raises BadArgument for another size, StorageError (73) when the folder holds something that is no demo.
    """
    if size not in SIZES:
        raise BadArgument(f"no size {printable(size)}", code="DEMO-SIZE", got=size, fix=f"one of {', '.join(SIZES)}")
    simulation, stages = SIZES[size], Stages()
    with replaced(folder), stages.timed("total"):
        say("All data of this demo are SIMULATED: no person, no cell and no experiment in it is real.")
        with stages.timed("simulate"):
            files, beds = simulate(simulation, folder / "data")
        _tell_files(simulation, files, stages)
        with stages.timed("build"):
            atlas = _build(folder, files)
        _tell_atlas(folder, files, atlas, stages)
        lineage = dict(zip(*(column.to_pylist() for column in simulation.types.columns), strict=True))
        material = Material(
            str(folder / "demo.atlas"), atlas, str(files["query"]), simulation.held_out_donor, beds, lineage
        )
        with atlas:
            with stages.timed("questions"):
                answers, adata = _ask(material)
            with stages.timed("pictures"):
                pictures = draw(material, adata, folder) if plot.available() else []
    write_report(folder, size, stages, answers, pictures)
    _tell_end(folder, stages, pictures)


@contextmanager
def replaced(folder: Path) -> Iterator[None]:
    """Make the folder, or take away what an earlier demo left in it, and be alone in it.

    Raises StorageError (73) when it holds something and is no demo's, Busy when another demo runs in it.
    """
    marker = folder / MARKER
    ours = marker.is_file() and not marker.is_symlink() and marker.read_bytes() == MARK.encode()
    if not (ours or _free(folder)):
        raise StorageError(
            "exists, and is no folder of an earlier demo",
            code="DEMO-EXISTS",
            file=str(folder),
            fix="name another folder with --folder; a demo replaces only what a demo made",
            exit_code=73,
        )
    folder.mkdir(parents=True, exist_ok=True)
    marker.write_text(MARK)
    with writing(folder, "demo"):
        for name in WRITTEN:
            remove(folder / name)
        yield


def _free(folder: Path) -> bool:
    """Say whether there is nothing, or an empty folder."""
    if folder.exists():
        return folder.is_dir() and not any(folder.iterdir())
    return not folder.is_symlink()


def simulate(simulation: Simulation, folder: Path) -> tuple[dict[str, Path], pd.DataFrame]:
    """Write the simulated files; one donor and one ATAC-seq BED set of each cell type are kept out of the atlas."""
    files = simulation.write(folder)
    table = pd.read_csv(files["manifest"], sep="\t")
    held = table[table["assay"] == "ATAC"].groupby("cell_type", sort=False).tail(1)
    queries = folder / "query_beds"
    queries.mkdir()
    for file in held["file"]:
        (files["beds"] / file).rename(queries / file)
    table.drop(held.index).to_csv(files["manifest"], sep="\t", index=False)
    return files, held.assign(path=[str(queries / file) for file in held["file"]])


def _build(folder: Path, files: dict[str, Path]) -> Atlas:
    return build(
        folder / "demo.atlas",
        cells=files["cells"],
        beds=files["manifest"],
        universe=files["universe"],
        labels=["cell_type"],
        groups="donor",
        genes=files["genes"],
    )


def _ask(material: Material) -> tuple[list[Answer], "AnnData"]:
    """Ask the five questions one after the other, and print each answer as it comes."""
    say("")
    say(f'    Python   import chromseek; atlas = chromseek.open("{material.path}")')
    first, adata = questions.annotate_donor(material)
    answers = [first]
    _tell_answer(1, first)
    rest: tuple[Callable[[], Answer], ...] = (
        lambda: questions.cells_like_bed(material),
        lambda: questions.beds_like_bed(material),
        lambda: questions.regions_like_region(material, adata),
        lambda: questions.filtered(material),
    )
    for number, ask in enumerate(rest, 2):
        answers.append(ask())
        _tell_answer(number, answers[-1])
    return answers, adata


def draw(material: Material, adata: "AnnData", folder: Path) -> list[Path]:
    """Draw the maps and the confusion matrix; return the files."""
    rng = np.random.default_rng(0)
    cells, vectors = material.atlas.cells, adata.obsm["X_chromseek"]
    mine = np.sort(rng.choice(len(vectors), min(len(vectors), MAP_QUERY), replace=False))
    ids = np.sort(rng.choice(cells.ids, min(len(cells), MAP_ATLAS), replace=False))
    plane = plot.layout(np.concatenate([cells.vectors_of(ids), vectors[mine]]))
    behind, points = plane[: len(ids)], plane[len(ids) :]
    true, predicted = (adata.obs[name].astype(str).to_numpy() for name in ("cell_type", "cell_type_pred"))
    confidence, right = adata.obs["cell_type_conf"].to_numpy(), true == predicted
    lineages = list(dict.fromkeys(material.lineage.values()))
    families = dict(sorted(material.lineage.items(), key=lambda pair: lineages.index(pair[1])))
    paths = [folder / name for name in PICTURES]
    plot.label_maps(
        paths[0],
        points,
        {"true cell type": true[mine], f"predicted cell type ({right.mean():.0%} right)": predicted[mine]},
        families=families,
        background=behind,
        background_labels=cells.get(ids, ["cell_type"])["cell_type"].to_pylist(),
        title=f"Simulated data: cells of donor {material.donor} on the map of the atlas (pale)",
    )
    plot.confidence_map(
        paths[1],
        points,
        confidence[mine],
        background=behind,
        right=(confidence, right),
        title=f"Simulated data: how sure the prediction is for cells of donor {material.donor}",
    )
    title = f"Simulated data: true and predicted cell type, donor {material.donor}"
    plot.confusion(paths[2], true, predicted, families=families, title=title)
    return paths


def write_report(folder: Path, size: str, stages: Stages, answers: list[Answer], pictures: list[Path]) -> None:
    """Write what was asked, answered and measured as JSON."""
    asked = [
        {
            "question": answer.question,
            "python": answer.python,
            "shell": answer.shell,
            "answer": answer.table,
            "seconds": answer.seconds,
            "verdicts": answer.verdicts,
            "measures": answer.measures,
        }
        for answer in answers
    ]
    report: dict[str, Any] = {
        "origin": ORIGIN,
        "size": size,
        "seconds": {name: round(seconds, 3) for name, seconds in stages.seconds.items()},
        "questions": asked,
        "pictures": [path.name for path in pictures],
    }
    (folder / "report.json").write_text(json.dumps(plain(report), indent=2, ensure_ascii=False) + "\n")


def _heading(text: str, seconds: float | None = None) -> None:
    say("")
    say(typer.style(text, bold=True) + ("" if seconds is None else f"  ({time_text(seconds)})"))


def _tell_files(simulation: Simulation, files: dict[str, Path], stages: Stages) -> None:
    text = (
        f"{simulation.n_cells:,} cells, {simulation.n_beds} BED sets and {simulation.n_regions:,} regions "
        f"({simulation.assembly}) simulated"
    )
    _heading(text, stages.seconds["simulate"])
    say(f"    {files['cells']}   the cells of all donors but {simulation.held_out_donor}: the atlas")
    say(f"    {files['query']}   the cells of donor {simulation.held_out_donor}: a new sample")
    say(f"    {files['manifest']}   the BED sets, with the types they are of; one of each type is kept apart")


def _tell_atlas(folder: Path, files: dict[str, Path], atlas: Atlas, stages: Stages) -> None:
    counts = ", ".join(f"{len(atlas.collection(name)):,} {name}" for name in ("cells", "beds", "regions"))
    _heading(f"Atlas built: {counts}", stages.seconds["build"])
    paths = {name: str(files[name]) for name in ("cells", "manifest", "universe", "genes")}
    target = str(folder / "demo.atlas")
    say(
        f'    Python   chromseek.build("{target}", cells="{paths["cells"]}", beds="{paths["manifest"]}", '
        f'universe="{paths["universe"]}", labels=["cell_type"], groups="donor", genes="{paths["genes"]}")'
    )
    words = ["chromseek", "build", target, "--cells", paths["cells"], "--beds", paths["manifest"]]
    words += ["--universe", paths["universe"], "--labels", "cell_type", "--groups", "donor", "--genes", paths["genes"]]
    say(f"    shell    {shlex.join(words)}")
    for warning in atlas.warnings():
        say(f"    warning  {warning}")


def _tell_answer(number: int, answer: Answer) -> None:
    _heading(f"{number}. {answer.question}")
    say(f"    Python   {answer.python}")
    say(f"    shell    {answer.shell}")
    say("")
    for line in aligned(answer.table, WIDTH)[0]:
        say(f"        {line}")
    say("")
    say(f"    time     {time_text(answer.seconds)}")
    for place, verdict in enumerate(answer.verdicts):
        say(f"    {'' if place else 'right?':<8} {verdict}")


def _tell_end(folder: Path, stages: Stages, pictures: list[Path]) -> None:
    _heading("Pictures", stages.seconds["pictures"] if pictures else None)
    for path in pictures:
        say(f"    {path}")
    if not pictures:
        say("    none, since matplotlib and umap-learn are missing: pip install 'chromseek[plot]'")
    _heading("Now with your own files")
    say("    chromseek build my.atlas --cells my_cells.h5ad --labels cell_type --groups donor")
    say("    chromseek annotate my.atlas new_sample.h5ad --label cell_type -o annotated.h5ad")
    say("    chromseek search my.atlas cells my_peaks.bed -k 20 --where \"tissue = 'blood'\"")
    say("    chromseek serve my.atlas")
    say("")
    say("    The h5ad holds cells x regions; obs columns become labels, and what you can filter by. The simulated")
    say("    atlas says nothing about real cells: do not annotate your own with it.")
    say("")
    say(f"Demo done in {time_text(stages.seconds['total'])}; all of it, and report.json, is in {folder}")
