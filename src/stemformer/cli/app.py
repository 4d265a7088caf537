"""The command line: parse, call one function of `stemformer.api`, print.

Standard output carries the result, standard error the progress; `stemformer.exits` holds the exit codes. Nothing
heavy is imported before a command runs, so that `stemformer --help` answers at once.
"""

# ruff: noqa: D417 - `source`, `machine` and `output` are described by their classes

import contextlib
import os
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from inspect import BoundArguments
from typing import Annotated, Any, Literal, get_args

from cyclopts import App, CycloptsError, Parameter, convert

import stemformer
from stemformer.cli.exit_codes import FULL, signals_raise, verdict
from stemformer.cli.terminal import Terminal, as_text
from stemformer.errors import ConfigError, DataError
from stemformer.progress import Progress, Silent

Flag = Annotated[bool, Parameter(negative=(), show_default=False)]


@Parameter(name="*")
@dataclass(frozen=True)
class Output:
    """How a command speaks.

    Args:
        json: Print the result as JSON.
        quiet: No progress and no remarks on standard error, only errors.
        debug: Show the traceback of an error.
    """

    json: Flag = False
    quiet: Annotated[Flag, Parameter(name=["--quiet", "-q"])] = False
    debug: Flag = False

    @contextlib.contextmanager
    def progress(self) -> Iterator[Progress]:
        """Gives what a long job reports to, and ends its bar however the job ends."""
        progress = Silent() if self.quiet else Terminal()
        try:
            yield progress
        finally:
            progress.finish()


@Parameter(name="*")
@dataclass(frozen=True)
class Machine:
    """What a command computes on.

    Args:
        device: cpu, cuda, cuda:1 ...; the best there is by default.
        precision: Number format of the computation, such as fp32 or bf16; by default what suits the device.
        threads: Processor threads; all cores by default.
    """

    device: str | None = None
    precision: str | None = None
    threads: int | None = None

    def given(self) -> dict[str, Any]:
        """Returns the options that the user gave; the defaults are a matter of `stemformer.api`."""
        return _given(device=self.device, precision=self.precision, threads=self.threads)


@Parameter(name="*")
@dataclass(frozen=True)
class Source:
    """How text files are read.

    Args:
        documents: Where a document ends in plain text. auto: each file of a folder or archive is one; in a file that is
            named itself, blank lines part them, or line ends where it has none.
        column: Which column of a table holds the text.
        errors: What to do with bytes that are no UTF-8.
    """

    documents: Literal["auto", "line", "blank", "file"] = "auto"
    column: str = "text"
    errors: Literal["strict", "replace"] = "strict"


_OUTPUT = Output()
_MACHINE = Machine()
_SOURCE = Source()


def _convert(kind: Any, tokens: Any) -> Any:
    """Returns an option's value as cyclopts would, but that a fraction is refused where it would be rounded."""
    if int in (kind, *get_args(kind)):
        for token in tokens:
            if "." in token.value:
                raise ValueError(f'expected a whole number, not "{token.value}".')
    return convert(kind, tokens)


app = App(
    name="stemformer",
    help="Pre-train once, differentiate into anything: from raw text to a model, on the hardware you have.",
    version=lambda: _version(),
    help_format="plaintext",
    default_parameter=Parameter(negative_iterable=(), converter=_convert),
)


@app.command
def quickstart(
    *,
    out: str = "runs/quickstart",
    overwrite: Flag = False,
    seed: int | None = None,
    machine: Machine = _MACHINE,
    output: Output = _OUTPUT,
) -> None:
    """The whole story on the built-in texts, in minutes: tokenizer, shards, pre-training, blanks filled before and after, a report.

    Args:
        out: Folder of the run.
        overwrite: Replace what the folder holds.
        seed: Number from which all randomness comes.
    """
    with output.progress() as progress:
        result = stemformer.quickstart(
            out=out, overwrite=overwrite, **_given(seed=seed), **machine.given(), progress=progress
        )
    _print_result(result, output)


