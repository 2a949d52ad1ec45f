"""Local Context Normalization (Ortiz et al., CVPR 2020) for PyTorch."""

from . import functional
from .audit import audit
from .build import build_norm
from .convert import convert_norm
from .layers import LocalContextNorm, ReleasedLocalContextNorm, TiledLocalContextNorm

__version__ = "0.2.0"  # the only place: pyproject.toml reads it here, as text

__all__ = [
    "LocalContextNorm",
    "ReleasedLocalContextNorm",
    "TiledLocalContextNorm",
    "audit",
    "build_norm",
    "convert_norm",
    "functional",
]
