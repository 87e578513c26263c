"""The guard before an h5ad: what could read other files, crash the process or fill the memory is refused first.

HDF5 lets a file point into others (external storage, external links, virtual datasets), and its readers trust sparse
indices. So the structure is walked here without reading data, and the indices are compared with the shape.
"""

import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import h5py
import numpy as np
from numpy.typing import NDArray

from chromseek.data.errors import BadData, Busy, ChromseekError, printable
from chromseek.data.lines import opened

OBJECT_LIMIT = 20_000
DEPTH_LIMIT = 20
RATIO_LIMIT = 500  # a file that declares more than this many times its size is a bomb, once past RATIO_FREE bytes
RATIO_FREE = 64 << 20
CHUNK_LIMIT = 512 << 20  # bytes of one chunk, which can only be unpacked whole
PIECE = 1 << 20  # values read at a time
_HEAP = b"GCOL\x01\0\0\0"  # the first bytes of a heap: signature, version, reserved
_ENTRY = struct.Struct("<HHIQ")  # number, references, reserved, length
_SETTLED = 2_000_000_000  # ns: a file that changed less long ago may change again without a new time
_CACHE = 16 << 20  # bytes of unpacked chunks kept per dataset


@dataclass(frozen=True, slots=True)
class Layout:
    """How a matrix of cells x regions is stored."""

    kind: str  # csr, csc or dense
    shape: tuple[int, int]


def check_h5ad(path: str | Path, *, indices: bool = True) -> None:
    """Refuse an h5ad that is dangerous or broken, before anything else reads it.

    `indices` says whether the indices of all sparse matrices are compared with their shape too, which reads them.
    Raises BadData with the path of the object, NotFound, or Busy when it is being written.
    """
    with open_h5ad(path) as file, reading(path):
        _check_heaps(file)
        _check_objects(file)
        if "mod" in file and "obs" in file and "X" not in file:
            _refuse(file, "/mod", "several modalities (h5mu)", "H5AD-FORM", fix="write the ATAC part as h5ad")
        for part in ("obs", "var"):
            if part not in file:
                _refuse(file, f"/{part}", "missing: not an AnnData file", "H5AD-FORM", fix="write it with anndata")
        for item in matrices(file):
            layout = layout_of(item)
            if layout.kind != "dense":
                check_sparse(item, layout, indices=indices)


@contextmanager
def open_h5ad(path: str | Path) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading.

    Raises NotFound, StorageError, Busy when it is being written, and BadData when it cannot be read.
    """
    with opened(Path(path)), reading(path):
        try:
            file = h5py.File(path, "r", rdcc_nbytes=_CACHE)
        except OSError as error:
            if "unable to lock file" not in str(error) and "already open for" not in str(error):
                raise
            raise Busy(
                "the file is open for writing elsewhere",
                code="H5AD-BUSY",
                file=str(path),
                fix="close it there, then try again",
                status=423,
            ) from error
    with file:
        yield file


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turn what h5py raises for a damaged file into BadData."""
    try:
        yield
    except ChromseekError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError) as error:
        reason = printable(str(error).strip("'\"").partition("\n")[0], 120)
        raise BadData(
            f"not a readable HDF5 file ({reason})",
            code="H5AD-DAMAGED",
            file=str(path),
            fix="fetch or write the file again",
        ) from error


def matrices(file: h5py.File) -> list[h5py.Group | h5py.Dataset]:
    """The matrices that a reader of AnnData would load with its parts."""
    places = [name for name in ("X", "raw/X") if name in file]
    for part in ("layers", "obsm", "varm", "obsp", "varp"):
        if isinstance(file.get(part), h5py.Group):
            places += [f"{part}/{name}" for name in file[part]]
    found = [file[place] for place in places]
    frames = ("obsm/", "varm/")  # which may hold tables too
    return [
        item
        for place, item in zip(places, found, strict=True)
        if is_sparse(item) or not (place.startswith(frames) or is_null(item))
    ]


def is_null(item: h5py.Group | h5py.Dataset) -> bool:
    """Whether anndata wrote None here."""
    return isinstance(item, h5py.Dataset) and item.shape is None


def is_sparse(item: h5py.Group | h5py.Dataset) -> bool:
    """Whether a group holds a sparse matrix."""
    return isinstance(item, h5py.Group) and {"data", "indices", "indptr"} <= set(item)


