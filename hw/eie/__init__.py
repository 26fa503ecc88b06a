"""EIE's compressed form of pruned layers with shared weights, and what its hardware would take for them.

[EIE] is Han et al., "EIE: Efficient Inference Engine on Compressed Deep Neural Network", ISCA 2016, arXiv 1602.01528.
[Deep Compression] is Han, Mao and Dally, ICLR 2016, arXiv 1510.00149.
"""

from hw.eie.codebook import Codebook, fit_codebook
from hw.eie.file import load_matrix, save_matrix
from hw.eie.format import EIEMatrix
from hw.eie.huffman import HuffmanSize, huffman_size
from hw.eie.layout import Layout, weight_matrix
from hw.eie.simulator import ColumnWork, LayerRun, simulate, simulate_network
from hw.eie.sizes import StoredSize, stored_bytes

__all__ = [
    "Codebook",
    "ColumnWork",
    "EIEMatrix",
    "HuffmanSize",
    "LayerRun",
    "Layout",
    "StoredSize",
    "fit_codebook",
    "huffman_size",
    "load_matrix",
    "save_matrix",
    "simulate",
    "simulate_network",
    "stored_bytes",
    "weight_matrix",
]
