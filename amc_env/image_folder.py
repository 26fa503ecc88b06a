"""Images of a folder: which files there are with which labels, and their pixels."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def list_images(folder: Path, labels: Path | None) -> tuple[list[Path], list[int]]:
    """Files and their class indices.

    Args:
        folder: without `labels`, it has one sub-folder per class, numbered in the sorted order of their names.
        labels: CSV with the columns file (relative to the folder) and class_index; other columns are ignored.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"image_folder: no folder {folder}")
    pairs = _files_of_classes(folder) if labels is None else _files_of_csv(folder, labels)
    return [file for file, _ in pairs], [label for _, label in pairs]


def decode(files: list[Path], resize: int | None, crop: int | None) -> NDArray[np.uint8]:
    """RGB pixels, uint8 (n, 3, height, width): short side resized to `resize`, centre cropped to `crop`."""
    images: list[NDArray[np.uint8]] = []
    for file in files:
        with Image.open(file) as image:
            pixels = np.asarray(_resized_and_cropped(image.convert("RGB"), resize, crop, file))
        if images and pixels.shape != images[0].shape:
            raise ValueError(
                f"image_folder: {file} is {pixels.shape[1]}x{pixels.shape[0]} pixels, {files[0]} is "
                f"{images[0].shape[1]}x{images[0].shape[0]} pixels; "
                f"set resize and crop to make all images the same size"
            )
        images.append(pixels)
    return np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))


def _files_of_classes(folder: Path) -> list[tuple[Path, int]]:
    classes = sorted(entry for entry in folder.iterdir() if entry.is_dir())
    files = [
        (file, label)
        for label, entry in enumerate(classes)
        for file in sorted(entry.rglob("*"))
        if file.suffix.lower() in IMAGE_SUFFIXES
    ]
    if not files:
        raise ValueError(
            f"image_folder: {folder} has no images ({', '.join(IMAGE_SUFFIXES)}) in one sub-folder per class; "
            f"give such a folder, or name the files in a CSV by labels"
        )
    return files


def _files_of_csv(folder: Path, labels: Path) -> list[tuple[Path, int]]:
    if not labels.is_file():
        raise FileNotFoundError(f"labels: no file {labels}")
    with labels.open(newline="", encoding="utf-8") as stream:
        rows = csv.DictReader(stream)
        columns = rows.fieldnames or []
        if not {"file", "class_index"} <= set(columns):
            raise ValueError(f"labels: {labels}: expected the columns file, class_index, got {', '.join(columns)}")
        files = []
        for row in rows:
            if not (row["class_index"] or "").isdecimal():
                raise ValueError(
                    f"labels: {labels} line {rows.line_num}: class_index: expected a number >= 0, "
                    f"got {row['class_index']!r}"
                )
            files.append((folder / row["file"], int(row["class_index"])))
    if len({file for file, _ in files}) < len(files):
        raise ValueError(f"labels: {labels} names a file twice; the splits would not be disjoint")
    return files


def _resized_and_cropped(image: Image.Image, resize: int | None, crop: int | None, file: Path) -> Image.Image:
    """Short side to `resize`, then the centre `crop` x `crop` pixels, with the rounding of torchvision's transforms."""
    if resize is not None:
        short = min(image.size)
        width, height = (resize if side == short else int(resize * side / short) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    if crop is None:
        return image
    if crop > min(image.size):
        raise ValueError(
            f"crop: {crop} pixels asked for, but {file} is {image.width}x{image.height}; set resize to at least {crop}"
        )
    left, top = round((image.width - crop) / 2), round((image.height - crop) / 2)
    return image.crop((left, top, left + crop, top + crop))
