"""Reuse of activations: a plan that differs from the one before only from some layer on need not run what is before.

A pass of a pruned network is a fixed sequence of operations. While one runs, what is alive at the layer where plans
begin to differ (its input, a shortcut) is kept. The code of a later network, equal before that layer, then runs as
always, but the operations before that layer are not computed: they return what was kept, or an empty tensor of the
right shape that nobody reads any more.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

Forward = Callable[[torch.Tensor], Any]


class ActivationReuse:
    """Keeps the activations of one prefix of the network: that which consecutive plans have in common.

    Args:
        layers: for each decision, in the order of `positions`, the first layer that it changes.
        positions: indices of the decisions in the order in which the network meets them.
        most_bytes: of kept activations; a prefix that needs more is not kept.
    """

    def __init__(self, layers: Sequence[str], positions: Sequence[int], most_bytes: int = 2**30) -> None:
        self._layers, self._positions, self.most_bytes = layers, positions, most_bytes
        self._previous: tuple[int, ...] = ()
        self._kept: _Prefix | None = None

    def begin(self, widths: Sequence[int]) -> Reuse:
        """The reuse that an evaluation of these widths can make; call its `end` when all passes have run."""
        ordered = tuple(widths[position] for position in self._positions)
        shared = next((i for i, pair in enumerate(zip(ordered, self._previous, strict=False)) if pair[0] != pair[1]), 0)
        self._previous = ordered
        kept = self._kept
        if kept is not None and ordered[: len(kept.widths)] != kept.widths:
            kept = None
        new = None
        if shared > (0 if kept is None else len(kept.widths)):
            new = _Prefix(ordered[:shared], self._layers[shared])
        return Reuse(self, kept, new)

    def keep(self, prefix: _Prefix) -> None:
        """Keep this prefix in place of what was kept before."""
        self._kept = prefix


@dataclass
class _Prefix:
    """Activations of all passes at the first call of one layer, for the widths of the decisions before it."""

    widths: tuple[int, ...]
    layer: str
    passes: dict[tuple[str, int], list[Any]] = field(default_factory=dict)
    nbytes: int = 0


class Reuse:
    """One evaluation's share: what it takes over, and what it keeps for the next."""

    def __init__(self, owner: ActivationReuse, kept: _Prefix | None, new: _Prefix | None) -> None:
        self._owner, self._kept, self._new = owner, kept, new
        self._most_bytes = owner.most_bytes
        self._passes = Counter[str]()

    @property
    def first_layer(self) -> str | None:
        """The first layer that is computed; those before it are taken over. None: all are computed."""
        return None if self._kept is None else self._kept.layer

    def forward(self, network: nn.Module, purpose: str) -> Forward:
        """The network as a function of a batch, each call `one_pass`."""

        def run(images: torch.Tensor) -> Any:
            with self.one_pass(network, purpose):
                return network(images)

        return run

    @contextmanager
    def one_pass(self, network: nn.Module, purpose: str) -> Iterator[None]:
        """Within it the network runs once; passes of a purpose have the same batches in the same order each time."""
        key = purpose, self._passes[purpose]
        self._passes[purpose] += 1
        known = None if self._kept is None else self._kept.passes.get(key)
        if known is None and self._new is None:
            yield
            return
        weight = None if self._new is None else network.get_parameter(f"{self._new.layer}.weight")
        mode = _PassMode(known, weight)
        with mode:
            yield
        if self._new is not None:
            self._new.passes[key] = mode.results
            self._new.nbytes += mode.nbytes
            if not mode.usable or self._new.nbytes > self._most_bytes:
                self._new = None

    def end(self) -> None:
        """All passes have run: keep what was recorded in place of what was kept before. Not to be called otherwise."""
        if self._new is not None:
            self._owner.keep(self._new)


@dataclass
class _Alive:
    """A tensor that is read after the cut. `overwritten` there: it is handed out as a copy."""

    tensor: torch.Tensor
    overwritten: bool = False

    def again(self, args: Any) -> torch.Tensor:
        return self.tensor.clone() if self.overwritten else self.tensor.detach()


@dataclass(frozen=True)
class _Gone:
    """A tensor that nobody reads after the cut."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def again(self, args: Any) -> torch.Tensor:
        return torch.empty_strided(self.size, self.stride, dtype=self.dtype, device=self.device)


@dataclass(frozen=True)
class _FirstArgument:
    """The operation wrote into its first argument and returned it."""

    def again(self, args: Any) -> Any:
        return args[0]


@dataclass(frozen=True)
class _Value:
    """Something else than tensors."""

    value: Any

    def again(self, args: Any) -> Any:
        return self.value


@dataclass(frozen=True)
class _Several:
    parts: tuple[Any, ...]

    def again(self, args: Any) -> Any:
        return tuple(part.again(args) for part in self.parts)


class _PassMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Takes over the results of the first operations, and notes those before the first use of a weight.

    Attributes:
        reached: whether the weight was used.
        usable: whether the results can stand for the operations.
        results: of the operations before that.
        nbytes: of the tensors among them that are alive then.
    """

    def __init__(self, known: list[Any] | None, weight: torch.Tensor | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = known or []
        self._weight = weight
        self._index = -1
        self._notes: list[Any] = []
        self._kept: dict[int, list[_Alive]] = {}  # by the address of the storage
        self._shares_overwritten = False
        self.reached = False
        self.results: list[Any] = []
        self.nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._index += 1
        if self._weight is not None and not self.reached and any(arg is self._weight for arg in args):
            self._cut()
        if self.reached and func._schema.is_mutable:
            self._spare(args[0])
        if self._index < len(self._known):
            result = self._known[self._index].again(args)
        else:
            result = func(*args, **(kwargs or {}))
        if self._weight is not None and not self.reached:
            self._notes.append(_note(result, args))
        return result

    @property
    def usable(self) -> bool:
        return self.reached and not self._shares_overwritten

    def _cut(self) -> None:
        self.reached = True
        self.results = [self._settle(note) for note in self._notes]
        self._notes = []

    def _settle(self, note: Any) -> Any:
        if isinstance(note, list):
            return _Several(tuple(self._settle(part) for part in note))
        if not isinstance(note, tuple):
            return note
        reference, gone = note
        tensor = reference()
        if tensor is None:
            return gone
        alive = _Alive(tensor)
        self._kept.setdefault(tensor.untyped_storage().data_ptr(), []).append(alive)
        self.nbytes += tensor.nbytes
        return alive

    def _spare(self, written: Any) -> None:
        """Copy a kept tensor before it is overwritten. Several in one memory cannot be told apart by copies."""
        if isinstance(written, torch.Tensor):
            sharing = self._kept.pop(written.untyped_storage().data_ptr(), [])
            self._shares_overwritten |= len(sharing) > 1
            for alive in sharing:
                alive.tensor, alive.overwritten = alive.tensor.clone(), True


def _note(result: Any, args: Any) -> Any:
    """What to remember of a result while it is open whether somebody will read it after the cut."""
    if isinstance(result, torch.Tensor):
        if args and result is args[0]:
            return _FirstArgument()
        return weakref.ref(result), _Gone(tuple(result.shape), result.stride(), result.dtype, result.device)
    if isinstance(result, list | tuple):
        return [_note(part, ()) for part in result]
    return _Value(result)