@app.command
def tokenizer(
    files: list[str],
    /,
    *,
    out: str,
    init: str | None = None,
    kind: Literal["wordpiece", "bpe"] = "wordpiece",
    vocab_size: int = 30522,
    lowercase: Flag = False,
    max_characters: int = 100_000_000,
    seed: int = 0,
    overwrite: Flag = False,
    source: Source = _SOURCE,
    output: Output = _OUTPUT,
) -> None:
    """Trains a tokenizer on text files.

    Args:
        files: Text files (also .jsonl, .csv, .parquet, .gz, .xz, .zst, .tar), folders, globs, or hub:NAME data sets.
        out: Folder of the tokenizer.
        init: Model or tokenizer whose vocabulary is kept; words of the files are added to it, up to --vocab-size.
        kind: WordPiece as in BERT, or byte-level BPE as in GPT-2.
        vocab_size: Number of ids, special ones included.
        lowercase: Fold case and strip accents.
        max_characters: How much text to learn from; more is sampled down.
        seed: Number from which the sample is drawn.
        overwrite: Replace what the folder holds.
    """
    with output.progress() as progress:
        result = stemformer.train_tokenizer(
            files,
            out=out,
            init=init,
            kind=kind,
            vocab_size=vocab_size,
            lowercase=lowercase,
            **asdict(source),
            max_characters=max_characters,
            seed=seed,
            overwrite=overwrite,
            progress=progress,
        )
    _print_result(result, output)


@app.command
def synthetic(
    *,
    out: str,
    documents: int = 20_000,
    tasks: str = "",
    seed: int = 0,
    overwrite: Flag = False,
    output: Output = _OUTPUT,
) -> None:
    """Writes synthetic in-context tasks, to be mixed into the texts of pre-training: examples of one rule a document.

    Args:
        out: The file, .jsonl.
        documents: How many documents.
        tasks: Which tasks, with commas, such as copy,reverse; all by default.
        seed: Number from which all randomness comes.
        overwrite: Replace the file.
    """
    with output.progress() as progress:
        result = stemformer.synthetic(
            out=out, documents=documents, tasks=_words(tasks), seed=seed, overwrite=overwrite, progress=progress
        )
    _print_result(result, output)


@app.command
def prepare(
    files: list[str],
    /,
    *,
    tokenizer: str,
    out: str,
    held_out: float | None = None,
    words: Literal["tokenizer", "jieba"] = "tokenizer",
    num_workers: int | None = None,
    overwrite: Flag = False,
    resume: Flag = False,
    source: Source = _SOURCE,
    output: Output = _OUTPUT,
) -> None:
    """Turns text files into shards of token ids, and sets a held-out part aside.

    Args:
        files: Text files (also .jsonl, .csv, .parquet, .gz, .xz, .zst, .tar), folders, globs, or hub:NAME data sets.
        tokenizer: Folder of the tokenizer.
        out: Folder of the shards.
        held_out: Share of the documents to hold out; by default a hundredth, of less than 10 MB of text more, a tenth at most.
        words: What finds words for whole-word masking; jieba for Chinese.
        num_workers: Processes; one a core by default. The shards do not depend on it.
        overwrite: Replace what the folder holds.
        resume: Go on where an interrupted run stopped.
    """
    with output.progress() as progress:
        result = stemformer.prepare(
            files,
            tokenizer=tokenizer,
            out=out,
            held_out=held_out,
            **asdict(source),
            words=words,
            num_workers=num_workers,
            overwrite=overwrite,
            resume=resume,
            progress=progress,
        )
    _print_result(result, output)


@app.command
def pretrain(
    *,
    recipe: str | None = None,
    data: str,
    out: str,
    init: str | None = None,
    config: str | None = None,
    settings: Annotated[list[str] | None, Parameter(name="--set")] = None,
    steps: int | None = None,
    tokens: int | None = None,
    epochs: float | None = None,
    time: str | None = None,
    seed: int | None = None,
    compile: bool | None = None,
    resume: Flag = False,
    overwrite: Flag = False,
    machine: Machine = _MACHINE,
    output: Output = _OUTPUT,
) -> None:
    """Pre-trains a model on prepared shards.

    Args:
        recipe: Name of a complete run, such as bert_mini.
        data: Folder of the shards.
        out: Folder of the run.
        init: Model folder or hub id to start from, instead of random weights; a BERT is given the vocabulary of the data.
        config: TOML file laid over the recipe.
        settings: One setting laid over both, such as optimizer.learning_rate=1e-3; may be given again.
        steps: Budget in optimizer steps.
        tokens: Budget in tokens.
        epochs: Budget in passes over the data.
        time: Budget on the clock, such as 90s, 30m or 1h30m; interruptions do not count.
        seed: Number from which all randomness comes.
        compile: Compile the blocks of the model, or not; by default what suits the device.
        resume: Go on where the run in --out stopped; with --recipe, begin where there is none yet.
        overwrite: Replace what the folder holds.
    """
    with output.progress() as progress:
        result = stemformer.pretrain(
            recipe,
            data=data,
            out=out,
            init=init,
            config=config,
            settings=settings or [],
            steps=steps,
            tokens=tokens,
            epochs=epochs,
            time=time,
            **_given(seed=seed, compile=compile),
            resume=resume,
            overwrite=overwrite,
            **machine.given(),
            progress=progress,
        )
    _print_result(result, output)


