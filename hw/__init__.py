"""What work costs on a device: layer shapes, cost models, latency tables. Knows nothing of RL or search."""

from hw.cost import COST_MODELS, ActivationSize, BilinearCost, CostFunction, CostModel, MacCount, WeightSize
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
    "MissingEntryError",
    "WeightSize",
    "load_table",
    "save_table",
]