def layout_of(item: h5py.Group | h5py.Dataset) -> Layout:
    """How a matrix is stored.

    Raises BadData when it is no matrix of numbers.
    """
    if isinstance(item, h5py.Dataset):
        shape: tuple[int, ...] = item.shape or ()
        if item.name == "/X" or item.name.startswith("/layers/"):
            _check_numbers(item)
            if len(shape) != 2:
                _refuse(item, item.name, f"{len(shape)} dimensions, 2 wanted", "H5AD-FORM")
        return Layout("dense", (shape[0] if shape else 0, shape[1] if len(shape) > 1 else 1))
    if not is_sparse(item):
        _refuse(item, item.name, "not a matrix", "H5AD-FORM")
    kind = _text(item.attrs.get("encoding-type", item.attrs.get("h5sparse_format", "")))[:3]
    size = np.asarray(item.attrs.get("shape", item.attrs.get("h5sparse_shape", ())))
    if kind not in ("csr", "csc"):
        _refuse(item, item.name, "neither a csr nor a csc matrix", "H5AD-FORM")
    if size.shape != (2,) or size.dtype.kind not in "iu" or (size < 0).any():
        _refuse(item, item.name, "no valid shape", "H5AD-FORM")
    return Layout(kind, (int(size[0]), int(size[1])))


def check_sparse(group: h5py.Group, layout: Layout, *, indices: bool) -> None:
    """Compare the arrays of a sparse matrix with each other and with its shape."""
    for name in ("data", "indices", "indptr"):
        array = group[name]
        if not isinstance(array, h5py.Dataset) or len(array.shape or ()) != 1:
            _refuse(group, f"{group.name}/{name}", "one dimension wanted", "H5AD-FORM")
        _check_numbers(array)
    if group["data"].shape != group["indices"].shape:
        sizes = f"{group['data'].shape[0]} values and {group['indices'].shape[0]} indices"
        _refuse(group, group.name, sizes, "H5AD-INDICES")
    pointers(group, layout)
    if indices:
        minor = layout.shape[1 if layout.kind == "csr" else 0]
        for start in range(0, group["indices"].shape[0], PIECE):
            check_indices(group, group["indices"][start : start + PIECE], minor)


def pointers(group: h5py.Group, layout: Layout) -> NDArray[np.int64]:
    """Where each row (csr) or column (csc) begins, (major + 1).

    Raises BadData when they do not rise from 0 to the number of values.
    """
    major, total = layout.shape[0 if layout.kind == "csr" else 1], group["indices"].shape[0]
    name = f"{group.name}/indptr"
    if group["indptr"].shape[0] != major + 1:
        _refuse(group, name, f"{group['indptr'].shape[0]} values, {major + 1} wanted", "H5AD-INDPTR")
    indptr: NDArray[np.int64] = group["indptr"][:].astype(np.int64)
    if indptr[0] != 0 or indptr[-1] != total:
        _refuse(group, name, f"goes from {indptr[0]} to {indptr[-1]}, not from 0 to {total}", "H5AD-INDPTR")
    falls = np.flatnonzero(indptr[1:] < indptr[:-1])
    if len(falls):
        at = int(falls[0])
        _refuse(group, name, f"falls from {indptr[at]} to {indptr[at + 1]} at {at + 1}", "H5AD-INDPTR")
    return indptr


def check_indices(group: h5py.Group, indices: NDArray[Any], minor: int) -> None:
    """Raise BadData unless all indices lie in 0..minor-1."""
    if len(indices) and (indices.min() < 0 or indices.max() >= minor):
        bad = indices[(indices < 0) | (indices >= minor)][0]
        _refuse(group, f"{group.name}/indices", f"{bad} outside 0..{minor - 1}", "H5AD-INDICES")


def _check_heaps(file: h5py.File) -> None:
    """Follow the entries of all heaps of text: over one with a false length, HDF5 2.0 never comes to an end."""
    if file.id.get_create_plist().get_sizes() != (8, 8):
        _refuse(file, "/", "unusual sizes of addresses", "H5AD-HEAP")
    found = os.stat(file.filename)
    times = found.st_mtime_ns, found.st_ctime_ns
    scan = _heap_damage if time.time_ns() - max(times) > _SETTLED else _heap_damage.__wrapped__
    damage = scan(file.filename, found.st_size, *times, found.st_ino, found.st_dev)
    if damage is not None:
        _refuse(file, "/", f"a heap is damaged at byte {damage}", "H5AD-HEAP")


@lru_cache(maxsize=1024)
def _heap_damage(path: str, size: int, *_stamp: int) -> int | None:
    """Where the first heap is damaged; a file that stays as it is, is read through only once."""
    with open(path, "rb") as raw:
        for start, heap in _heaps(raw, size):
            place = 16
            while place + 16 <= len(heap):
                number, _, _, length = _ENTRY.unpack_from(heap, place)
                room = 16 + (length + 7) // 8 * 8 if number else length  # entry 0 is the room left over
                if room < 16 or place + room > len(heap):
                    return start + place
                place += room
    return None


