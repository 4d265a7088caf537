"""Training of WordPiece and byte-level BPE tokenizers, independent of the order of texts.

Source: Sennrich et al. 2016, section 3.2 (merges, as the library implements them); the 2018 code of
BERT does not contain its training.
"""

import hashlib
import heapq
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, Literal

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from stemformer.data.tokenization.tokenizer import (
    BART_SPECIAL_TOKENS,
    END_OF_TEXT,
    LANGUAGE,
    MAX_WORD_CHARACTERS,
    SENTINEL,
    SPECIAL_TOKENS,
    SUBWORD_PREFIX,
    Tokenizer,
    bert_backend,
    chunk_pattern,
    plain_code,
    replace_surrogates,
)
from stemformer.errors import TokenizerError
from stemformer.progress import format_list

# Characters that cover this share of the text, most frequent first, may take this part of the ids.
_ALPHABET_SHARES = ((0.90, 1.0), (0.999, 0.75), (0.9999, 0.5))
_MAX_PART_CHARACTERS = 100_000
# Scripts whose combining marks are accents; "" is ASCII. Marks per letter of others from which a note says that they
# are removed, and the number of characters that are counted.
_ACCENTED_SCRIPTS, _MIN_NOTED_MARKS, _NUM_NOTED_CHARACTERS = ("", "LATIN", "GREEK", "CYRILLIC"), 0.01, 10**6
# Such as en, en_XX, eng_Latn and zh-Hans.
_LANGUAGE_CODE = re.compile("[A-Za-z]{2,3}([_-][A-Za-z]{2,4})?")
_NO_TEXT = "The text to train a tokenizer on is empty. Pass files that contain text."


def train_wordpiece(
    texts: Iterable[str],
    *,
    vocab_size: int,
    lowercase: bool = False,
    strip_accents: bool | None = None,
    min_frequency: int = 2,
    on_note: Callable[[str], None] | None = None,
    **sampling: Any,
) -> Tokenizer:
    """Train a WordPiece tokenizer.

    Ids 0 to 4 are [PAD] [UNK] [CLS] [SEP] [MASK], followed by characters by frequency, their `##`
    forms, and merges. The rarest characters are left out; a word that has one is [UNK].

    Args:
        vocab_size: Number of ids. A small corpus may yield fewer.
        strip_accents: None means the value of `lowercase`.
        min_frequency: Minimum count of a merge.
        on_note: Called with a note if stripping accents removes vowels or tones.
        sampling: Arguments of `sample_texts`.
    """
    normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)
    sample = sample_texts(texts, **sampling)
    words = _count_words(sample, normalizer)
    removes_marks = lowercase if strip_accents is None else strip_accents
    if on_note is not None and removes_marks and (note := _note_marks(sample)):
        on_note(note)
    vocab = _train_merges(words, vocab_size=vocab_size, min_frequency=min_frequency)
    return Tokenizer(bert_backend(vocab, {"lowercase": lowercase, "strip_accents": strip_accents}))


def extend_wordpiece(
    tokenizer: Tokenizer, texts: Iterable[str], *, vocab_size: int, min_frequency: int = 2, **sampling: Any
) -> Tokenizer:
    """Add full words of other texts to a WordPiece tokenizer; existing ids are kept.

    Words are added by the number of tokens that they save: count x (pieces - 1), where [UNK] counts
    as two pieces. `vocab_size` includes the existing ids. Source: Hong et al. 2021 (AVocaDo),
    section 3.1, without its regularization.
    """
    if not tokenizer._bert_normalizer or tokenizer.kind != "wordpiece":
        raise TokenizerError("Only a WordPiece vocabulary with BERT's normalizer can be extended. Train a new one.")
    old_size = tokenizer.vocab_size
    if vocab_size <= old_size:
        raise TokenizerError(f"vocab_size is {vocab_size:,}: expected more than the {old_size:,} existing ids.")
    settings = json.loads(tokenizer._backend.to_str())
    normalizer, model = tokenizer._backend.normalizer, tokenizer._backend.model
    words = _count_words(sample_texts(texts, **sampling), normalizer)
    vocab = settings["model"]["vocab"]
    savings = {
        word: count * max(1, len(model.tokenize(word)) - 1)
        for word, count in words.items()
        if count >= min_frequency and word not in vocab
    }
    added = heapq.nsmallest(vocab_size - old_size, savings, key=lambda word: (-savings[word], word))
    vocab.update((word, old_size + number) for number, word in enumerate(added))
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(settings)))


