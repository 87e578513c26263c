"""chromseek: give it cells, regions or a BED file, and it finds the ones like them across a scATAC-seq atlas.

import chromseek
atlas = chromseek.build("blood.atlas", cells="cells.h5ad", labels=["cell_type"])
hits = atlas.cells.search("monocyte_peaks.bed", k=50, where="tissue = 'blood'")
atlas.annotate(adata, label="cell_type")
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

_home = Path(__file__).parent
_part = _home / "data"
if _part.is_symlink() or not _part.is_dir():  # a checkout: the parts are top-level folders
    __path__ = [str(_home.parents[1]), str(_home)]

__version__ = "0.1.0"

if TYPE_CHECKING:
    from chromseek.data.errors import ChromseekError
    from chromseek.search.atlas import Atlas, build, open
    from chromseek.search.hits import Hits
else:
    _FACE = {
        "Atlas": "chromseek.search.atlas",
        "ChromseekError": "chromseek.data.errors",
        "Hits": "chromseek.search.hits",
        "build": "chromseek.search.atlas",
        "open": "chromseek.search.atlas",
    }

    def __getattr__(name: str) -> Any:
        if name not in _FACE:
            raise AttributeError(f"module 'chromseek' has no attribute {name!r}")
        return getattr(import_module(_FACE[name]), name)

    def __dir__() -> list[str]:
        return [*__all__]


__all__ = ["Atlas", "ChromseekError", "Hits", "build", "open"]
