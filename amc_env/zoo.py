"""Networks by name: CIFAR ResNets, LeNets, MobileNet-V1, torchvision's, small ones for digits and text, the user's own.

[ResNet] He et al., Deep Residual Learning for Image Recognition, arXiv 1512.03385, section 4.2.
[MobileNet] Howard et al., MobileNets, arXiv 1704.04861.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from amc_env.cache import cache_folder
from amc_env.datasets import digits_arrays
from amc_env.lenet import lenet
from amc_env.stdlib_docs import stdlib_docs_arrays
from amc_env.text_classifier import TextClassifier, TextRecipe, train_text_classifier
from amc_env.user_code import import_function
from amc_env.weights import load_weights, save_weights, weights_digest
from hw.torch_threads import torch_threads

__all__ = [
    "DigitsRecipe",
    "OptionAShortcut",
    "TextClassifier",
    "cifar_resnet",
    "digits_network",
    "digits_weights",
    "lenet",
    "load_weights",
    "mobilenet_v1",
    "save_weights",
    "text_classifier_weights",
    "torchvision_network",
    "train_digits_network",
    "user_network",
    "weights_digest",
]

# output channels and stride of each depthwise separable stage
_MOBILENET_V1_STAGES = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1),) * 5,
    *((1024, 2), (1024, 1)),
)


class OptionAShortcut(nn.Module):
    """The parameter-free shortcut of [ResNet] (option A): every second pixel, zero channels before and after.

    Attributes:
        channel_padding: zero channels before and after those of the input.
    """

    def __init__(self, channel_padding: tuple[int, int]) -> None:
        super().__init__()
        self.channel_padding = channel_padding

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, *self.channel_padding))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; with stride 2, `channels_out` is twice `channels_in`."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        missing = channels_out - channels_in
        self.shortcut: nn.Module = nn.Identity() if stride == 1 else OptionAShortcut((missing // 2, missing // 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return F.relu(out, inplace=True)


class CifarResNet(nn.Module):
    """See `cifar_resnet`."""

    def __init__(self, blocks: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*[BasicBlock(16, 16) for _ in range(blocks)])
        self.layer2 = nn.Sequential(BasicBlock(16, 32, 2), *[BasicBlock(32, 32) for _ in range(blocks - 1)])
        self.layer3 = nn.Sequential(BasicBlock(32, 64, 2), *[BasicBlock(64, 64) for _ in range(blocks - 1)])
        self.linear = nn.Linear(64, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.linear(torch.flatten(F.adaptive_avg_pool2d(out, 1), 1))  # type: ignore[no-any-return]


def cifar_resnet(depth: int, classes: int = 10) -> nn.Module:
    """The ResNet of `depth` = 6n + 2 layers for 3x32x32 images ([ResNet] section 4.2), option-A shortcuts."""
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth: expected 6n + 2 with n >= 1 (20, 32, 44, 56, 110, ...), got {depth}")
    return CifarResNet((depth - 2) // 6, _positive("classes", classes))


class MobileNetV1(nn.Module):
    """See `mobilenet_v1`."""

    def __init__(self, width: float, classes: int) -> None:
        super().__init__()
        channels = max(int(32 * width), 8)
        first = nn.Conv2d(3, channels, 3, 2, 1, bias=False)
        stages = [nn.Sequential(first, nn.BatchNorm2d(channels), nn.ReLU6(inplace=True))]
        for outputs, stride in _MOBILENET_V1_STAGES:
            channels_out = max(int(outputs * width), 8)
            stages.append(_separable(channels, channels_out, stride, nn.ReLU6))
            channels = channels_out
        self.features = nn.Sequential(*stages)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(self.features(x), 1), 1))  # type: ignore[no-any-return]


def mobilenet_v1(width: float = 1.0, classes: int = 1000) -> nn.Module:
    """[MobileNet] with all channel counts times `width`, rounded down, at least 8."""
    if not width > 0:
        raise ValueError(f"width: expected a multiplier > 0, got {width}")
    return MobileNetV1(width, _positive("classes", classes))


def _separable(
    channels_in: int, channels_out: int, stride: int, activation: type[nn.ReLU] | type[nn.ReLU6]
) -> nn.Sequential:
    """A depthwise 3x3 and a pointwise convolution, each with BatchNorm and activation."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_in, 3, stride, padding=1, groups=channels_in, bias=False),
        nn.BatchNorm2d(channels_in),
        activation(inplace=True),
        nn.Conv2d(channels_in, channels_out, 1, bias=False),
        nn.BatchNorm2d(channels_out),
        activation(inplace=True),
    )


