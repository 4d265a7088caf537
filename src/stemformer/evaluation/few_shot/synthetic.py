"""Synthetic in-context tasks: episodes of examples that follow one rule, to learn from and to be tested on.

A part of most rules is drawn for each episode anew, so that without an example nobody can know the answer, and with more of them one
can. Mixed into pre-training, such episodes teach even a very small GPT to learn from its prompt. A document is one episode, a pair a
line, `input -> output`; letters and digits stand apart, so that each is a token of its own.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stemformer.config import nearest
from stemformer.data.examples.sampling import example_generator
from stemformer.errors import ConfigError
from stemformer.io import write_file

FEWEST_PAIRS, MOST_PAIRS = 8, 40
"""Pairs of a document."""

WORD_CLASSES: dict[str, tuple[str, ...]] = {
    name: tuple(words.split())
    for name, words in {
        "animals": "dog cat horse cow sheep goat pig wolf fox bear lion tiger mouse rabbit deer camel eagle crow owl duck frog snake bee",
        "colours": "red blue green yellow white black brown grey pink purple scarlet violet crimson golden silver ivory",
        "food": "bread butter cheese milk rice soup meat honey sugar salt apple pear lemon grape plum onion carrot bean cake pie egg flour",
        "body": "head face eye ear nose mouth chin neck arm elbow hand finger thumb leg knee foot toe heart bone skin shoulder tongue",
        "clothes": "hat coat shirt shoe boot sock glove scarf dress skirt belt cap cloak apron jacket collar sleeve button veil robe",
        "countries": "France Spain Italy Greece Egypt India China Japan Russia Poland Norway Sweden Ireland Canada Mexico Brazil Peru",
        "people": "baker farmer doctor lawyer teacher soldier sailor priest judge nurse painter singer hunter miner tailor king queen",
        "house": "table chair bed desk shelf lamp door window wall roof floor stove mirror carpet curtain drawer bench sofa chimney stairs",
        "vehicles": "car bus train ship boat plane bicycle cart wagon truck tram canoe ferry sledge yacht carriage taxi rocket lorry raft",
        "places": "river lake sea mountain hill valley forest island beach desert cave field meadow cliff pond swamp canyon harbour coast",
    }.items()
}
"""Common English words by what they name; none stands in two classes."""

_WORDS = tuple(word for words in WORD_CLASSES.values() for word in words)
_SHORT_WORDS = tuple(word for word in _WORDS if 3 <= len(word) <= 5 and word.islower())
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_LABELS = _LETTERS.upper()

Pair = tuple[str, str]
"""An input and its output."""


@dataclass(frozen=True)
class Episode:
    """Examples that follow one rule.

    Attributes:
        pairs: Inputs and outputs, at least one.
        candidates: The answers to choose among for the last pair, its own among them; empty where an answer is free text.
    """

    pairs: tuple[Pair, ...]
    candidates: tuple[str, ...] = ()


@dataclass(frozen=True)
class SyntheticTask:
    """A family of rules.

    Attributes:
        name: On the command line and in results.
        description: What is asked, in a line.
        make: Draws an episode of a number of pairs.
        num_candidates: Answers that there are to choose among; 0 where an answer is free text.
    """

    name: str
    description: str
    make: Callable[[int, np.random.Generator], Episode]
    num_candidates: int = 0

    @property
    def is_closed(self) -> bool:
        """Whether the answer is one of an episode's candidates."""
        return self.num_candidates > 0

    @property
    def chance(self) -> float:
        """Share that is right by choosing blindly; 0 for free text."""
        return 1 / self.num_candidates if self.is_closed else 0.0

    def episode(self, number: int, rng: np.random.Generator) -> Episode:
        """Returns an episode of a rule that is drawn.

        Args:
            number: Pairs, at least 1: the last is what is asked, those before it are the examples.
            rng: Where all of it comes from.

        Raises:
            ConfigError: Fewer than one pair.

        Example:
            >>> episode = SYNTHETIC_TASKS["reverse"].episode(2, np.random.default_rng(0))
            >>> episode.pairs[1]
            ('a e v', 'v e a')
        """
        if number < 1:
            raise ConfigError(f"an episode of {number} pairs: expected at least 1")
        return self.make(number, rng)


