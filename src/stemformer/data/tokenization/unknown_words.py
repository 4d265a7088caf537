"""Words that a vocabulary cannot write, counted while text is encoded."""

import threading
from collections.abc import Sequence

import numpy as np
import tokenizers
from jaxtyping import Bool, Integer

# A larger share of unknown words is reported; normal text with a fitting vocabulary has less than 1 %.
_MAX_SHARE = 0.05
# Larger shares: much of the text is lost; hardly anything is left of it.
_MANY, _NEARLY_ALL = 0.25, 0.8
_MAX_SHOWN = 40
CANNOT_READ = "the model cannot read this text"
_FEW_ADVICE = "They are lost to the model; a vocabulary of such text would keep them."
_ADVICE = "Use a model whose vocabulary fits the text, or train a tokenizer and a model on such text."


class UnknownWords(threading.local):
    """Counts of words, and of those that became [UNK], in the texts that a tokenizer encoded; each thread has its own.

    If `drops_characters`, the vocabulary has no such token: characters that are in none of its tokens are left out, and
    these are counted.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        token_id: int | None,
        starts_word: Bool[np.ndarray, "V"],
        *,
        drops_characters: bool = False,
    ) -> None:
        self._backend, self._token_id, self._starts_word = backend, token_id, starts_word
        self._drops_characters = drops_characters and token_id is None
        self.clear()

    def clear(self) -> None:
        """Start counting anew."""
        self._num_words = self._num_unknown = 0
        self._example = ""

    def add(self, texts: Sequence[str], rows: Sequence[Integer[np.ndarray, "_"]]) -> None:
        """Count the words of texts by their ids."""
        if self._drops_characters:
            self._add_dropped(texts)
        if self._token_id is None or not rows:
            return
        ids = np.concatenate(rows)
        num_unknown = int(np.count_nonzero(ids == self._token_id))
        self._num_words += int(np.count_nonzero(self._starts_word[ids]))
        self._num_unknown += num_unknown
        if num_unknown and not self._example:
            text = next(text for text, row in zip(texts, rows, strict=True) if self._token_id in row)
            encoded = self._backend.encode(text, add_special_tokens=False)
            if self._token_id in encoded.ids:
                start, end = encoded.offsets[encoded.ids.index(self._token_id)]
                self._example = text[start:end]

    def _add_dropped(self, texts: Sequence[str]) -> None:
        for text, encoded in zip(texts, self._backend.encode_batch(texts, add_special_tokens=False), strict=True):
            is_dropped = np.array([not character.isspace() for character in text], dtype=bool)
            self._num_words += int(is_dropped.sum())
            for start, end in encoded.offsets:
                is_dropped[start:end] = False
            self._num_unknown += int(is_dropped.sum())
            if is_dropped.any() and not self._example:
                self._example = text[int(is_dropped.argmax())]

    def add_counts(self, counts: Integer[np.ndarray, "V"]) -> None:
        """Count tokens by their number for each id."""
        if self._token_id is not None:
            self._num_words += int(counts[self._starts_word[: len(counts)]].sum())
            self._num_unknown += int(counts[self._token_id])

    @property
    def share(self) -> float:
        """Share of the words that are unknown."""
        return self._num_unknown / max(1, self._num_words)

    @property
    def are_nearly_all(self) -> bool:
        """Whether hardly anything is left of the text."""
        return self.share > _NEARLY_ALL

    def note(self) -> str | None:
        """Return a note with the share of unknown words, an example and advice by the share; None if it is small."""
        if self.share <= _MAX_SHARE:
            return None
        fate = "left out" if self._token_id is None else self._backend.id_to_token(self._token_id)
        noun = "characters" if self._token_id is None else "tokens" if self._starts_word.all() else "words"
        example = f", such as {self._example[:_MAX_SHOWN]!r}" if self._example else ""
        share = f"{self.share:.0%} of the {noun} are {fate}{example}: the vocabulary cannot write them"
        if self.are_nearly_all:
            return f"{share}, so {CANNOT_READ}. {_ADVICE}"
        return f"{share}, so much of the text is lost. {_ADVICE}" if self.share > _MANY else f"{share}. {_FEW_ADVICE}"
