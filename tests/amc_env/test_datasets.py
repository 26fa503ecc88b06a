"""Splits of every kind of data: disjoint, seeded, never smaller than asked for."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from amc_env.datasets import SplitSizes, digits_arrays, load_splits, load_training
from amc_env.splits import DataSplits, Preprocessing

DATA = os.environ.get("AMC_TEST_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="AMC_TEST_DATA names no folder of real data")


def numbered(first: int, count: int) -> NDArray[np.uint8]:
    """Images (count, 2, 3, 3), each of which is one number."""
    return np.repeat(np.arange(first, first + count, dtype=np.uint8), 18).reshape(count, 2, 3, 3)


def write_npz(path: Path, train: int = 0, test: int = 20, others: dict[str, NDArray[Any]] | None = None) -> Path:
    arrays: dict[str, NDArray[Any]] = {"test_images": numbered(100, test), "test_labels": np.arange(test)}
    if train:
        arrays |= {"train_images": numbered(0, train), "train_labels": np.arange(train)}
    np.savez(path, **(arrays | (others or {})))  # type: ignore[arg-type]
    return path


def numbers(splits: DataSplits) -> tuple[list[int], list[int], list[int]]:
    """The numbers of the images of calibration, search and test."""
    calibration, search, test = (
        split.images[:, 0, 0, 0].astype(int).tolist() for split in (splits.calibration, splits.search, splits.test)
    )
    return calibration, search, test


def test_digits_are_the_same_images_always() -> None:
    train_images, train_labels, test_images, test_labels = digits_arrays()
    assert train_images.shape == (897, 1, 8, 8)
    assert test_images.shape == (900, 1, 8, 8)
    assert train_images.dtype == np.uint8
    assert train_images.max() == 16
    assert np.unique(train_labels).tolist() == np.unique(test_labels).tolist() == list(range(10))


def test_digits_calibrates_on_training_images_and_scales_by_16() -> None:
    splits = load_splits("digits", SplitSizes(50, 400, 500, seed=3))
    assert splits.preprocessing == Preprocessing(scale=16.0)
    assert splits.calibration.source == "digits training images, 50 of 897 drawn with seed 3"
    assert splits.search.source == "digits test images, 400 of 900 drawn with seed 3"
    assert splits.test.source == "digits test images, 500 of 900 drawn with seed 3"
    batch = splits.preprocessing(splits.search.images)
    assert batch.shape == (400, 1, 8, 8)
    assert float(batch.max()) == 1.0


@settings(max_examples=20)
@given(search=st.integers(1, 19), test=st.integers(1, 19), seed=st.integers(0, 2**32))
def test_search_and_test_are_disjoint_or_refused(
    tmp_path_factory: pytest.TempPathFactory, search: int, test: int, seed: int
) -> None:
    path = write_npz(tmp_path_factory.mktemp("npz") / "data.npz", train=5)
    if search + test > 20:
        with pytest.raises(ValueError, match=rf"{search} search \+ {test} test images = {search + test} asked for"):
            load_splits("npz", SplitSizes(5, search, test, seed), path=path)
        return
    calibration, searched, tested = numbers(load_splits("npz", SplitSizes(5, search, test, seed), path=path))
    assert sorted(calibration) == [0, 1, 2, 3, 4]
    assert len({*searched, *tested}) == search + test
    assert min(searched + tested) >= 100


def test_without_training_images_all_three_are_drawn_disjointly(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "data.npz")
    calibration, search, test = numbers(load_splits("npz", SplitSizes(4, 9, 7), path=path))
    assert sorted(calibration + search + test) == list(range(100, 120))
    with pytest.raises(ValueError, match=r"5 calibration \+ 9 search \+ 7 test images = 21 .* has 20; ask for fewer"):
        load_splits("npz", SplitSizes(5, 9, 7), path=path)


def test_a_larger_search_split_leaves_the_test_split_as_it_is(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "data.npz")
    one, other = (load_splits("npz", SplitSizes(1, search, 5, seed=1), path=path) for search in (3, 9))
    assert numbers(one)[2] == numbers(other)[2]
    assert numbers(one)[1] == numbers(other)[1][:3]


def test_the_digest_names_images_labels_and_preprocessing(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "data.npz", train=5)
    other_labels = write_npz(tmp_path / "labels.npz", train=5, others={"test_labels": np.arange(20)[::-1]})
    sizes = SplitSizes(2, 3, 4)
    digests = [
        load_splits("npz", sizes, path=path).digest,
        load_splits("npz", SplitSizes(2, 3, 4, seed=1), path=path).digest,
        load_splits("npz", sizes, Preprocessing(scale=1.0), path=path).digest,
        load_splits("npz", sizes, path=other_labels).digest,
    ]
    assert len(set(digests)) == 4
    assert load_splits("npz", sizes, path=path).digest == digests[0]


def test_npz_moves_the_channels_to_the_front_and_knows_one_channel(tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((6, 4, 5, 3), dtype=np.float32)
    path = write_npz(tmp_path / "colour.npz", test=6, others={"test_images": images})
    splits = load_splits("npz", SplitSizes(1, 1, 4), path=path)
    assert splits.test.images.dtype == np.float32
    np.testing.assert_array_equal(splits.test.images, images.transpose(0, 3, 1, 2)[splits.test.labels])
    grey = write_npz(tmp_path / "grey.npz", test=6, others={"test_images": images[..., 0]})
    assert load_splits("npz", SplitSizes(1, 1, 4), path=grey).test.images.shape == (4, 1, 4, 5)


@pytest.mark.parametrize("shape", [(20,), (20, 1), (20, 4, 2)])
@pytest.mark.parametrize(("given", "kept"), [(np.int32, np.int64), (np.float64, np.float32), (np.uint8, np.int64)])
def test_npz_labels_may_be_boxes_or_numbers(
    tmp_path: Path, shape: tuple[int, ...], given: type[np.generic], kept: type[np.generic]
) -> None:
    labels = np.arange(np.prod(shape)).reshape(shape).astype(given)
    splits = load_splits("npz", SplitSizes(4, 9, 7), path=write_npz(tmp_path / "d.npz", others={"test_labels": labels}))
    for split in (splits.calibration, splits.search, splits.test):
        assert split.labels.dtype == kept
        np.testing.assert_array_equal(split.labels, labels[split.images[:, 0, 0, 0] - 100])


def test_the_digest_tells_labels_of_the_same_bytes_apart(tmp_path: Path) -> None:
    flat, column = np.arange(20), np.arange(20)[:, None]
    paths = [write_npz(tmp_path / f"{y.ndim}.npz", others={"test_labels": y}) for y in (flat, column)]
    assert len({load_splits("npz", SplitSizes(4, 9, 7), path=path).digest for path in paths}) == 2


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"test_images": np.zeros((20, 3, 3))}, r"test_images: expected uint8 or float32 .* got float64 \(20, 3, 3\)"),
        ({"test_images": np.zeros((20, 9), np.uint8)}, r"got uint8 \(20, 9\)"),
        ({"test_labels": np.arange(3)}, r"test_labels: expected integers or floats \(20, \.\.\.\), got int64 \(3,\)"),
        ({"test_labels": np.zeros((3, 20))}, r"got float64 \(3, 20\)"),
        ({"test_labels": np.zeros(20, bool)}, r"got bool \(20,\)"),
        ({"test_labels": np.array(5)}, r"got int64 \(\)"),
        ({"train_images": numbered(0, 3)}, r"lacks train_labels; it has test_images, test_labels, train_images"),
        ({"test_labels": np.array([None] * 20)}, r"not an \.npz file of plain arrays .*write it with numpy\.savez"),
    ],
)
def test_malformed_npz(tmp_path: Path, others: dict[str, NDArray[Any]], message: str) -> None:
    path = write_npz(tmp_path / "data.npz", others=others)
    with pytest.raises(ValueError, match=message):
        load_splits("npz", SplitSizes(1, 1, 1), path=path)


def test_what_is_no_npz_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    with pytest.raises(FileNotFoundError, match=r"npz: no file .*data\.npz"):
        load_splits("npz", SplitSizes(1, 1, 1), path=path)
    for content in (b"text", b"PK\x03\x04 cut off"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"not an \.npz file of plain arrays"):
            load_splits("npz", SplitSizes(1, 1, 1), path=path)
    np.save(tmp_path / "data.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"not an \.npz file of plain arrays"):
        load_splits("npz", SplitSizes(1, 1, 1), path=tmp_path / "data.npy")


def test_arguments_that_do_not_belong(tmp_path: Path) -> None:
    sizes = SplitSizes(1, 1, 1)
    with pytest.raises(ValueError, match=r"unknown kind 'cifar'; known: digits, npz, .*did you mean 'cifar10'\?"):
        load_splits("cifar", sizes)
    with pytest.raises(ValueError, match="digits: takes no options, got path; leave out"):
        load_splits("digits", sizes, path=tmp_path)
    with pytest.raises(ValueError, match="npz: takes path, got crop, resize; leave out"):
        load_splits("npz", sizes, path=tmp_path, resize=8, crop=8)
    with pytest.raises(ValueError, match="npz: expected a path, got none"):
        load_splits("npz", sizes)
    with pytest.raises(ValueError, match=r"mean has 3 values, but the images have 1 channel\(s\); give 1 or 1"):
        load_splits("digits", sizes, Preprocessing(mean=(0.1, 0.2, 0.3)))
    with pytest.raises(ValueError, match="calibration: 898 images asked for, but digits training images has 897"):
        load_splits("digits", SplitSizes(898, 1, 1))
    with pytest.raises(ValueError, match="search: expected at least 1 image, got 0"):
        SplitSizes(1, 0, 1)
    with pytest.raises(ValueError, match="seed: expected a number >= 0, got -1"):
        SplitSizes(1, 1, 1, seed=-1)


@pytest.mark.parametrize("kind", ["cifar10", "cifar100", "mnist", "fashion_mnist"])
def test_absent_torchvision_data_say_how_to_get_them(tmp_path: Path, kind: str) -> None:
    with pytest.raises(FileNotFoundError, match=rf"{kind}: no complete data under .* with download: true"):
        load_splits(kind, SplitSizes(1, 1, 1), path=tmp_path)


def write_images(folder: Path, names: list[str], size: tuple[int, int] = (12, 8)) -> None:
    """Lossless images, image i all of red 10 * i."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (10 * number, 0, 255)).save(folder / name)


