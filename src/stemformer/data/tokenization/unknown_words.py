"""Words that a vocabulary cannot write, counted while text is encoded."""

from collections.abc import Sequence

import numpy as np
import tokenizers
from jaxtyping import Bool, Integer

# A larger share of unknown words is reported; normal text with a fitting vocabulary has less than 1 %.
_MAX_SHARE = 0.05
_MAX_SHOWN = 40
CANNOT_WRITE = "the vocabulary cannot write them"


class UnknownWords:
    """Counts of words, and of those that became [UNK], in the texts that a tokenizer encoded."""

    def __init__(self, backend: tokenizers.Tokenizer, token_id: int | None, starts_word: Bool[np.ndarray, "V"]) -> None:
        self._backend, self._token_id, self._starts_word = backend, token_id, starts_word
        self.clear()

    def clear(self) -> None:
        """Start counting anew."""
        self._num_words = self._num_unknown = 0
        self._example = ""

    def add(self, texts: Sequence[str], rows: Sequence[Integer[np.ndarray, "_"]]) -> None:
        """Count the words of texts by their ids."""
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

    def add_counts(self, counts: Integer[np.ndarray, "V"]) -> None:
        """Count tokens by their number for each id."""
        if self._token_id is not None:
            self._num_words += int(counts[self._starts_word[: len(counts)]].sum())
            self._num_unknown += int(counts[self._token_id])

    def note(self) -> str | None:
        """Return a note with the share of unknown words and an example; None if it is small."""
        if self._token_id is None or self._num_unknown <= _MAX_SHARE * self._num_words:
            return None
        token = self._backend.id_to_token(self._token_id)
        noun = "tokens" if self._starts_word.all() else "words"
        example = f", such as {self._example[:_MAX_SHOWN]!r}" if self._example else ""
        share = f"{self._num_unknown / self._num_words:.0%} of the {noun} are {token}{example}: {CANNOT_WRITE}"
        return f"{share}. Use a model whose vocabulary fits the text, or train a tokenizer and a model on such text."
