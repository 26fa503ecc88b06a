"""Data sets as three disjoint splits of images in memory.

How images are drawn, for every kind:

* Calibration images come from the training images where a data set has any. Search and test splits come from its
  test images: a trained network knows its training images by heart, so they say little about its accuracy.
* The images are put in the order of one permutation of `numpy.random.default_rng(seed)`. The search split is its
  beginning and the test split its end, so a larger search split leaves the test split as it was. Calibration images
  are the beginning of the permuted training images; without training images they follow the search split.
* Images for fine-tuning are the beginning of the permuted training images too; without training images, of what lies
  between the search and the test split. Calibration images are among them.
* What was drawn from how many stands in `Split.source`. Too few images are an error, never a smaller split.

| kind | path | images | preprocessing unless told |
| --- | --- | --- | --- |
| digits | - (in scikit-learn) | 1x8x8 | scale 16 |
| npz | the file, see `_npz` | any | scale 255 |
| cifar10, cifar100 | folder, torchvision's layout | 3x32x32 | scale 255, mean and std of ImageNet |
| mnist, fashion_mnist | folder, torchvision's layout | 1x28x28 | scale 255, mean and std of the training images |
| image_folder | folder, see `list_images` | 3 x crop x crop | scale 255, mean and std of ImageNet |
| stdlib_docs | - (in Python's library) | sentences of 24 tokens | none |
| npz_tokens | the file, see `_npz_tokens` | texts | none |

The mean and std of ImageNet are those of torchvision's pretrained networks and of the best known CIFAR-10 ResNets of
20 to 110 layers. Weights that were trained otherwise need their own, given as `preprocessing`.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amc_env.image_folder import decode, list_images
from amc_env.splits import AsTheyAre, DataSplits, Preprocessing, Split
from amc_env.stdlib_docs import stdlib_docs_arrays
from hw.files import read_npz

Images = NDArray[np.uint8] | NDArray[np.float32] | NDArray[np.int64]  # of texts: token ids (n, length)
Labels = NDArray[Any]
Indices = NDArray[np.int64]

DIGITS_TRAINING_IMAGES = 897


@dataclass(frozen=True)
class SplitSizes:
    """How many images each split has, at least 1, and the seed of the draw."""

    calibration: int
    search: int
    test: int
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("calibration", "search", "test"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1 image, got {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"seed: expected a number >= 0, got {self.seed}")


@dataclass(frozen=True)
class _Pool:
    """Images to draw from; `read(indices)` gives them as (n, channels, height, width)."""

    name: str
    labels: Labels
    read: Callable[[Indices], Images]

    def split(self, indices: Indices, seed: int) -> Split:
        images = self.read(indices)
        source = f"{self.name}, {len(indices)} of {len(self.labels)} drawn with seed {seed}"
        return Split(images, self.labels[indices], source)


@dataclass(frozen=True)
class _Pools:
    training: _Pool | None
    test: _Pool


@dataclass(frozen=True)
class _Request:
    """The arguments of `load_splits` that say where the images are."""

    kind: str
    path: Path | None
    labels: Path | None
    resize: int | None
    crop: int | None
    download: bool

    @property
    def folder(self) -> Path:
        if self.path is None:
            raise ValueError(f"{self.kind}: expected a path, got none")
        return self.path

    def given(self) -> set[str]:
        return {name for name in _OPTIONS if getattr(self, name) not in (None, False)}


_OPTIONS = ("path", "labels", "resize", "crop", "download")


@dataclass(frozen=True)
class _Kind:
    read: Callable[[_Request], _Pools]
    options: frozenset[str]
    preprocessing: Preprocessing | AsTheyAre


def load_splits(
    kind: str,
    sizes: SplitSizes,
    preprocessing: Preprocessing | None = None,
    path: Path | None = None,
    labels: Path | None = None,
    resize: int | None = None,
    crop: int | None = None,
    download: bool = False,
) -> DataSplits:
    """Read a data set and draw its three splits as the module's docstring says.

    Args:
        kind: one of `KINDS`.
        sizes: images of each split, and the seed of the draw.
        preprocessing: as the network's weights need it; by default that of the kind.
        path: file of `npz`, folder of the other kinds but `digits`.
        labels: `image_folder` only: CSV with the columns file and class_index.
        resize: `image_folder` only: pixels of the short side after resizing (bilinear, antialiased).
        crop: `image_folder` only: pixels of each side of the centre crop.
        download: torchvision's data sets only: fetch what is not under `path`.

    Raises:
        ValueError: unknown kind, an option that the kind has not, too few images, malformed data.
        FileNotFoundError: there is no data at `path`.
    """
    pools = _read(_Request(kind, path, labels, resize, crop, download))
    own = KINDS[kind].preprocessing
    if preprocessing is not None and isinstance(own, AsTheyAre):
        raise ValueError(f"{kind}: nothing is done to token ids; leave preprocessing out")
    return _draw(pools, sizes, preprocessing or own)


def load_training(
    kind: str,
    sizes: SplitSizes,
    images: int | None = None,
    path: Path | None = None,
    labels: Path | None = None,
    resize: int | None = None,
    crop: int | None = None,
    download: bool = False,
    *,
    asked_by: str = "finetune",
) -> Split:
    """Read a data set and draw the images for fine-tuning; none of them is in the search or the test split.

    Args:
        kind, path, labels, resize, crop, download: as of `load_splits`.
        sizes: as of `load_splits`.
        images: how many; None: all that there are.
        asked_by: what an error names as asking for them.

    Raises:
        ValueError, FileNotFoundError: as of `load_splits`.
    """
    pools = _read(_Request(kind, path, labels, resize, crop, download))
    pool = pools.training or pools.test
    order = np.random.default_rng(sizes.seed).permutation(len(pool.labels))
    if pools.training is None:
        order = order[sizes.search : max(sizes.search, len(order) - sizes.test)]
    wanted = len(order) if images is None else images
    if not 1 <= wanted <= len(order):
        raise ValueError(
            f"{asked_by}: {max(1, wanted)} images asked for, but {pool.name} has {len(order)} that are in neither "
            f"search nor test split; ask for fewer"
        )
    return pool.split(order[:wanted], sizes.seed)


def _read(request: _Request) -> _Pools:
    if request.kind not in KINDS:
        close = difflib.get_close_matches(request.kind, KINDS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"data: unknown kind {request.kind!r}; known: {', '.join(KINDS)}{hint}")
    kind = KINDS[request.kind]
    surplus = request.given() - kind.options
    if surplus:
        takes = ", ".join(sorted(kind.options)) or "no options"
        raise ValueError(
            f"{request.kind}: takes {takes}, got {', '.join(sorted(surplus))}; leave out what it does not take"
        )
    return kind.read(request)


def digits_arrays() -> tuple[Images, Labels, Images, Labels]:
    """Scikit-learn's digits: training images and labels, test images and labels, the same 897 and 900 always.

    Images are uint8 (n, 1, 8, 8) in 0..16.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images = digits.images.astype(np.uint8)[order, None]
    labels = digits.target.astype(np.int64)[order]
    cut = DIGITS_TRAINING_IMAGES
    return images[:cut], labels[:cut], images[cut:], labels[cut:]


