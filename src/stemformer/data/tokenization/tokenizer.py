"""WordPiece and byte-level BPE tokenization; `[MASK]` and the like in a text are plain text."""

import hashlib
import json
import re
import unicodedata
import warnings
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count, pairwise, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from stemformer.config import nearest
from stemformer.data.tokenization.unknown_words import UnknownWords
from stemformer.errors import TokenizerError

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# As in BART, in the order of their ids.
BART_SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
# A span of T5, by its number (`extra_ids` in transformers), and a language, by its code, as in M2M100.
SENTINEL, LANGUAGE = "<extra_id_{}>", "__{}__"
# As above, or as in mBART (`en_XX`).
_LANGUAGE_TOKEN = re.compile(LANGUAGE.format("(.+)") + "|([a-z]{2,3}_[A-Z]{2})")
# Classes of transformers that put the language after a text.
_FINAL_LANGUAGE_CLASSES = ("MBartTokenizer", "MBartTokenizerFast")
# Key of tokenizer_config.json for the same in what is saved here.
_FINAL_LANGUAGE_KEY = "has_final_language"
SUBWORD_PREFIX = "##"
END_OF_TEXT = "<|endoftext|>"
# Longer words become [UNK], as in the 2018 code.
MAX_WORD_CHARACTERS = 100
# Attributes that the library's part does not hold.
_STATE = ("bos_token_id", "prompt_prefix", "has_final_language", "lowercase_is_guess")
# Some tens of MB per process.
_MAX_CACHED_CHUNKS = 1 << 18
# Keys of tokenizer_config.json -> keys of the BertNormalizer in tokenizer.json.
_NORMALIZER_KEYS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}

# Characters at which BERT always splits. A subset suffices: the library handles the rest.
_SPACES = r" \t\n\r\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_PUNCTUATION = (
    r"!-/:-@\[-`{-~\u2013\u2014\u2018\u2019\u201c\u201d\u2026\u3001\u3002\u3008-\u3011"
    r"\uff01-\uff03\uff05-\uff0a\uff0c-\uff0f\uff1a\uff1b\uff1f"
)
_IDEOGRAPHS = r"\u3400-\u4dbf\u4e00-\u9fff"
_SURROGATES = re.compile("[\ud800-\udfff]")
# Entries such as [CLS] or <S> are no evidence of upper case.
_SPECIAL_ENTRY = re.compile(r"\[.*\]|<.*>")
# Vocabularies of lower-cased text may have a few other entries: fewer than one in this many.
_MIN_ENTRIES_PER_STRAY = 500


@dataclass(frozen=True)
class Encoding:
    """Tokens of one text, without special tokens."""

    ids: np.ndarray  # (n,) int64
    offsets: np.ndarray  # (n, 2) int64, start and end of each token in characters
    word_starts: np.ndarray  # (n,) bool


@dataclass(frozen=True)
class EncodedDocument:
    """Tokens of one document as they are stored, without special tokens."""

    ids: np.ndarray  # (n,) uint32
    word_starts: np.ndarray  # (n,) bool; as in BERT, punctuation starts a word
    # (k,) int64, strictly ascending token offsets, the first is 0 if n > 0. Sentences without a token have no entry.
    sentence_starts: np.ndarray


class _SpecialTokenId:
    """Attribute of a tokenizer: the id of a special token as BERT or BART spells it; raises if there is none."""

    def __init__(self, *tokens: str) -> None:
        self.tokens = tokens

    def __get__(self, tokenizer: "Tokenizer", owner: type) -> int:
        for token in self.tokens:
            if (token_id := tokenizer.token_to_id(token)) is not None:
                return token_id
        problem = f"This {tokenizer.kind} vocabulary has no {self.tokens[0]}, which BERT and BART need"
        advice = "Use a WordPiece vocabulary, or train one with --special-tokens bart"
        raise TokenizerError(f"{problem}. {advice}; or train a GPT or Llama.")


