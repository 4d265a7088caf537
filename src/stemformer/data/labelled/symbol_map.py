"""Sequences of symbols, such as DNA: FASTA files, and maps that put a word of a model's vocabulary for each symbol."""

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from stemformer.data.text.files import read_text
from stemformer.errors import DataError

FASTA_SUFFIXES = (".fasta", ".fa", ".fna", ".faa", ".ffn")


ANY_SYMBOL = "*"


SPACE_MARKS = ("Ġ", "▁")  # of byte-level BPE and of SentencePiece


MOST_TOLD = 10


FREQUENT = 0.001  # a share of all symbols; in DNA, letters for uncertain bases (N, R, Y ...) are below


@dataclass(frozen=True)
class SymbolMap:
    """Which word stands for each symbol or, if `size` is more than one, for each run of so many symbols.

    Args:
        words: From runs of `size` symbols to words. The word of `*` stands for every run that is not there. Where the runs
            are all of capital letters, small letters count as those (and the other way round).
        size: How many symbols a word stands for.
        stride: How many symbols on the next run begins: 1 for overlapping runs, `size` for runs side by side.

    Raises:
        DataError: No words, runs of another length than `size`, an empty word, one word for two runs, or a stride that
            leaves symbols out.

    Example:
        >>> SymbolMap({"A": "apple", "C": "river", "*": "stone"}).apply("acN")
        'apple river stone'
    """

    words: dict[str, str]
    size: int = 1
    stride: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= self.size:
            raise DataError(f"symbol map: stride {self.stride}, expected one from 1 to the size, {self.size}")
        runs = [run for run in self.words if run != ANY_SYMBOL]
        if not runs:
            raise DataError("symbol map: there are no symbols in it: expected one with its word at least")
        for run, word in self.words.items():
            if run != ANY_SYMBOL and len(run) != self.size:
                raise DataError(f"symbol map: {run!r} has {len(run)} symbols, expected {self.size}")
            if not word or word != " ".join(word.split()):
                raise DataError(f"symbol map: the word for {run!r} is {word!r}, expected a word")
        twice = [word for word, number in Counter(self.words[run] for run in runs).items() if number > 1]
        if twice:
            raise DataError(
                f"symbol map: '{twice[0]}' stands for {_listed(runs, self.words, twice[0])}: give each its own word"
            )

    @classmethod
    def draw(
        cls,
        alphabet: str,
        vocabulary_words: Iterable[str],
        *,
        size: int = 1,
        stride: int = 1,
        others: bool = False,
        seed: int = 0,
    ) -> "SymbolMap":
        """Returns a map with a word of a vocabulary, drawn at random, for each run of `size` symbols.

        Args:
            alphabet: The symbols, as "ACGT".
            vocabulary_words: Those of the model; only whole words of letters are drawn, neither pieces such as `##ing` nor
                tokens such as `[MASK]`. Where most have a mark for the space before a word (`Ġsun`), those without are pieces.
            size: How many symbols a word stands for.
            stride: As of the map.
            others: Draw a word for all runs with other symbols too.
            seed: Of the draw.

        Raises:
            DataError: The vocabulary has too few words.

        Example:
            >>> SymbolMap.draw("AC", ["[CLS]", "sun", "##s", "sea"], seed=1).words
            {'A': 'sun', 'C': 'sea'}
        """
        symbols = list(dict.fromkeys(alphabet))
        usable = _whole_words(list(vocabulary_words))
        if len(usable) < len(symbols) ** size + others:
            raise DataError(
                f"{len(symbols) ** size:,} runs of {size} symbols of {alphabet!r} need a word each, but the vocabulary has"
                f" {len(usable):,} whole words: take a smaller size"
            )
        runs = ["".join(run) for run in itertools.product(symbols, repeat=size)] + [ANY_SYMBOL] * others
        chosen = np.random.Generator(np.random.Philox(seed)).choice(len(usable), size=len(runs), replace=False).tolist()
        return cls({run: usable[number] for run, number in zip(runs, chosen, strict=True)}, size, stride)

    @classmethod
    def load(cls, file: str | Path) -> "SymbolMap":
        """Returns the map of a file: JSON as `save` writes it or with symbols as keys, else a symbol, a tab and a word a line.

        Raises:
            DataError: A line or JSON of another form, or one symbol twice.
        """
        text = read_text(str(file))
        if text.lstrip().startswith("{"):
            try:
                told = json.loads(text)
            except ValueError as error:
                raise DataError(f"{file}: bad JSON ({error}): expected an object from symbols to words") from error
            settings = told if isinstance(told.get("words"), dict) else {"words": told}
            words = {str(run): str(word) for run, word in settings["words"].items()}
        else:
            settings, words = dict[str, Any](), dict[str, str]()
            for number, line in enumerate(text.split("\n"), 1):
                run, tab, word = line.partition("\t")
                if line.strip() and (not tab or not run or run in words):
                    what = f"{run!r} is there twice" if tab and run in words else f"found {line!r}"
                    raise DataError(f"{file}:{number}: {what}: expected a symbol, a tab and its word, each symbol once")
                if line.strip():
                    words[run] = word.strip()
        longest = max((len(run) for run in words), default=1)
        try:
            return cls(words, int(settings.get("size", longest)), int(settings.get("stride", 1)))
        except DataError as error:
            raise DataError(f"{file}: {error}") from error

    def save(self, file: str | Path) -> None:
        """Writes the map: as JSON if the name ends in `.json`, else a symbol, a tab and a word a line.

        Raises:
            DataError: The lines could not tell the stride.
        """
        path = Path(file)
        if path.suffix == ".json":
            told = {"words": self.words, "size": self.size, "stride": self.stride}
            path.write_text(json.dumps(told, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        elif self.stride != 1:
            raise DataError(
                f"{path}: lines of symbols and words cannot tell a stride of {self.stride}: save it as .json"
            )
        else:
            lines = (f"{run}\t{word}\n" for run, word in self.words.items())
            path.write_text("".join(lines), encoding="utf-8")

    def apply(self, text: str, *, place: str = "", counted: Counter[str] | None = None) -> str:
        """Returns the words for the symbols of a text, divided by spaces; white space in the text is passed over.

        With a stride of more than 1, symbols behind the last whole run are left out.

        Args:
            text: The symbols.
            place: Where they are from, for messages.
            counted: Receives "unknown symbols", for which the word of `*` was put, and "symbols behind the last run".

        Raises:
            DataError: Symbols that are not in the map, if `*` is not; or fewer symbols than a word stands for.
        """
        symbols = "".join(text.split())
        where = f"{place}: " if place else ""
        if len(symbols) < self.size:
            raise DataError(f"{where}{len(symbols)} symbols, but a word stands for {self.size}: leave the text out")
        runs = [symbols[at : at + self.size] for at in range(0, len(symbols) - self.size + 1, self.stride)]
        any_word = self.words.get(ANY_SYMBOL)
        found = [self._folded.get(self._fold(run)) for run in runs]
        unknown = Counter(run for run, word in zip(runs, found, strict=True) if word is None)
        if unknown and any_word is None:
            told = ", ".join(f"{run!r} ({number:,} times)" for run, number in unknown.most_common(MOST_TOLD))
            raise DataError(
                f"{where}the symbol map has no word for {told}{' and others' if len(unknown) > MOST_TOLD else ''}:"
                " add them to the map, or one word for all others under '*'"
            )
        if counted is not None:
            counted.update(["unknown symbols"] * unknown.total())
            counted.update(["symbols behind the last run"] * ((len(symbols) - self.size) % self.stride))
        return " ".join(word or str(any_word) for word in found)

    @cached_property
    def _has_one_case(self) -> bool:
        letters = "".join(run for run in self.words if run != ANY_SYMBOL)
        return letters in (letters.upper(), letters.lower())

    @cached_property
    def _folded(self) -> dict[str, str]:
        return {self._fold(run): word for run, word in self.words.items() if run != ANY_SYMBOL}

    def _fold(self, run: str) -> str:
        return run.upper() if self._has_one_case else run


def _whole_words(vocabulary: Sequence[str]) -> list[str]:
    """Returns the words of a vocabulary that stand for themselves, sorted."""
    for mark in SPACE_MARKS:
        marked = [word.removeprefix(mark) for word in vocabulary if word.startswith(mark)]
        if len(marked) > len(vocabulary) / 4:
            return sorted({word for word in marked if word.isalpha() and word.isascii()})
    return sorted({word for word in vocabulary if word.isalpha()})


def _listed(runs: Iterable[str], words: dict[str, str], word: str) -> str:
    return " and ".join(repr(run) for run in runs if words[run] == word)