def torchvision_network(name: str, classes: int = 1000) -> nn.Module:
    """Torchvision's classification network of that name, random weights, no auxiliary heads (used in training only)."""
    from torchvision import models  # type: ignore[import-untyped]

    known = models.list_models(module=models)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"network: torchvision has no classification network {name!r}{hint} "
            f"({len(known)} are known: torchvision.models.list_models(module=torchvision.models))"
        )
    options = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    network: nn.Module = models.get_model(name, weights=None, num_classes=_positive("classes", classes), **options)
    return network


def user_network(target: str, folder: Path | None = None) -> nn.Module:
    """What the user's function returns.

    Args:
        target: "module:function"; the function takes no argument and returns a network.
        folder: where modules are looked for first; the current directory by default. It stays on `sys.path`.
    """
    network = import_function("target", target, folder)()
    if not isinstance(network, nn.Module):
        raise ValueError(f"target: {target} must return a torch.nn.Module, got {type(network).__name__}")
    return network


class DigitsNetwork(nn.Module):
    """See `digits_network`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.block1 = BasicBlock(width, width)
        self.separable1 = _separable(width, 2 * width, 2, nn.ReLU)
        self.block2 = BasicBlock(2 * width, 2 * width)
        self.separable2 = _separable(2 * width, 4 * width, 2, nn.ReLU)
        self.linear = nn.Linear(4 * width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.block1(F.relu(self.bn1(self.conv1(x))))
        out = self.separable2(self.block2(self.separable1(out)))
        return self.linear(torch.flatten(F.adaptive_avg_pool2d(out, 1), 1))  # type: ignore[no-any-return]


def digits_network(width: int = 16) -> nn.Module:
    """A small network for the 1x8x8 images of `digits`: 2 residual blocks, each before a depthwise separable stage."""
    return DigitsNetwork(_positive("width", width))


@dataclass(frozen=True)
class DigitsRecipe:
    """How `digits_network` is trained; raise `version` whenever the code below or the network changes."""

    version: int = 1
    width: int = 16
    epochs: int = 15
    batch_size: int = 64
    learning_rate: float = 0.01
    seed: int = 0


def train_digits_network(recipe: DigitsRecipe = DigitsRecipe()) -> nn.Module:
    """Train `digits_network` on the training images of `digits`, in seconds; the same recipe gives the same weights.

    Adam with a one-cycle learning rate; each image is shifted by up to one pixel. Runs on one thread, in which the
    order of additions is fixed.
    """
    with torch_threads(1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            network = digits_network(recipe.width)
        _train(network, recipe)
    return network.eval()


def _train(network: nn.Module, recipe: DigitsRecipe) -> None:
    train_images, train_labels, _, _ = digits_arrays()
    labels = torch.from_numpy(train_labels)
    padded = F.pad(torch.from_numpy(train_images.astype("float32")) / 16, (1, 1, 1, 1))
    shifts = [padded[:, :, down : down + 8, right : right + 8] for down in range(3) for right in range(3)]
    images = torch.stack(shifts)
    generator = torch.Generator().manual_seed(recipe.seed)
    optimizer = torch.optim.Adam(network.parameters())
    batches = -(-len(labels) // recipe.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, epochs=recipe.epochs, steps_per_epoch=batches
    )
    network.train()
    for _ in range(recipe.epochs):
        for batch in torch.chunk(torch.randperm(len(labels), generator=generator), batches):
            shift = torch.randint(len(images), batch.shape, generator=generator)
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(network(images[shift, batch]), labels[batch]))
            optimizer.step()
            schedule.step()


def digits_weights(cache: Path | None = None) -> Path:
    """The file of the trained digits network's state_dict; trained on first use.

    Args:
        cache: folder of the file; by default that of the environment variable AMC_CACHE, else ~/.cache/amc-search.
            The file name holds a hash of the recipe, so another recipe trains again.
    """
    recipe = DigitsRecipe()
    return _trained("digits", json.dumps(asdict(recipe)), lambda: train_digits_network(recipe), cache)


def text_classifier_weights(cache: Path | None = None) -> Path:
    """The file of the trained `TextClassifier`'s state_dict; trained on first use.

    Args:
        cache: as of `digits_weights`; the file name holds a hash of the training sentences as well.
    """
    recipe = TextRecipe()
    tokens, labels, _, _ = stdlib_docs_arrays()
    identity = json.dumps(asdict(recipe)) + hashlib.sha256(tokens.tobytes() + labels.tobytes()).hexdigest()
    return _trained("stdlib-docs", identity, lambda: train_text_classifier(recipe), cache)


def _trained(name: str, identity: str, train: Callable[[], nn.Module], cache: Path | None) -> Path:
    path = (cache or cache_folder()) / f"{name}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.pt"
    if not path.is_file():
        save_weights(train(), path)
    return path


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, got {value}")
    return value
