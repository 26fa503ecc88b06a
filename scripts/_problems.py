"""The real networks on which the scripts measure, built from files that the caller names."""

from __future__ import annotations

import argparse
from pathlib import Path

from torch import nn

from amc_env import zoo
from amc_env.datasets import SplitSizes, load_splits
from amc_env.evaluation import NetworkProblem
from amc_env.settings import EvaluationSettings, PruningSettings
from amc_env.splits import DataSplits, Preprocessing

_CIFAR = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
_TENSORFLOW = Preprocessing(mean=(0.5,), std=(0.5,), rotate_180=True)
#: the residual sums of ResNet-56 stay whole, as in AMC
_RESNET56_KEEP = ("conv1", "layer2.0.conv2", "layer3.0.conv2")
#: channels that AMC's published half-MACs policy of MobileNet-V1 keeps of each group (its inputs of the 1x1 layers)
AMC_MOBILENET_V1 = (24, 48, 96, 80, 192, 200, 328, 352, 368, 360, 328, 400, 736, 752)


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Options that name weights and images; what lacks its files is left out."""
    parser.add_argument("--cifar10", type=Path, help=".npz with train_images, train_labels, test_images, test_labels")
    parser.add_argument("--resnet56", type=Path, help="weights of the CIFAR-10 ResNet-56")
    parser.add_argument("--imagenet", type=Path, help="folder of images")
    parser.add_argument("--labels", type=Path, help="CSV with file and class_index of the images")
    parser.add_argument("--mobilenet-v1", type=Path, help="weights of MobileNet-V1, 224 pixels")
    parser.add_argument("--mobilenet-v2", type=Path, help="weights of torchvision's MobileNet-V2")


def resnet56(
    options: argparse.Namespace,
    sizes: SplitSizes,
    evaluation: EvaluationSettings,
    criterion: str = "obs",
) -> NetworkProblem:
    """ResNet-56 on CIFAR-10 at half the MACs, channel counts of any number."""
    data = load_splits("npz", sizes, _CIFAR, path=options.cifar10)
    settings = PruningSettings(round_to=1, criterion=criterion, keep=_RESNET56_KEEP)  # type: ignore[arg-type]
    network = zoo.cifar_resnet(56)
    zoo.load_weights(network, options.resnet56)
    return NetworkProblem(network, data, budget={"macs": "50%"}, settings=settings, evaluation=evaluation)


def mobilenet_v1(
    options: argparse.Namespace, sizes: SplitSizes, evaluation: EvaluationSettings, criterion: str = "l1"
) -> NetworkProblem:
    """MobileNet-V1 at 224 pixels; 55 % of the MACs, which AMC's published policy (51.7 %) keeps."""
    network = zoo.mobilenet_v1()
    zoo.load_weights(network, options.mobilenet_v1)
    return _imagenet(network, options, sizes, evaluation, criterion)


def mobilenet_v2(options: argparse.Namespace, sizes: SplitSizes, evaluation: EvaluationSettings) -> NetworkProblem:
    """Torchvision's MobileNet-V2 at 224 pixels."""
    network = zoo.torchvision_network("mobilenet_v2")
    zoo.load_weights(network, options.mobilenet_v2)
    return _imagenet(network, options, sizes, evaluation, "obs")


def resnet50(options: argparse.Namespace, sizes: SplitSizes, evaluation: EvaluationSettings) -> NetworkProblem:
    """Torchvision's ResNet-50 at 224 pixels, random weights: enough to time what does not depend on them."""
    return _imagenet(zoo.torchvision_network("resnet50"), options, sizes, evaluation, "obs")


def _imagenet(
    network: nn.Module, options: argparse.Namespace, sizes: SplitSizes, evaluation: EvaluationSettings, criterion: str
) -> NetworkProblem:
    data: DataSplits = load_splits(
        "image_folder", sizes, _TENSORFLOW, path=options.imagenet, labels=options.labels, resize=256, crop=224
    )
    settings = PruningSettings(round_to=8, max_ratio=0.9, criterion=criterion)  # type: ignore[arg-type]
    return NetworkProblem(network, data, budget={"macs": "55%"}, settings=settings, evaluation=evaluation)
