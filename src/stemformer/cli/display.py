"""How a command runs: what it reads from standard input, the function of the package that it calls, what it prints."""

import contextlib
import itertools
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import field, replace
from typing import Any

import stemformer
from stemformer.cli.terminal import Terminal, as_text
from stemformer.errors import ConfigError, TrainingError
from stemformer.io import to_json
from stemformer.options import FewShotOptions, GenerateOptions, Options, RewriteOptions
from stemformer.progress import Progress, Silent, format_count


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
        stdin: Read standard input too: plain text, or JSON in place of files; a text on each line in place of texts,
            with blank lines skipped and counted (embed and rewrite keep them; as a file, they give rows without a
            prediction).
    """

    replaces = ("texts", "prompts", "files")

    stdin: bool = field(default=False, metadata={"flag": ("--stdin", "-")})


class FewShotDisplay(Options):
    """What fewshot prints instead of results.

    Attributes:
        list_tasks: List the built-in tasks and exit.
        dry_run: Print the prompts of the first example of each task and exit.
    """

    replaces = ("tasks", "model")

    list_tasks: bool = field(default=False, metadata={"flag": "--list"})
    dry_run: bool = False


# Results of functions that are printed as JSON only.
_JSON_ONLY = {"fewshot": "results", "benchmark_blimp": "sets"}
# Functions that answer at once.
_WITHOUT_PROGRESS = {"samples", "list_recipes", "fill", "score", "inspect", "report", "list_runs", "env"}


def call(name: str, options: Options, display: DisplayOptions, **more: Any) -> Any:
    """Call a function of the package, with progress unless it is quick."""
    function = getattr(stemformer, name)
    keywords: dict[str, Any] = more | ({"options": options} if vars(options) else {})
    if name in _WITHOUT_PROGRESS:
        return function(**keywords)
    with display.progress() as progress:
        result = function(**keywords, progress=progress)
    if isinstance(progress, Terminal) and not display.json and isinstance(result, dict) and "notes" in result:
        # Standard error has shown them.
        notes = [note for note in result["notes"] if note not in progress.said]
        counts = {what: n for what, n in result.get("counts", {}).items() if f"{what}: {n:,}" not in progress.said}
        return result | {"notes": notes} | ({"counts": counts} if "counts" in result else {})
    return result


def run(name: str, options: Options, display: DisplayOptions) -> None:
    """Call a function of the package and print its result; raise an error if runs failed that the result lists."""
    result = call(name, options, display)
    if getattr(options, "show_config", False) and not display.json:
        print(result["config"], end="")
    elif name in _JSON_ONLY and not display.json:
        print_result({key: value for key, value in result.items() if key != _JSON_ONLY[name]}, display)
    else:
        print_result(result, display)
    if isinstance(result, dict) and "exit_code" in result:
        failed, total = len(result["failed"]), len(result["failed"]) + result["runs"]
        what = f"{failed} of {format_count(total, 'run')} failed, see the list of failed runs in the result."
        advice = f"Pass --resume to make {'it' if failed == 1 else 'them'} again; the others are kept."
        raise TrainingError(what, advice=advice, exit_code=result["exit_code"])


def run_with_stdin(name: str, options: Options, stdin: StdinOptions, display: DisplayOptions) -> None:
    """Call a function of the package that takes texts or files, also from standard input."""
    run(name, with_stdin(options, stdin, display), display)


def print_rows(name: str, options: Any, stdin: StdinOptions, display: DisplayOptions) -> None:
    """Print embeddings or predictions as JSON lines, unless they are written to a file."""
    # Row i of embeddings is text i.
    options = with_stdin(options, stdin, display, keep_blank=name == "embed")
    how = {"on_row": lambda row: print(to_json(row))} if name == "predict" else {}
    result = call(name, options, display, **how)
    if options.out is not None:
        return print_result(result, display)
    for text, embedding in zip(options.texts, result["embeddings"].tolist(), strict=True) if name == "embed" else ():
        print(to_json({"text": text, "embedding": embedding}))


def fewshot(options: FewShotOptions, instead: FewShotDisplay, display: DisplayOptions) -> None:
    """Evaluate few-shot and print the results, which are all printed as JSON only; or print tasks or prompts."""
    if instead.list_tasks:
        print_result({"tasks": stemformer.list_tasks()}, display)
    elif instead.dry_run:
        if options.out:
            raise ConfigError("--dry-run writes nothing into --out. Remove one of them.")
        shared = {name: getattr(options, name) for name in ("tasks", "num_shots", "demonstrations", "seed")}
        prompts = stemformer.show_prompts(**shared)
        if display.json:
            return print_result(prompts, display)
        for row in prompts:
            print(f"=== {row['task']}, {row['num_shots']}-shot ===\n{row['prompt']}[{row['right']}]\n")
    else:
        run("fewshot", options, display)


def print_result(result: Any, display: DisplayOptions) -> None:
    """Print a result as text or JSON; of several ranks, the first one prints."""
    if os.environ.get("RANK", "0") == "0":
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        print(to_json(result, indent=2) if display.json else as_text(result, width=width))


def read_texts(texts: Any, stdin: StdinOptions, display: DisplayOptions, *, keep_blank: bool = False) -> list[str]:
    """Return texts of the command line and lines of standard input, which is read if there are no others."""
    found: list[str] = list(texts or ())
    _check_no_file(found)
    if found and not stdin.stdin:
        return found
    _say_if_typed()
    lines = list(_lines())
    if keep_blank:
        return found + lines
    found += (line for line in lines if line.strip())
    _report_blank(sum(not line.strip() for line in lines), display)
    return found


def _check_no_file(texts: Sequence[str]) -> None:
    """Refuse texts that are names of files, and say how to pass their lines."""
    if files := [text for text in texts if os.path.isfile(text)]:
        raise ConfigError(f"'{files[0]}' is a file, but the command takes texts. {_advise_on_file(files[0])}")


def _report_blank(number: int, display: DisplayOptions) -> None:
    if number and not display.quiet:
        print(f"blank lines of standard input (skipped): {number:,}", file=sys.stderr)


def _advise_on_file(file: str) -> str:
    """Return how to pass the texts of a file as lines."""
    # Imported here, which keeps --help fast.
    from stemformer.data.text.files import split_suffixes

    _, kind, compression = split_suffixes(file)
    rows = {
        ".csv": f"csv; rows = csv.DictReader(open({file!r}))",
        ".tsv": f"csv; rows = csv.DictReader(open({file!r}), delimiter='\\t')",
        ".jsonl": f"json; rows = map(json.loads, open({file!r}))",
        ".json": f"json; rows = json.load(open({file!r}))",
    }.get(kind)
    if not kind and not compression:
        return f"Pass its lines: - < {file}"
    if rows is None or compression:
        return "Write its texts to a file, one per line, and pass - < FILE"
    code = f"import {rows}; [print(' '.join(row['text'].split())) for row in rows]"
    advice = "Write its column of texts (here 'text') to a file of lines, and pass - < lines.txt"
    return f'{advice}: python -c "{code}" > lines.txt'


def _say_if_typed() -> None:
    if sys.stdin.isatty():
        print("reading lines from the terminal; Ctrl-D ends", file=sys.stderr)


def with_stdin(options: Any, stdin: StdinOptions, display: DisplayOptions, *, keep_blank: bool = False) -> Any:
    """Return options with the texts or files of the command line and of standard input."""
    if hasattr(options, "texts"):
        return replace(options, texts=read_texts(options.texts, stdin, display, keep_blank=keep_blank))
    if stdin.stdin:
        _say_if_typed()
    return replace(options, files=[*(options.files or ()), *(["-"] if stdin.stdin else [])])


def generate(options: GenerateOptions, stdin: StdinOptions, display: DisplayOptions) -> None:
    """Print the completion of each prompt, as soon as possible."""
    if not options.prompts and not stdin.stdin and not display.json and sys.stdin.isatty():
        return _generate_typed(options)
    prompts = read_texts(options.prompts, stdin, display)
    options = replace(options, prompts=prompts)
    if display.json:
        run("generate", options, display)
    elif len(prompts) == 1 and options.num_beams == 1:
        _generate_one(options, prompts[0])
    else:
        _generate_many(options, display)


def _generate_typed(options: GenerateOptions) -> None:
    """Complete what is typed, line by line."""
    is_live = options.num_beams == 1
    stemformer.generate(
        options=replace(options, prompts=_typed()),
        on_text=(lambda _, text: print(text, end="", flush=True)) if is_live else None,
        on_result=lambda result: print("" if is_live else result["text"], flush=True),
        on_error=lambda error: print(error, file=sys.stderr),
    )


def _generate_one(options: GenerateOptions, prompt: str) -> None:
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


def _generate_many(options: GenerateOptions, display: DisplayOptions) -> None:
    """Complete several prompts, and print each completion as soon as it is there."""
    starts = itertools.chain([""], itertools.repeat("\n"))
    with display.progress() as progress:
        stemformer.generate(
            options=options,
            on_result=lambda result: print(next(starts) + result["prompt"] + result["text"], flush=True),
            # No progress bar between texts.
            progress=None if sys.stdout.isatty() else progress,
        )


def rewrite(options: RewriteOptions, stdin: StdinOptions, display: DisplayOptions) -> None:
    """Print what texts are rewritten to: of standard input JSON lines as they come, unless they are written to a file."""
    texts: list[str] = list(options.texts or ())
    if texts and not stdin.stdin:
        return run_with_stdin("rewrite", options, stdin, display)
    _check_no_file(texts)
    _say_if_typed()
    lines = _open_lines(texts)
    result = call("rewrite", replace(options, texts=lines), display, on_row=lambda row: print(to_json(row), flush=True))
    if options.out is not None:
        print_result(result, display)


def _open_lines(texts: Sequence[str]) -> Any:
    """Return texts and the lines of standard input: of a pipe or a terminal as they come, of a file read as needed."""
    # Imported here, which keeps --help fast.
    from stemformer.data.text.live_lines import LiveLines, is_live

    try:
        descriptor = sys.stdin.fileno()
    except OSError:
        descriptor = None
    if not texts and descriptor is not None and is_live(descriptor):
        return LiveLines(descriptor)
    return _StdinLines(texts)


class _StdinLines:
    """Texts, and the lines of standard input, which can be read again and are not kept in memory."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts
        self._num_lines = sum(1 for _ in _lines(allow_blank=True))

    def __length_hint__(self) -> int:
        return len(self._texts) + self._num_lines

    def __iter__(self) -> Iterator[str]:
        yield from self._texts
        yield from _lines(allow_blank=True)


def _lines(*, allow_blank: bool = False) -> Iterator[str]:
    # Imported here, which keeps --help fast.
    from stemformer.data.text.files import stream_text, text_lines

    return text_lines(stream_text("-", allow_blank=allow_blank))


def _typed() -> Iterator[str]:
    print("Type a prompt; Ctrl-D ends.", file=sys.stderr)
    while True:
        try:
            yield input("> ")
        except EOFError:
            return
