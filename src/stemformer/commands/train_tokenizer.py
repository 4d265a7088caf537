"""What the command line and Python users call: joins the parts, holds no mathematics."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stemformer.config import check_seed
from stemformer.data.text.documents import read_documents, total_bytes
from stemformer.data.tokenization.tokenizer import load_tokenizer
from stemformer.data.tokenization.trainers import extend_wordpiece, train_byte_bpe, train_wordpiece
from stemformer.errors import ConfigError
from stemformer.huggingface.load import find_folder
from stemformer.io import write_folder
from stemformer.output_dir import check_not_inside_inputs, prepare_output_dir
from stemformer.progress import Progress, Silent


def train_tokenizer(
    files: Sequence[str],
    *,
    out: str,
    init: str | None = None,
    kind: str = "wordpiece",
    vocab_size: int = 30522,
    lowercase: bool = False,
    documents: str = "auto",
    column: str = "text",
    errors: str = "strict",
    max_characters: int = 100_000_000,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Trains a tokenizer on text files, saves it, and returns what came of it.

    Args:
        files: Text files, folders, globs or `hub:` data sets.
        out: Folder of the tokenizer.
        init: A model or tokenizer whose vocabulary is kept, and whole words of the texts added to it up to `vocab_size`.
        kind: `wordpiece`, as in BERT, or `bpe`, of bytes, as in GPT-2.
        vocab_size: Ids, special ones included.
        lowercase: Fold case and strip accents.
        documents: Where a document of plain text ends; see `data.corpus.read_documents`.
        column: The text column of tables.
        errors: `strict` or `replace`, for bytes that are not UTF-8.
        max_characters: Text to learn from; more is sampled down, so memory stays bounded.
        seed: Of the sample.
        overwrite: Replace what the folder holds.
        progress: Told how far it is.

    Raises:
        ConfigError: A kind that does not exist, or a folder that is not empty.
        DataError: Files that cannot be read.
        TokenizerError: Too little text, or too small a vocabulary.
    """
    progress = progress or Silent()
    if vocab_size < 10:
        raise ConfigError(
            f"--vocab-size {vocab_size}: expected at least 10, for five special tokens and some characters"
        )
    if kind not in ("wordpiece", "bpe"):
        raise ConfigError(f"--kind {kind}: expected wordpiece or bpe")
    if max_characters < 1:
        raise ConfigError(f"--max-characters {max_characters}: expected at least 1")
    check_seed(seed)
    if kind == "bpe" and (lowercase or init is not None):
        raise ConfigError("--kind bpe keeps every byte as it is and starts anew: leave --lowercase and --init out")
    if init is not None and lowercase:
        raise ConfigError("--lowercase has no effect beside --init: the given vocabulary says whether case is folded")
    folder = prepare_output_dir(out, overwrite=overwrite)
    old = (
        None if init is None else load_tokenizer(init if Path(init, "tokenizer.json").is_file() else find_folder(init))
    )
    check_not_inside_inputs(folder, [*files, *([init] if init and Path(init).exists() else [])])
    progress.start("reading text", total=total_bytes(files), unit="bytes")
    skipped: Counter[str] = Counter()
    texts = (
        document.text
        for document in read_documents(
            files, documents=documents, column=column, errors=errors, on_bytes=progress.advance, skipped=skipped
        )
    )
    sample: dict[str, Any] = {"vocab_size": vocab_size, "seed": seed, "max_characters": max_characters}
    if kind == "bpe":
        tokenizer = train_byte_bpe(texts, **sample)
    elif old is None:
        tokenizer = train_wordpiece(texts, lowercase=lowercase, **sample)
    else:
        tokenizer = extend_wordpiece(old, texts, **sample)
    write_folder(folder, tokenizer.save)
    progress.finish()
    if tokenizer.vocab_size < vocab_size:
        progress.say(f"the text gives {tokenizer.vocab_size:,} ids, fewer than the {vocab_size:,} asked for")
    return {
        "tokenizer": str(folder),
        "kind": kind,
        "vocab_size": tokenizer.vocab_size,
        **({} if old is None else {"added": tokenizer.vocab_size - old.vocab_size}),
        "lowercase": tokenizer.lowercase,
        "fingerprint": tokenizer.fingerprint[:16],
        "skipped": dict(skipped),
    }
