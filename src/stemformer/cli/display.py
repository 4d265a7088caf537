"""What a command reads from standard input and prints."""

import contextlib
import itertools
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import field, replace
from typing import Any

import stemformer
from stemformer.cli.terminal import Terminal, as_text
from stemformer.errors import DataError
from stemformer.options import GenerateOptions, Options
from stemformer.progress import Progress, Silent


class DisplayOptions(Options):
    """What a command prints.

    Attributes:
        json: Print the result as JSON.
        quiet: Print only errors on standard error, no progress and no notes.
        debug: Show the traceback of an error.
    """

    json: bool = False
    quiet: bool = field(default=False, metadata={"flag": ("--quiet", "-q")})
    debug: bool = False

    @contextlib.contextmanager
    def progress(self) -> Iterator[Progress]:
        """Yield a progress reporter, whose bar ends however the command ends."""
        progress = Silent() if self.quiet else Terminal()
        try:
            yield progress
        finally:
            progress.finish()


class StdinOptions(Options):
    """Standard input.

    Attributes:
        stdin: Read standard input too: a text on each line; JSON lines for evaluate.
    """

    replaces = ("texts", "prompts", "files")

    stdin: bool = field(default=False, metadata={"flag": ("--stdin", "-")})


def print_result(result: Any, display: DisplayOptions) -> None:
    """Print a result as text or JSON; of several ranks, the first one prints."""
    if os.environ.get("RANK", "0") == "0":
        print(to_json(result, indent=2) if display.json else as_text(result))


def to_json(value: Any, indent: int | None = None) -> str:
    """Format a value as JSON; NumPy and torch scalars become numbers, paths texts."""
    return json.dumps(
        value, ensure_ascii=False, indent=indent, default=lambda x: x.item() if hasattr(x, "item") else str(x)
    )


def generate_typed(options: GenerateOptions) -> None:
    """Complete what is typed, line by line."""
    is_live = options.num_beams == 1
    stemformer.generate(
        options=replace(options, prompts=_typed()),
        on_text=(lambda _, text: print(text, end="", flush=True)) if is_live else None,
        on_result=lambda result: print("" if is_live else result["text"], flush=True),
        on_error=lambda error: print(error, file=sys.stderr),
    )


def generate_one(options: GenerateOptions, prompt: str) -> None:
    """Complete one prompt, and print the text as it is generated."""
    # The prompt is printed with the first token, after all checks have passed.
    waiting = [prompt]

    def print_text(_: int, text: str) -> None:
        print(*waiting, text, sep="", end="", flush=True)
        waiting.clear()

    [result] = stemformer.generate(options=options, on_text=print_text)
    print(*waiting)
    if not result["num_tokens"]:
        print("note: the model ended the text at once; another --seed may not", file=sys.stderr)


def generate_many(options: GenerateOptions, display: DisplayOptions) -> None:
    """Complete several prompts, and print each completion as soon as it is there."""
    starts = itertools.chain([""], itertools.repeat("\n"))
    with display.progress() as progress:
        stemformer.generate(
            options=options,
            on_result=lambda result: print(next(starts) + result["prompt"] + result["text"], flush=True),
            # No progress bar between texts.
            progress=None if sys.stdout.isatty() else progress,
        )


def read_texts(texts: Any, stdin: StdinOptions, *, keeps_empty: bool = False) -> list[str]:
    """Return texts of the command line and of standard input, which is read if there are no others."""
    found: list[str] = list(texts or ())
    if found and not stdin.stdin:
        return found
    if sys.stdin.isatty():
        print("reading lines from the terminal; Ctrl-D ends", file=sys.stderr)
    try:
        return [*found, *(line.rstrip("\r\n") for line in sys.stdin if keeps_empty or line.strip())]
    except UnicodeDecodeError as error:
        raise DataError(f"Standard input is not UTF-8 ({error.reason} at byte {error.start}). Convert it.") from error


def with_stdin(options: Any, stdin: StdinOptions) -> Any:
    """Return options with the texts or files of the command line and of standard input."""
    if hasattr(options, "texts"):
        return replace(options, texts=read_texts(options.texts, stdin))
    return replace(options, files=[*(options.files or ()), *(["-"] if stdin.stdin else [])])


def _typed() -> Iterator[str]:
    print("Type a prompt; Ctrl-D ends.", file=sys.stderr)
    while True:
        try:
            yield input("> ")
        except EOFError:
            return
