"""Where words begin in text that is written without spaces.

A tokenizer for BERT takes Chinese apart into single characters, each a word of its own to it. A segmenter finds the words that people
see, so that whole-word and span masking hide those. It only joins: a token stays a word start unless it stands inside such a word.
"""

import re
import warnings
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Integer

from stemformer.config import nearest
from stemformer.errors import ConfigError

Segmenter = Callable[[str], list[str]]
"""From a text to its words, which put together give the text again."""

_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+")


def join_words(
    text: str,
    word_starts: Bool[np.ndarray, "n"],
    offsets: Integer[np.ndarray, "n 2"],
    segment: Segmenter,
) -> Bool[np.ndarray, "n"]:
    """Returns the word starts of a text's tokens, without those inside a word of several Han characters.

    Args:
        text: What was tokenized.
        word_starts: The tokenizer's own.
        offsets: First character of each token, and one past its last.
        segment: Finds words in a run of Han characters.

    Example:
        >>> starts, offsets = np.ones(3, bool), np.array([[0, 1], [1, 2], [2, 3]])
        >>> join_words("我们好", starts, offsets, lambda run: ["我们", "好"])
        array([ True, False,  True])
    """
    inside = np.zeros(len(text) + 1, bool)
    for run in _HAN.finditer(text):
        place = run.start()
        for word in segment(run.group()):
            inside[place + 1 : place + len(word)] = True
            place += len(word)
    joined: np.ndarray = word_starts & ~inside[offsets[:, 0]]
    return joined


def load_segmenter(name: str) -> Segmenter | None:
    """Returns the segmenter of a name; None for `tokenizer`, which leaves words as the tokenizer sees them.

    Raises:
        ConfigError: No such segmenter, or its package is not installed.
    """
    if name not in SEGMENTERS:
        raise ConfigError(f"--words {name}{nearest(name, SEGMENTERS)}: expected one of {', '.join(SEGMENTERS)}")
    return SEGMENTERS[name]()


def _jieba() -> Segmenter:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is older than today's warnings
            import jieba
    except ImportError as error:
        raise ConfigError('--words jieba needs the package jieba: pip install "stemformer[zh]"') from error
    jieba.setLogLevel("WARNING")
    segmenter: Segmenter = jieba.Tokenizer().lcut
    return segmenter


SEGMENTERS: dict[str, Callable[[], Segmenter | None]] = {"tokenizer": lambda: None, "jieba": _jieba}
"""Name on the command line -> what loads it."""
