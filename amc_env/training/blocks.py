"""Block reconstruction: the layers of a block are trained together until it gives what the dense network's gives.

After BRECQ (Li et al., arXiv 2102.05426), which reconstructs quantised networks block by block, without labels. Least
squares fit a layer to targets of its own; the layers of a block together may also change what passes between them, for
only what the block returns counts.

Differences from the paper: the blocks are pruned, and all their weights are trained, not how they are rounded; squared
errors are not weighted by the Fisher information.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from amc_env.training.hints import KeptOfBlocks

LEARNING_RATE = 0.01  # of Adam, for a tensor whose root mean square is 1; in proportion to it for others
BATCH = 50
PROBE = 5  # images; few tensors that are no images' have so many rows
_LEAST_SCALE = 0.1  # of a parameter of one dimension, times the outputs' deviation: shifts of 0 are to move too
_LAYERS = 2  # of a block; one layer alone is fitted as well by least squares
_LEAST_VARIANCE = 1e-30
_NOTHING = 1e-10  # of the outputs' variance: an error that only rounding makes


def reconstruct_blocks(
    network: nn.Module,
    dense: nn.Module,
    batches: Sequence[torch.Tensor],
    *,
    epochs: int,
    kept_of_blocks: KeptOfBlocks | None = None,
) -> dict[str, tuple[float, float]]:
    """Train each block of a pruned network by itself, in place; a block whose error does not fall stays as it was.

    A block is a module, not the network itself, that holds two convolutions or linear layers and does not hold two
    blocks: a residual sum belongs to it, and so does squeeze-and-excitation. It is trained if it is called once in a
    pass, the tensors that it takes have a row for each image, and so has the one that it returns. What is in no such
    block stays, as do parameters that require no gradient or that others share. Squared errors are minimised by Adam,
    whose rate falls by half a cosine; batch norm keeps its statistics. The same arguments give the same weights, bit
    for bit, on one machine with one number of threads (on a GPU as far as its kernels are deterministic); no global
    generator is touched. Memory holds what one block is given and returns for all images, in both networks.

    Args:
        network: in evaluation mode.
        dense: of the same modules, in evaluation mode; it stays as it is.
        batches: images (n, ...), preprocessed, on the device of both networks.
        epochs: over the images, for each block, at least 1.
        kept_of_blocks: of the blocks of which the network returns less, the dimension and the indices that are left of
            what the dense one returns, as `ChannelGraph.kept_of_blocks` tells. A block that returns less, and nobody
            says what, is left out.

    Returns:
        Of each block that was trained, in forward order, the squared error over the variance of what the dense block
        gives, before and after.

    Raises:
        ValueError: there is no such block.
    """
    errors = {}
    given: tuple[torch.Tensor, torch.Tensor] | None = None  # what the block before returns, in both networks
    found = find_blocks(network, batches[0][:PROBE])
    follows = list(found.values())
    for name, next_follows in zip(found, [*follows[1:], False], strict=True):
        block = network.get_submodule(name)
        if given is not None:
            inputs = _Inputs([((given[0],), {})])
            wanted = _Inputs([((given[1],), {})]).outputs(dense.get_submodule(name))
            given = None
        else:
            inputs = _Inputs([_reach(network, name, images, before=True) for images in batches])
            wanted = _joined([_reach(dense, name, images, before=False) for images in batches])
        target = wanted
        if kept_of_blocks is not None and name in kept_of_blocks:
            dim, kept = kept_of_blocks[name]
            target = wanted.index_select(dim, torch.tensor(kept, device=wanted.device))
        with torch.no_grad():
            alike = inputs.run(block, torch.arange(min(2, len(target)))).shape[1:] == target.shape[1:]
        if alike and (parameters := _own_parameters(network, block)):
            errors[name] = _reconstruct(block, parameters, inputs, target, epochs)
        if next_follows:
            given = inputs.outputs(block), wanted
    return errors


def check_blocks(network: nn.Module, images: torch.Tensor) -> None:
    """See that there are blocks and that they can be trained; the network stays as it is.

    Args:
        images: some, preprocessed.

    Raises:
        ValueError: so, hours before `reconstruct_blocks`.
    """
    network = copy.deepcopy(network)
    trained = 0
    for name in find_blocks(network, images[:PROBE]):
        block = network.get_submodule(name)
        if not _own_parameters(network, block):
            continue
        trained += 1
        inputs = _Inputs([_reach(network, name, images[:PROBE], before=True)])
        try:
            with torch.enable_grad():
                inputs.run(block, torch.arange(len(images[:PROBE]))).square().mean().backward()  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            raise ValueError(
                f"block_epochs: block {name} cannot be trained ({str(error).splitlines()[0]}); leave block_epochs out"
            ) from error
    if not trained:
        raise ValueError(
            "block_epochs: expected blocks with parameters that require gradients and are theirs alone, and there are "
            "none; leave block_epochs out"
        )


def find_blocks(network: nn.Module, images: torch.Tensor) -> dict[str, bool]:
    """The blocks that can be reconstructed (see `reconstruct_blocks`), in forward order.

    Args:
        images: `PROBE` of them, preprocessed.

    Returns:
        By name whether a block is given what the one before it returns, and nothing else.

    Raises:
        ValueError: there is none.
    """
    calls = Counter[str]()
    found: dict[str, str | None] = {}
    last: list[tuple[str, torch.Tensor, int]] = []  # the block that returned last, what, and how often that was changed

    def before(name: str, _module: nn.Module, args: Any, kwargs: Any) -> None:
        calls[name] += 1
        leaves = tree_flatten((args, kwargs))[0]
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        if tensors and all(_of_images(tensor, len(images)) for tensor in tensors):
            alone = args[0] if len(args) == len(leaves) == 1 else None
            same = [other for other, output, changes in last if output is alone and output._version == changes]
            found[name] = same[0] if same else None

    def after(name: str, _module: nn.Module, _args: Any, output: Any) -> None:
        last.clear()
        if not _of_images(output, len(images)):
            found.pop(name, None)
        else:
            last.append((name, output, output._version))

    handles = []
    firsts = {name for name, _ in network.named_modules()}  # a module of several names is one block
    for name in (name for child, module in network.named_children() for name in _blocks_in(child, module)):
        if name not in firsts:
            continue
        module = network.get_submodule(name)
        handles.append(module.register_forward_pre_hook(partial(before, name), with_kwargs=True))
        handles.append(module.register_forward_hook(partial(after, name)))
    try:
        with torch.no_grad():
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    once = [name for name in found if calls[name] == 1]
    if not once:
        raise ValueError(
            "block_epochs: expected a network with blocks, modules that hold several layers, take tensors and return "
            "one tensor, and there is none; leave block_epochs out"
        )
    return {name: found[name] in once for name in once}


def _blocks_in(name: str, module: nn.Module) -> list[str]:
    if sum(isinstance(part, nn.Linear | nn.modules.conv._ConvNd) for part in module.modules()) < _LAYERS:
        return []
    parts = [block for child, part in module.named_children() for block in _blocks_in(f"{name}.{child}", part)]
    return parts if len(parts) > 1 else [name]


def _of_images(value: Any, images: int) -> bool:
    return isinstance(value, torch.Tensor) and value.shape[:1] == (images,)


class _Reached(Exception):
    """What a forward pass was made for is there."""


def _reach(network: nn.Module, name: str, images: torch.Tensor, *, before: bool) -> Any:
    """What a block is given, as (args, kwargs), or what it returns; the network is run no further."""
    seen: list[Any] = []

    def note(_module: nn.Module, args: Any, kwargs: Any, *outputs: Any) -> None:
        seen.extend(outputs or [(args, kwargs)])
        raise _Reached

    block = network.get_submodule(name)
    if before:
        handle = block.register_forward_pre_hook(note, with_kwargs=True)
    else:
        handle = block.register_forward_hook(note, with_kwargs=True)
    try:
        with torch.no_grad():
            network(images)
    except _Reached:
        return seen[0]
    finally:
        handle.remove()
    raise RuntimeError(f"block reconstruction: the network has not called {name} this time")


class _Inputs:
    """What a block is given for all images.

    Args:
        batches: (args, kwargs) of each.
    """

    def __init__(self, batches: Iterable[Any]) -> None:
        flat = [tree_flatten(batch) for batch in batches]
        self._leaves = [
            _joined(list(parts)) if isinstance(parts[0], torch.Tensor) else parts[0]
            for parts in zip(*(leaves for leaves, _ in flat), strict=True)
        ]
        self._structure = flat[0][1]
        self._images = next(len(leaf) for leaf in self._leaves if isinstance(leaf, torch.Tensor))

    def run(self, block: nn.Module, indices: torch.Tensor) -> torch.Tensor:
        """What the block returns for these images, by their indices (n,)."""
        leaves = [leaf[indices] if isinstance(leaf, torch.Tensor) else leaf for leaf in self._leaves]
        args, kwargs = tree_unflatten(leaves, self._structure)
        output: torch.Tensor = block(*args, **kwargs)
        return output

    def outputs(self, block: nn.Module) -> torch.Tensor:
        """What the block returns for all images."""
        with torch.no_grad():
            return _joined([self.run(block, part) for part in _batches(torch.arange(self._images))])


def _reconstruct(
    block: nn.Module, parameters: Sequence[nn.Parameter], inputs: _Inputs, wanted: torch.Tensor, epochs: int
) -> tuple[float, float]:
    variance = max(float(wanted.var(dim=0, correction=0).mean()), _LEAST_VARIANCE)
    batches = _batches(torch.arange(len(wanted)))

    def error() -> float:
        with torch.no_grad():
            total = sum(float((inputs.run(block, part) - wanted[part]).square().sum()) for part in batches)
        return total / wanted.numel() / variance

    def scale(parameter: torch.Tensor) -> float:
        size = float(parameter.detach().square().mean().sqrt())
        shift = sum(extent > 1 for extent in parameter.shape) <= 1
        return max(size, _LEAST_SCALE * math.sqrt(variance)) if shift else size

    before = error()
    if before <= _NOTHING:
        return before, before
    start = [each.detach().clone() for each in parameters]
    optimizer = torch.optim.Adam([{"params": [each], "lr": LEARNING_RATE * scale(each)} for each in parameters])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(batches))
    generator = torch.Generator().manual_seed(0)
    with torch.enable_grad():
        for _ in range(epochs):
            for part in _batches(torch.randperm(len(wanted), generator=generator)):
                optimizer.zero_grad()
                loss = (inputs.run(block, part) - wanted[part]).square().mean() / variance
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
    block.zero_grad()
    after = error()
    if after < before:
        return before, after
    with torch.no_grad():
        for parameter, old in zip(parameters, start, strict=True):
            parameter.copy_(old)
    return before, before


def _own_parameters(network: nn.Module, block: nn.Module) -> list[nn.Parameter]:
    """Those of a block that are to be trained and that no module outside it has too."""
    inside = {id(module) for module in block.modules()}
    outside = {
        id(parameter)
        for module in network.modules()
        if id(module) not in inside
        for parameter in module.parameters(recurse=False)
    }
    return [each for each in block.parameters() if each.requires_grad and id(each) not in outside]


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _batches(indices: torch.Tensor) -> list[torch.Tensor]:
    """Of `BATCH` each, the last of 2 to `BATCH` + 1: of a single one some blocks squeeze the first dimension away."""
    parts = list(torch.split(indices, BATCH))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts
