"""The libraries that bench_sparse.py compares with, as calls by name; and reading memory as fast as it goes."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse
import torch
from numba import prange
from torch import nn

from hw.eie.paper import PaperLayer
from hw.sparse import SparseRows
from hw.sparse.jit import compiled, parallel, signed, use_threads
from hw.sparse.vector import add, load, splat, store

Call = Callable[[], Any]
INT8 = "torch int8"
#: names of the calls that compete as "best sparse" and "best dense float32"
SPARSE_PEERS = ("torch CSR int32", "scipy CSR", "scipy CSC", "MKL CSR")
DENSE_PEERS = ("torch dense", "torch dense channels last", "numpy dense", "onnxruntime dense")


def rows_of(layer: PaperLayer, rng: np.random.Generator) -> SparseRows:
    """The layer's random weights."""
    by_column = layer.weights(rng)
    csr = scipy.sparse.csc_matrix((by_column.data, by_column.indices, by_column.indptr), by_column.shape).tocsr()
    csr.sort_indices()
    return SparseRows(csr.shape, csr.data, csr.indices.astype(np.int32), csr.indptr.astype(np.int64))


def onnx_session(weight: np.ndarray, threads: int, kernel: tuple[str, dict[str, Any]] = ("MatMul", {})) -> Any:
    """An onnxruntime session with one operator: x times weight."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    op, attributes = kernel
    rank = 4 if op == "Conv" else 2
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "w"], ["y"], **attributes)],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None] * rank)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * rank)],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = threads, 3
    settings.add_session_config_entry("session.intra_op.allow_spinning", "1")
    onnx.checker.check_model(model)
    return onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])


def dense_peers(weight: np.ndarray, x: np.ndarray, threads: int) -> dict[str, Call]:
    """Dense layers for x (batch, columns)."""
    tensor, tx = torch.from_numpy(weight), torch.from_numpy(x)
    linear = nn.Linear(weight.shape[1], len(weight), bias=False)
    linear.weight.data = tensor
    session = onnx_session(np.ascontiguousarray(weight.T), threads)
    linear8 = torch.ao.quantization.quantize_dynamic(nn.Sequential(linear).eval(), {nn.Linear}, dtype=torch.qint8)
    one, tone = x[0], tx[0]
    return {
        "torch dense": (lambda: torch.mv(tensor, tone)) if len(x) == 1 else lambda: linear(tx),
        "numpy dense": (lambda: weight @ one) if len(x) == 1 else lambda: x @ weight.T,
        "onnxruntime dense": lambda: session.run(None, {"x": x})[0],
        INT8: lambda: linear8(tx),
    }


def sparse_peers(matrix: SparseRows, x: np.ndarray) -> dict[str, Call]:
    """Other libraries' sparse layers for x (batch, columns); x is turned beforehand where they want it so."""
    csr = scipy.sparse.csr_matrix((matrix.values, matrix.indices, matrix.indptr.astype(np.int32)), matrix.shape)
    csc = csr.tocsc()
    parts = (torch.from_numpy(part) for part in (csr.indptr, csr.indices, csr.data))
    tensor = torch.sparse_csr_tensor(*parts, matrix.shape)
    right = np.ascontiguousarray(x.T) if len(x) > 1 else x[0]
    tright = torch.from_numpy(right)
    turn = (lambda y: y.T) if len(x) > 1 else (lambda y: y)
    calls: dict[str, Call] = {
        "torch CSR int32": lambda: turn(tensor @ tright),
        "scipy CSR": lambda: turn(csr @ right),
        "scipy CSC": lambda: turn(csc @ right),
    }
    if importlib.util.find_spec("sparse_dot_mkl"):
        from sparse_dot_mkl import dot_product_mkl

        calls["MKL CSR"] = lambda: turn(dot_product_mkl(csr, right))
    return calls


@parallel
def read_all(memory: Any, threads: int) -> float:
    """The sum of float32 (n * 128,), read once by all threads with 512-bit loads."""
    sums = np.zeros(threads, np.float32)
    before = use_threads(threads)
    for index in prange(threads):
        thread = signed(index)
        sums[thread] = _read_part(memory, thread, threads)
    use_threads(before)
    return sums.sum()


@compiled
def _read_part(memory: Any, thread: int, threads: int) -> float:
    a, b = splat(64, 0.0), splat(64, 0.0)
    pieces = len(memory) // 128
    for piece in range(pieces * thread // threads, pieces * (thread + 1) // threads):
        a = add(a, load(64, memory, 128 * piece))
        b = add(b, load(64, memory, 128 * piece + 64))
    total = np.zeros(64, np.float32)
    store(total, 0, add(a, b))
    return total.sum()