def train_byte_bpe(
    texts: Iterable[str],
    *,
    vocab_size: int,
    special_tokens: Literal["gpt", "bart"] = "gpt",
    num_sentinels: int = 0,
    languages: Sequence[str] = (),
    min_frequency: int = 2,
    **sampling: Any,
) -> Tokenizer:
    """Train a byte-level BPE tokenizer as in GPT-2 or BART.

    The first ids are those of special tokens, followed by the 256 bytes and the merges. Every text decodes to itself.
    The other arguments are those of `train_wordpiece`. Source: Radford et al. 2019, section 2.2.

    Args:
        special_tokens: `<|endoftext|>` alone, or those of `bart_special_tokens`.
    """
    bart = bart_special_tokens(num_sentinels, languages)
    special = bart if special_tokens == "bart" else (END_OF_TEXT,)
    if vocab_size < (fewest := 256 + len(special)):
        names = format_list(special, len(BART_SPECIAL_TOKENS))
        raise TokenizerError(f"vocab_size is {vocab_size}: expected at least {fewest}, for 256 bytes and {names}.")
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        # As in RoBERTa and BART, a mask takes the space before it; so does a sentinel.
        special_tokens=[
            AddedToken(token, lstrip=token == "<mask>" or token.startswith("<extra_id_"), special=True)
            for token in special
        ],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    sample = sample_texts(texts, **sampling)
    if not any(text.strip() for text in sample):
        raise TokenizerError(_NO_TEXT)
    backend.train_from_iterator(sample, trainer)
    if special_tokens == "bart":
        ids = [("<s>", backend.token_to_id("<s>")), ("</s>", backend.token_to_id("</s>"))]
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=ids
        )
    return Tokenizer(backend)