@app.command
def scale(
    *,
    recipe: str,
    data: str,
    out: str,
    sizes: str = "2x64,2x128,4x128,4x256",
    steps: int | None = None,
    tokens: int | None = None,
    tokens_per_parameter: float | None = None,
    time: str | None = None,
    rate_power: float = 0.5,
    config: str | None = None,
    settings: Annotated[list[str] | None, Parameter(name="--set")] = None,
    prompt_task: list[str] | None = None,
    num_shots: str = "0,1,8",
    seed: int | None = None,
    resume: Flag = False,
    overwrite: Flag = False,
    machine: Machine = _MACHINE,
    output: Output = _OUTPUT,
) -> None:
    """Pre-trains a recipe at several sizes, fits held-out loss against parameters and tokens, and draws it.

    Args:
        recipe: Name of a complete run, such as gpt_mini.
        data: Folder of the shards, with a held-out part.
        out: Folder of it all: table, report, pictures, and a run folder for each size.
        sizes: Layers x width, with commas.
        steps: Budget of each size in optimizer steps.
        tokens: Budget of each size in tokens.
        tokens_per_parameter: Budget of each size in tokens for each of its parameters.
        time: Budget of each size on the clock, such as 10m.
        rate_power: The learning rate of a width is the recipe's times (recipe's width / width) to this power.
        config: TOML file laid over the recipe.
        settings: One setting laid over both, such as evaluation.every=50; may be given again.
        prompt_task: A task as for prompt, whose accuracy in context is drawn against size too; may be given again.
        num_shots: Numbers of examples in its prompts.
        seed: Number from which all randomness comes.
        resume: Keep the sizes that are finished, named or not, and do the others.
        overwrite: Replace what the folder holds.
    """
    with output.progress() as progress:
        result = stemformer.scale(
            recipe,
            data=data,
            out=out,
            sizes=_words(sizes),
            steps=steps,
            tokens=tokens,
            tokens_per_parameter=tokens_per_parameter,
            time=time,
            rate_power=rate_power,
            config=config,
            settings=settings or [],
            prompt_tasks=prompt_task or [],
            num_shots=_numbers("--num-shots", num_shots),
            **_given(seed=seed),
            resume=resume,
            overwrite=overwrite,
            **machine.given(),
            progress=progress,
        )
    _print_result(result, output)


@app.command
def plan(
    recipe: str,
    /,
    *,
    data: str | None = None,
    settings: Annotated[list[str] | None, Parameter(name="--set")] = None,
    machine: Machine = _MACHINE,
    output: Output = _OUTPUT,
) -> None:
    """Says what a recipe takes on this machine, from a few steps of it: time, memory, tokens.

    Args:
        recipe: Name of a complete run, such as bert_mini.
        data: Folder of the shards; without it, rows of random ids.
        settings: One setting laid over the recipe; may be given again.
    """
    with output.progress() as progress:
        result = stemformer.plan(recipe, data=data, settings=settings or [], **machine.given(), progress=progress)
    _print_result(result, output)


@app.command
def fill(
    text: list[str] | None = None,
    /,
    *,
    model: str,
    stdin: Annotated[Flag, Parameter(name=["--stdin", "-"])] = False,
    top_k: int = 5,
    among: list[str] | None = None,
    score: Flag = False,
    machine: Machine = _MACHINE,
    output: Output = _OUTPUT,
) -> None:
    """Says which words fit each [MASK].

    Args:
        text: Sentences; the lines of standard input if none is given.
        model: Model folder or hub id.
        stdin: Take the lines of standard input too.
        top_k: How many words for each [MASK].
        among: A word to choose from; may be given again. The whole vocabulary by default.
        score: Instead of filling, score each sentence by its pseudo-log-likelihood.
    """
    texts = [*(text or []), *(_stdin_lines() if stdin or not text else [])]
    result = stemformer.fill(texts, model=model, top_k=top_k, among=among, score=score, **machine.given())
    _print_result(result, output)