class Tokenizer:
    """Vocabulary and rules of tokenization; see `load_tokenizer` and `trainers.py`.

    Attributes:
        kind: "wordpiece", "bpe" or "unigram".
        vocab_size: Largest id + 1.
        lowercase: Whether text is lower-cased; None without a BERT normalizer.
        is_byte_level: Whether tokens are of bytes, with the space before a word in its first token.
        lowercase_is_guess: Whether only the entries of the vocabulary say so.
        bos_token_id: Id of the token before each text of a causal model; None for `[CLS] a [SEP]`.
        prompt_prefix: Ids before each prompt of a causal model; None for its end-of-text token.
        has_final_language: Whether the language comes after a text, as in mBART-cc25, not before it.
        unknown: Counts of words and of [UNK] in texts that were encoded; not in documents.
    """

    cls_token_id = _SpecialTokenId("[CLS]", "<s>")
    sep_token_id = _SpecialTokenId("[SEP]", "</s>")
    pad_token_id = _SpecialTokenId("[PAD]", "<pad>")
    mask_token_id = _SpecialTokenId("[MASK]", "<mask>")
    unk_token_id = _SpecialTokenId("[UNK]", "<unk>")

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        settings = json.loads(backend.to_str())
        model = settings["model"]
        if model["type"] not in ("WordPiece", "BPE", "Unigram"):
            expected = "expected WordPiece, BPE or Unigram"
            raise TokenizerError(f"The tokenizer has a {model['type']} model, {expected}. Retrain it.")
        self.kind: str = model["type"].lower()
        vocab = backend.get_vocab(with_added_tokens=True)
        if self.kind == "wordpiece":
            if missing := " ".join(token for token in SPECIAL_TOKENS if token not in vocab):
                raise TokenizerError(f"The vocabulary has no {missing}, which encoders need. Add it to the vocabulary.")
            # They have ids already; this makes the backend treat them as special.
            backend.add_special_tokens(list(SPECIAL_TOKENS))
        backend.no_truncation()
        backend.no_padding()
        # The library's name for treating special tokens in text as plain text.
        backend.encode_special_tokens = True
        self._backend = backend
        self.bos_token_id: int | None = None
        self.prompt_prefix: tuple[int, ...] | None = None
        self.has_final_language = False
        normalizer = settings["normalizer"] or {}
        self._bert_normalizer: dict[str, Any] = normalizer if normalizer.get("type") == "BertNormalizer" else {}
        self.lowercase: bool | None = self._bert_normalizer.get("lowercase")
        self.lowercase_is_guess = False
        self.vocab_size: int = max(vocab.values()) + 1
        names = {number: token for token, number in vocab.items()}
        self.tokens: list[str] = [names.get(number, "") for number in range(self.vocab_size)]
        self._starts_word = np.array([not token.startswith(SUBWORD_PREFIX) for token in self.tokens], dtype=bool)
        self.is_byte_level: bool = '"ByteLevel"' in json.dumps(settings["pre_tokenizer"])
        has_all_bytes = model.get("byte_fallback") or self.is_byte_level
        unk_id = model["unk_id"] if self.kind == "unigram" else vocab.get(model["unk_token"] or "")
        self.unknown = UnknownWords(backend, unk_id, self._starts_word, drops_characters=not has_all_bytes)
        added = backend.get_added_tokens_decoder()
        self.special_ids: frozenset[int] = frozenset(number for number, token in added.items() if token.special)
        # The ids of a chunk do not depend on its neighbors if all rules are those of BERT.
        self._chunk_pattern: re.Pattern[str] | None = None
        self._chunk_ids: dict[str, bytes] = {}
        splits_like_bert = (settings["pre_tokenizer"] or {}).get("type") == "BertPreTokenizer"
        has_bert_prefix = self.kind == "wordpiece" and model["continuing_subword_prefix"] == SUBWORD_PREFIX
        if self._bert_normalizer and splits_like_bert and has_bert_prefix and len(added) == len(self.special_ids):
            self._chunk_pattern = chunk_pattern(ideographs=normalizer["handle_chinese_chars"])

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as JSON: the library's pickling drops `encode_special_tokens`."""
        state = {name: getattr(self, name) for name in _STATE}
        return _from_json, (self._backend.to_str(),), state

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that determines ids."""
        settings = json.loads(self._backend.to_str())
        relevant = {name: settings[name] for name in ("model", "normalizer", "pre_tokenizer", "added_tokens")}
        return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()

    @cached_property
    def is_full_word(self) -> np.ndarray:
        """(V,) bool: tokens that may stand alone as a word: no `##ing`, special or unused entry."""
        is_named = np.array([bool(token) and not token.startswith("[unused") for token in self.tokens])
        starts_word = np.array([not token.startswith(SUBWORD_PREFIX) for token in self.shown_tokens], dtype=bool)
        return starts_word & is_named & ~np.isin(np.arange(self.vocab_size), list(self.special_ids))

    @cached_property
    def shown_tokens(self) -> list[str]:
        """Tokens as they are shown, continuations of words with `##`; byte-level ones as text, not as bytes."""
        if not self.is_byte_level:
            return self.tokens
        texts = [self._backend.decode([number], skip_special_tokens=False) for number in range(self.vocab_size)]
        is_special = [number in self.special_ids for number in range(self.vocab_size)]
        return [
            text if special else text[1:] if text[:1] == " " and len(text) > 1 else SUBWORD_PREFIX + text
            for text, special in zip(texts, is_special, strict=True)
        ]

    @cached_property
    def sentinel_ids(self) -> tuple[int, ...]:
        """Ids of `<extra_id_0>`, `<extra_id_1>` and so on, in this order."""
        found = (self.token_to_id(SENTINEL.format(number)) for number in count())
        return tuple(i for i in takewhile(self.special_ids.__contains__, found) if i is not None)

    @cached_property
    def language_ids(self) -> dict[str, int]:
        """Code of a language, such as `en` or `en_XX` -> id of its token, `__en__` or `en_XX`."""
        found = ((_LANGUAGE_TOKEN.fullmatch(self.tokens[number]), number) for number in sorted(self.special_ids))
        return {match[1] or match[2]: number for match, number in found if match}

    @property
    def requires_languages(self) -> bool:
        """Whether languages have tokens as in a published mBART, which has learned no text without them."""
        return any(self.tokens[number] == code for code, number in self.language_ids.items())

    def known_languages(self) -> dict[str, int]:
        """Return `language_ids`; raise TokenizerError if there are none, or where the model would read them elsewhere."""
        if self.has_final_language:
            problem = "The tokenizer is that of mBART-cc25, with the language after each text, which is not supported"
            raise TokenizerError(f"{problem}. Use an mBART-50, with the language before it.")
        if not self.language_ids:
            advice = "train-tokenizer --kind bpe --special-tokens bart --languages en,fr"
            raise TokenizerError(f"The tokenizer has no tokens of languages. Train one and a model with it: {advice}")
        return self.language_ids

    def language_id(self, code: str) -> int:
        """Return the id of the token of a language; `fr` finds `__fr__` and `fr_XX` too.

        Raises:
            TokenizerError: The language is not known.
        """
        known = {plain_code(name): number for name, number in self.known_languages().items()}
        wanted = plain_code(code)
        language, region = _split_code(wanted)
        similar = [
            number
            for name, number in known.items()
            if (other := _split_code(name))[0] == language and not (region and other[1])
        ]
        if wanted not in known and len(similar) != 1:
            names = list(self.language_ids)
            problem = f"The tokenizer has no language {code!r}{nearest(code, names)}"
            raise TokenizerError(f"{problem}. Expected one of {', '.join(names)}.")
        return known[wanted] if wanted in known else similar[0]

    @property
    def mask_token(self) -> str:
        """The mask as the vocabulary spells it."""
        return self.tokens[self.mask_token_id]

    @property
    def added_prefix(self) -> tuple[int, ...]:
        """Ids that the tokenizer's files put before a text, such as that of `[CLS]`."""
        encoded = self._backend.encode("a", add_special_tokens=True)
        return tuple(encoded.ids[: encoded.special_tokens_mask.index(0)])

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token of the vocabulary, None if it is not in it."""
        return self._backend.token_to_id(token)

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        """Return the text of ids, special tokens included."""
        return str(self._backend.decode([int(number) for number in ids], skip_special_tokens=False))

    def encode(self, text: str, *, parse_special_tokens: bool = False) -> Encoding:
        """Return the tokens of a text; `parse_special_tokens` makes "[MASK]" the special token."""
        backend = self._special_backend if parse_special_tokens else self._backend
        text = replace_surrogates(text)
        encoding = _to_encoding(backend.encode(text, add_special_tokens=False))
        self.unknown.add([text], [encoding.ids])
        return encoding

    def encode_batch(self, texts: Sequence[str]) -> list[Encoding]:
        """Return the tokens of each text, using all cores."""
        texts = list(map(replace_surrogates, texts))
        encodings = list(map(_to_encoding, self._backend.encode_batch(texts, add_special_tokens=False)))
        self.unknown.add(texts, [encoding.ids for encoding in encodings])
        return encodings

    def encode_ids(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the ids of each text, (n,) int64; faster than `encode_batch`."""
        texts = list(map(replace_surrogates, texts))
        encoded = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        rows = [np.array(new.ids, dtype=np.int64) for new in encoded]
        self.unknown.add(texts, rows)
        return rows

    def start_prompt(self, ids: np.ndarray, eos_token_id: int) -> np.ndarray:
        """Return a prompt of a causal model with what precedes it; an empty one has at least one token."""
        prefix = (eos_token_id,) if self.prompt_prefix is None else self.prompt_prefix
        return np.append(np.array(prefix or (() if len(ids) else (eos_token_id,)), np.int64), ids)

    def encode_documents(self, texts: Sequence[str], sentence_ends: Sequence[Sequence[int]]) -> list[EncodedDocument]:
        """Return tokens, words and sentences of documents; the fast path for large corpora.

        Documents are cut into chunks where BERT always splits, and each distinct chunk is encoded
        once. Sentence ends are character offsets (exclusive, ascending); text after the last one is
        a sentence too. A token that crosses an end belongs to the later sentence.
        """
        return [self._encode_document(text, ends) for text, ends in zip(texts, sentence_ends, strict=True)]

    def _encode_document(self, text: str, ends: Sequence[int]) -> EncodedDocument:
        bounds = [0, *ends, len(text)]
        if wrong := next((pair for pair in pairwise(bounds) if pair[1] < pair[0]), None):
            raise TokenizerError(f"Sentence ends {list(wrong)}: expected ascending offsets from 0 to {len(text)}.")
        text = replace_surrogates(text)
        pattern = self._chunk_pattern
        if pattern is not None and all(_is_chunk_boundary(pattern, text, end) for end in ends):
            return self._encode_by_chunks(pattern, text, bounds)
        return self._encode_by_offsets(text, bounds)

    def save(
        self,
        folder: str | Path,
        *,
        model_max_length: int = 512,
        prefix: Sequence[int] | None = None,
        suffix: Sequence[int] = (),
        eos_token_id: int | None = None,
    ) -> None:
        """Save to a folder that transformers' AutoTokenizer also opens, with the same ids.

        There, `prefix` is added before each text and `suffix` after it; if `prefix` is None, the special tokens of
        BERT are. A causal model has `eos_token_id`, for padding too if there is no [PAD].
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config: dict[str, Any] = {"model_max_length": model_max_length, "tokenizer_class": "PreTrainedTokenizerFast"}
        if self.has_final_language:
            # The class, which says so in a published folder, is another one here.
            config[_FINAL_LANGUAGE_KEY] = True
        if self.kind == "wordpiece":
            config |= {f"{token[1:-1].lower()}_token": token for token in SPECIAL_TOKENS}
            if self._bert_normalizer:
                config |= {key: self._bert_normalizer[name] for key, name in _NORMALIZER_KEYS.items()}
            if self._chunk_pattern:
                config["tokenizer_class"] = "BertTokenizer"
            (folder / "vocab.txt").write_bytes("".join(f"{token}\n" for token in self.tokens).encode())
        elif all(self.token_to_id(token) is not None for token in BART_SPECIAL_TOKENS):
            keys = ("bos_token", "pad_token", "eos_token", "unk_token", "mask_token")
            config |= {**dict(zip(keys, BART_SPECIAL_TOKENS, strict=True)), "cls_token": "<s>", "sep_token": "</s>"}
            if more := [self.tokens[number] for number in (*self.sentinel_ids, *self.language_ids.values())]:
                config["additional_special_tokens"] = more
        elif self.token_to_id(END_OF_TEXT) is not None:
            config |= dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
        backend = self._backend
        if prefix is not None:
            before, after = ([self.tokens[number] for number in ids] for ids in (prefix, suffix))
            backend = tokenizers.Tokenizer.from_str(backend.to_str())
            backend.post_processor = processors.TemplateProcessing(
                single=[*before, "$A", *after],
                pair=[*before, "$A", *after, *before, "$B", *after],
                special_tokens=list(dict(zip([*before, *after], [*prefix, *suffix], strict=True)).items()),
            )
            config["tokenizer_class"] = "PreTrainedTokenizerFast"
        if eos_token_id is not None:
            end, *start = (self.tokens[number] for number in (eos_token_id, *(prefix or ())))
            config = {"pad_token": end, **config, "bos_token": (start or [end])[0], "eos_token": end}
        (folder / "tokenizer.json").write_bytes(backend.to_str(pretty=True).encode())
        (folder / "tokenizer_config.json").write_bytes((json.dumps(config, indent=2, sort_keys=True) + "\n").encode())

    @cached_property
    def _special_backend(self) -> tokenizers.Tokenizer:
        """Copy that parses special tokens in text; switching `_backend` is not thread-safe."""
        return tokenizers.Tokenizer.from_str(self._backend.to_str())

    def _encode_by_chunks(self, pattern: re.Pattern[str], text: str, bounds: Sequence[int]) -> EncodedDocument:
        chunks: list[str] = []
        first_chunks = []
        for begin, end in pairwise(bounds):
            first_chunks.append(len(chunks))
            chunks += pattern.findall(text, begin, end)
        cache = self._chunk_ids
        if len(cache) > _MAX_CACHED_CHUNKS:
            cache.clear()
        try:
            rows = list(map(cache.__getitem__, chunks))
        except KeyError:
            unknown = list({chunk for chunk in chunks if chunk not in cache})
            encodings = self._backend.encode_batch_fast(unknown, add_special_tokens=False)
            cache.update((chunk, array("I", new.ids).tobytes()) for chunk, new in zip(unknown, encodings, strict=True))
            rows = list(map(cache.__getitem__, chunks))
        ids = np.frombuffer(bytearray().join(rows), dtype=np.uint32)
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(np.fromiter(map(len, rows), np.int64, len(rows)) // ids.itemsize, out=offsets[1:])
        starts = np.unique(offsets[first_chunks])
        return EncodedDocument(ids, self._starts_word[ids], starts[starts < len(ids)])

    def _encode_by_offsets(self, text: str, bounds: Sequence[int]) -> EncodedDocument:
        encoded = self._backend.encode(text, add_special_tokens=False)
        ends = np.array(encoded.offsets, dtype=np.int64).reshape(-1, 2)[:, 1]
        # A byte-level token such as " the" starts in the previous sentence: use its last character.
        sentence = np.maximum.accumulate(np.searchsorted(np.asarray(bounds[1:-1]), ends - 1, side="right"))
        starts = np.flatnonzero(np.diff(sentence, prepend=-1)).astype(np.int64)
        return EncodedDocument(np.array(encoded.ids, dtype=np.uint32), _word_starts(encoded.word_ids), starts)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load a tokenizer from a folder, tokenizer.json, vocab.txt, or vocab.json and merges.txt.

    A tokenizer_config.json in the same folder determines lower-casing. Without it, that of a
    vocab.txt is guessed from its entries, with a warning.
    """
    if not str(path).strip():
        raise TokenizerError("The name of a tokenizer is empty. Pass a folder with tokenizer.json or vocab.txt.")
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in ("tokenizer.json", "vocab.txt", "vocab.json") if (path / name).is_file()]
        if not found:
            advice = (
                "Pass the folder of a tokenizer; one of SentencePiece has to be loaded and saved by transformers once"
            )
            raise TokenizerError(f"{path} has no tokenizer.json and no vocab.txt. {advice}.")
        path = found[0]
    elif not path.is_file():
        raise TokenizerError(f"{path} does not exist. Pass a folder with tokenizer.json or vocab.txt, or such a file.")
    config_file = path.with_name("tokenizer_config.json")
    config = _read_json(config_file) if config_file.is_file() else {}
    normalizer = {name: config[key] for key, name in _NORMALIZER_KEYS.items() if key in config}
    if path.name == "vocab.json":
        return Tokenizer(_byte_level_backend(path, config))
    if path.suffix != ".json":
        vocab = _read_vocab_txt(path)
        if "lowercase" in normalizer:
            return Tokenizer(bert_backend(vocab, normalizer))
        tokenizer = Tokenizer(bert_backend(vocab, _guess_normalizer(vocab) | normalizer))
        tokenizer.lowercase_is_guess = True
        guess = f"judging by its entries, text is {'lower-cased' if tokenizer.lowercase else 'not lower-cased'}"
        warnings.warn(f'{path}: {guess}. Set "do_lower_case" in {config_file} to true or false.', stacklevel=2)
        return tokenizer
    settings = _read_json(path)
    if (settings.get("normalizer") or {}).get("type") == "BertNormalizer":
        # As in transformers, tokenizer_config.json has precedence.
        settings["normalizer"] |= normalizer
    try:
        backend = tokenizers.Tokenizer.from_str(json.dumps(settings))
    # The library raises no narrower class.
    except Exception as error:
        raise TokenizerError(f"{path} is not a tokenizer ({error}). Save it again.", damaged=True) from error
    tokenizer = Tokenizer(backend)
    is_final = config.get("tokenizer_class") in _FINAL_LANGUAGE_CLASSES
    tokenizer.has_final_language = is_final or config.get(_FINAL_LANGUAGE_KEY) is True
    return tokenizer


