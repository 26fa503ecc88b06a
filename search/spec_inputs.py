"""The network and the data of a spec."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from search.spec_base import Count, Part, Seed


class CifarResnetArchitecture(Part):
    """A ResNet of 6n + 2 layers for 32x32 images, with option-A shortcuts."""

    kind: Literal["cifar_resnet"]
    depth: Count
    classes: Count = 10


class CifarResnet(CifarResnetArchitecture):
    """The same with its weights."""

    weights: Path


class LenetArchitecture(Part):
    """One of the two networks for MNIST of LeCun et al., in the sizes that the papers on pruning take."""

    kind: Literal["lenet"]
    name: Literal["lenet-300-100", "lenet-5"]
    classes: Count = 10


class Lenet(LenetArchitecture):
    """The same with its weights."""

    weights: Path


class MobileNetV1Architecture(Part):
    """MobileNet-V1 with all channel counts times `width`."""

    kind: Literal["mobilenet_v1"]
    width: float = Field(default=1.0, gt=0)
    classes: Count = 1000


class MobileNetV1(MobileNetV1Architecture):
    """The same with its weights."""

    weights: Path


class TorchvisionArchitecture(Part):
    """A classification model of torchvision by its name."""

    kind: Literal["torchvision"]
    name: str
    classes: Count = 1000


class Torchvision(TorchvisionArchitecture):
    """The same with its weights."""

    weights: Path


class Digits(Part):
    """The small embedded network for scikit-learn's digits, trained on first use."""

    kind: Literal["digits"]


class TextClassifier(Part):
    """The small embedded transformer encoder for `stdlib_docs`, trained on first use."""

    kind: Literal["text_classifier"]


class UserFunction(Part):
    """A function of the user's, without arguments, that returns a network; without `weights` it returns a trained one.

    Attributes:
        target: "module:function".
        folder: where the module is looked for first; by default the folder of the spec.
    """

    kind: Literal["function"]
    target: str
    folder: Path
    weights: Path | None = None


class Toy(Part):
    """The toy problem: no network and no data, a closed-form accuracy.

    Attributes:
        seconds_per_evaluation: each evaluation takes this long, for trying out the service.
    """

    kind: Literal["toy"]
    decisions: Count = 6
    channels: int = Field(default=16, ge=2)
    seed: Seed = 0
    seconds_per_evaluation: float = Field(default=0.0, ge=0.0)


Network = Annotated[
    CifarResnet | Lenet | MobileNetV1 | Torchvision | Digits | TextClassifier | UserFunction | Toy,
    Field(discriminator="kind"),
]

#: networks without weights
Architecture = Annotated[
    CifarResnetArchitecture
    | LenetArchitecture
    | MobileNetV1Architecture
    | TorchvisionArchitecture
    | Digits
    | TextClassifier
    | UserFunction,
    Field(discriminator="kind"),
]


class Normalisation(Part):
    """Images to network input: divide by `scale`, subtract `mean`, divide by `std`. Replaces all of the kind's own."""

    mean: tuple[float, ...] = (0.0,)
    std: tuple[Annotated[float, Field(gt=0)], ...] = (1.0,)
    scale: float = Field(default=255.0, gt=0)
    rotate_180: bool = False


class _Images(Part):
    calibration_images: Count = 500
    search_images: Count
    test_images: Count
    seed: Seed = 0
    preprocessing: Normalisation | None = None


class DigitsImages(_Images):
    """Scikit-learn's digits."""

    kind: Literal["digits"]
    search_images: Count = 450
    test_images: Count = 450


class Npz(_Images):
    """Arrays test_images and test_labels, and perhaps train_images and train_labels, in one .npz file."""

    kind: Literal["npz"]
    path: Path


class TorchvisionImages(_Images):
    """A data set of torchvision, in its layout under `path`."""

    kind: Literal["cifar10", "cifar100", "mnist", "fashion_mnist"]
    path: Path
    download: bool = False


class ImageFolder(_Images):
    """One sub-folder per class, or any files named by a CSV `labels` (file, class_index)."""

    kind: Literal["image_folder"]
    path: Path
    labels: Path | None = None
    resize: Count | None = None
    crop: Count | None = None


class StdlibDocs(_Images):
    """Sentences of the documentation in Python's own library, by package; see `amc_env.stdlib_docs`."""

    kind: Literal["stdlib_docs"]
    search_images: Count = 700
    test_images: Count = 700


class NpzTokens(_Images):
    """Token ids test_tokens and test_labels, and perhaps train_tokens and train_labels, in one .npz file."""

    kind: Literal["npz_tokens"]
    path: Path


Data = Annotated[
    DigitsImages | Npz | TorchvisionImages | ImageFolder | StdlibDocs | NpzTokens, Field(discriminator="kind")
]