@app.command
def finetune(
    task: Literal["classify", "pair", "tag", "qa", "choice"],
    /,
    *,
    model: str,
    train: list[str],
    out: str,
    dev: list[str] | None = None,
    text: list[str] | None = None,
    label: str | None = None,
    regression: Flag = False,
    multi_label: Flag = False,
    max_length: int | None = None,
    symbols: str | None = None,
    symbol_size: int = 1,
    epochs: float | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    config: str | None = None,
    settings: Annotated[list[str] | None, Parameter(name="--set")] = None,
    seed: int | None = None,
    trials: int = 1,
    resume: Flag = False,
    overwrite: Flag = False,
    machine: Machine = _MACHINE,
    output: Output = _OUTPUT,
) -> None:
    """Trains a model on labelled data: texts, pairs of texts, tagged words, questions on passages, multiple choice.

    Args:
        task: What is asked. classify: one text to a class; pair: two texts to a class; tag: a tag for each word; qa: where in a
            passage the answer stands; choice: which option is right.
        model: Model folder, run folder or hub id to start from.
        train: Labelled files: .csv, .tsv, .jsonl, .parquet, CoNLL, CoNLL-U, SQuAD .json, multiple-choice files, hub:NAME.
        out: Folder of the run.
        dev: Labelled files for evaluation; a tenth of the training data by default.
        text: Column of the text; with pair, given twice. Guessed by default.
        label: Column of the answer. Guessed by default.
        regression: The answer is a number.
        multi_label: A text may have any number of labels.
        max_length: Tokens of a text at most; what the model can take by default.
        symbols: Texts are sequences of symbols, such as DNA, each read as a word of the model's vocabulary: draw, or a file with a
            symbol, a tab and its word a line.
        symbol_size: How many symbols a drawn word stands for.
        epochs: Passes over the data; 3 by default.
        steps: Optimizer steps instead.
        batch_size: Examples a step; 32 by default.
        learning_rate: Peak of the learning rate; 3e-5 by default.
        config: TOML file laid over the defaults.
        settings: One setting laid over both, such as evaluation.patience=3; may be given again.
        seed: Number from which all randomness comes.
        trials: So many runs with different seeds; mean and spread are told.
        resume: Go on where the run in --out stopped.
        overwrite: Replace what the folder holds.
    """
    kind = "score" if regression else "labels" if multi_label else "class"
    with output.progress() as progress:
        result = stemformer.finetune(
            task,
            model=model,
            train=train,
            dev=dev or [],
            out=out,
            text=text or [],
            label=label,
            kind=kind,
            max_length=max_length,
            symbols=symbols,
            symbol_size=symbol_size,
            epochs=epochs,
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            config=config,
            settings=settings or [],
            **_given(seed=seed),
            trials=trials,
            resume=resume,
            overwrite=overwrite,
            **machine.given(),
            progress=progress,
        )
    _print_result(result, output)


@app.command
def compare(
    task: Literal["classify", "pair", "tag", "qa", "choice"],
    /,
    *,
    model: str,
    train: list[str],
    out: str,
    dev: list[str] | None = None,
    seeds: int = 3,
    sizes: str = "0.01,0.1,1",
    starts: str = "pretrained,random,reembedded",
    rate: list[str] | None = None,
    text: list[str] | None = None,
    label: str | None = None,
    regression: Flag = False,
    multi_label: Flag = False,
    max_length: int | None = None,
    symbols: str | None = None,
    symbol_size: int = 1,
    epochs: float | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    config: str | None = None,
    settings: Annotated[list[str] | None, Parameter(name="--set")] = None,
    seed: int | None = None,
    resume: Flag = False,
    overwrite: Flag = False,
    machine: Machine = _MACHINE,
    output: Output = _OUTPUT,
) -> None:
    """Says what pre-training is worth: one task from pre-trained and from random weights, over training-set sizes and seeds.

    Args:
        task: What is asked, as for finetune.
        model: Model folder, run folder or hub id: the pre-trained one.
        train: Labelled files, as for finetune.
        out: Folder of the comparison: table, report, pictures.
        dev: Labelled files for evaluation; a tenth of the training data by default.
        seeds: How many runs of each kind; from two on, a spread is told.
        sizes: Numbers of training records, or up to 1 shares of them, with commas.
        starts: Which of these, with commas. pretrained: the model; random: the same, drawn at random; reembedded: its body, with word
            embeddings drawn at random.
        rate: Peak of the learning rate of one start, such as random=3e-4; may be given again. By default random has ten times the
            rate of the others.
        text: Column of the text; with pair, given twice. Guessed by default.
        label: Column of the answer. Guessed by default.
        regression: The answer is a number.
        multi_label: A text may have any number of labels.
        max_length: Tokens of a text at most; what the model can take by default.
        symbols: Texts are sequences of symbols, such as DNA, each read as a word of the model's vocabulary: draw, or a file with a
            symbol, a tab and its word a line.
        symbol_size: How many symbols a drawn word stands for.
        epochs: Passes of each size over its own records, instead of the same number of steps for each.
        steps: Optimizer steps of every run; three passes over the largest size by default.
        batch_size: Examples a step; 32 by default.
        learning_rate: Peak of the learning rate; 3e-5 by default.
        config: TOML file laid over the defaults.
        settings: One setting laid over both, such as evaluation.every=50; may be given again.
        seed: The first seed.
        resume: Keep the runs that are finished, and do the others; starts, sizes and seeds may be added.
        overwrite: Replace what the folder holds.
    """
    kind = "score" if regression else "labels" if multi_label else "class"
    with output.progress() as progress:
        result = stemformer.compare(
            task,
            model=model,
            train=train,
            dev=dev or [],
            out=out,
            seeds=seeds,
            sizes=_words(sizes),
            starts=_words(starts),
            rates=rate or [],
            text=text or [],
            label=label,
            kind=kind,
            max_length=max_length,
            symbols=symbols,
            symbol_size=symbol_size,
            epochs=epochs,
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            config=config,
            settings=settings or [],
            **_given(seed=seed),
            resume=resume,
            overwrite=overwrite,
            **machine.given(),
            progress=progress,
        )
    _print_result(result, output)