def test_image_folder_of_classes(tmp_path: Path) -> None:
    write_images(tmp_path, ["b/0.png", "a/1.png", "b/deeper/2.png", "a/3.PNG"])
    (tmp_path / "a" / "notes.txt").write_text("no image")
    splits = load_splits("image_folder", SplitSizes(1, 1, 2), path=tmp_path)
    parts = (splits.calibration, splits.search, splits.test)
    reds = np.concatenate([part.images[:, 0, 0, 0] for part in parts]).tolist()
    pairs = set(zip(reds, np.concatenate([part.labels for part in parts]).tolist(), strict=True))
    assert pairs == {(0, 1), (10, 0), (20, 1), (30, 0)}
    assert splits.test.images.shape == (2, 3, 8, 12)
    assert splits.test.images.dtype == np.uint8
    assert splits.test.source == f"images of {tmp_path.name}, 2 of 4 drawn with seed 0"


def test_flat_image_folder_with_labels(tmp_path: Path) -> None:
    write_images(tmp_path, ["x.png", "y.png", "z.png"])
    labels = tmp_path / "labels.csv"
    labels.write_text("file,class_index,name\nz.png,7,seven\nx.png,5,five\ny.png,6,six\n")
    splits = load_splits("image_folder", SplitSizes(1, 1, 1), path=tmp_path, labels=labels)
    found = {int(split.labels[0]): int(split.images[0, 0, 0, 0]) for split in (splits.search, splits.test)}
    found[int(splits.calibration.labels[0])] = int(splits.calibration.images[0, 0, 0, 0])
    assert found == {5: 0, 6: 10, 7: 20}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\nx.png,1\n", "expected the columns file, class_index, got file, label"),
        ("file,class_index\nx.png,cat\n", r"line 2: class_index: expected a number >= 0, got 'cat'"),
        ("file,class_index\nx.png,-1\n", r"got '-1'"),
        ("file,class_index\nx.png,1\nx.png,2\n", "names a file twice"),
    ],
)
def test_malformed_labels(tmp_path: Path, text: str, message: str) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_splits("image_folder", SplitSizes(1, 1, 1), path=tmp_path, labels=labels)


