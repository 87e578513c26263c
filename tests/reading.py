"""What the tests of sources share: small inputs, and a source read whole and checked on the way."""

import gzip
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
from scipy import sparse

from chromseek.data.genome import Assembly, assembly
from chromseek.data.regions import Regions
from chromseek.data.sources import ReadOptions, Source
from chromseek.data.tokens import SetBlock, TokenSets
from chromseek.data.universe import Universe

HG19, HG38 = assembly("hg19"), assembly("hg38")
PLAIN = ReadOptions()
SHIFT = """chain 100 chr1 249250621 + 0 2000000 chr1 248956422 + 1000 2001000 1
2000000
"""  # the first 2 Mb of chr1 move by 1,000 from hg19 to hg38
REGIONS = ["chr1:1000-2000", "chr1:5000-6000", "chr1:9000-9500", "chr2:100-200"]
FRAGMENTS = """chr1\t1100\t1200\tA-1\t1
chr1\t1150\t1250\tB-1\t2
chr1\t5100\t5200\tA-1\t1
chr1\t7000\t7100\tB-1\t1
chr1\t9100\t9200\tC-1\t1
chr2\t150\t160\tC-1\t3
chr2\t150\t250\tA-1\t1
"""


def universe(of: Assembly = HG38, texts: list[str] = REGIONS) -> Universe:
    return Universe(Regions.from_text(texts, of))


def read(source: Source, over: Universe, start: int = 0) -> SetBlock:
    """All blocks of a source as one, checked on the way."""
    blocks = list(source.blocks(over, start))
    for block in blocks:
        assert 0 < len(block) <= 8192
        assert len(block) == len(block.sets) == len(block.n_source) == len(block.n_placed) == block.metadata.num_rows
        assert block.metadata.schema == source.schema
        assert (block.n_placed <= block.n_source).all()
    fragments = [block.n_fragments for block in blocks if block.n_fragments is not None]
    return SetBlock(
        [name for block in blocks for name in block.names],
        TokenSets.concat([block.sets for block in blocks]),
        np.concatenate([np.empty(0, np.int64), *(block.n_source for block in blocks)]),
        np.concatenate([np.empty(0, np.int64), *(block.n_placed for block in blocks)]),
        np.concatenate(fragments) if fragments else None,
        pa.concat_tables([block.metadata for block in blocks]) if blocks else source.schema.empty_table(),
    )


def same(one: SetBlock, other: SetBlock) -> bool:
    columns = [np.array_equal(getattr(one, name), getattr(other, name)) for name in ("n_source", "n_placed")]
    sets = [np.array_equal(getattr(one.sets, name), getattr(other.sets, name)) for name in ("offsets", "tokens")]
    return all([*columns, *sets, one.names == other.names, one.metadata.to_pydict() == other.metadata.to_pydict()])


def tokens(block: SetBlock) -> dict[str, list[int]]:
    return {name: block.sets[row].tolist() for row, name in enumerate(block.names)}


def starts_anywhere(source: Source, over: Universe) -> None:
    whole = read(source, over)
    for start in sorted({0, 1, len(whole) // 2, len(whole) - 1, len(whole)}):
        assert same(read(source, over, start), whole.slice(start, len(whole)))


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode(), mtime=0))
    else:
        path.write_text(text)
    return path


def bed(*texts: str) -> str:
    return "".join(text.replace(":", "\t").replace("-", "\t") + "\n" for text in texts)


def adata(regions: list[str] = REGIONS, **uns: Any) -> anndata.AnnData:
    """Three cells; the second has no region, the third all."""
    counts = np.zeros((3, len(regions)), np.float32)
    counts[0, 0], counts[2] = 2, 1
    obs = pd.DataFrame({"kind": pd.Categorical(["T", "B", "T"])}, index=["c0", "c1", "c2"])
    return anndata.AnnData(sparse.csr_matrix(counts), obs, pd.DataFrame(index=regions), uns=uns)