@app.command
def generate(
    prompt: list[str] | None = None,
    /,
    *,
    model: str,
    stdin: Annotated[Flag, Parameter(name=["--stdin", "-"])] = False,
    max_new_tokens: int = 128,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    stop: list[str] | None = None,
    slide: Flag = False,
    batch_size: int = 32,
    seed: int = 0,
    machine: Machine = _MACHINE,
    output: Output = _OUTPUT,
) -> None:
    """Goes on with texts, as a model that was trained on the next word would.

    Args:
        prompt: Beginnings; if none is given, the lines of standard input, empty ones too, or what is typed, line by line. One text is
            written as it comes.
        model: GPT-2 folder or hub id.
        stdin: Take the lines of standard input too.
        max_new_tokens: How many tokens are added at most.
        temperature: Above 1 more surprising, below 1 more likely; 0 always takes the likeliest token.
        top_k: Draw from the so many likeliest tokens; 0 for all.
        top_p: Draw from the fewest tokens that have this share of the probability.
        min_p: Draw from tokens at least so likely as this share of the likeliest.
        repetition_penalty: Above 1, tokens that were there become less likely.
        num_beams: Follow so many texts at once and take the likeliest; nothing is drawn.
        length_penalty: Above 0, longer beams are preferred.
        stop: End before this string; may be given again.
        slide: Go on where the model has no further position, with the later half of what it sees.
        batch_size: Texts that are written at the same time, where there are several.
        seed: Number from which all randomness comes; what is drawn for a text follows from it and from the text's place among all.
    """
    given = {
        "model": model,
        "stop": stop or [],
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "num_beams": num_beams,
        "length_penalty": length_penalty,
        "overflow": "slide" if slide else "error",
        "seed": seed,
        **machine.given(),
    }
    tell = (lambda _, text: print(text, end="", flush=True)) if num_beams == 1 else None
    if not prompt and not stdin and not output.json and sys.stdin.isatty():
        for result in stemformer.generate_each(
            _typed(), on_text=tell, on_error=lambda e: print(e, file=sys.stderr), **given
        ):
            print("" if tell else result["text"], flush=True)
        return
    prompts = [*(prompt or []), *(_stdin_lines(keeps_empty=True) if stdin or not prompt else [])]
    if not prompts:
        raise DataError("standard input holds no text: give a line for each text, or '' for one from the beginning")
    if len(prompts) == 1 and not output.json and tell is not None:
        before = prompts[:1]  # written with the first word, when nothing was found wrong with what is asked

        def tell_first(_: int, text: str) -> None:
            print(*before, text, sep="", end="", flush=True)
            before.clear()

        [found] = stemformer.generate(prompts, on_text=tell_first, **given)
        print(*before)
        if not found["num_tokens"]:
            print("note: the model ended the text at once; another --seed may not", file=sys.stderr)
        return
    written = 0

    def tell_text(result: dict[str, Any]) -> None:
        nonlocal written
        print("\n" * (written > 0) + result["prompt"] + result["text"], flush=True)
        written += 1

    with output.progress() as progress:
        shown = progress if output.json or not sys.stdout.isatty() else None  # no bar between texts
        told = None if output.json else tell_text
        results = stemformer.generate(prompts, batch_size=batch_size, on_result=told, progress=shown, **given)
    if output.json:
        _print_result(results, output)