def _guess_normalizer(vocab: Iterable[str]) -> dict[str, bool]:
    """Return arguments of BertNormalizer by which (almost) all entries of a vocabulary can occur."""
    words = [token for token in vocab if not _SPECIAL_ENTRY.fullmatch(token)]
    num_lower, num_upper = (sum(token != change(token) for token in words) for change in (str.upper, str.lower))
    guess = {"lowercase": num_upper * _MIN_ENTRIES_PER_STRAY <= max(num_lower, num_upper)}
    if guess["lowercase"]:
        # Lower-casing removes accents, also vowel signs of Indian scripts, unless the vocabulary has them.
        marks = sum(any(unicodedata.category(c) == "Mn" for c in unicodedata.normalize("NFD", w)) for w in words)
        guess |= {} if marks * _MIN_ENTRIES_PER_STRAY <= len(words) else {"strip_accents": False}
    return guess


def bert_backend(vocab: dict[str, int], normalizer: dict[str, Any]) -> tokenizers.Tokenizer:
    """Return BERT's tokenizer of the library; `normalizer` are arguments of BertNormalizer."""
    model = models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=MAX_WORD_CHARACTERS)
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.BertNormalizer(**normalizer)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix=SUBWORD_PREFIX)
    special = [(token, vocab[token]) for token in ("[CLS]", "[SEP]") if token in vocab]
    # A vocabulary without these is refused by `Tokenizer`.
    if len(special) == 2:
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", special_tokens=special
        )
    return backend


