"""Answer timing requests of atacformer_speed.py with the published stack: one JSON object a line, in and out.

In: `{"sizes": [2000, …], "batch": 8, "fast_path": true, "seed": 0}`. Out: `{"cpu": s, "wall": s, "peak": MB}`, the
peak above what the model held before. Run it in the environment of install.sh; the arguments are
vocabulary size and threads.
"""

import contextlib
import ctypes
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch


def memory(field: str) -> float:
    """What this process holds, or held at most, in MB."""
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) / 1024


def main() -> None:
    vocabulary, threads = int(sys.argv[1]), int(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    with contextlib.redirect_stdout(sys.stderr):
        import geniml.atacformer as published

        torch.set_num_threads(threads)
        n = vocabulary - 7
        ids = {"pad_token_id": n + 1, "cls_token_id": n + 3, "eos_token_id": n + 4, "bos_token_id": n + 5}
        config = published.AtacformerConfig(
            vocab_size=vocabulary,
            hidden_size=192,
            intermediate_size=768,
            use_pos_embeddings=False,
            sep_token_id=n + 6,
            **ids,
        )
        model = published.AtacformerForCellClustering(config).eval()
        answers.write("ready\n")
        for line in sys.stdin:
            asked = json.loads(line)
            rng = np.random.default_rng(asked["seed"])
            cells = [np.sort(rng.choice(n, size, replace=False)).tolist() for size in asked["sizes"]]
            torch.backends.mha.set_fastpath_enabled(asked["fast_path"])
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
            held = memory("VmRSS")
            cpu, wall = time.process_time(), time.perf_counter()
            model.encode_tokenized_cells(cells, batch_size=asked["batch"])
            spent = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
            answers.write(json.dumps(spent | {"peak": memory("VmHWM") - held}) + "\n")


if __name__ == "__main__":
    main()