@app.command
def prompt(
    task: list[str] | None = None,
    /,
    *,
    model: list[str] | None = None,
    out: str | None = None,
    num_shots: str = "",
    examples: list[str] | None = None,
    num_questions: int = 200,
    draws: int = 1,
    calibrate: Flag = False,
    show: Flag = False,
    list_: Annotated[Flag, Parameter(name="--list")] = False,
    seed: int = 0,
    resume: Flag = False,
    overwrite: Flag = False,
    machine: Machine = _MACHINE,
    output: Output = _OUTPUT,
) -> None:
    """Asks models in context, with no, one or some examples in the prompt, and without training them.

    Args:
        task: Built-in names (see --list) or .toml files, with =FILE where the data is not said there; synthetic:NAME. Several may be given.
        model: GPTs, or masked models for tasks with choices; may be given again.
        out: Folder of table, pictures and report.
        num_shots: Numbers of examples in the prompt, such as 0,1,4,16; by default those that each task says.
        examples: TASK=FILE where examples are not to be drawn from the questions.
        num_questions: Of a task at most.
        draws: Draws of the examples; the figure is the mean over them.
        calibrate: Also compare answers with how likely they are without a question.
        show: Print the very prompts of each task's first question, and ask nobody.
        list_: Print the tasks that can be named.
        seed: Number from which all randomness comes.
        resume: Keep the figures that are in the folder, and add what is missing.
        overwrite: Replace what the folder holds.
    """
    if list_:
        return _print_result({"tasks": stemformer.list_tasks()}, output)
    shots = _numbers("--num-shots", num_shots) if num_shots else []
    if show and out:
        raise ConfigError("--show asks nobody, so there is nothing to put into --out: leave one of them out")
    if show:
        shown = stemformer.show_prompts(task or [], num_shots=shots, examples=examples or [], seed=seed)
        if output.json:
            return _print_result(shown, output)
        for one in shown:
            print(f"=== {one['task']}, {one['num_shots']}-shot ===\n{one['prompt']}[{one['right']}]\n")
        return None
    with output.progress() as progress:
        result = stemformer.prompt(
            task or [],
            models=model or [],
            out=out,
            num_shots=shots,
            examples=examples or [],
            num_questions=num_questions,
            draws=draws,
            calibrate=calibrate,
            seed=seed,
            resume=resume,
            overwrite=overwrite,
            **machine.given(),
            progress=progress,
        )
    _print_result(result if output.json else {name: told for name, told in result.items() if name != "figures"}, output)


@app.command
def evaluate(
    data: list[str] | None = None,
    /,
    *,
    model: str,
    stdin: Annotated[Flag, Parameter(name=["--stdin", "-"])] = False,
    out: str | None = None,
    text: list[str] | None = None,
    label: str | None = None,
    report: str | None = None,
    worst: int = 5,
    overwrite: Flag = False,
    machine: Machine = _MACHINE,
    output: Output = _OUTPUT,
) -> None:
    """Says how good a fine-tuned model is on labelled files, and what it is most wrong about.

    Args:
        data: Labelled files, as for finetune.
        model: Folder of the fine-tuned model or of its run.
        stdin: Read standard input too: JSON lines.
        out: File for all of it as JSON.
        text: Column of the text; with pairs, given twice. As in the training data by default.
        label: Column of the answer; likewise.
        report: Folder for the same as a page, with confusion matrix and examples.
        worst: How many wrong answers are shown.
        overwrite: Replace the file, and the report in the folder.
    """
    with output.progress() as progress:
        result = stemformer.evaluate(
            _with_stdin(data, stdin),
            model=model,
            out=out,
            text=text or [],
            label=label,
            report=report,
            worst=worst,
            overwrite=overwrite,
            **machine.given(),
            progress=progress,
        )
    _print_result(result, output)


@app.command
def predict(
    data: list[str] | None = None,
    /,
    *,
    model: str,
    stdin: Annotated[Flag, Parameter(name=["--stdin", "-"])] = False,
    out: str | None = None,
    text: list[str] | None = None,
    overwrite: Flag = False,
    machine: Machine = _MACHINE,
    output: Output = _OUTPUT,
) -> None:
    """Writes what a fine-tuned model says about each record of files; without --out, as a line of JSON each.

    Args:
        data: Files, as for finetune; answers need not be there.
        model: Folder of the fine-tuned model or of its run.
        stdin: Read standard input too: JSON lines, or a text a line.
        out: File for the predictions: .jsonl, .csv, .tsv; .conll for tags; .json for answers in SQuAD's form.
        text: Column of the text; with pairs, given twice. As in the training data by default.
        overwrite: Replace the file.
    """
    with output.progress() as progress:
        result = stemformer.predict(
            _with_stdin(data, stdin),
            model=model,
            out=out,
            text=text or [],
            overwrite=overwrite,
            **machine.given(),
            progress=progress,
        )
    if out is None:
        _print_lines(result["predictions"])
    else:
        _print_result(result, output)


