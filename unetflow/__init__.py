"""A U-Net pipeline for microscope volumes of any size, on Dask and Zarr.

The stages are functions, the same that the commands call: `convert`, `init`, `prepare`,
`train`, `segment`, `evaluate`, `verify`, `report` and `demo`. `label_volume` and `score` do a part of `segment` and
`evaluate`, for arrays in memory too; `export_model` and `import_weights` exchange models with other programs.
Each loads its own libraries when it is first asked for, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unetflow.stages.convert import convert
    from unetflow.stages.demo import demo
    from unetflow.stages.evaluate import evaluate
    from unetflow.stages.export_model import export_model
    from unetflow.stages.import_weights import import_weights
    from unetflow.stages.init import init
    from unetflow.stages.label_volume import label_volume
    from unetflow.stages.prepare import prepare
    from unetflow.stages.report import report
    from unetflow.stages.score import score
    from unetflow.stages.segment import segment
    from unetflow.stages.train import train
    from unetflow.stages.verify import verify

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "convert",
    "demo",
    "evaluate",
    "export_model",
    "import_weights",
    "init",
    "label_volume",
    "prepare",
    "report",
    "score",
    "segment",
    "train",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Load a stage's function on first use."""
    if name.startswith("_") or name not in __all__:
        raise AttributeError(f"module 'unetflow' has no attribute '{name}'")
    return getattr(import_module(f"unetflow.stages.{name}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
