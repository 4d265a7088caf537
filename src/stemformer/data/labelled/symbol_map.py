"""Symbol maps: replace symbols, such as bases of DNA, by words of a model's vocabulary."""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from stemformer.data.text.files import read_text
from stemformer.errors import DataError
from stemformer.progress import format_count

ANY_SYMBOL = "*"
MAX_LISTED_SYMBOLS = 10


@dataclass(frozen=True)
class SymbolMap:
    """Map from runs of `size` symbols (k-mers) to words, that of `*` for all other runs.

    Case is ignored if the runs have one case only. The stride is the distance between the starts of
    runs: 1 for overlapping, `size` for adjacent runs.

    Example:
        >>> SymbolMap({"A": "apple", "C": "river", "*": "stone"}).apply("acN")
        'apple river stone'
    """

    words: dict[str, str]
    size: int = 1
    stride: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= self.size:
            raise DataError(f"Symbol map: The stride is {self.stride}, expected 1 to {self.size}, the size.")
        runs = [run for run in self.words if run != ANY_SYMBOL]
        if not runs:
            raise DataError("Symbol map: It has no symbols. Expected at least one with its word.")
        for run, word in self.words.items():
            if run != ANY_SYMBOL and len(run) != self.size:
                raise DataError(f"Symbol map: {run!r} has {format_count(len(run), 'symbol')}, expected {self.size}.")
            if not word or word != " ".join(word.split()):
                raise DataError(f"Symbol map: The word for {run!r} is {word!r}, expected a single word.")
        word, number = Counter(self.words[run] for run in runs).most_common(1)[0]
        if number > 1:
            same = " and ".join(repr(run) for run in runs if self.words[run] == word)
            raise DataError(f"Symbol map: '{word}' is the word of {same}. Give each its own word.")

    @classmethod
    def draw(
        cls, alphabet: str, words: Iterable[str], *, size: int = 1, stride: int = 1, others: bool = False, seed: int = 0
    ) -> "SymbolMap":
        """Return a map from each run of `size` symbols to a random full word of a vocabulary.

        With `others`, runs with other symbols have a word, too.
        """
        symbols = list(dict.fromkeys(alphabet))
        usable = _full_words(list(words))
        if len(usable) < len(symbols) ** size + others:
            need = f"{len(symbols) ** size:,} runs of {size} symbols of {alphabet!r} need a word each"
            raise DataError(f"{need}, but the vocabulary has only {len(usable):,} whole words. Use a smaller size.")
        runs = ["".join(run) for run in itertools.product(symbols, repeat=size)] + [ANY_SYMBOL] * others
        chosen = np.random.Generator(np.random.Philox(seed)).choice(usable, size=len(runs), replace=False).tolist()
        return cls(dict(zip(runs, chosen, strict=True)), size, stride)

    @classmethod
    def load(cls, file: str | Path) -> "SymbolMap":
        """Load JSON (as saved, or with symbols as keys) or lines of symbol, tab and word."""
        text = read_text(str(file))
        settings: dict[str, Any] = {}
        words: dict[str, str] = {}
        if text.lstrip().startswith("{"):
            try:
                content = json.loads(text)
            except ValueError as error:
                raise DataError(f"{file}: Bad JSON ({error}). Expected an object from symbols to words.") from error
            settings = content if isinstance(content.get("words"), dict) else {"words": content}
            words = {str(run): str(word) for run, word in settings["words"].items()}
        else:
            for number, line in enumerate(text.split("\n"), 1):
                if not line.strip():
                    continue
                run, tab, word = line.partition("\t")
                if not tab or not run or run in words:
                    what = f"{run!r} is repeated" if tab and run in words else f"Found {line!r}"
                    raise DataError(
                        f"{file}:{number}: {what}. Expected a symbol, a tab and its word, each symbol once."
                    )
                words[run] = word.strip()
        longest = max((len(run) for run in words), default=1)
        try:
            return cls(words, int(settings.get("size", longest)), int(settings.get("stride", 1)))
        except DataError as error:
            raise DataError(f"{file}: {error}") from error

    def save(self, file: str | Path) -> None:
        """Save as JSON if the name ends in `.json`, else as lines of symbol, tab and word."""
        path = Path(file)
        if path.suffix == ".json":
            content = {"words": self.words, "size": self.size, "stride": self.stride}
            text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
        elif self.stride != 1:
            raise DataError(f"{path}: Lines of symbols and words cannot hold a stride of {self.stride}. Save as .json.")
        else:
            text = "".join(f"{run}\t{word}\n" for run, word in self.words.items())
        path.write_text(text, encoding="utf-8")

    def apply(self, text: str, *, location: str = "", counts: Counter[str] | None = None) -> str:
        """Return the words for the symbols of a text, separated by spaces; white space is ignored.

        With a stride above 1, symbols after the last complete run are ignored; `counts` receives
        their number, and that of unknown symbols, which become the word of `*`.
        """
        symbols, where = "".join(text.split()), f"{location}: " if location else ""
        if len(symbols) < self.size:
            number = format_count(len(symbols), "symbol")
            raise DataError(f"{where}Found {number}, but a word is for {self.size}. Remove the text.")
        runs = [symbols[i : i + self.size] for i in range(0, len(symbols) - self.size + 1, self.stride)]
        any_word = self.words.get(ANY_SYMBOL)
        found = [self._folded_words.get(self._fold(run)) for run in runs]
        unknown = Counter(run for run, word in zip(runs, found, strict=True) if word is None)
        if unknown and any_word is None:
            listed = ", ".join(f"{run!r} ({n:,} times)" for run, n in unknown.most_common(MAX_LISTED_SYMBOLS))
            more = " and others" if len(unknown) > MAX_LISTED_SYMBOLS else ""
            advice = "Add them, or one word for all others under '*'."
            raise DataError(f"{where}The symbol map has no word for {listed}{more}. {advice}")
        if counts is not None:
            counts.update(["unknown symbols"] * unknown.total())
            counts.update(["symbols behind the last run"] * ((len(symbols) - self.size) % self.stride))
        return " ".join(word or str(any_word) for word in found)

    @cached_property
    def _fold(self) -> Callable[[str], str]:
        letters = "".join(run for run in self.words if run != ANY_SYMBOL)
        return str.upper if letters in (letters.upper(), letters.lower()) else str

    @cached_property
    def _folded_words(self) -> dict[str, str]:
        return {self._fold(run): word for run, word in self.words.items() if run != ANY_SYMBOL}


def _full_words(vocabulary: Sequence[str]) -> list[str]:
    """Return the sorted words of letters: no pieces (`##ing`), no special tokens."""
    # With marks for spaces, of byte-level BPE or SentencePiece, words without a mark are pieces.
    for mark in ("Ġ", "▁"):
        marked = [word.removeprefix(mark) for word in vocabulary if word.startswith(mark)]
        if len(marked) > len(vocabulary) / 4:
            return sorted({word for word in marked if word.isalpha() and word.isascii()})
    return sorted({word for word in vocabulary if word.isalpha()})
