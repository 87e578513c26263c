"""The guard before an h5ad: every dangerous or broken file is refused by name, and none ends the process."""

import io
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from chromseek.data import h5ad_check
from chromseek.data.errors import BadArgument, BadData, ChromseekError, NotFound
from chromseek.data.genome import assembly
from chromseek.data.h5ad import CellMatrix
from chromseek.data.h5ad_check import check_h5ad
from chromseek.data.regions import Regions
from chromseek.data.universe import Universe

HG38 = assembly("hg38")
NAMES = ["chr1:100-200", "chr1:300-400", "chrUn_KI270302v1:5-9", "chr2:0-50", "chrX:7-9"]
COUNTS = np.array([[1, 0, 2, 0, 3], [0, 0, 0, 0, 0], [0, 4, 0, 1, 0], [1, 1, 1, 1, 1]])
UNIVERSE = Universe(Regions.from_text(["chr1:150-160"], HG38))


def write(folder: Path, **options: Any) -> Path:
    path = folder / "x.h5ad"
    obs = pd.DataFrame({"donor": ["d"] * 4}, index=[f"c{k}" for k in range(4)])
    layers = {"raw": sparse.csc_matrix(COUNTS)}
    data = ad.AnnData(sparse.csr_matrix(COUNTS), obs=obs, var=pd.DataFrame(index=NAMES), layers=layers)
    data.obsm["X_pca"] = np.zeros((4, 2))
    data.uns["a"] = {"b": [1, 2]}
    data.write_h5ad(path, **options)
    return path


def read(source: Any) -> None:
    for _ in CellMatrix(source, assembly=HG38).blocks(UNIVERSE):
        pass


def refusal(source: Any) -> ChromseekError:
    with pytest.raises(ChromseekError) as caught:
        read(source)
    assert caught.value.fix
    return caught.value


Attack = Callable[[h5py.File], None]
ATTACKS: list[tuple[Attack, str]] = []


def attack(code: str) -> Callable[[Attack], Attack]:
    """Mark what spoils a file, and how the file must be refused then."""

    def listed(make: Attack) -> Attack:
        ATTACKS.append((make, code))
        return make

    return listed


def folder(file: h5py.File) -> Path:
    return Path(file.filename).parent


@attack("H5AD-EXTERNAL")
def external_storage(file: h5py.File) -> None:
    del file["X/data"]
    file["X"].create_dataset("data", (10,), "u1", external=[(str(folder(file) / "secret"), 0, 10)])


@attack("H5AD-LINK")
def external_link(file: h5py.File) -> None:
    file["obs/stolen"] = h5py.ExternalLink(str(folder(file) / "other.h5"), "/x")


