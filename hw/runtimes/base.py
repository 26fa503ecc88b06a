"""What every runtime offers: networks of one family, loaded and timed, whole or layer by layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from hw.layers import LayerShape
from hw.timing import FloatArray, TimedNetwork


class RuntimeUnavailableError(ValueError):
    """The runtime cannot be used on this machine; the message says why."""


class ProfiledNetwork(TimedNetwork):
    """A network each run of which is also timed layer by layer."""

    @abstractmethod
    def layer_times(self) -> FloatArray:
        """Milliseconds float64 (runs, layers) of all runs so far; the network is not run again after this.

        A layer's time goes from its own work to that of the next layer: activation, sums and pooling included.
        """


class NetworkFamily(ABC):
    """Networks that differ in their channel counts only."""

    @abstractmethod
    def load(self, network: nn.Module) -> TimedNetwork:
        """Make a member ready to run."""

    def profile(self, network: nn.Module) -> ProfiledNetwork:
        """Make a member ready to run and to time its layers.

        Raises:
            RuntimeUnavailableError: the runtime shows nothing of a network's inside.
        """
        raise RuntimeUnavailableError(f"{type(self).__name__} times whole networks only, not their layers")


class Runtime(ABC):
    """How networks are executed when they are timed.

    Attributes:
        name: as in `hw.host.Conditions`.
        folds_batchnorm: whether members of a family are given with batch norm folded into the convolutions, as the
            runtime would do itself.
        profiles: whether it can time the layers of a network while the network runs.
        pause: seconds to wait between two networks, because its threads go on spinning.
    """

    name: str
    folds_batchnorm = True
    profiles = True

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads

    @property
    def pause(self) -> float:
        return 0.0

    @abstractmethod
    def family(self, network: nn.Module, example: torch.Tensor, layers: Sequence[LayerShape]) -> NetworkFamily:
        """The family of a network.

        Args:
            network: a member, in evaluation mode; a single layer or a block is one too.
            example: the input on which members run, float32 (batch, channels, height, width).
            layers: its convolutions and linear layers in the order in which they run.
        """

    def versions(self) -> Mapping[str, str]:
        """Versions of the libraries that execute, by name."""
        return {"torch": torch.__version__}
