"""Sentences of the documentation inside Python's own library, and the package that each one comes from.

Nothing is downloaded: the docstrings lie in the library of the Python that runs, so that another version of Python has
somewhat other sentences (3.11 has about 4,300). The digest that every result records tells them apart.
"""

from __future__ import annotations

import ast
import re
import sysconfig
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

#: the classes, by label: packages and modules of which most is written
PACKAGES = ("asyncio", "email", "http", "importlib", "logging", "turtle", "unittest", "xml")
#: token ids below it: 0 for nothing (padding), 1 for any word that is not in the vocabulary
VOCABULARY = 1024
#: tokens of a sentence; what is longer is cut
LENGTH = 24
_FEWEST_WORDS = 5
_TRAINING_SHARE = 2 / 3

Tokens = NDArray[np.int64]


@cache
def stdlib_docs_arrays() -> tuple[Tokens, Tokens, Tokens, Tokens]:
    """Training tokens and labels, test tokens and labels; the same always in one version of Python.

    Tokens are int64 (n, `LENGTH`). The vocabulary is that of the training sentences. A sentence that several packages
    share is left out.
    """
    owners: dict[str, set[int]] = {}
    for label, package in enumerate(PACKAGES):
        for sentence in _sentences(package):
            owners.setdefault(sentence, set()).add(label)
    sentences = sorted(sentence for sentence, labels in owners.items() if len(labels) == 1)
    labels = np.array([next(iter(owners[sentence])) for sentence in sentences])
    order = np.random.default_rng(0).permutation(len(sentences))
    cut = int(len(sentences) * _TRAINING_SHARE)
    words = [_words(sentences[index]) for index in order]
    known = _vocabulary(words[:cut])
    tokens = np.zeros((len(words), LENGTH), np.int64)
    for row, spelled in zip(tokens, words, strict=True):
        ids = [known.get(word, 1) for word in spelled[:LENGTH]]
        row[: len(ids)] = ids
    labels = labels[order]
    return tokens[:cut], labels[:cut], tokens[cut:], labels[cut:]


def _vocabulary(sentences: Sequence[Sequence[str]]) -> dict[str, int]:
    """The most frequent words and their ids; of equally frequent ones the first in the alphabet."""
    counts = Counter(word for sentence in sentences for word in sentence)
    frequent = sorted(counts, key=lambda word: (-counts[word], word))[: VOCABULARY - 2]
    return {word: index + 2 for index, word in enumerate(frequent)}


def _sentences(package: str) -> Iterator[str]:
    """The sentences of all docstrings of a package, white space made single spaces."""
    library = Path(sysconfig.get_path("stdlib"))
    files = [library / f"{package}.py"] if (library / f"{package}.py").is_file() else (library / package).rglob("*.py")
    for file in sorted(files):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                for paragraph in re.split(r"\n\s*\n", ast.get_docstring(node) or ""):
                    for sentence in re.split(r"(?<=[.:!?])\s+(?=[A-Z])", paragraph.strip()):
                        if len(_words(sentence)) >= _FEWEST_WORDS:
                            yield " ".join(sentence.split())


def _words(sentence: str) -> list[str]:
    return re.findall(r"[a-z]+", sentence.lower())
