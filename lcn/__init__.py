"""Local Context Normalization (Ortiz et al., CVPR 2020) for PyTorch."""

from . import functional
from .audit import audit
from .batch_renorm import BatchRenorm2d
from .build import build_norm
from .convert import convert_norm
from .layers import LocalContextNorm, ReleasedLocalContextNorm, TiledLocalContextNorm
from .learned import LearnedContextNorm
from .siblings import LocalContrastNorm, LocalResponseNorm, PositionalNorm

__version__ = "0.2.0"  # the only place: pyproject.toml reads it here, as text

__all__ = [
    "BatchRenorm2d",
    "LearnedContextNorm",
    "LocalContextNorm",
    "LocalContrastNorm",
    "LocalResponseNorm",
    "PositionalNorm",
    "ReleasedLocalContextNorm",
    "TiledLocalContextNorm",
    "audit",
    "build_norm",
    "convert_norm",
    "functional",
]