def _draw(pools: _Pools, sizes: SplitSizes, preprocessing: Preprocessing | AsTheyAre) -> DataSplits:
    available = len(pools.test.labels)
    wanted = {"search": sizes.search, "test": sizes.test}
    if pools.training is None:
        wanted = {"calibration": sizes.calibration, **wanted}
    elif sizes.calibration > len(pools.training.labels):
        raise ValueError(
            f"calibration: {sizes.calibration} images asked for, but {pools.training.name} has "
            f"{len(pools.training.labels)}; ask for fewer"
        )
    if sum(wanted.values()) > available:
        asked = " + ".join(f"{count} {name}" for name, count in wanted.items())
        raise ValueError(
            f"{asked} images = {sum(wanted.values())} asked for, but {pools.test.name} has {available}; ask for fewer"
        )
    order = np.random.default_rng(sizes.seed).permutation(available)
    calibration = order[sizes.search : sizes.search + sizes.calibration]
    if pools.training is not None:
        calibration = np.random.default_rng(sizes.seed).permutation(len(pools.training.labels))[: sizes.calibration]
    splits = (
        (pools.training or pools.test).split(calibration, sizes.seed),
        pools.test.split(order[: sizes.search], sizes.seed),
        pools.test.split(order[-sizes.test :], sizes.seed),
    )
    _check_shapes(splits, preprocessing)
    return DataSplits(*splits, preprocessing=preprocessing, digest=_digest(splits, preprocessing))