def _heaps(raw: BinaryIO, total: int) -> Iterator[tuple[int, bytes]]:
    """All heaps of a file: where each begins, and its bytes."""
    start, place, window = 0, 0, raw.read(PIECE)
    while True:
        at = window.find(_HEAP, place)
        header = window[at : at + 16] if at >= 0 else b""
        size = int.from_bytes(header[8:], "little") if len(header) == 16 else PIECE
        if len(header) == 16 and not 16 <= size <= total - start - at:
            place = at + 1  # no heap, or one that HDF5 itself refuses
        elif len(header) == 16 and at + size <= len(window):
            yield start + at, window[at : at + size]
            place = at + size
        else:
            more = raw.read(max(PIECE, size))
            if not more:
                return
            kept = at if at >= 0 else max(place, len(window) - len(_HEAP) + 1)
            start, place, window = start + kept, 0, window[kept:] + more


def _check_objects(file: h5py.File) -> None:
    """Walk all objects without reading data: links, storage, nesting, declared sizes."""
    size = os.path.getsize(file.filename)
    waiting: list[tuple[h5py.Group, int]] = [(file, 0)]
    visited: set[Any] = {_address(file)}
    _check_types(file, "/")
    n_objects = declared = 0
    while waiting:
        group, depth = waiting.pop()
        n_objects += len(group)
        if n_objects > OBJECT_LIMIT:
            _refuse(file, group.name, f"more than {OBJECT_LIMIT:,} objects", "H5AD-SIZE", status=413)
        for name in group:
            place = f"{group.name.rstrip('/')}/{name}"
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                _refuse(file, place, "a link, perhaps to another file", "H5AD-LINK")
            item = group[name]
            _check_types(item, place)
            if isinstance(item, h5py.Group):
                if depth >= DEPTH_LIMIT:
                    _refuse(file, place, f"groups nest deeper than {DEPTH_LIMIT}", "H5AD-DEPTH")
                if _address(item) in visited:
                    _refuse(file, place, "a second link to one group", "H5AD-LINK")
                visited.add(_address(item))
                waiting.append((item, depth + 1))
            elif isinstance(item, h5py.Dataset):
                declared += _check_dataset(item, place)
                if declared > max(RATIO_FREE, RATIO_LIMIT * size):
                    message = f"declares {declared:,} bytes in a file of {size:,}"
                    _refuse(file, place, message, "H5AD-SIZE", status=413)


def _check_types(item: Any, place: str) -> None:
    """Refuse lists of variable length in attributes and data: anndata writes none, HDF5 may crash on false ones."""
    kinds = [item.id.get_type()] if isinstance(item, h5py.Dataset) else []
    kinds += [item.attrs.get_id(name).get_type() for name in item.attrs]
    if any(kind.get_class() == h5py.h5t.VLEN for kind in kinds):
        _refuse(item, place, "lists of variable length", "H5AD-TYPE")


def _check_dataset(item: h5py.Dataset, place: str) -> int:
    """Refuse data that lie in other files; returns the bytes it declares."""
    if item.external:
        _refuse(item, place, "its data lie in another file (external storage)", "H5AD-EXTERNAL")
    if item.is_virtual:
        _refuse(item, place, "a virtual dataset: its data may lie in other files", "H5AD-EXTERNAL")
    if item.chunks and int(np.prod(item.chunks, dtype=object)) * item.dtype.itemsize > CHUNK_LIMIT:
        _refuse(item, place, f"chunks of more than {CHUNK_LIMIT >> 20} MB", "H5AD-SIZE", status=413)
    return 0 if item.shape is None else int(np.prod(item.shape, dtype=object)) * item.dtype.itemsize


def _check_numbers(item: h5py.Dataset) -> None:
    if item.dtype.kind not in "buif":
        _refuse(item, item.name, f"numbers wanted, not {item.dtype}", "H5AD-NUMBERS")


def _address(item: h5py.Group) -> Any:
    info = h5py.h5o.get_info(item.id)
    return info.fileno, info.addr


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _refuse(
    item: h5py.HLObject,
    place: str,
    message: str,
    code: str,
    *,
    fix: str = "write the file again with anndata, and do not use it if you do not know its source",
    status: int | None = None,
) -> NoReturn:
    raise BadData(
        f"{printable(place)}: {message}", code=code, file=item.file.filename, got=place, fix=fix, status=status
    )
