"""Text to ids and back: train, load, save and apply a WordPiece vocabulary or a byte-level BPE.

The work is done by the `tokenizers` library; this file adds three things to it.

*Speed.* The ids of a word depend on that word alone, so a text is cut into chunks at places where BERT always cuts, and
each different chunk goes through the library once.
*Plain text stays plain.* The characters `[MASK]` in a corpus are three words, not the special token, unless asked for.
*Repeatable training*, in `wordpiece.py`.
"""

import hashlib
import json
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from stemformer.data.tokenization.wordpiece import (
    MAX_WORD_CHARACTERS,
    PREFIX,
    SPECIAL_TOKENS,
    chunk_pattern,
    replace_surrogates,
)
from stemformer.errors import TokenizerError

_MAX_CACHED_CHUNKS = 1 << 18  # tens of MB a process


_CONFIG_NAMES = {  # in tokenizer_config.json -> in tokenizer.json
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}


@dataclass(frozen=True)
class Encoding:
    """The tokens of one text, without [CLS] and [SEP].

    Args:
        ids: (n,) int64.
        offsets: (n, 2) int64, begin and end of each token in the characters of the text.
        word_starts: (n,) bool, this token begins a word.
    """

    ids: np.ndarray
    offsets: np.ndarray
    word_starts: np.ndarray


@dataclass(frozen=True)
class EncodedDocument:
    """The tokens of one document as they are stored, without [CLS] and [SEP].

    Args:
        ids: (n,) uint32.
        word_starts: (n,) bool, this token begins a word; punctuation is its own word, as in BERT.
        sentence_starts: (k,) int64, strictly ascending token offsets where sentences begin; the first is 0 where n > 0.
            A sentence that gives no token has no entry.
    """

    ids: np.ndarray
    word_starts: np.ndarray
    sentence_starts: np.ndarray