def episode_text(pairs: Sequence[Pair]) -> str:
    r"""Returns pairs as a document shows them.

    Example:
        >>> episode_text([("k r t", "t r k"), ("a b", "b a")])
        'k r t -> t r k\na b -> b a'
    """
    return "\n".join(f"{given} -> {answer}" for given, answer in pairs)


def find_synthetic(names: Sequence[str]) -> list[SyntheticTask]:
    """Returns the tasks of some names; all of them for no name.

    Raises:
        ConfigError: There is no such task, or it is named twice.
    """
    for place, name in enumerate(names):
        if name not in SYNTHETIC_TASKS:
            close = nearest(name, SYNTHETIC_TASKS)
            raise ConfigError(f"no synthetic task {name!r}{close}: expected some of {', '.join(SYNTHETIC_TASKS)}")
        if name in names[:place]:
            raise ConfigError(f"the synthetic task {name} is named twice: name it once")
    return [SYNTHETIC_TASKS[name] for name in names or SYNTHETIC_TASKS]


def synthetic_documents(number: int, *, seed: int, tasks: Sequence[str] = ()) -> Iterator[dict[str, str]]:
    """Yields documents for pre-training, each an episode of 8 to 40 pairs, the tasks taking turns.

    What is in a document follows from (seed, its number) and the tasks, so that more documents begin with the fewer.

    Args:
        number: Documents.
        seed: Of everything that is drawn.
        tasks: Names; all by default.

    Raises:
        ConfigError: Less than one document, or names that do not exist.

    Example:
        >>> [document["task"] for document in synthetic_documents(3, seed=0, tasks=["copy", "sort"])]
        ['copy', 'sort', 'copy']
    """
    if number < 1:
        raise ConfigError(f"--documents {number}: expected at least 1")
    chosen = find_synthetic(tasks)
    for place in range(number):
        rng = example_generator(seed, 0, place)
        task = chosen[place % len(chosen)]
        episode = task.episode(int(rng.integers(FEWEST_PAIRS, MOST_PAIRS + 1)), rng)
        yield {"text": episode_text(episode.pairs), "task": task.name}


def write_synthetic(
    path: Path, number: int, *, seed: int, tasks: Sequence[str] = (), on_document: Callable[[float], None] | None = None
) -> dict[str, int]:
    """Writes documents as JSON lines, under a temporary name until they are whole, and returns how many there are of each task.

    Args:
        path: The file; one that is there is replaced.
        number: As for `synthetic_documents`, like the next two.
        seed: Of everything that is drawn.
        tasks: Names.
        on_document: Called with 1 behind each document.

    Raises:
        ConfigError: As `synthetic_documents`.
    """
    counted: Counter[str] = Counter()

    def lines() -> Iterator[bytes]:
        for document in synthetic_documents(number, seed=seed, tasks=tasks):
            counted[document["task"]] += 1
            yield (json.dumps(document) + "\n").encode()
            if on_document is not None:
                on_document(1)

    write_file(path, lines())
    return dict(counted)


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
    pairs = tuple((_apart(n), labels[side]) for n, side in zip(numbers, sides, strict=True))
    return Episode(pairs, tuple(sorted(labels)))


def _position(number: int, rng: np.random.Generator) -> Episode:
    place = int(rng.integers(3))
    words = [_some(_WORDS, 3, rng) for _ in range(number)]
    return Episode(tuple((" ".join(three), three[place]) for three in words), tuple(words[-1]))


def _pick_class(number: int, rng: np.random.Generator) -> Episode:
    wanted = _one(tuple(WORD_CLASSES), rng)
    others = tuple(name for name in WORD_CLASSES if name != wanted)
    pairs, words = [], [""]
    for _ in range(number):
        words = [_one(WORD_CLASSES[name], rng) for name in (wanted, *_some(others, 2, rng))]
        answer = words[0]
        words = _some(words, 3, rng)
        pairs.append((" ".join(words), answer))
    return Episode(tuple(pairs), tuple(words))