def test_image_folder_errors(tmp_path: Path) -> None:
    sizes = SplitSizes(1, 1, 1)
    with pytest.raises(FileNotFoundError, match="image_folder: no folder"):
        load_splits("image_folder", sizes, path=tmp_path / "absent")
    with pytest.raises(ValueError, match=r"has no images .* one sub-folder per class"):
        load_splits("image_folder", sizes, path=tmp_path)
    write_images(tmp_path, ["a/0.png", "a/1.png"])
    write_images(tmp_path, ["a/2.png"], size=(9, 9))
    with pytest.raises(ValueError, match=r"expected one shape, got \(3, 8, 8\), \(3, 8, 12\); .* set resize and crop"):
        load_splits("image_folder", sizes, path=tmp_path, resize=8)
    write_images(tmp_path, ["a/3.png", "a/4.png"])
    write_images(tmp_path, ["a/2.png", "a/0.png"], size=(9, 9))
    with pytest.raises(ValueError, match="pixels; set resize and crop to make all images the same size"):
        load_splits("image_folder", SplitSizes(1, 3, 1), path=tmp_path)
    with pytest.raises(ValueError, match=r"crop: 10 pixels asked for, but .* set resize to at least 10"):
        load_splits("image_folder", sizes, path=tmp_path, crop=10)
    with pytest.raises(ValueError, match="resize: expected at least 1 pixel, got 0"):
        load_splits("image_folder", sizes, path=tmp_path, resize=0)