class Tokenizer:
    """A vocabulary and its rules; made by `load_tokenizer` or `train_wordpiece`.

    Args:
        backend: The library's tokenizer. Its truncation and padding are switched off.
        lowercase_is_guess: No file said whether to lower-case, the vocabulary's own spelling did.

    Attributes:
        kind: "wordpiece" or "bpe".
        vocab_size: One more than the largest id.
        tokens: id -> token.
        lowercase: Whether text is lower-cased first; None where no BERT normalizer says so.
        special_ids: Ids of the special tokens.
        bos_token_id: Id of the token before each text of a model that reads from left to right; None for one that reads `[CLS] a [SEP]`.

    Raises:
        TokenizerError: The model is neither WordPiece nor BPE; a WordPiece vocabulary lacks a special token.

    Example:
        >>> tokenizer = train_wordpiece(["to be or not to be"], vocab_size=24)
        >>> tokenizer.decode(tokenizer.encode("not to be").ids)
        'not to be'
    """

    def __init__(self, backend: tokenizers.Tokenizer, *, lowercase_is_guess: bool = False) -> None:
        settings = json.loads(backend.to_str())
        model = settings["model"]
        if model["type"] not in ("WordPiece", "BPE"):
            raise TokenizerError(f"the tokenizer's model is {model['type']}: expected WordPiece or BPE; retrain it")
        self.kind: str = model["type"].lower()
        vocab = backend.get_vocab(with_added_tokens=True)
        if self.kind == "wordpiece":
            if missing := [token for token in SPECIAL_TOKENS if token not in vocab]:
                raise TokenizerError(
                    f"the vocabulary has no {' '.join(missing)}: BERT needs it; add it as a line or id"
                )
            backend.add_special_tokens(list(SPECIAL_TOKENS))  # they have ids already; now their text is known too
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True  # the library's name for: in text they are text
        self._backend = backend
        self.lowercase_is_guess = lowercase_is_guess
        self.bos_token_id: int | None = None
        normalizer = settings["normalizer"] or {}
        self._bert_normalizer: dict[str, Any] = normalizer if normalizer.get("type") == "BertNormalizer" else {}
        self.lowercase: bool | None = self._bert_normalizer.get("lowercase")
        self.vocab_size: int = max(vocab.values()) + 1
        self.tokens: list[str] = [""] * self.vocab_size
        for token, number in vocab.items():
            self.tokens[number] = token
        added = backend.get_added_tokens_decoder()
        self.special_ids: frozenset[int] = frozenset(number for number, token in added.items() if token.special)
        self._chunk_pattern: re.Pattern[str] | None = None  # none: ids of a chunk may depend on its neighbours
        splits_as_bert = (settings["pre_tokenizer"] or {}).get("type") == "BertPreTokenizer"
        continues_as_bert = self.kind == "wordpiece" and model["continuing_subword_prefix"] == PREFIX
        if self._bert_normalizer and splits_as_bert and continues_as_bert and len(added) == len(self.special_ids):
            self._chunk_pattern = chunk_pattern(ideographs=normalizer["handle_chinese_chars"])
        self._starts_word = np.array([not token.startswith(PREFIX) for token in self.tokens], dtype=bool)
        self._chunk_ids: dict[str, bytes] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles as its JSON: the library's own pickling forgets `encode_special_tokens`."""
        return _from_json, (self._backend.to_str(), self.lowercase_is_guess), {"begin_id": self.bos_token_id}

    @property
    def cls_id(self) -> int:
        """Id of [CLS]."""
        return self._special("[CLS]")

    @property
    def sep_id(self) -> int:
        """Id of [SEP]."""
        return self._special("[SEP]")

    @property
    def pad_id(self) -> int:
        """Id of [PAD]."""
        return self._special("[PAD]")

    @property
    def mask_id(self) -> int:
        """Id of [MASK]."""
        return self._special("[MASK]")

    @property
    def unk_id(self) -> int:
        """Id of [UNK]."""
        return self._special("[UNK]")

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of all that decides ids: vocabulary, normalizer, pre-tokenizer, added tokens."""
        settings = json.loads(self._backend.to_str())
        deciding = {name: settings[name] for name in ("model", "normalizer", "pre_tokenizer", "added_tokens")}
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()

    def id_of(self, token: str) -> int | None:
        """Returns the id of a token as it is spelled in the vocabulary, None where it is not in it."""
        number: int | None = self._backend.token_to_id(token)
        return number

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        """Returns the text of ids, special tokens included; what the normalizer took away does not come back."""
        text: str = self._backend.decode([int(number) for number in ids], skip_special_tokens=False)
        return text

    def encode(self, text: str, *, special: bool = False) -> Encoding:
        """Returns the tokens of a text with their places in it.

        Args:
            text: Any text.
            special: Characters such as "[MASK]" become the special token instead of three words.
        """
        backend = self._with_special if special else self._backend
        return _encoding(backend.encode(replace_surrogates(text), add_special_tokens=False))

    def encode_batch(self, texts: Sequence[str]) -> list[Encoding]:
        """Returns the tokens of each text with their places in it, on as many cores as there are."""
        encoded = self._backend.encode_batch([replace_surrogates(text) for text in texts], add_special_tokens=False)
        return [_encoding(one) for one in encoded]

    def encode_ids(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids of each text, (n,) int64, faster than with their places."""
        texts = [replace_surrogates(text) for text in texts]
        encoded = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(one.ids, dtype=np.int64) for one in encoded]

    def encode_documents(self, texts: Sequence[str], sentence_ends: Sequence[Sequence[int]]) -> list[EncodedDocument]:
        """Returns the tokens, words and sentences of each document; the fast way in, for whole corpora.

        Args:
            texts: Documents.
            sentence_ends: For each document the character offsets where its sentences end (exclusive, ascending). Text
                behind the last end is a sentence too. A token that lies across an end belongs to the later sentence.

        Raises:
            TokenizerError: Ends that descend or lie outside of the text.

        Example:
            >>> tokenizer = train_wordpiece(["to be or not to be"], vocab_size=24)
            >>> tokenizer.encode_documents(["to be. to be"], [[6, 12]])[0].sentence_starts
            array([0, 3])
        """
        documents = []
        for text, ends in zip(texts, sentence_ends, strict=True):
            bounds = [0, *ends, len(text)]
            if any(end < begin for begin, end in pairwise(bounds)):
                given = [end for pair in pairwise(bounds) if pair[1] < pair[0] for end in pair][:2]
                raise TokenizerError(f"sentence ends {given}: expected ascending offsets from 0 to {len(text)}")
            text = replace_surrogates(text)
            pattern = self._chunk_pattern
            if pattern is not None and all(_is_cut(pattern, text, end) for end in ends):
                documents.append(self._encode_by_chunks(pattern, text, bounds))
            else:
                documents.append(self._encode_by_offsets(text, bounds))
        return documents

    def save(
        self, folder: str | Path, *, model_max_length: int = 512, bos_token_id: int | None = None, is_bare: bool = False
    ) -> None:
        """Writes a folder that `load_tokenizer` and transformers' AutoTokenizer open: the same ids in both.

        Args:
            folder: Made where missing. Gets tokenizer.json, tokenizer_config.json and, for WordPiece, vocab.txt.
            model_max_length: Longest sequence of the model that this vocabulary is for, told to transformers.
            bos_token_id: Transformers too shall put this token before each text, and nothing else, and fill up with it.
            is_bare: Without `bos_token_id`, it shall put nothing around a text, as for a model that goes on with texts.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config: dict[str, Any] = {"model_max_length": model_max_length, "tokenizer_class": "PreTrainedTokenizerFast"}
        if self.kind == "wordpiece":
            config |= {f"{token[1:-1].lower()}_token": token for token in SPECIAL_TOKENS}
            config |= {key: self._bert_normalizer[name] for key, name in _CONFIG_NAMES.items() if self._bert_normalizer}
            config["tokenizer_class"] = "BertTokenizer" if self._chunk_pattern else config["tokenizer_class"]
            (folder / "vocab.txt").write_bytes("".join(f"{token}\n" for token in self.tokens).encode())
        elif self.id_of(END_OF_TEXT) is not None:
            config |= dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
        backend = self._backend
        if bos_token_id is not None or is_bare:
            backend = tokenizers.Tokenizer.from_str(backend.to_str())
            backend.post_processor = processors.Sequence([])
            config["tokenizer_class"] = "PreTrainedTokenizerFast"
        if bos_token_id is not None:
            token = self.tokens[bos_token_id]
            backend.post_processor = processors.TemplateProcessing(
                single=[token, "$A"], pair=[token, "$A", token, "$B"], special_tokens=[(token, bos_token_id)]
            )
            config |= dict.fromkeys(("bos_token", "eos_token", "pad_token"), token)
        (folder / "tokenizer.json").write_bytes(backend.to_str(pretty=True).encode())
        (folder / "tokenizer_config.json").write_bytes((json.dumps(config, indent=2, sort_keys=True) + "\n").encode())

    def _special(self, token: str) -> int:
        number = self.id_of(token)
        if number is None:
            raise TokenizerError(
                f"this {self.kind} vocabulary has no {token}, which a BERT needs: use one of WordPiece, or train a GPT"
            )
        return number

    @cached_property
    def _with_special(self) -> tokenizers.Tokenizer:
        return tokenizers.Tokenizer.from_str(self._backend.to_str())  # of its own, so that threads may share us

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
        before = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(np.fromiter(map(len, rows), np.int64, len(rows)) // ids.itemsize, out=before[1:])
        starts = np.unique(before[first_chunks])
        return EncodedDocument(ids, self._starts_word[ids], starts[starts < len(ids)])

    def _encode_by_offsets(self, text: str, bounds: Sequence[int]) -> EncodedDocument:
        encoded = self._backend.encode(text, add_special_tokens=False)
        ids = np.array(encoded.ids, dtype=np.uint32)
        ends = np.array(encoded.offsets, dtype=np.int64).reshape(-1, 2)[:, 1]
        # A byte-level token such as " the" begins with the space of the sentence before: its last character decides.
        sentence = np.maximum.accumulate(np.searchsorted(np.asarray(bounds[1:-1]), ends - 1, side="right"))
        starts = np.flatnonzero(np.diff(sentence, prepend=-1)).astype(np.int64)
        return EncodedDocument(ids, _word_starts(encoded.word_ids), starts)


def _encoding(encoded: Any) -> Encoding:
    return Encoding(
        ids=np.array(encoded.ids, dtype=np.int64),
        offsets=np.array(encoded.offsets, dtype=np.int64).reshape(-1, 2),
        word_starts=_word_starts(encoded.word_ids),
    )


def load_tokenizer(folder_or_file: str | Path) -> Tokenizer:
    """Returns the tokenizer of a folder, of a tokenizer.json, of a vocab.txt or of a vocab.json with its merges.txt (byte-level BPE).

    tokenizer.json is preferred. With vocab.txt alone, tokenizer_config.json beside it says whether to lower-case; where
    it does not, a vocabulary without upper-case ASCII letters is taken as lower-cased and `lowercase_is_guess` is set.

    Args:
        folder_or_file: A path.

    Raises:
        TokenizerError: Nothing there, a special token is missing, or (damaged) a file cannot be parsed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     train_wordpiece(["to be or not to be"], vocab_size=24).save(folder)
        ...     load_tokenizer(folder).kind
        'wordpiece'
    """
    path = Path(folder_or_file)
    if path.is_dir():
        found = [path / name for name in ("tokenizer.json", "vocab.txt", "vocab.json") if (path / name).is_file()]
        if not found:
            raise TokenizerError(f"{path} has no tokenizer.json and no vocab.txt: give a tokenizer's folder")
        path = found[0]
    elif not path.is_file():
        raise TokenizerError(f"{path} does not exist: give a folder with tokenizer.json or vocab.txt, or such a file")
    beside = path.with_name("tokenizer_config.json")
    config = _read_json(beside) if beside.is_file() else {}
    given = {name: config[key] for key, name in _CONFIG_NAMES.items() if key in config}
    if path.name == "vocab.json":
        return Tokenizer(_byte_level_backend(path, config))
    if path.suffix != ".json":
        return _load_vocab_txt(path, given)
    settings = _read_json(path)
    if (settings.get("normalizer") or {}).get("type") == "BertNormalizer":
        settings["normalizer"] |= given  # as in transformers, what tokenizer_config.json says is stronger
    try:
        backend = tokenizers.Tokenizer.from_str(json.dumps(settings))
    except Exception as error:  # the library raises no narrower class
        raise TokenizerError(f"{path} is not a tokenizer ({error}): write it again", damaged=True) from error
    return Tokenizer(backend)


END_OF_TEXT = "<|endoftext|>"


def bert_backend(vocab: dict[str, int], normalizer: dict[str, Any]) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(
        models.WordPiece(
            vocab, unk_token="[UNK]", continuing_subword_prefix=PREFIX, max_input_chars_per_word=MAX_WORD_CHARACTERS
        )
    )
    backend.normalizer = normalizers.BertNormalizer(**normalizer)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix=PREFIX)
    if "[CLS]" in vocab and "[SEP]" in vocab:
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS]:0 $A:0 [SEP]:0",
            pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
            special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
        )
    return backend


def _byte_level_backend(path: Path, config: dict[str, Any]) -> tokenizers.Tokenizer:
    """Returns GPT-2's tokenizer from its two files: which tokens there are, and which pairs are joined, the first first."""
    merges = path.with_name("merges.txt")
    if not merges.is_file():
        raise TokenizerError(f"{path} needs merges.txt beside it, which is not there: copy it too")
    vocab = _read_json(path)
    lines = merges.read_text(encoding="utf-8").split("\n")
    lines = [line for line in lines if line.strip() and not line.startswith("#version")]
    if wrong := next((line for line in lines if line.count(" ") != 1), None):
        raise TokenizerError(f"{merges}: {wrong!r} is no pair: expected two tokens a line", damaged=True)
    pairs = [(first, second) for first, _, second in (line.partition(" ") for line in lines)]
    try:
        backend = tokenizers.Tokenizer(models.BPE(vocab, pairs))
    except Exception as error:  # the library raises no narrower class
        raise TokenizerError(f"{path} and merges.txt are not of one tokenizer ({error})", damaged=True) from error
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(config.get("add_prefix_space", False)))
    backend.decoder = decoders.ByteLevel()
    if (end := str(config.get("eos_token", END_OF_TEXT))) in vocab:
        backend.add_special_tokens([end])
    return backend


