"""What work costs on a device: layer shapes and cost models. Knows nothing of reinforcement learning or search."""

from hw.cost import COST_MODELS, BilinearCost, CostFunction, CostModel, MacCount, WeightSize
from hw.layers import LayerShape

__all__ = ["COST_MODELS", "BilinearCost", "CostFunction", "CostModel", "LayerShape", "MacCount", "WeightSize"]