@attack("H5AD-EXTERNAL")
def virtual_dataset(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((10,), "u1")
    layout[:] = h5py.VirtualSource(str(folder(file) / "other.h5"), "x", (10,))
    del file["X/data"]
    file["X"].create_virtual_dataset("data", layout)


@attack("H5AD-LINK")
def soft_link_to_parent(file: h5py.File) -> None:
    file["uns/again"] = h5py.SoftLink("/")


@attack("H5AD-LINK")
def hard_link_to_parent(file: h5py.File) -> None:
    file["uns/again"] = file["/"]


@attack("H5AD-TYPE")
def list_for_an_attribute(file: h5py.File) -> None:
    kind = h5py.h5t.vlen_create(h5py.h5t.NATIVE_INT64)
    h5py.h5a.create(file["X"].id, b"extra", kind, h5py.h5s.create(h5py.h5s.SCALAR))


@attack("H5AD-TYPE")
def lists_for_values(file: h5py.File) -> None:
    file.create_dataset("obs/n", (4,), h5py.vlen_dtype(np.int64))


@attack("H5AD-SIZE")
def terabytes(file: h5py.File) -> None:
    del file["X"]
    file.create_dataset("X", (10**6, 600_000), "f4", chunks=(1000, 1000))


@attack("H5AD-SIZE")
def zeros(file: h5py.File) -> None:
    file.create_dataset("obsm/x", data=np.zeros((4, 15_000_000), np.float32), compression="gzip", chunks=(4, 2**18))


@attack("H5AD-SIZE")
def huge_chunk(file: h5py.File) -> None:
    file.create_dataset("obsm/x", (4, 10**9), "u1", chunks=(1, 10**9))


@attack("H5AD-INDICES")
def high_index(file: h5py.File) -> None:
    file["X/indices"][0] = 10**9


@attack("H5AD-INDICES")
def negative_index(file: h5py.File) -> None:
    file["X/indices"][3] = -5


@attack("H5AD-INDPTR")
def high_pointer(file: h5py.File) -> None:
    file["X/indptr"][4] = 99


@attack("H5AD-INDPTR")
def falling_pointer(file: h5py.File) -> None:
    file["X/indptr"][1] = 9


@attack("H5AD-INDPTR")
def short_pointers(file: h5py.File) -> None:
    values = file["X/indptr"][:-1]
    del file["X/indptr"]
    file["X/indptr"] = values


@attack("H5AD-INDICES")
def missing_values(file: h5py.File) -> None:
    values = file["X/data"][:-1]
    del file["X/data"]
    file["X/data"] = values


@attack("H5AD-NUMBERS")
def text_values(file: h5py.File) -> None:
    del file["X/data"]
    file["X/data"] = ["a"] * 10


@attack("H5AD-NUMBERS")
def text_matrix(file: h5py.File) -> None:
    del file["X"]
    file["X"] = [["a"] * 5] * 4


@attack("H5AD-FORM")
def flat_matrix(file: h5py.File) -> None:
    del file["X"]
    file["X"] = np.zeros(20)


@attack("H5AD-FORM")
def group_without_arrays(file: h5py.File) -> None:
    del file["X/indices"]


@attack("H5AD-FORM")
def unknown_format(file: h5py.File) -> None:
    file["X"].attrs["encoding-type"] = "coo_matrix"


@attack("H5AD-FORM")
def negative_shape(file: h5py.File) -> None:
    file["X"].attrs["shape"] = [-4, 5]


@attack("H5AD-SHAPE")
def other_shape(file: h5py.File) -> None:
    file["X"].attrs["shape"] = [4, 6]


@attack("H5AD-DEPTH")
def nested_groups(file: h5py.File) -> None:
    group = file["uns"]
    for _ in range(1500):
        group = group.create_group("g")


@attack("H5AD-SIZE")
def many_objects(file: h5py.File) -> None:
    for k in range(20_001):
        file["uns"].create_group(str(k))


@attack("H5AD-FORM")
def no_obs(file: h5py.File) -> None:
    del file["obs"]


@attack("H5AD-FORM")
def obs_is_no_table(file: h5py.File) -> None:
    del file["obs"]
    file.create_group("obs").attrs["encoding-type"] = "dict"
    file["obs"].attrs["encoding-version"] = "0.1.0"


@attack("H5AD-FORM")
def obs_without_index(file: h5py.File) -> None:
    del file["obs/_index"]


@attack("H5AD-FORM")
def several_modalities(file: h5py.File) -> None:
    file.create_group("mod")
    del file["X"]


ONLY_READING = {"other_shape", "obs_is_no_table", "obs_without_index"}  # dangerous to nobody: told when it is read


@pytest.mark.parametrize(("make", "code"), ATTACKS, ids=[make.__name__ for make, _ in ATTACKS])
def test_attacks_are_refused(tmp_path: Path, make: Attack, code: str) -> None:
    path = write(tmp_path)
    (tmp_path / "secret").write_bytes(b"0123456789")
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["x"] = np.arange(10, dtype=np.uint8)
    with h5py.File(path, "a") as file:
        make(file)
    error = refusal(path)
    assert (error.code, error.exit_code) == (code, 65)
    assert error.status == (413 if code == "H5AD-SIZE" else 422)
    assert error.file == str(path)
    if make.__name__ not in ONLY_READING:
        with pytest.raises(BadData) as caught:
            check_h5ad(path)
        assert caught.value.code == code


def test_the_guard_names_the_index(tmp_path: Path) -> None:
    for index, layer in ((10**9, None), (-5, None), (7, "raw")):
        path = write(tmp_path)
        where = "X" if layer is None else "layers/raw"
        with h5py.File(path, "a") as file:
            file[f"{where}/indices"][0] = index
        with pytest.raises(BadData, match=f"/{where}/indices: {index} outside 0..{4 if layer is None else 3}"):
            check_h5ad(path)
        check_h5ad(path, indices=False)


def test_a_good_file_passes(tmp_path: Path) -> None:
    check_h5ad(write(tmp_path))


def test_files_that_are_no_hdf5(tmp_path: Path) -> None:
    csv = tmp_path / "x.h5ad"
    csv.write_text("a,b\n1,2\n")
    assert refusal(csv).code == "H5AD-DAMAGED"
    path = write(tmp_path)
    path.write_bytes(path.read_bytes()[:-2000])
    assert "not a readable HDF5 file" in refusal(path).message
    assert isinstance(refusal(tmp_path / "none.h5ad"), NotFound)
    assert isinstance(refusal(tmp_path), NotFound)
    assert isinstance(refusal(7), BadArgument)
    assert isinstance(
        refusal(ad.AnnData(np.zeros((1, 1), dtype=complex), var=pd.DataFrame(index=NAMES[:1]))), BadArgument
    )


def test_a_heap_over_which_hdf5_would_hang(tmp_path: Path) -> None:
    path = write(tmp_path)
    data = bytearray(path.read_bytes())
    for number, length in ((0, 0), (1, 2**64 - 16), (3, 5000)):
        struct.pack_into("<HHIQ", data, data.index(b"GCOL") + 16, number, 1, 0, length)
        path.write_bytes(data)
        error = refusal(path)
        assert error.code == "H5AD-HEAP"
        assert f"byte {data.index(b'GCOL') + 16}" in error.message


def test_a_file_that_stays_as_it_is_is_searched_for_heaps_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path)
    h5ad_check._heap_damage.cache_clear()
    check_h5ad(path)
    assert h5ad_check._heap_damage.cache_info().currsize == 0  # just written: it may change unseen
    monkeypatch.setattr(h5ad_check, "_SETTLED", -(10**18))
    for _ in range(3):
        check_h5ad(path)
    assert h5ad_check._heap_damage.cache_info()[:2] == (2, 1)
    data = bytearray(path.read_bytes())
    struct.pack_into("<HHIQ", data, data.index(b"GCOL") + 16, 3, 1, 0, 5000)
    path.write_bytes(data)
    os.utime(path, (5, 5))
    assert refusal(path).code == refusal(path).code == "H5AD-HEAP"


