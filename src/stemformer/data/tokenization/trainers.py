"""Text to ids and back: train, load, save and apply a WordPiece vocabulary or a byte-level BPE.

The work is done by the `tokenizers` library; this file adds three things to it.

*Speed.* The ids of a word depend on that word alone, so a text is cut into chunks at places where BERT always cuts, and
each different chunk goes through the library once.
*Plain text stays plain.* The characters `[MASK]` in a corpus are three words, not the special token, unless asked for.
*Repeatable training*, in `wordpiece.py`.
"""

import heapq
import json
from collections.abc import Callable, Iterable, Iterator

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from stemformer.data.tokenization.tokenizer import END_OF_TEXT, Tokenizer, bert_backend
from stemformer.data.tokenization.wordpiece import count_words, learn_vocabulary, sample_texts
from stemformer.errors import TokenizerError


def train_wordpiece(
    texts: Iterable[str],
    *,
    vocab_size: int,
    lowercase: bool = False,
    strip_accents: bool | None = None,
    min_frequency: int = 2,
    seed: int = 0,
    max_characters: int = 100_000_000,
    on_text: Callable[[int], None] | None = None,
) -> Tokenizer:
    """Returns a WordPiece tokenizer learned from texts: the same bytes for the same texts, in any order, in every run.

    Ids 0 to 4 are [PAD] [UNK] [CLS] [SEP] [MASK], then come characters by frequency, their `##` forms, and merges. The
    rarest characters are left out (`ALPHABET_SHARES` in `wordpiece.py`); a word that holds one is [UNK].

    Args:
        texts: Documents or lines, read once.
        vocab_size: Number of ids. A small corpus may give fewer: see the result's `vocab_size`.
        lowercase: Lower-case the text first.
        strip_accents: Take accents off first; None does as `lowercase`.
        min_frequency: Pieces seen less often are not merged.
        seed: Key of the sample that is drawn where the texts are longer than `max_characters`.
        max_characters: Characters to learn from, which bounds memory. Texts, long ones in parts, are drawn at random in
            one pass, and what is drawn does not depend on their order.
        on_text: Called with the number of characters of each text that was read.

    Raises:
        TokenizerError: There is no text, or `vocab_size` cannot hold the most frequent characters.

    Example:
        >>> train_wordpiece(["to be or not to be"], vocab_size=24).tokens[:7]
        ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'o', 't']
    """
    vocab = learn_vocabulary(
        texts,
        normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents),
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        seed=seed,
        max_characters=max_characters,
        on_text=on_text,
    )
    return Tokenizer(bert_backend(vocab, {"lowercase": lowercase, "strip_accents": strip_accents}))


def train_byte_bpe(
    texts: Iterable[str],
    *,
    vocab_size: int,
    min_frequency: int = 2,
    seed: int = 0,
    max_characters: int = 100_000_000,
    on_text: Callable[[int], None] | None = None,
) -> Tokenizer:
    """Returns a byte-level BPE tokenizer, as GPT-2 has one, learned from texts: the same for the same texts, in any order, in every run.

    Id 0 is `<|endoftext|>`, then come the 256 bytes, then merges. Every text can be spelled, and decodes to itself.

    Args:
        texts: Documents or lines, read once.
        vocab_size: Number of ids, at least 257. A small corpus may give fewer: see the result's `vocab_size`.
        min_frequency: Pairs seen less often are not joined.
        seed: As for `train_wordpiece`, like the next two.
        max_characters: Characters to learn from.
        on_text: Called with the number of characters of each text that was read.

    Raises:
        TokenizerError: There is no text, or `vocab_size` cannot hold the bytes.

    Example:
        >>> tokenizer = train_byte_bpe(["to be or not to be"], vocab_size=260)
        >>> tokenizer.decode(tokenizer.encode("not to be 🙂").ids)
        'not to be 🙂'

    Source: Radford et al. 2019, section 2.2; Sennrich et al. 2016, section 3.2.
    """
    if vocab_size < _FEWEST_BPE_IDS:
        raise TokenizerError(
            f"vocab_size is {vocab_size}: expected at least {_FEWEST_BPE_IDS}, for 256 bytes and the end of a text"
        )
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    sampled = sample_texts(texts, seed=seed, max_characters=max_characters, on_text=on_text)
    num_texts = 0

    def counted() -> Iterator[str]:
        nonlocal num_texts
        for text in sampled:
            num_texts += bool(text.strip())
            yield text

    backend.train_from_iterator(counted(), trainer)
    if not num_texts:
        raise TokenizerError("no text to train a tokenizer on: give files that hold some")
    return Tokenizer(backend)


_FEWEST_BPE_IDS = 257


def extend_wordpiece(
    tokenizer: Tokenizer,
    texts: Iterable[str],
    *,
    vocab_size: int,
    min_frequency: int = 2,
    seed: int = 0,
    max_characters: int = 100_000_000,
    on_text: Callable[[int], None] | None = None,
) -> Tokenizer:
    """Returns a WordPiece tokenizer with whole words of other texts added; the ids that there were stay.

    Added are the words that the texts become shorter by most: those with the largest count x (pieces - 1), one that was [UNK]
    counted as two pieces. Ties go by the word.

    Args:
        tokenizer: Its normalizer and vocabulary are kept.
        texts: Of the new domain or language, read once.
        vocab_size: Number of ids at most, the old ones included.
        min_frequency: Words seen less often are not added.
        seed: As for `train_wordpiece`, like the next two.
        max_characters: Characters to count words in.
        on_text: Called with the number of characters of each text that was read.

    Raises:
        TokenizerError: Not a WordPiece of BERT, a `vocab_size` without room, or no text.

    Example:
        >>> tokenizer = train_wordpiece(["to be or not to be"], vocab_size=24)
        >>> extend_wordpiece(tokenizer, ["not robots", "no robots"], vocab_size=18).tokens[17]
        'robots'

    Source: the choice by tokens saved: Hong et al. 2021 (AVocaDo), section 3.1, without its regularisation.
    """
    if not tokenizer._bert_normalizer or tokenizer.kind != "wordpiece":
        raise TokenizerError("only a WordPiece vocabulary with BERT's normalizer can be extended: train a new one")
    if vocab_size <= tokenizer.vocab_size:
        raise TokenizerError(
            f"vocab_size is {vocab_size:,}, the vocabulary has {tokenizer.vocab_size:,} ids already: expected more"
        )
    settings = json.loads(tokenizer._backend.to_str())
    normalizer = tokenizer._backend.normalizer
    words = count_words(texts, normalizer, seed=seed, max_characters=max_characters, on_text=on_text)
    model = tokenizer._backend.model
    vocab = settings["model"]["vocab"]
    gains = {
        word: count * max(1, len(model.tokenize(word)) - 1)
        for word, count in words.items()
        if count >= min_frequency and word not in vocab
    }
    room = vocab_size - tokenizer.vocab_size
    added = heapq.nsmallest(room, gains, key=lambda word: (-gains[word], word))
    vocab.update((word, tokenizer.vocab_size + number) for number, word in enumerate(added))
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(settings)))