def _byte_level_backend(path: Path, config: dict[str, Any]) -> tokenizers.Tokenizer:
    """Return GPT-2's tokenizer of the library from vocab.json and merges.txt."""
    merges = path.with_name("merges.txt")
    if not merges.is_file():
        raise TokenizerError(f"{path} needs merges.txt in the same folder, which does not exist. Copy it there.")
    vocab = _read_json(path)
    lines = merges.read_text(encoding="utf-8").split("\n")
    pairs = [line.split(" ") for line in lines if line.strip() and not line.startswith("#version")]
    if wrong := next((" ".join(pair) for pair in pairs if len(pair) != 2), None):
        raise TokenizerError(f"{merges}: {wrong!r} is not a pair, expected two tokens per line.", damaged=True)
    try:
        backend = tokenizers.Tokenizer(models.BPE(vocab, [(first, second) for first, second in pairs]))
    # The library raises no narrower class.
    except Exception as error:
        problem = f"{path} and merges.txt belong to different tokenizers ({error})"
        raise TokenizerError(f"{problem}. Copy both again.", damaged=True) from error
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(config.get("add_prefix_space", False)))
    backend.decoder = decoders.ByteLevel()
    if (end := str(config.get("eos_token", END_OF_TEXT))) in vocab:
        backend.add_special_tokens([end])
        if config.get("add_bos_token"):
            backend.post_processor = processors.TemplateProcessing(
                single=[end, "$A"], pair=[end, "$A", end, "$B"], special_tokens=[(end, vocab[end])]
            )
    return backend