@pytest.mark.parametrize("piece", [17, 100, 4096, 4097])
def test_heaps_are_found_across_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    data = write(tmp_path).read_bytes()
    starts = [at for at in range(len(data)) if data.startswith(b"GCOL", at)]
    monkeypatch.setattr(h5ad_check, "PIECE", piece)
    found = list(h5ad_check._heaps(io.BytesIO(data), len(data)))
    assert [start for start, _ in found] == starts
    assert all(heap == data[start : start + len(heap)] for start, heap in found)


def test_flipped_bytes_never_escape_our_errors(tmp_path: Path) -> None:
    good = write(tmp_path, compression="gzip").read_bytes()
    rng = np.random.default_rng(0)
    script = tmp_path / "try.py"
    script.write_text(
        "import sys, warnings\n"
        "warnings.simplefilter('ignore')\n"
        "from chromseek.data.errors import ChromseekError\n"
        "from chromseek.data.genome import assembly\n"
        "from chromseek.data.h5ad import CellMatrix\n"
        "from chromseek.data.regions import Regions\n"
        "from chromseek.data.universe import Universe\n"
        "universe = Universe(Regions.from_text(['chr1:150-160'], assembly('hg38')))\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n"
        "        list(CellMatrix(path, assembly=assembly('hg38')).blocks(universe))\n"
        "    except ChromseekError:\n"
        "        pass\n"
    )
    paths = []
    for k in range(150):
        damaged = bytearray(good)
        for at in rng.integers(0, len(good), 3):
            damaged[at] ^= 1 << int(rng.integers(8))
        paths.append(tmp_path / f"{k}.h5ad")
        paths[-1].write_bytes(damaged)
    run = subprocess.run([sys.executable, script, *paths], capture_output=True, text=True, check=False, timeout=120)
    assert (run.returncode, run.stderr) == (0, "")


def test_a_file_that_is_being_written_is_busy(tmp_path: Path) -> None:
    path = write(tmp_path)
    code = f"from chromseek.data.h5ad_check import check_h5ad; check_h5ad({str(path)!r})"
    with h5py.File(path, "r+"):
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert "Busy" in run.stderr
    assert "open for writing elsewhere" in run.stderr
