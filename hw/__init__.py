"""What work costs on a device: layer shapes, cost models, latency tables. Knows nothing of RL or search."""

from typing import TYPE_CHECKING, Any

from hw.cost import COST_MODELS, ActivationSize, BilinearCost, CostFunction, CostModel, MacCount, ManyCost, WeightSize
from hw.latency_file import LatencyFileError, load_table, save_table
from hw.latency_table import LatencyTable, MissingEntryError
from hw.layers import LayerShape

__all__ = [
    "COST_MODELS",
    "ActivationSize",
    "BilinearCost",
    "CostFunction",
    "CostModel",
    "LatencyFileError",
    "LatencyTable",
    "LayerShape",
    "MacCount",
    "ManyCost",
    "MissingEntryError",
    "WeightSize",
    "load_table",
    "save_table",
    "sparsify",
]

if TYPE_CHECKING:
    from hw.sparse import sparsify


def __getattr__(name: str) -> Any:
    """`sparsify` is imported when it is asked for: it needs torch and numba, the rest does not."""
    if name == "sparsify":
        from hw.sparse import sparsify

        return sparsify
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
