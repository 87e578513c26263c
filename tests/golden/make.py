"""Write the golden atlas of the current format and the answers it gave: `python tests/golden/make.py`.

A golden atlas is made once per format version and never again; every later chromseek must open it and answer the same.
"""

import json
import shutil
from pathlib import Path

import chromseek
from chromseek.data.simulate import Simulation
from chromseek.indexer.store import Store

HERE = Path(__file__).parent


def main() -> None:
    major, minor = Store.FORMAT
    folder = HERE / f"format-{major}.{minor}"
    shutil.rmtree(folder, ignore_errors=True)
    simulated = Simulation(n_cells=80, n_regions=600, n_beds=12, n_types=6, tokens_per_cell=80, n_genes=50, seed=1)
    path = folder / "atlas"
    with chromseek.build(path, simulated, simulated, simulated.universe, labels=["cell_type"], dim=16) as atlas:
        atlas.delete("cells", ids=[3, 5])
        answers = {
            f"{source} -> {target}": atlas.collection(target).search(f"{source}:1,7", 5).ids.tolist()
            for source in ("cells", "regions", "beds")
            for target in ("cells", "regions", "beds")
        }
        where = "n_fragments > 100 AND cell_type IS NOT NULL"
        expected = {"answers": answers, "where": where, "rows": atlas.cells.where(where).tolist()}
    for scratch in ("cache", "tmp", "LOCK"):
        place = path / scratch
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