@app.command
def glue(
    folder: str,
    /,
    *,
    model: str,
    out: str,
    task: list[str] | None = None,
    trials: int = 1,
    learning_rate: list[float] | None = None,
    epochs: float | None = None,
    batch_size: int | None = None,
    max_length: int | None = None,
    from_task: str | None = None,
    submission: Flag = False,
    settings: Annotated[list[str] | None, Parameter(name="--set")] = None,
    seed: int = 0,
    resume: Flag = False,
    overwrite: Flag = False,
    machine: Machine = _MACHINE,
    output: Output = _OUTPUT,
) -> None:
    """Fine-tunes a model for each task of the GLUE benchmark, and sets the figures beside published ones.

    Args:
        folder: Folder of GLUE, as the benchmark packs it (CoLA/train.tsv ...), or hub:nyu-mll/glue.
        model: Model folder, run folder or hub id to start from.
        out: Folder of the benchmark.
        task: Only this one, such as CoLA or RTE; may be given again. SWAG is taken too.
        trials: So many runs of each task with different seeds; mean and spread are told.
        learning_rate: Peak of the learning rate; of several, the best on dev is taken. 5e-5, 4e-5, 3e-5 and 2e-5 by default.
        epochs: Passes over the data; 3 by default.
        batch_size: Examples a step; 32 by default.
        max_length: Tokens of a text at most; what the model can take by default.
        from_task: The small tasks (RTE, MRPC, STS-B) start from the model of this task, such as MNLI, or from a fine-tuned model.
        submission: Write the files that the leaderboard wants.
        settings: One setting laid over each run, as for finetune; may be given again.
        seed: Number from which all randomness comes.
        resume: Go on with the tasks that are not finished in --out.
        overwrite: Replace what the folder holds.
    """
    with output.progress() as progress:
        result = stemformer.glue(
            folder,
            model=model,
            out=out,
            tasks=task or [],
            trials=trials,
            learning_rates=learning_rate or [],
            epochs=epochs,
            batch_size=batch_size,
            max_length=max_length,
            from_task=from_task,
            submission=submission,
            settings=settings or [],
            seed=seed,
            resume=resume,
            overwrite=overwrite,
            **machine.given(),
            progress=progress,
        )
    _print_result(result, output)


@app.command
def squad(
    *,
    model: str,
    train: list[str],
    dev: list[str],
    out: str,
    trials: int = 1,
    learning_rate: list[float] | None = None,
    epochs: float | None = None,
    batch_size: int | None = None,
    max_length: int | None = None,
    settings: Annotated[list[str] | None, Parameter(name="--set")] = None,
    seed: int = 0,
    resume: Flag = False,
    overwrite: Flag = False,
    machine: Machine = _MACHINE,
    output: Output = _OUTPUT,
) -> None:
    """Fine-tunes a model on SQuAD 1.1 or 2.0, writes its predictions, and sets exact match and F1 beside published ones.

    Args:
        model: Model folder, run folder or hub id to start from.
        train: Files in SQuAD's form. It is SQuAD 2.0 if some of their questions have no answer.
        dev: The same, to be judged by.
        out: Folder of the benchmark.
        trials: So many runs with different seeds; mean and spread are told.
        learning_rate: Peak of the learning rate; of several, the best on dev is taken. 5e-5 by default.
        epochs: Passes over the data; 3 by default, 2 for SQuAD 2.0.
        batch_size: Windows a step; 32 by default, 48 for SQuAD 2.0.
        max_length: Tokens of a question with a part of its passage; 384 by default.
        settings: One setting laid over each run, as for finetune; may be given again.
        seed: Number from which all randomness comes.
        resume: Go on where the benchmark in --out stopped.
        overwrite: Replace what the folder holds.
    """
    with output.progress() as progress:
        result = stemformer.squad(
            train,
            model=model,
            dev=dev,
            out=out,
            trials=trials,
            learning_rates=learning_rate or [],
            epochs=epochs,
            batch_size=batch_size,
            max_length=max_length,
            settings=settings or [],
            seed=seed,
            resume=resume,
            overwrite=overwrite,
            **machine.given(),
            progress=progress,
        )
    _print_result(result, output)