def _check_shapes(splits: tuple[Split, ...], preprocessing: Preprocessing | AsTheyAre) -> None:
    shapes = sorted({split.images.shape[1:] for split in splits})
    if len(shapes) > 1:
        raise ValueError(
            f"images: expected one shape, got {', '.join(map(str, shapes))}; "
            f"make them equal (an image_folder: set resize and crop)"
        )
    if isinstance(preprocessing, AsTheyAre):
        return
    channels = shapes[0][0]
    for name, values in (("mean", preprocessing.mean), ("std", preprocessing.std)):
        if len(values) not in (1, channels):
            raise ValueError(
                f"preprocessing: {name} has {len(values)} values, but the images have {channels} channel(s); "
                f"give 1 or {channels}"
            )


def _digest(splits: tuple[Split, ...], preprocessing: Preprocessing | AsTheyAre) -> str:
    digest = hashlib.sha256(repr(preprocessing).encode())
    for split in splits:
        digest.update(f"{split.images.dtype}{split.images.shape}".encode())
        digest.update(split.images.tobytes())
        digest.update(f"{split.labels.dtype}{split.labels.shape}".encode())
        digest.update(split.labels.tobytes())
    return digest.hexdigest()


def _digits(request: _Request) -> _Pools:
    return _pools("digits", "images", *digits_arrays())


def _stdlib_docs(request: _Request) -> _Pools:
    return _pools("stdlib_docs", "sentences", *stdlib_docs_arrays())


def _pools(
    kind: str, what: str, training: Images, training_labels: Labels, test: Images, test_labels: Labels
) -> _Pools:
    return _Pools(
        _Pool(f"{kind} training {what}", training_labels, lambda indices: training[indices]),
        _Pool(f"{kind} test {what}", test_labels, lambda indices: test[indices]),
    )


def _npz(request: _Request) -> _Pools:
    """Arrays train_images, train_labels (both may be absent), test_images, test_labels.

    Images: uint8 or float32, (n, height, width, channels), or (n, height, width) for one channel.
    Labels: class indices (n,); or integers or floats (n, ...) for an objective of one's own.
    """
    return _npz_pools(request, "images", _array_pool)


def _npz_tokens(request: _Request) -> _Pools:
    """Arrays train_tokens, train_labels (both may be absent), test_tokens, test_labels.

    Tokens: int64 (n, length), at least 0. Labels: as of `_npz`.
    """
    return _npz_pools(request, "tokens", _token_pool)


def _npz_pools(request: _Request, what: str, pool: Callable[[Path, Mapping[str, NDArray[Any]], str], _Pool]) -> _Pools:
    path = request.folder
    if not path.is_file():
        raise FileNotFoundError(f"{request.kind}: no file {path}")
    try:
        arrays = read_npz(path)
    except ValueError as error:
        raise ValueError(
            f"{request.kind}: {path} is not an .npz file of plain arrays ({error}); write it with numpy.savez"
        ) from error
    wanted = [f"test_{what}", "test_labels"]
    if f"train_{what}" in arrays or "train_labels" in arrays:
        wanted += [f"train_{what}", "train_labels"]
    missing = [name for name in wanted if name not in arrays]
    if missing:
        raise ValueError(f"{request.kind}: {path} lacks {', '.join(missing)}; it has {', '.join(sorted(arrays))}")
    training = pool(path, arrays, "train") if len(wanted) == 4 else None
    return _Pools(training, pool(path, arrays, "test"))


def _array_pool(path: Path, arrays: Mapping[str, NDArray[Any]], part: str) -> _Pool:
    images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
    if images.dtype not in (np.uint8, np.float32) or images.ndim not in (3, 4):
        raise ValueError(
            f"npz: {path}: {part}_images: expected uint8 or float32 (n, height, width, channels) or "
            f"(n, height, width), got {images.dtype} {images.shape}"
        )
    _check_labels(f"npz: {path}: {part}_labels", labels, len(images))
    return _channels_last_pool(f"{part}_images of {path.name}", images, labels)


