"""Tokenize text files into shards."""

from itertools import islice
from pathlib import Path
from typing import Any

from stemformer.commands.inspect import describe_dataset
from stemformer.data.shards.duplicates import check_dedup
from stemformer.data.shards.reader import open_shards
from stemformer.data.shards.writer import write_shards
from stemformer.data.text.documents import HEAD_CHARACTERS, read_documents, total_bytes
from stemformer.data.text.files import note_replaced
from stemformer.data.tokenization.tokenizer import Tokenizer, load_tokenizer
from stemformer.options import PrepareOptions, accepts
from stemformer.output_dir import check_not_inside_inputs, clear_dir, exclusive_output_dir, prepare_output_dir
from stemformer.progress import Progress, Silent

_MIN_FRACTION, _MAX_FRACTION, _HELD_OUT_BYTES = 0.01, 0.1, 100_000

# With fewer held-out tokens, the standard error of the loss is 3 % of the deviation of a token or more.
_MIN_HELD_OUT_TOKENS = 1000


@exclusive_output_dir
@accepts(PrepareOptions)
def prepare(options: PrepareOptions, *, progress: Progress | None = None) -> dict[str, Any]:
    """Tokenize text files into shards, with a held-out split.

    Returns:
        Counts of documents and tokens for each split, and of what was skipped.

    Raises:
        DataError: Files cannot be read, or there is too little text for a held-out split.
        TokenizerError: The tokenizer cannot be read.
    """
    progress = progress or Silent()
    check_dedup(options.dedup)
    tokenizer = load_tokenizer(options.tokenizer)
    total = total_bytes(options.files)
    folder = prepare_output_dir(options.out, resume=options.resume, overwrite=options.overwrite)
    check_not_inside_inputs(folder, [options.tokenizer, *options.files])
    if options.overwrite:
        clear_dir(folder)
    if options.resume and not any((folder / name).exists() for name in ("progress.jsonl", "manifest.json")):
        progress.say(f"{folder} holds nothing to resume; starting from the beginning")
    held_out = _default_fraction(total) if options.held_out is None else options.held_out
    if options.held_out is None and held_out > _MIN_FRACTION:
        progress.say(f"short text: holding out {held_out:.1%} of the documents (change with --held-out)")
    # Finding duplicates reads the text once more.
    num_bytes = total and total * (1 if options.dedup == "none" else 2)
    progress.start("preparing", total=num_bytes, unit="bytes")
    manifest = write_shards(
        options.files,
        tokenizer,
        folder,
        held_out=held_out,
        documents=options.documents,
        column=options.text_column,
        errors=options.errors,
        words=options.words,
        dedup=options.dedup,
        num_workers=options.num_workers,
        resume=options.resume,
        on_bytes=progress.advance,
        on_note=progress.say,
    )
    progress.finish()
    result = describe_dataset(options.out, manifest)
    num_characters = sum(counts.characters for counts in manifest.splits.values())
    for note in (note_replaced(manifest.skipped, num_characters), _note_unknown_words(options, tokenizer)):
        if note:
            progress.say(note)
    split = manifest.splits.get("held_out")
    if split is None:
        progress.say("nothing is held out, so pre-training cannot measure a validation loss (change with --held-out)")
    if split is not None and split.tokens < _MIN_HELD_OUT_TOKENS:
        progress.say(
            f"the held-out split has only {split.tokens:,} tokens (documents: {split.documents:,}), too few for a "
            "reliable loss: raise --held-out, or split the text into more documents (--documents line or blank)"
        )
    return result


def _note_unknown_words(options: PrepareOptions, tokenizer: Tokenizer) -> str | None:
    tokenizer.unknown.clear()
    tokenizer.unknown.add_counts(open_shards(Path(options.out), verify=False).unigram_counts)
    if tokenizer.unknown.note() and Path(options.files[0]).is_file():
        # The first documents have an example.
        documents = read_documents(options.files[:1], column=options.text_column, errors=options.errors)
        tokenizer.encode_ids([document.text[:HEAD_CHARACTERS] for document in islice(documents, 100)])
    return tokenizer.unknown.note()


def _default_fraction(num_bytes: int | None) -> float:
    share = round(_HELD_OUT_BYTES / num_bytes, 3) if num_bytes else _MIN_FRACTION
    return min(_MAX_FRACTION, max(_MIN_FRACTION, share))
