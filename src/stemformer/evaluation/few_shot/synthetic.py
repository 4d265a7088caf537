"""Synthetic in-context learning tasks: episodes of pairs that follow one rule.

Mixed into pre-training, they teach even a very small GPT to learn in context. A document is one
episode with a line `input -> output` for each pair; spaces make each letter and digit a token.
"""

import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files

import numpy as np

from stemformer.config import nearest
from stemformer.data.examples.sampling import example_generator
from stemformer.errors import ConfigError

# Pairs in a document.
_MIN_PAIRS, _MAX_PAIRS = 8, 40

_TABLE = (files("stemformer.evaluation.few_shot") / "word_classes.toml").read_text(encoding="utf-8")
WORD_CLASSES: dict[str, tuple[str, ...]] = {name: tuple(words.split()) for name, words in tomllib.loads(_TABLE).items()}
"""Common English words by category; no word is in two categories."""

_WORDS = tuple(word for words in WORD_CLASSES.values() for word in words)
_SHORT_WORDS = tuple(word for word in _WORDS if 3 <= len(word) <= 5 and word.islower())
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_LABELS = _LETTERS.upper()


@dataclass(frozen=True)
class Episode:
    """Pairs (input, output) that follow one rule, and answer choices for the last (none for free text)."""

    pairs: tuple[tuple[str, str], ...]
    candidates: tuple[str, ...] = ()


@dataclass(frozen=True)
class SyntheticTask:
    """Family of rules; `num_candidates` answer choices, 0 for free text."""

    name: str
    description: str
    # From a number of pairs, at least 1; the last pair is the query.
    episode: Callable[[int, np.random.Generator], Episode]
    num_candidates: int = 0

    @property
    def chance(self) -> float:
        """Accuracy of random guessing; 0 for free text."""
        return 1 / self.num_candidates if self.num_candidates else 0.0


def find_synthetic(names: Sequence[str]) -> list[SyntheticTask]:
    """Return tasks by name; all tasks without names."""
    for i, name in enumerate(names):
        if name not in SYNTHETIC_TASKS:
            hint = f"{nearest(name, SYNTHETIC_TASKS)}. Expected some of {', '.join(SYNTHETIC_TASKS)}."
            raise ConfigError(f"Unknown synthetic task {name!r}{hint}")
        if name in names[:i]:
            raise ConfigError(f"Duplicate synthetic task {name!r}. Pass each name once.")
    return [SYNTHETIC_TASKS[name] for name in names or SYNTHETIC_TASKS]


def synthetic_documents(number: int, *, seed: int, tasks: Sequence[str] = ()) -> Iterator[dict[str, str]]:
    """Yield documents for pre-training: episodes of 8 to 40 pairs, with the tasks in turn.

    A document is a function of (seed, its number, tasks), so fewer documents are a prefix of more.

    Example:
        >>> document = next(synthetic_documents(1, seed=0, tasks=["reverse"]))
        >>> document["text"].splitlines()[0]
        'p g j -> j g p'
    """
    if number < 1:
        raise ConfigError(f"--num-documents is {number}. Expected at least 1.")
    chosen = find_synthetic(tasks)
    for i in range(number):
        rng = example_generator(seed, 0, i)
        task = chosen[i % len(chosen)]
        episode = task.episode(int(rng.integers(_MIN_PAIRS, _MAX_PAIRS + 1)), rng)
        yield {"text": "\n".join(f"{source} -> {target}" for source, target in episode.pairs), "task": task.name}


def _association(number: int, rng: np.random.Generator) -> Episode:
    words, labels = _some(_WORDS, 4, rng), _some(_LABELS, 4, rng)
    pairs = tuple((words[i], labels[i]) for i in rng.integers(4, size=number).tolist())
    return Episode(pairs, tuple(sorted(labels)))


def _label_by_class(number: int, rng: np.random.Generator) -> Episode:
    classes, labels = _some(tuple(WORD_CLASSES), 2, rng), _some(_LABELS, 2, rng)
    sides = rng.integers(2, size=number).tolist()
    pairs = tuple((_one(WORD_CLASSES[classes[side]], rng), labels[side]) for side in sides)
    return Episode(pairs, tuple(sorted(labels)))


def _threshold(number: int, rng: np.random.Generator) -> Episode:
    labels, border = _some(_LABELS, 2, rng), int(rng.integers(20, 80))
    sides = rng.integers(2, size=number).tolist()
    numbers = [int(rng.integers(border, 100) if side else rng.integers(0, border)) for side in sides]
    pairs = tuple((_spaced(n), labels[side]) for n, side in zip(numbers, sides, strict=True))
    return Episode(pairs, tuple(sorted(labels)))


