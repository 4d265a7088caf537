"""Learns a WordPiece vocabulary from texts, the same in every run.

The trainer of the `tokenizers` library numbers characters in the order of a hash map, and ties between merges go by
those numbers. So words and characters are counted here, characters are sorted by (-count, code point), and the trainer
gets them and their `##` forms as tokens whose ids are fixed before it starts.

Source: the merges are those of Sennrich et al. 2016 (section 3.2) as the library does them; the 2018 code of BERT does
not contain its training.
"""

import hashlib
import heapq
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from stemformer.errors import TokenizerError

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PREFIX = "##"
MAX_WORD_CHARACTERS = 100  # longer words are [UNK], as in the 2018 code

# Characters that make up this share of the text may take up to this part of the vocabulary, most frequent first.
ALPHABET_SHARES = ((0.90, 1.0), (0.999, 0.75), (0.9999, 0.5))

# Characters at which BERT cuts whatever stands beside them. A subset is enough: the rest is left to the library.
_SPACES = r" \t\n\r\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_PUNCTUATION = (
    r"!-/:-@\[-`{-~\u2013\u2014\u2018\u2019\u201c\u201d\u2026\u3001\u3002\u3008-\u3011"
    r"\uff01-\uff03\uff05-\uff0a\uff0c-\uff0f\uff1a\uff1b\uff1f"
)
_IDEOGRAPHS = r"\u3400-\u4dbf\u4e00-\u9fff"
_SURROGATES = re.compile("[\ud800-\udfff]")
_PART_CHARACTERS = 100_000


def learn_vocabulary(
    texts: Iterable[str],
    normalizer: Any,
    *,
    vocab_size: int,
    min_frequency: int,
    seed: int,
    max_characters: int,
    on_text: Callable[[int], None] | None,
) -> dict[str, int]:
    """Returns token -> id, by id: special tokens, characters, their `##` forms, merges.

    Args:
        texts: Documents or lines, read once.
        normalizer: A BertNormalizer of the library that handles ideographs one by one.
        vocab_size: At most so many ids.
        min_frequency: Pieces seen less often are not merged.
        seed: Key of the sample.
        max_characters: Size of the sample.
        on_text: Called with the number of characters of each text that was read.

    Raises:
        TokenizerError: There is no text, or `vocab_size` cannot hold the most frequent characters.
    """
    words = count_words(texts, normalizer, seed=seed, max_characters=max_characters, on_text=on_text)
    alphabet = _choose_alphabet(words, vocab_size)
    return _merge(words, alphabet, vocab_size=vocab_size, min_frequency=min_frequency)


def count_words(
    texts: Iterable[str],
    normalizer: Any,
    *,
    seed: int,
    max_characters: int,
    on_text: Callable[[int], None] | None,
) -> Counter[str]:
    """Returns how often each normalized word occurs in a sample of texts; the arguments are those of `learn_vocabulary`.

    Raises:
        TokenizerError: There is no word.
    """
    chunks: Counter[str] = Counter()
    pattern = chunk_pattern(ideographs=True)
    for text in sample_texts(texts, seed=seed, max_characters=max_characters, on_text=on_text):
        chunks.update(pattern.findall(text))
    words = _count_words(chunks, normalizer)
    if not words:
        raise TokenizerError(
            "no words to train a tokenizer on: expected text in words of at most 100 characters; part longer runs (DNA, say) by spaces"
        )
    return words


def chunk_pattern(*, ideographs: bool) -> re.Pattern[str]:
    """Returns what finds pieces of raw text that BERT normalizes and splits without regard to their neighbours.

    A piece is one punctuation mark or ideograph, or a run of anything else but white space; it holds one word or more.

    Args:
        ideographs: Whether the normalizer sets ideographs apart.
    """
    cuts = _PUNCTUATION + (_IDEOGRAPHS if ideographs else "")
    return re.compile(f"[{cuts}]|[^{_SPACES}{cuts}]+")


def replace_surrogates(text: str) -> str:
    """Returns the text with lone surrogates, which UTF-8 cannot hold, as U+FFFD. BERT deletes both alike."""
    return text if text.isascii() else _SURROGATES.sub("\ufffd", text)