def _load_vocab_txt(path: Path, given: dict[str, Any]) -> Tokenizer:
    try:
        tokens = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")  # splitlines would cut at U+2028
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path} is not UTF-8 ({error}): expected one token a line", damaged=True) from error
    vocab = {token: number for number, token in enumerate(tokens)}
    if len(vocab) < len(tokens):
        twice = next(token for token, count in Counter(tokens).items() if count > 1)
        raise TokenizerError(f"{path} has {twice!r} more than once: expected one line a token; remove or rename one")
    is_guess = "lowercase" not in given
    if is_guess:
        given["lowercase"] = not any(re.search(r"^(?!\[.*\]$).*[A-Z]", token) for token in tokens)
    return Tokenizer(bert_backend(vocab, given), lowercase_is_guess=is_guess)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TokenizerError(f"{path} is not JSON ({error}): copy it again", damaged=True) from error
    if not isinstance(content, dict):
        raise TokenizerError(f"{path} holds a {type(content).__name__}: expected a JSON object", damaged=True)
    return content


def _from_json(settings: str, lowercase_is_guess: bool) -> Tokenizer:
    return Tokenizer(tokenizers.Tokenizer.from_str(settings), lowercase_is_guess=lowercase_is_guess)


def _is_cut(pattern: re.Pattern[str], text: str, place: int) -> bool:
    """Whether no chunk lies across this place in the text."""
    if not 0 < place < len(text):
        return True
    around = text[place - 1 : place + 1]
    first = pattern.match(around)
    return first is None or first.end() == 1


def _word_starts(word_ids: Sequence[int | None]) -> np.ndarray:
    """Returns (n,) bool: whether a token's word is another than that of the token before it."""
    before = [None, *word_ids[:-1]]
    pairs = zip(word_ids, before, strict=True) if word_ids else ()
    return np.array([word is None or word != last for word, last in pairs], dtype=bool)