def _position(number: int, rng: np.random.Generator) -> Episode:
    position = int(rng.integers(3))
    words = [_some(_WORDS, 3, rng) for _ in range(number)]
    return Episode(tuple((" ".join(three), three[position]) for three in words), tuple(words[-1]))


def _pick_class(number: int, rng: np.random.Generator) -> Episode:
    target = _one(tuple(WORD_CLASSES), rng)
    others = tuple(name for name in WORD_CLASSES if name != target)
    pairs, words = [], [""]
    for _ in range(number):
        words = [_one(WORD_CLASSES[name], rng) for name in (target, *_some(others, 2, rng))]
        answer = words[0]
        words = _some(words, 3, rng)
        pairs.append((" ".join(words), answer))
    return Episode(tuple(pairs), tuple(words))


def _on_letters(rule: Callable[[str], str]) -> Callable[[int, np.random.Generator], Episode]:
    """Make the episode generator of a rule on three to five letters."""

    def make(number: int, rng: np.random.Generator) -> Episode:
        strings = [_letters(int(rng.integers(3, 6)), rng) for _ in range(number)]
        return Episode(tuple((_spaced(s), _spaced(rule(s))) for s in strings))

    return make


def _shift(number: int, rng: np.random.Generator) -> Episode:
    offset = int(rng.integers(1, 6))
    table = str.maketrans(_LETTERS, _LETTERS[offset:] + _LETTERS[:offset])
    strings = [_letters(2, rng) for _ in range(number)]
    return Episode(tuple((_spaced(s), _spaced(s.translate(table))) for s in strings))


def _add_constant(number: int, rng: np.random.Generator) -> Episode:
    constant = int(rng.integers(1, 10))
    return Episode(tuple((_spaced(n), _spaced(n + constant)) for n in rng.integers(0, 90, size=number).tolist()))


def _addition(number: int, rng: np.random.Generator) -> Episode:
    numbers = rng.integers(0, 50, size=(number, 2)).tolist()
    return Episode(tuple((f"{_spaced(a)} + {_spaced(b)}", _spaced(a + b)) for a, b in numbers))


def _unscramble(number: int, rng: np.random.Generator) -> Episode:
    words = [_one(_SHORT_WORDS, rng) for _ in range(number)]
    return Episode(tuple((" ".join(_some(word, len(word), rng)), word) for word in words))


def _spaced(text: str | int) -> str:
    """Separate letters or digits by spaces."""
    return " ".join(str(text))


def _letters(number: int, rng: np.random.Generator) -> str:
    return "".join(_LETTERS[i] for i in rng.integers(len(_LETTERS), size=number).tolist())


def _one(items: Sequence[str], rng: np.random.Generator) -> str:
    return items[int(rng.integers(len(items)))]


def _some(items: Sequence[str], number: int, rng: np.random.Generator) -> list[str]:
    """Sample items without replacement."""
    return [items[i] for i in rng.permutation(len(items))[:number].tolist()]


SYNTHETIC_TASKS: dict[str, SyntheticTask] = {
    task.name: task
    for task in (
        SyntheticTask("association", "a word -> its letter in this episode, one of four", _association, 4),
        SyntheticTask(
            "label_by_class", "a word -> one of two letters, by the category of the word", _label_by_class, 2
        ),
        SyntheticTask("threshold", "a number below 100 -> one of two letters, by a random threshold", _threshold, 2),
        SyntheticTask("position", "three words -> the first, second or third, the same in each pair", _position, 3),
        SyntheticTask("pick_class", "three words -> the one of a category, such as animals or colours", _pick_class, 3),
        SyntheticTask("copy", "three to five letters -> the same", _on_letters(lambda s: s)),
        SyntheticTask("reverse", "three to five letters -> in reverse order", _on_letters(lambda s: s[::-1])),
        SyntheticTask(
            "sort", "three to five letters -> in alphabetical order", _on_letters(lambda s: "".join(sorted(s)))
        ),
        SyntheticTask("shift", "two letters -> shifted by one to five positions in the alphabet, cyclic", _shift),
        SyntheticTask(
            "add_constant", "a number below 90 -> that number plus 1 to 9, the same in each pair", _add_constant
        ),
        SyntheticTask("addition", "two numbers below 50 -> their sum; a fixed rule", _addition),
        SyntheticTask("unscramble", "the letters of a common word, shuffled -> the word; a fixed rule", _unscramble),
    )
}  # fmt: skip
"""Tasks by name. Copy, reverse and sort have the same inputs, so that only examples tell them apart."""