def sample_texts(
    texts: Iterable[str], *, seed: int, max_characters: int, on_text: Callable[[int], None] | None
) -> Iterator[str]:
    """Yields texts by their keyed hashes while they fit, whatever order they came in; never holds more than that.

    Args:
        texts: Documents or lines, read once; long ones are taken in parts.
        seed: Key of the hashes.
        max_characters: Of all that is yielded.
        on_text: Called with the number of characters of each text that was read.
    """
    key = seed.to_bytes(8, "little", signed=True)
    size = max(1, min(_PART_CHARACTERS, max_characters // 10))
    kept: list[tuple[int, str]] = []  # a heap, the largest hash on top
    total, refused_from = 0, 1 << 128
    for text in texts:
        if on_text is not None:
            on_text(len(text))
        for part in _parts(replace_surrogates(text), size):
            number = int.from_bytes(hashlib.blake2b(part.encode(), digest_size=16, key=key).digest(), "little")
            if number >= refused_from:
                continue
            heapq.heappush(kept, (-number, part))
            total += len(part)
            while total > max_characters:
                negative, dropped = heapq.heappop(kept)
                refused_from = -negative  # in hash order nothing behind it fits either
                total -= len(dropped)
    yield from (part for _, part in sorted(kept, reverse=True))


def _parts(text: str, size: int) -> Iterator[str]:
    """Yields the text in parts of at most `size` characters, cut behind a line, else at a space, else anywhere."""
    begin = 0
    while len(text) - begin > size:
        line, space = text.rfind("\n", begin, begin + size), text.rfind(" ", begin, begin + size)
        end = (line if line >= 0 else space) + 1 or begin + size
        yield text[begin:end]
        begin = end
    yield text[begin:]


def _count_words(chunks: Counter[str], normalizer: Any) -> Counter[str]:
    splitter = pre_tokenizers.BertPreTokenizer()
    words: Counter[str] = Counter()
    for chunk, count in chunks.items():
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(chunk)):
            if len(word) <= MAX_WORD_CHARACTERS:
                words[word] += count
    return words


def _choose_alphabet(words: Counter[str], vocab_size: int) -> list[str]:
    """Returns the characters to keep by (-count, code point), then the `##` forms of those seen inside a word."""
    counts: Counter[str] = Counter()
    inside: set[str] = set()
    for word, count in words.items():
        inside.update(word[1:])
        for character in word:
            counts[character] += count
    ordered = sorted(counts, key=lambda character: (-counts[character], character))
    total, covered, entries, kept = counts.total(), 0, len(SPECIAL_TOKENS), 0
    for character in ordered:
        part = next((part for share, part in ALPHABET_SHARES if covered < share * total), 0.0)
        entries += 1 + (character in inside)
        if entries > part * vocab_size:
            break
        covered += counts[character]
        kept += 1
    if covered < ALPHABET_SHARES[0][0] * total:
        raise TokenizerError(
            f"vocab_size {vocab_size} holds the characters of {covered / total:.0%} of the text: expected at least "
            f"{ALPHABET_SHARES[0][0]:.0%}; give a larger vocab_size"
        )
    return ordered[:kept] + [PREFIX + character for character in ordered[:kept] if character in inside]


def _merge(words: Counter[str], alphabet: Sequence[str], *, vocab_size: int, min_frequency: int) -> dict[str, int]:
    """Returns token -> id. The alphabet goes in as special tokens: so its ids, which settle ties, are its positions."""
    characters = [token for token in alphabet if not token.startswith(PREFIX)]
    known = frozenset(characters)
    scratch = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    scratch.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        show_progress=False,
        special_tokens=[*SPECIAL_TOKENS, *alphabet],
        initial_alphabet=characters,
        limit_alphabet=len(characters),
    )
    scratch.train_from_iterator(_repeated(word for word in sorted(words.items()) if known.issuperset(word[0])), trainer)
    vocab: dict[str, int] = scratch.get_vocab(with_added_tokens=True)
    return dict(sorted(vocab.items(), key=lambda entry: entry[1]))


def _repeated(counts: Iterable[tuple[str, int]], most: int = 1000) -> Iterator[str]:
    """Yields each word as often as it was counted: the library takes text, not counts."""
    for word, count in counts:
        for done in range(0, count, most):
            yield f"{word} " * min(most, count - done)