def _read_vocab_txt(path: Path) -> dict[str, int]:
    try:
        # Not splitlines, which would also split at U+2028.
        tokens = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path} is not UTF-8 ({error}), expected one token per line.", damaged=True) from error
    vocab = {token: number for number, token in enumerate(tokens)}
    if len(vocab) < len(tokens):
        twice = next(token for token, count in Counter(tokens).items() if count > 1)
        raise TokenizerError(f"{path} has {twice!r} more than once. Remove or rename all but one of these lines.")
    return vocab


def chunk_pattern(*, ideographs: bool) -> re.Pattern[str]:
    """Return a pattern for chunks that BERT encodes alone: marks, runs of others, and `ideographs`."""
    separators = _PUNCTUATION + (_IDEOGRAPHS if ideographs else "")
    return re.compile(f"[{separators}]|[^{_SPACES}{separators}]+")


def replace_surrogates(text: str) -> str:
    """Replace lone surrogates, which UTF-8 cannot encode, by U+FFFD; BERT deletes both."""
    return text if text.isascii() else _SURROGATES.sub("\ufffd", text)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TokenizerError(f"{path} is not valid JSON ({error}). Copy it again.", damaged=True) from error
    if not isinstance(content, dict):
        raise TokenizerError(f"{path} holds a {type(content).__name__}, expected a JSON object.", damaged=True)
    return content