def bart_special_tokens(num_sentinels: int = 0, languages: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the special tokens of BART, then sentinels as those of T5, then languages, in the order of their ids.

    Raises:
        TokenizerError: A negative number, or a language that is no code or occurs twice.
    """
    if num_sentinels < 0:
        raise TokenizerError(f"The number of sentinels is {num_sentinels}: expected 0 or more, 100 in T5.")
    for code in languages:
        check_language(code)
    if twice := next((code for code, number in Counter(map(plain_code, languages)).items() if number > 1), None):
        raise TokenizerError(f"Language {twice!r} occurs twice. Remove one of them.")
    return (*BART_SPECIAL_TOKENS, *map(SENTINEL.format, range(num_sentinels)), *map(LANGUAGE.format, languages))


def check_language(code: str) -> None:
    """Raise TokenizerError if a language is no code."""
    if not _LANGUAGE_CODE.fullmatch(code):
        raise TokenizerError(f"Language {code!r} is no code: expected one such as en, en_XX or eng_Latn.")


def sample_texts(
    texts: Iterable[str], *, seed: int = 0, max_characters: int = 10**8, on_text: Callable[[int], None] | None = None
) -> list[str]:
    """Return a random sample of texts that does not depend on their order.

    Texts, in parts if they are long, are taken by ascending keyed hash while they fit into
    `max_characters`, which bounds memory. `on_text` is called with the length of each text.
    """
    key = seed.to_bytes(8, "little", signed=True)
    size = max(1, min(_MAX_PART_CHARACTERS, max_characters // 10))
    # Heap with the largest hash on top.
    kept: list[tuple[int, str]] = []
    total, limit = 0, 1 << 128
    for text in texts:
        if on_text is not None:
            on_text(len(text))
        for part in _parts(replace_surrogates(text), size):
            number = int.from_bytes(hashlib.blake2b(part.encode(), digest_size=16, key=key).digest(), "little")
            if number >= limit:
                continue
            heapq.heappush(kept, (-number, part))
            total += len(part)
            while total > max_characters:
                negative, dropped = heapq.heappop(kept)
                limit = -negative
                total -= len(dropped)
    return [part for _, part in sorted(kept, reverse=True)]


def _parts(text: str, size: int) -> Iterator[str]:
    """Split a text into parts of at most `size` characters, if possible after a newline."""
    start = 0
    while len(text) - start > size:
        line, space = text.rfind("\n", start, start + size), text.rfind(" ", start, start + size)
        end = (line if line >= 0 else space) + 1 or start + size
        yield text[start:end]
        start = end
    yield text[start:]


def _count_words(sample: Iterable[str], normalizer: Any) -> Counter[str]:
    pattern = chunk_pattern(ideographs=True)
    chunks = Counter(chunk for text in sample for chunk in pattern.findall(text))
    # Each distinct chunk is normalized and split once.
    splitter = pre_tokenizers.BertPreTokenizer()
    words: Counter[str] = Counter()
    num_long = 0
    for chunk, count in chunks.items():
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(chunk)):
            if len(word) <= MAX_WORD_CHARACTERS:
                words[word] += count
            else:
                num_long += count
    if not words and num_long:
        problem = f"There are no words to train a tokenizer on, of at most {MAX_WORD_CHARACTERS} characters"
        raise TokenizerError(f"{problem}. Separate longer runs, such as DNA, by spaces.")
    if not words:
        raise TokenizerError(_NO_TEXT)
    return words


def _note_marks(sample: Iterable[str]) -> str | None:
    """Return a note if a normalizer that strips accents removes many marks of scripts where they are no accents."""
    text = "".join(islice(chain.from_iterable(sample), _NUM_NOTED_CHARACTERS))
    scripts: Counter[str] = Counter()
    num_letters, script = 0, ""
    for character in "" if text.isascii() else unicodedata.normalize("NFD", text):
        category = unicodedata.category(character)
        if category.startswith("L"):
            num_letters += 1
            script = "" if character.isascii() else unicodedata.name(character, "").partition(" ")[0]
        elif category == "Mn" and script not in _ACCENTED_SCRIPTS:
            scripts[script.title()] += 1
    if (share := scripts.total() / max(1, num_letters)) < _MIN_NOTED_MARKS:
        return None
    names = format_list([name for name, _ in scripts.most_common()], 3)
    lost = f"--lowercase also removes combining marks, which are vowels or tones in some scripts ({names})"
    return f"{lost}, {100 * share:.0f} per 100 letters. Train without --lowercase to keep them"


def _choose_characters(counts: Counter[str], inside: set[str], vocab_size: int) -> list[str]:
    """Return the most frequent characters, of which those `inside` words take two ids."""
    ordered = sorted(counts, key=lambda character: (-counts[character], character))
    total, covered, entries, kept = counts.total(), 0, len(SPECIAL_TOKENS), 0
    for character in ordered:
        part = next((part for share, part in _ALPHABET_SHARES if covered < share * total), 0.0)
        entries += 1 + (character in inside)
        if entries > part * vocab_size:
            break
        covered += counts[character]
        kept += 1
    if covered < (min_share := _ALPHABET_SHARES[0][0]) * total:
        problem = f"vocab_size {vocab_size} holds the characters of {covered / total:.0%} of the text"
        raise TokenizerError(f"{problem}, expected at least {min_share:.0%}. Use a larger vocab_size.")
    return ordered[:kept]


def _train_merges(words: Counter[str], *, vocab_size: int, min_frequency: int) -> dict[str, int]:
    """Return the vocabulary of characters, their `##` forms, and merges."""
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            counts[character] += count
    inside = {character for word in words for character in word[1:]}
    characters = _choose_characters(counts, inside, vocab_size)
    # The trainer breaks ties between merges by ids, which follow a hash map. As special tokens,
    # characters sorted by count have fixed ids.
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        show_progress=False,
        special_tokens=[*SPECIAL_TOKENS, *characters, *(SUBWORD_PREFIX + c for c in characters if c in inside)],
        initial_alphabet=characters,
        limit_alphabet=len(characters),
    )
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    known = frozenset(characters)
    # The library takes text, not counts: repeat each word, in batches that bound memory.
    repeated = (
        f"{word} " * min(1000, count - done)
        for word, count in sorted(words.items())
        if known.issuperset(word)
        for done in range(0, count, 1000)
    )
    backend.train_from_iterator(repeated, trainer)
    return backend.get_vocab(with_added_tokens=True)
