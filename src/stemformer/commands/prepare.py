"""What the command line and Python users call: joins the parts, holds no mathematics."""

from collections.abc import Sequence
from typing import Any

from stemformer.commands.inspect import describe_dataset
from stemformer.data.shards.writer import write_shards
from stemformer.data.text.documents import total_bytes
from stemformer.data.tokenization.tokenizer import load_tokenizer
from stemformer.output_dir import check_not_inside_inputs, clear_dir, exclusive_output_dir, prepare_output_dir
from stemformer.progress import Progress, Silent

_FEW_HELD_OUT_TOKENS = 1000
"""Fewer are remarked upon: their mean loss has a standard error of 3 % of a token's own deviation, or more."""


_LEAST_SHARE, _LARGEST_SHARE, _HELD_OUT_BYTES = 0.01, 0.1, 100_000


def _usual_share(num_bytes: int | None) -> float:
    """Returns which share of the documents is held out of so much text, where nobody says."""
    if not num_bytes:
        return _LEAST_SHARE
    return min(_LARGEST_SHARE, max(_LEAST_SHARE, round(_HELD_OUT_BYTES / num_bytes, 3)))


@exclusive_output_dir
def prepare(
    files: Sequence[str],
    *,
    tokenizer: str,
    out: str,
    held_out: float | None = None,
    documents: str = "auto",
    column: str = "text",
    errors: str = "strict",
    words: str = "tokenizer",
    num_workers: int | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Turns text files into shards, and returns counts of what is in them and of what was skipped.

    Args:
        files: Text files, folders, globs or `hub:` data sets.
        tokenizer: Its folder.
        out: Folder of the shards.
        held_out: Share of documents set aside, chosen by a hash of their bytes; by default a hundredth, of short text as much as makes
            100 kB, a tenth at most.
        documents: As for `train_tokenizer`.
        column: As for `train_tokenizer`.
        errors: As for `train_tokenizer`.
        words: `jieba` finds the words of Chinese, for whole-word and span masking; `tokenizer` takes its characters.
        num_workers: Processes; None takes one a core. The bytes written do not depend on it.
        overwrite: Replace what the folder holds.
        resume: Go on where an interrupted run stopped.
        progress: Told how far it is.

    Raises:
        DataError: Files that cannot be read, or too little text for a held-out split.
        TokenizerError: The tokenizer cannot be read.
    """
    progress = progress or Silent()
    opened = load_tokenizer(tokenizer)
    total = total_bytes(files)
    folder = prepare_output_dir(out, resume=resume, overwrite=overwrite)
    check_not_inside_inputs(folder, [tokenizer, *files])
    if overwrite:
        clear_dir(folder)
    if resume and not any((folder / name).exists() for name in ("progress.jsonl", "manifest.json")):
        progress.say(f"{folder} holds nothing to go on from: the work begins")
    share = _usual_share(total) if held_out is None else held_out
    if held_out is None and share > _LEAST_SHARE:
        progress.say(f"the text is short, so {share:.1%} of the documents are held out (--held-out to change)")
    progress.start("preparing", total=total, unit="bytes")
    manifest = write_shards(
        files,
        opened,
        folder,
        held_out=share,
        documents=documents,
        column=column,
        errors=errors,
        words=words,
        num_workers=num_workers,
        resume=resume,
        on_bytes=progress.advance,
    )
    progress.finish()
    told = describe_dataset(out, manifest)
    if told["unknown"] > 0.05:
        progress.say(
            f"{told['unknown']:.0%} of the tokens are [UNK]: this tokenizer was not made for such text (or its words are not parted by "
            "spaces); train one on these files"
        )
    kept = manifest.splits.get("held_out")
    if kept is not None and kept.tokens < _FEW_HELD_OUT_TOKENS:
        progress.say(
            f"the held-out part has only {kept.tokens:,} tokens (documents: {kept.documents:,}), on which a loss says little: raise "
            "--held-out, or part the text into more documents (--documents line or blank)"
        )
    return told