def test_resize_and_crop_equal_torchvisions(tmp_path: Path) -> None:
    from torchvision.transforms import v2  # type: ignore[import-untyped]

    rng = np.random.default_rng(0)
    sizes = {"0.png": (50, 37), "1.png": (31, 44), "2.png": (24, 24)}
    (tmp_path / "a").mkdir()
    for name, (width, height) in sizes.items():
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(tmp_path / "a" / name)
    splits = load_splits("image_folder", SplitSizes(1, 1, 1), path=tmp_path, resize=24, crop=19)
    transform = v2.Compose([v2.Resize(24), v2.CenterCrop(19)])
    expected = [np.asarray(transform(Image.open(tmp_path / "a" / name))).transpose(2, 0, 1) for name in sizes]
    got = [split.images[0] for split in (splits.calibration, splits.search, splits.test)]
    assert sorted(image.tobytes() for image in got) == sorted(image.tobytes() for image in expected)


@needs_data
def test_mnist_from_the_original_files(tmp_path: Path) -> None:
    shutil.copytree(Path(str(DATA)) / "mnist", tmp_path / "mnist", copy_function=shutil.copyfile)
    for folder in (tmp_path / "mnist", *(tmp_path / "mnist").rglob("*")):
        folder.chmod(0o755)
    splits = load_splits("mnist", SplitSizes(100, 5000, 5000), path=tmp_path / "mnist", download=True)
    assert splits.calibration.source == "mnist training images, 100 of 60000 drawn with seed 0"
    assert splits.test.images.shape == (5000, 1, 28, 28)
    counts = np.bincount(np.concatenate([splits.search.labels, splits.test.labels]))
    # digits 0..9 among the 10,000 test images
    assert counts.tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_images_for_fine_tuning_are_training_images_the_calibration_among_them() -> None:
    sizes = SplitSizes(calibration=50, search=100, test=100, seed=3)
    splits, training = load_splits("digits", sizes), load_training("digits", sizes)
    assert len(training) == 897
    np.testing.assert_array_equal(training.images[:50], splits.calibration.images)
    np.testing.assert_array_equal(load_training("digits", sizes, images=60).labels, training.labels[:60])
    assert training.source == "digits training images, 897 of 897 drawn with seed 3"
    with pytest.raises(ValueError, match="finetune: 898 images asked for, but digits training images has 897 that are"):
        load_training("digits", sizes, images=898)


def test_without_training_images_those_between_the_splits_are_for_fine_tuning(tmp_path: Path) -> None:
    images = np.arange(40, dtype=np.uint8).reshape(40, 1, 1).repeat(2, axis=1)
    np.savez(tmp_path / "a.npz", test_images=images, test_labels=np.arange(40))
    sizes = SplitSizes(calibration=5, search=12, test=8)
    splits = load_splits("npz", sizes, path=tmp_path / "a.npz")
    training = load_training("npz", sizes, path=tmp_path / "a.npz")
    held_out = {*splits.search.labels.tolist(), *splits.test.labels.tolist()}
    assert set(training.labels.tolist()) == set(range(40)) - held_out
    assert set(splits.calibration.labels.tolist()) <= set(training.labels.tolist())
    np.testing.assert_array_equal(training.images[:, 0, 0, 0], training.labels)
    with pytest.raises(
        ValueError, match=r"finetune: 21 images asked for, but test_images of a\.npz has 20 that are in"
    ):
        load_training("npz", sizes, images=21, path=tmp_path / "a.npz")
    with pytest.raises(ValueError, match=r"finetune: 1 images asked for, but test_images of a\.npz has 0 that are in"):
        load_training("npz", SplitSizes(1, 20, 20), path=tmp_path / "a.npz")
