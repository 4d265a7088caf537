"""Word segmentation of Chinese, so that whole-word masking covers words; for BERT each character is one."""

import re
import warnings
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Integer

from stemformer.config import nearest
from stemformer.errors import ConfigError

Segmenter = Callable[[str], list[str]]
"""Splits a text into words whose concatenation is the text."""

WORDS = ("tokenizer", "jieba")
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+")


def join_words(
    text: str, word_starts: Bool[np.ndarray, "n"], offsets: Integer[np.ndarray, "n 2"], segment: Segmenter
) -> Bool[np.ndarray, "n"]:
    """Remove the word starts inside words of several Han characters; offsets as in `Encoding`."""
    inside = np.zeros(len(text) + 1, bool)
    for run in _HAN.finditer(text):
        start = run.start()
        for word in segment(run.group()):
            inside[start + 1 : start + len(word)] = True
            start += len(word)
    return word_starts & ~inside[offsets[:, 0]]


def load_segmenter(name: str) -> Segmenter | None:
    """Load a segmenter by name; None for `tokenizer`, which keeps the tokenizer's words."""
    if name not in WORDS:
        raise ConfigError(f"--words is {name!r}, expected one of {', '.join(WORDS)}{nearest(name, WORDS)}.")
    if name == "tokenizer":
        return None
    try:
        with warnings.catch_warnings():
            # jieba's own code raises SyntaxWarnings on recent versions of Python.
            warnings.simplefilter("ignore")
            import jieba
    except ImportError as error:
        raise ConfigError('--words jieba needs the package jieba: pip install "stemformer[zh]"') from error
    jieba.setLogLevel("WARNING")
    return jieba.Tokenizer().lcut