def plain_code(code: str) -> str:
    """Return the form of a language's code by which spellings such as `EN` and `en` are the same."""
    return code.strip("_").replace("-", "_").casefold()


def _split_code(code: str) -> tuple[str, str]:
    """Return language and region; `XX` is none."""
    language, _, region = code.partition("_")
    return language, "" if region == "xx" else region


def _from_json(settings: str) -> Tokenizer:
    return Tokenizer(tokenizers.Tokenizer.from_str(settings))


def _is_chunk_boundary(pattern: re.Pattern[str], text: str, position: int) -> bool:
    """Return whether no chunk extends across a position in the text."""
    if not 0 < position < len(text):
        return True
    first = pattern.match(text[position - 1 : position + 1])
    return first is None or first.end() == 1


def _to_encoding(encoded: Any) -> Encoding:
    offsets = np.array(encoded.offsets, dtype=np.int64).reshape(-1, 2)
    return Encoding(np.array(encoded.ids, dtype=np.int64), offsets, _word_starts(encoded.word_ids))


def _word_starts(word_ids: Sequence[int | None]) -> np.ndarray:
    """Return (n,) bool: whether a token belongs to a different word than the token before it."""
    pairs = zip(word_ids, [None, *word_ids], strict=False)
    return np.array([word is None or word != last for word, last in pairs], dtype=bool)
