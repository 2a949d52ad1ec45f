"""Local Context Normalization (Ortiz et al., CVPR 2020) for PyTorch."""

from . import functional
from .audit import audit
from .build import build_norm
from .convert import convert_norm
from .layers import LocalContextNorm, ReleasedLocalContextNorm, TiledLocalContextNorm

__all__ = [
    "LocalContextNorm",
    "ReleasedLocalContextNorm",
    "TiledLocalContextNorm",
    "audit",
    "build_norm",
    "convert_norm",
    "functional",
]