def _token_pool(path: Path, arrays: Mapping[str, NDArray[Any]], part: str) -> _Pool:
    tokens, labels = arrays[f"{part}_tokens"], arrays[f"{part}_labels"]
    if tokens.dtype != np.int64 or tokens.ndim != 2 or tokens.size == 0 or tokens.min() < 0:
        least = f", the least {tokens.min()}" if tokens.size and tokens.dtype.kind in "iuf" else ""
        raise ValueError(
            f"npz_tokens: {path}: {part}_tokens: expected int64 (n, length) of at least 0, got {tokens.dtype} "
            f"{tokens.shape}{least}"
        )
    _check_labels(f"npz_tokens: {path}: {part}_labels", labels, len(tokens))
    return _Pool(f"{part}_tokens of {path.name}", _plain(labels), lambda indices: tokens[indices])


def _check_labels(what: str, labels: Labels, texts: int) -> None:
    if labels.dtype.kind not in "iuf" or labels.shape[:1] != (texts,):
        raise ValueError(f"{what}: expected integers or floats ({texts}, ...), got {labels.dtype} {labels.shape}")


def _plain(labels: Labels) -> Labels:
    return labels.astype(np.float32 if labels.dtype.kind == "f" else np.int64)


def _channels_last_pool(name: str, images: NDArray[Any], labels: NDArray[Any]) -> _Pool:
    """A pool of images (n, height, width[, channels])."""
    with_channels = images if images.ndim == 4 else images[..., None]

    def read(indices: Indices) -> Images:
        return np.ascontiguousarray(with_channels[indices].transpose(0, 3, 1, 2))

    return _Pool(name, _plain(labels), read)


def _torchvision(class_name: str) -> Callable[[_Request], _Pools]:
    """The reader of one of torchvision's data sets."""

    def read(request: _Request) -> _Pools:
        from torchvision import datasets  # type: ignore[import-untyped]

        dataset_class = getattr(datasets, class_name)
        pools = []
        for part in ("training", "test"):
            try:
                dataset = dataset_class(request.folder, train=part == "training", download=request.download)
            except RuntimeError as error:
                raise FileNotFoundError(
                    f"{request.kind}: no complete data under {request.folder} in torchvision's layout ({error}); "
                    f"give the folder that holds it, or fetch it there with download: true"
                ) from error
            images, labels = np.asarray(dataset.data), np.asarray(dataset.targets)
            pools.append(_channels_last_pool(f"{request.kind} {part} images", images, labels))
        return _Pools(*pools)

    return read


def _image_folder(request: _Request) -> _Pools:
    """RGB images of one folder, all splits drawn from it; see `amc_env.image_folder.list_images`."""
    for name in ("resize", "crop"):
        value = getattr(request, name)
        if value is not None and value < 1:
            raise ValueError(f"{name}: expected at least 1 pixel, got {value}")
    files, labels = list_images(request.folder, request.labels)

    def read(indices: Indices) -> Images:
        return decode([files[index] for index in indices], request.resize, request.crop)

    name = f"images of {request.folder.name}"
    return _Pools(None, _Pool(name, np.array(labels, dtype=np.int64), read))


_IMAGENET = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
_DOWNLOADED = frozenset({"path", "download"})

#: every kind of data by name
KINDS: Mapping[str, _Kind] = {
    "digits": _Kind(_digits, frozenset(), Preprocessing(scale=16.0)),
    "npz": _Kind(_npz, frozenset({"path"}), Preprocessing()),
    "cifar10": _Kind(_torchvision("CIFAR10"), _DOWNLOADED, _IMAGENET),
    "cifar100": _Kind(_torchvision("CIFAR100"), _DOWNLOADED, _IMAGENET),
    "mnist": _Kind(_torchvision("MNIST"), _DOWNLOADED, Preprocessing((0.1307,), (0.3081,))),
    "fashion_mnist": _Kind(_torchvision("FashionMNIST"), _DOWNLOADED, Preprocessing((0.2860,), (0.3530,))),
    "image_folder": _Kind(_image_folder, frozenset({"path", "labels", "resize", "crop"}), _IMAGENET),
    "stdlib_docs": _Kind(_stdlib_docs, frozenset(), AsTheyAre()),
    "npz_tokens": _Kind(_npz_tokens, frozenset({"path"}), AsTheyAre()),
}