@app.command
def report(run: str, /, *, output: Output = _OUTPUT) -> None:
    """Writes the report of a run anew, also while it is going on.

    Args:
        run: Folder of the run.
    """
    _print_result(stemformer.report(run), output)


@app.command
def inspect(path: str, /, *, output: Output = _OUTPUT) -> None:
    """Says what a folder holds: a model, a tokenizer, shards or a run.

    Args:
        path: The folder.
    """
    _print_result(stemformer.inspect(path), output)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit code; what went wrong is one line on standard error.

    Args:
        arguments: The words after `stemformer`; those of the process by default.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    # Threads that spin while they wait make a run several times slower as soon as another program wants a core (docs/log.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    bound = None
    with signals_raise() as raised, warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            command, bound, _ = app.parse_args(words, print_error=False, exit_on_error=False)
            command(*bound.args, **bound.kwargs)
            sys.stdout.flush()
        except CycloptsError as error:
            chosen = " ".join(["stemformer", *(error.command_chain or ())])
            print(f"error: {' '.join(str(error).split())} See {chosen} --help.", file=sys.stderr)
            return 2
        except (Exception, KeyboardInterrupt) as error:
            if "--debug" in words:
                traceback.print_exc()
            code, line = verdict(error)
            if code == 1 and raised:
                error = raised[-1]
                code, line = verdict(error)
            if bound is not None and _can_go_on(words[0], bound, error):
                line += ": what is finished is kept; go on with --resume"
            if line and _is_to_tell(error):
                print(line, file=sys.stderr)
            return code
    return 0


def _can_go_on(command: str, bound: BoundArguments, error: BaseException) -> bool:
    """Says whether a command that ended early has left something in its folder that --resume goes on from, and has not said so itself."""
    out = bound.arguments.get("out")
    is_full = isinstance(error, OSError) and error.errno in FULL and "resume" in bound.signature.parameters
    is_stopped = isinstance(error, KeyboardInterrupt) and command in ("prepare", "prompt", "scale")
    return (is_full or is_stopped) and out is not None and os.path.isdir(out) and any(os.scandir(out))


def _is_to_tell(error: BaseException) -> bool:
    """Says whether this process tells an error: of a machine's ranks the first one, and another where it is not ended soon after."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        return True
    if isinstance(error, KeyboardInterrupt):
        return False
    try:
        time.sleep(_PATIENCE)  # torchrun ends it as soon as the first one, which made the same mistake, has ended
    except KeyboardInterrupt:
        return False
    return True


_PATIENCE = 10.0
"""Seconds that a rank waits for another one to tell an error."""


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    print(f"warning: {message}", file=sys.stderr)


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _numbers(option: str, text: str) -> list[int]:
    words = _words(text)
    if not words or not all(word.isdecimal() for word in words):
        raise ConfigError(f"{option} {text}: expected whole numbers with commas between, such as 0,1,4")
    return [int(word) for word in words]


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _with_stdin(files: Sequence[str] | None, stdin: bool) -> list[str]:
    return [*(files or []), *(["-"] if stdin else [])]


def _typed() -> Iterator[str]:
    """Yields what a person types, line by line, until the end (Ctrl-D)."""
    print("Type a beginning; Ctrl-D ends.", file=sys.stderr)
    while True:
        try:
            yield input("> ")
        except EOFError:
            return


def _stdin_lines(*, keeps_empty: bool = False) -> list[str]:
    if sys.stdin.isatty():
        print("reading lines from the terminal; end with Ctrl-D", file=sys.stderr)
    try:
        return [line.rstrip("\r\n") for line in sys.stdin if keeps_empty or line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(
            f"standard input is no UTF-8 ({error.reason} at byte {error.start}): convert it first"
        ) from error


def _print_result(result: Any, output: Output) -> None:
    if os.environ.get("RANK", "0") != "0":
        return
    if output.json:
        import json

        print(json.dumps(result, ensure_ascii=False, indent=2, default=_as_number))
    else:
        print(as_text(result))


def _print_lines(rows: Sequence[dict[str, Any]]) -> None:
    import json

    for row in rows:
        print(json.dumps(row, ensure_ascii=False, default=_as_number))


def _as_number(value: Any) -> Any:
    """What JSON writes for a NumPy or torch scalar, or for a path."""
    return value.item() if hasattr(value, "item") else str(value)


def _version() -> str:
    version: str = stemformer.__version__
    return version


if __name__ == "__main__":
    sys.exit(main())
