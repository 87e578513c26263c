"""Load encoders that chromseek saved with the published stack, and compare vectors.

PYTHON benchmarks/reference/check_ours.py --write SAVED …        # in chromseek's environment: make such folders
FOLDER/bin/python benchmarks/reference/check_ours.py SAVED …     # in that of install.sh

Each SAVED is a folder of chromseek's with an `expected.safetensors` beside its weights: `tokens` (packed), `sizes` and
`pooled`, and where the encoder has a discriminator `logits`, as chromseek computed them.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

HERE = Path(__file__).parent
GOLDEN = HERE.parents[1] / "tests" / "golden" / "atacformer"
LIMIT = 1e-5


def write(folder: Path) -> None:
    """Save the golden detection model with chromseek, under the folder's name, and what chromseek makes of a batch."""
    from chromseek.encoder.base import load, save

    encoder = load(GOLDEN / "detection", device="cpu", dtype="float32")
    known = load_file(GOLDEN / "detection" / "expected.safetensors")
    tokens, sizes = known["tokens"], known["sizes"].tolist()
    save(encoder, folder)
    with torch.inference_mode():
        logits = encoder.discriminator(encoder.network(torch.from_numpy(tokens), sizes)).numpy()
    expected = {"tokens": tokens, "sizes": known["sizes"], "pooled": encoder.pooled(tokens, sizes), "logits": logits}
    save_file(expected, folder / "expected.safetensors")


def check(folder: Path) -> float:
    """Load with geniml and give the largest difference in vectors and logits."""
    import geniml.atacformer as published

    known = load_file(folder / "expected.safetensors")
    sets = np.split(known["tokens"], np.cumsum(known["sizes"])[:-1])
    model, notes = published.AtacformerForCellClustering.from_pretrained(folder, output_loading_info=True)
    assert not notes["missing_keys"], notes
    pooled = model.encode_tokenized_cells([one.tolist() for one in sets]).numpy()
    differences = [np.abs(pooled - known["pooled"]).max()]
    if "logits" in known:
        detector, notes = published.AtacformerForReplacedTokenDetection.from_pretrained(
            folder, output_loading_info=True
        )
        assert not notes["missing_keys"], notes
        for one, logits in zip(sets, np.split(known["logits"], np.cumsum(known["sizes"])[:-1]), strict=True):
            with torch.no_grad():
                found = detector(input_ids=torch.from_numpy(one)[None]).logits[0].numpy()
            differences.append(np.abs(found - logits).max())
    return float(max(differences))


def main() -> None:
    names = sys.argv[1:]
    if names[:1] == ["--write"]:
        for name in names[1:]:
            write(Path(name))
        return
    for name in names:
        worst = check(Path(name))
        print(f"{name}: largest difference {worst:.2g}")
        if worst > LIMIT:
            raise SystemExit(f"more than {LIMIT:g}")


if __name__ == "__main__":
    main()