def _on_letters(rule: Callable[[str], str]) -> Callable[[int, np.random.Generator], Episode]:
    """Returns what draws an episode of a rule on three to five letters."""

    def make(number: int, rng: np.random.Generator) -> Episode:
        strings = [_letters(int(rng.integers(3, 6)), rng) for _ in range(number)]
        return Episode(tuple((_apart(s), _apart(rule(s))) for s in strings))

    return make


def _shift(number: int, rng: np.random.Generator) -> Episode:
    offset = int(rng.integers(1, 6))
    onto = str.maketrans(_LETTERS, _LETTERS[offset:] + _LETTERS[:offset])
    strings = [_letters(2, rng) for _ in range(number)]
    return Episode(tuple((_apart(s), _apart(s.translate(onto))) for s in strings))


def _add_constant(number: int, rng: np.random.Generator) -> Episode:
    constant = int(rng.integers(1, 10))
    return Episode(tuple((_apart(n), _apart(n + constant)) for n in rng.integers(0, 90, size=number).tolist()))


def _addition(number: int, rng: np.random.Generator) -> Episode:
    numbers = rng.integers(0, 50, size=(number, 2)).tolist()
    return Episode(tuple((f"{_apart(a)} + {_apart(b)}", _apart(a + b)) for a, b in numbers))


def _unscramble(number: int, rng: np.random.Generator) -> Episode:
    words = [_one(_SHORT_WORDS, rng) for _ in range(number)]
    return Episode(tuple((" ".join(_some(word, len(word), rng)), word) for word in words))


def _apart(text: str | int) -> str:
    """Returns the letters or digits of something with spaces between them."""
    return " ".join(str(text))


def _letters(number: int, rng: np.random.Generator) -> str:
    return "".join(_LETTERS[i] for i in rng.integers(len(_LETTERS), size=number).tolist())


def _one(items: Sequence[str], rng: np.random.Generator) -> str:
    return items[int(rng.integers(len(items)))]


def _some(items: Sequence[str], number: int, rng: np.random.Generator) -> list[str]:
    """Returns some of the items in random order, none twice."""
    return [items[i] for i in rng.permutation(len(items))[:number].tolist()]


SYNTHETIC_TASKS: dict[str, SyntheticTask] = {
    task.name: task
    for task in (
        SyntheticTask("association", "a word -> the letter that it goes with in this episode, of four", _association, 4),
        SyntheticTask("label_by_class", "a word -> one of two letters, by what the word names", _label_by_class, 2),
        SyntheticTask("threshold", "a number below 100 -> one of two letters, by a border drawn", _threshold, 2),
        SyntheticTask("position", "three words -> the first, second or third of them, in each pair the same", _position, 3),
        SyntheticTask("pick_class", "three words -> the one that names an animal, or a colour, or ...", _pick_class, 3),
        SyntheticTask("copy", "three to five letters -> the same", _on_letters(lambda s: s)),
        SyntheticTask("reverse", "three to five letters -> from the last to the first", _on_letters(lambda s: s[::-1])),
        SyntheticTask("sort", "three to five letters -> in the order of the alphabet", _on_letters(lambda s: "".join(sorted(s)))),
        SyntheticTask("shift", "two letters -> those one to five places on in the alphabet, z before a", _shift),
        SyntheticTask("add_constant", "a number below 90 -> that number plus 1 to 9, in each pair the same", _add_constant),
        SyntheticTask("addition", "two numbers below 50 -> their sum; nothing is drawn but the numbers", _addition),
        SyntheticTask("unscramble", "the letters of a common word, mixed -> the word; no rule is drawn", _unscramble),
    )
}  # fmt: skip
"""Name -> task, in the order in which documents take turns. Chance is 1/4, 1/2, 1/2, 1/3 and 1/3 for the first five, and 0 for free
text. Copy, reverse, sort and shift take the same inputs, so that only examples say which of them is meant."""
