"""From atoms that must go together to groups of interchangeable units."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np

from amc_env.pruning.graph import (
    FIXED,
    BlockSlice,
    ChannelGraph,
    ChannelGroup,
    IntArray,
    PaddingSlice,
    TensorSlice,
    UnitLabels,
)
from hw.layers import LayerShape


@dataclass(frozen=True)
class Padding:
    """Atoms of the zero channels that a module adds before and after."""

    module: str
    before: IntArray
    after: IntArray
    layers: int


@dataclass
class UnitFinder:
    """Collects what a trace finds (a union-find over atoms) and turns it into a channel graph."""

    paddings: list[Padding] = field(default_factory=list)
    foldable: list[tuple[str, str]] = field(default_factory=list)
    blocks: dict[str, tuple[int, IntArray]] = field(default_factory=dict)  # dimension and atoms of what they return
    followers: list[list[str]] = field(default_factory=list)  # of each convolution or linear layer
    _parent: list[int] = field(default_factory=list)
    _producer: list[str | None] = field(default_factory=list)
    _fixed: set[int] = field(default_factory=set)
    _layers: list[tuple[LayerShape, IntArray, IntArray]] = field(default_factory=list)
    _slices: dict[tuple[str, int], tuple[IntArray, bool]] = field(default_factory=dict)
    _seen: set[str] = field(default_factory=set)

    def new_atoms(self, count: int, producer: str | None) -> IntArray:
        """`count` fresh atoms, produced by the weight of that name (None: zeros or the image)."""
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        self._producer.extend([producer] * count)
        return np.arange(first, first + count)

    def fix(self, atoms: IntArray) -> None:
        """These channels are never removed."""
        self._fixed.update(atoms.tolist())

    def unite(self, first: IntArray, second: IntArray) -> None:
        """Each pair of atoms goes or stays together."""
        for one, other in zip(first.tolist(), second.tolist(), strict=True):
            low, high = sorted((self._root(one), self._root(other)))
            self._parent[high] = low

    def unite_groups(self, inputs: IntArray, outputs: IntArray, groups: int) -> None:
        """A grouped convolution keeps or loses each of its groups whole: its inputs and its outputs."""
        for ins, outs in zip(np.split(inputs, groups), np.split(outputs, groups), strict=True):
            members = np.concatenate([ins, outs])
            self.unite(members[:-1], members[1:])

    def pad(self, module: str, before: int, after: int) -> tuple[IntArray, IntArray]:
        """The atoms of the zero channels that a module adds."""
        padding = Padding(module, self.new_atoms(before, None), self.new_atoms(after, None), len(self._layers))
        self.paddings.append(padding)
        return padding.before, padding.after

    def layer(self, shape: LayerShape, weight: str, inputs: IntArray, outputs: IntArray) -> None:
        """One call of a layer; a second call of the same weight owns no weights."""
        self._layers.append((replace(shape, owns_weights=weight not in self._seen), inputs, outputs))
        self._seen.add(weight)

    def slice(self, tensor: str, dim: int, atoms: IntArray, *, consumes: bool = False) -> None:
        """Dimension `dim` of a stored tensor follows these atoms (used twice, it unites them)."""
        if (tensor, dim) in self._slices:
            self.unite(self._slices[tensor, dim][0], atoms)
        else:
            self._slices[tensor, dim] = (atoms, consumes)

    def graph(self) -> ChannelGraph:
        """Group the units by the layers that produce them, in forward order."""
        roots = np.array([self._root(atom) for atom in range(len(self._parent))])
        unit_of_root, sizes = self._number_units(roots)

        def labels(atoms: IntArray) -> UnitLabels:
            units: UnitLabels = unit_of_root[roots[atoms]]
            return units

        outputs = tuple(labels(out) for _, _, out in self._layers)
        layers = self._followed_layers()
        return ChannelGraph(
            layers=layers,
            inputs=tuple(labels(ins) for _, ins, _ in self._layers),
            outputs=outputs,
            groups=_describe_groups(layers, outputs, sizes),
            slices=tuple(
                TensorSlice(tensor, dim, labels(atoms), consumes)
                for (tensor, dim), (atoms, consumes) in self._slices.items()
            ),
            paddings=tuple(PaddingSlice(p.module, labels(p.before), labels(p.after), p.layers) for p in self.paddings),
            foldable=tuple(self.foldable),
            blocks=tuple(BlockSlice(name, dim, labels(atoms)) for name, (dim, atoms) in self.blocks.items()),
        )

    def _followed_layers(self) -> tuple[LayerShape, ...]:
        followers = iter(self.followers)
        return tuple(
            replace(shape, followed_by=tuple(next(followers))) if shape.op in ("conv", "linear") else shape
            for shape, _, _ in self._layers
        )

    def _number_units(self, roots: IntArray) -> tuple[UnitLabels, list[int]]:
        """Unit of each root, numbered group by group, and the size of each group."""
        fixed = {int(roots[atom]) for atom in self._fixed}
        producers: dict[int, Counter[str]] = {}
        for root, producer in zip(roots.tolist(), self._producer, strict=True):
            producers.setdefault(root, Counter()).update([producer] if producer else [])
        groups: dict[frozenset[tuple[str, int]], list[int]] = {}
        for root, counts in producers.items():  # in the order of each unit's first atom: forward order
            if root not in fixed and counts:
                groups.setdefault(frozenset(counts.items()), []).append(root)
        unit_of_root = np.full(len(roots), FIXED)
        for unit, root in enumerate(root for members in groups.values() for root in members):
            unit_of_root[root] = unit
        return unit_of_root, [len(members) for members in groups.values()]

    def _root(self, atom: int) -> int:
        while self._parent[atom] != atom:
            self._parent[atom] = self._parent[self._parent[atom]]
            atom = self._parent[atom]
        return atom


def _describe_groups(
    layers: tuple[LayerShape, ...], outputs: tuple[UnitLabels, ...], sizes: list[int]
) -> tuple[ChannelGroup, ...]:
    groups: list[ChannelGroup] = []
    names = Counter[str]()
    first_unit = 0
    for size in sizes:
        members = [(labels >= first_unit) & (labels < first_unit + size) for labels in outputs]
        layer = next(index for index, inside in enumerate(members) if inside.any())
        name = layers[layer].name
        names[name] += 1
        unique = name if names[name] == 1 else f"{name}#{names[name]}"
        groups.append(ChannelGroup(unique, first_unit, size, int(members[layer].sum()) // size, layer))
        first_unit += size
    return tuple(groups)
