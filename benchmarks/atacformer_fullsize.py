"""A checkpoint of the published form and full size (890,704 regions, 192 wide, bfloat16), of random weights: read once.

python benchmarks/atacformer_fullsize.py            # in a temporary folder, 355 MB
python benchmarks/atacformer_fullsize.py FOLDER     # keep it there, for other tools; one that is there is read
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from report import Figure, forget_peak, peak_megabytes, report

N_REGIONS = 890_704
WIDTH = 500  # bases of a region


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else f"{temporary}/published")
        wrote = float(ask("write", folder)) if not folder.exists() else None
        spent, cpu, peak, n_weights = map(float, ask("read", folder).split())
        size = (folder / "model.safetensors").stat().st_size / 1e6
    figures = [
        Figure("weights", n_weights / 1e6, "million"),
        Figure("model.safetensors, bfloat16", size, "MB"),
        Figure("folder to float32 arrays and universe", spent, "s"),
        Figure("folder to float32 arrays and universe, CPU", cpu, "CPU s"),
        Figure("peak memory above the imports, the mapped file with it", peak, "MB"),
        Figure("peak memory / (float32 arrays + file)", peak / (n_weights * 4 / 2**20 + size * 1e6 / 2**20), "x"),
    ]
    report("atacformer_fullsize", [*figures, *([] if wrote is None else [Figure("arrays to folder", wrote, "s")])])


def ask(act: str, folder: Path) -> str:
    """Run one act in a process of its own, so that its memory is its own."""
    done = subprocess.run([sys.executable, __file__, act, str(folder)], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def write(folder: Path) -> None:
    import torch

    from chromseek.data.genome import assembly
    from chromseek.data.regions import Regions
    from chromseek.data.universe import Universe
    from chromseek.encoder.atacformer import Discriminator, Network, Settings
    from chromseek.encoder.checkpoint import write_published

    torch.manual_seed(0)
    hg38 = assembly("hg38")
    places = np.arange(N_REGIONS) * (int(hg38.offsets[-1]) // N_REGIONS)
    chroms = np.searchsorted(hg38.offsets, places, side="right") - 1
    starts = np.minimum(places - hg38.offsets[chroms], np.array(hg38.lengths)[chroms] - WIDTH)
    regions = Regions(hg38, chroms.astype(np.int16), starts.astype(np.int32), (starts + WIDTH).astype(np.int32))
    settings = Settings(N_REGIONS + 7)
    parts = {"atacformer": Network(settings), "discriminator": Discriminator(settings)}
    arrays = {
        f"{part}.{key}": tensor.numpy() for part, module in parts.items() for key, tensor in module.state_dict().items()
    }
    start = time.perf_counter()
    write_published(folder, settings, arrays, Universe(regions), variant="rtd", dtype="bfloat16")
    print(time.perf_counter() - start)


def read(folder: Path) -> None:
    from chromseek.encoder.checkpoint import read_published

    forget_peak()
    before, start, cpu = peak_megabytes(), time.perf_counter(), time.process_time()
    found = read_published(folder)
    spent, cpu = time.perf_counter() - start, time.process_time() - cpu
    n_weights = sum(array.size for array in found.arrays.values())
    print(spent, cpu, peak_megabytes() - before, n_weights)


if __name__ == "__main__":
    if sys.argv[1:2] in (["read"], ["write"]):
        {"read": read, "write": write}[sys.argv[1]](Path(sys.argv[2]))
    else:
        main()
