"""Train a tokenizer."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stemformer.config import check_seed
from stemformer.data.text.documents import read_documents, total_bytes
from stemformer.data.text.files import note_replaced
from stemformer.data.tokenization.tokenizer import load_tokenizer
from stemformer.data.tokenization.trainers import bart_special_tokens, extend_wordpiece, train_byte_bpe, train_wordpiece
from stemformer.errors import ConfigError
from stemformer.huggingface.load import find_model_folder
from stemformer.io import write_folder
from stemformer.options import TrainTokenizerOptions, accepts
from stemformer.output_dir import check_not_inside_inputs, prepare_output_dir
from stemformer.progress import Progress, Silent


@accepts(TrainTokenizerOptions)
def train_tokenizer(options: TrainTokenizerOptions, *, progress: Progress | None = None) -> dict[str, Any]:
    """Train a tokenizer on text files.

    Returns:
        Directory, kind, vocabulary size and fingerprint of the tokenizer, `sentinels` (number) and `languages` (codes)
        if it has any, and counts of what was skipped.

    Raises:
        ConfigError: Options do not fit together, or the output directory is not empty.
        DataError: Files cannot be read.
        TokenizerError: There is too little text, or the vocabulary is too small.
    """
    progress = progress or Silent()
    _check(options)
    folder = prepare_output_dir(options.out, overwrite=options.overwrite)
    init = options.init
    has_file = init is not None and Path(init, "tokenizer.json").is_file()
    old = None if init is None else load_tokenizer(init if has_file else find_model_folder(init))
    check_not_inside_inputs(folder, [*options.files, *([init] if init and Path(init).exists() else [])])
    progress.start("reading text", total=total_bytes(options.files), unit="bytes")
    skipped: Counter[str] = Counter()
    documents = read_documents(
        options.files,
        documents=options.documents,
        column=options.text_column,
        errors=options.errors,
        on_bytes=progress.advance,
        skipped=skipped,
    )
    num_characters = 0

    def read_texts() -> Iterator[str]:
        nonlocal num_characters
        for document in documents:
            num_characters += len(document.text)
            yield document.text

    texts = read_texts()
    sample: dict[str, Any] = {name: getattr(options, name) for name in ("vocab_size", "seed", "max_characters")}
    if options.kind == "bpe":
        special = {name: getattr(options, name) for name in ("special_tokens", "num_sentinels", "languages")}
        tokenizer = train_byte_bpe(texts, **special, **sample)
    elif old is None:
        tokenizer = train_wordpiece(texts, lowercase=options.lowercase, on_note=progress.say, **sample)
    else:
        tokenizer = extend_wordpiece(old, texts, **sample)
    write_folder(folder, tokenizer.save)
    progress.finish()
    if note := note_replaced(skipped, num_characters):
        progress.say(note)
    if tokenizer.vocab_size < options.vocab_size:
        progress.say(f"the text yields {tokenizer.vocab_size:,} tokens, fewer than --vocab-size {options.vocab_size:,}")
    return {
        "tokenizer": str(folder),
        "kind": options.kind,
        "vocab_size": tokenizer.vocab_size,
        **({} if old is None else {"added": tokenizer.vocab_size - old.vocab_size}),
        "lowercase": tokenizer.lowercase,
        **({"sentinels": number} if (number := len(tokenizer.sentinel_ids)) else {}),
        **({"languages": list(tokenizer.language_ids)} if tokenizer.language_ids else {}),
        "fingerprint": tokenizer.fingerprint[:16],
        "skipped": dict(skipped),
    }


def _check(options: TrainTokenizerOptions) -> None:
    if options.vocab_size < 10:
        raise ConfigError(
            f"--vocab-size is {options.vocab_size}: expected at least 10, for five special tokens and some characters."
        )
    if options.kind not in ("wordpiece", "bpe"):
        raise ConfigError(f"--kind is {options.kind!r}: expected wordpiece or bpe.")
    if options.max_characters < 1:
        raise ConfigError(f"--max-characters is {options.max_characters}: expected at least 1.")
    check_seed(options.seed)
    if options.kind == "bpe" and (options.lowercase or options.init is not None):
        raise ConfigError("--kind bpe keeps every byte and starts from scratch. Remove --lowercase and --init.")
    if options.special_tokens not in ("gpt", "bart"):
        raise ConfigError(f"--special-tokens is {options.special_tokens!r}: expected gpt or bart.")
    if options.kind != "bpe" and options.special_tokens != "gpt":
        raise ConfigError("--special-tokens applies to --kind bpe; WordPiece has those of BERT, which a BART can use.")
    if (options.num_sentinels or options.languages) and options.special_tokens != "bart":
        name = "--num-sentinels" if options.num_sentinels else "--languages"
        raise ConfigError(f"{name} needs a BPE with the special tokens of BART. Add --kind bpe --special-tokens bart.")
    bart_special_tokens(options.num_sentinels, options.languages)
    if options.init is not None and options.lowercase:
        raise ConfigError("--lowercase has no effect with --init, whose tokenizer defines it. Remove one of them.")
