"""Sparse layers on a CPU: kernels in numba with vector instructions, layers of torch, and which kernel is fastest."""

from hw.sparse.batch import BatchMatrix
from hw.sparse.choice import CHANNELS_LAST, DENSE, DENSE_KERNELS, Case, KernelTable, Measured
from hw.sparse.columns import ColumnMatrix
from hw.sparse.conv import ConvMatrix, Window
from hw.sparse.interleaved import interleaved_matvec
from hw.sparse.lanes import LaneMatrix
from hw.sparse.modules import LINEAR_KERNELS, SparseConv2d, SparseLinear
from hw.sparse.replacement import LayerChoice, Sparsified, sparsify
from hw.sparse.rows import SparseRows

__all__ = [
    "CHANNELS_LAST",
    "DENSE",
    "DENSE_KERNELS",
    "LINEAR_KERNELS",
    "BatchMatrix",
    "Case",
    "ColumnMatrix",
    "ConvMatrix",
    "KernelTable",
    "LaneMatrix",
    "LayerChoice",
    "Measured",
    "SparseConv2d",
    "SparseLinear",
    "SparseRows",
    "Sparsified",
    "Window",
    "interleaved_matvec",
    "sparsify",
]
