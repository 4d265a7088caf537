"""The command line: read the options, call one function of the Python API, print its result.

Standard output carries the result, standard error the progress; exit codes are in
`stemformer.cli.exit_codes`. Nothing heavy is imported before a command runs, so that
`stemformer --help` answers at once.
"""

import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import field, replace
from inspect import BoundArguments
from typing import Any

from cyclopts import App, CycloptsError, Group, Parameter

import stemformer
from stemformer import options as o
from stemformer.cli.display import (
    DisplayOptions,
    StdinOptions,
    generate_many,
    generate_one,
    generate_typed,
    print_result,
    read_files,
    read_texts,
    to_json,
)
from stemformer.cli.exit_codes import FULL, signals_raise, verdict
from stemformer.cli.parameters import Command, convert_value, new_words
from stemformer.errors import ConfigError, DataError

# ruff: noqa: D103 - the help of a command is the docstring of its options

START, DATA, TRAIN, USE, MEASURE, KEEP = (
    Group(name, sort_key=number)
    for number, name in enumerate(("Start", "Data", "Train", "Use", "Measure", "Keep"), start=1)
)

_RANK_PATIENCE = 10.0
"""Seconds that a rank waits for the first rank of its machine to report the same error."""

app = App(
    name="stemformer",
    help="Your own BERT or GPT from your own text: from raw text to a model, on the computer you have.",
    version=lambda: stemformer.__version__,
    help_format="plaintext",
    default_parameter=Parameter(negative_iterable=(), converter=convert_value),
)
benchmark_app = App(
    name="benchmark", help="Fine-tune on GLUE or SQuAD and list the results next to published ones.", group=MEASURE
)
app.command(benchmark_app)


@o.options
class FewShotDisplay(o.Options):
    """What fewshot prints instead of results.

    Attributes:
        list_tasks: List the built-in tasks and exit.
        dry_run: Print the prompts of the first example of each task and exit.
    """

    list_tasks: bool = field(default=False, metadata={"flag": "--list"})
    dry_run: bool = False


def command(group: Group | None, *, name: str, of: App = app, optional: Sequence[str] = ()) -> Callable[..., Any]:
    """Register a function of options objects as a command, described by the first options class."""

    def register(function: Callable[..., None]) -> Command:
        made = Command(function, optional=optional)
        # Registered by import path, so that cyclopts inspects the parameters only when the command runs.
        of.command(f"{__name__}:{function.__name__}", name=name, help=made.help, group=group)
        return made

    return register


# ------------------------------------------------------------------------------------ start, data, train


@command(START, name="quickstart")
def quickstart(options: o.QuickstartOptions, display: DisplayOptions) -> None:
    run(stemformer.quickstart, options, display)


@command(START, name="recipes")
def recipes(options: o.RecipesOptions, display: DisplayOptions) -> None:
    print_result(stemformer.list_recipes(), display)


@command(START, name="plan")
def plan(options: o.PlanOptions, display: DisplayOptions) -> None:
    run(stemformer.plan, options, display)


@command(DATA, name="train-tokenizer")
def train_tokenizer(options: o.TrainTokenizerOptions, display: DisplayOptions) -> None:
    run(stemformer.train_tokenizer, options, display)


@command(DATA, name="prepare")
def prepare(options: o.PrepareOptions, display: DisplayOptions) -> None:
    run(stemformer.prepare, options, display)


@command(DATA, name="make-synthetic")
def make_synthetic(options: o.MakeSyntheticOptions, display: DisplayOptions) -> None:
    run(stemformer.make_synthetic, options, display)


@command(TRAIN, name="pretrain")
def pretrain(options: o.PretrainOptions, display: DisplayOptions) -> None:
    run(stemformer.pretrain, options, display)


@command(TRAIN, name="finetune")
def finetune(options: o.FinetuneOptions, display: DisplayOptions) -> None:
    run(stemformer.finetune, options, display)


# --------------------------------------------------------------------------------------------------- use


@command(USE, name="fill", optional=["texts"])
def fill(options: o.FillOptions, stdin: StdinOptions, display: DisplayOptions) -> None:
    options = replace(options, texts=read_texts(options.texts, stdin))
    print_result(stemformer.fill(options=options), display)


@command(USE, name="score", optional=["texts"])
def score(options: o.ScoreOptions, stdin: StdinOptions, display: DisplayOptions) -> None:
    options = replace(options, texts=read_texts(options.texts, stdin))
    print_result(stemformer.score(options=options), display)


@command(USE, name="generate", optional=["prompts"])
def generate(options: o.GenerateOptions, stdin: StdinOptions, display: DisplayOptions) -> None:
    is_typed = not options.prompts and not stdin.stdin and not display.json and sys.stdin.isatty()
    prompts = [] if is_typed else read_texts(options.prompts, stdin, keeps_empty=True)
    if is_typed:
        generate_typed(options)
    elif not prompts:
        raise DataError("Standard input holds no text. Pass a line for each prompt, or '' to start a new document.")
    elif len(prompts) == 1 and not display.json and options.num_beams == 1:
        generate_one(replace(options, prompts=prompts), prompts[0])
    else:
        generate_many(replace(options, prompts=prompts), display)


@command(USE, name="embed", optional=["texts"])
def embed(options: o.EmbedOptions, stdin: StdinOptions, display: DisplayOptions) -> None:
    options = replace(options, texts=read_texts(options.texts, stdin))
    with display.progress() as progress:
        result = stemformer.embed(options=options, progress=progress)
    if options.out is None:
        for text, vector in zip(options.texts, result["embeddings"].tolist(), strict=True):
            print(to_json({"text": text, "embedding": vector}))
    else:
        print_result(result, display)


@command(USE, name="predict", optional=["files"])
def predict(options: o.PredictOptions, stdin: StdinOptions, display: DisplayOptions) -> None:
    options = replace(options, files=read_files(options.files, stdin))
    with display.progress() as progress:
        result = stemformer.predict(options=options, progress=progress)
    if options.out is None:
        for row in result["predictions"]:
            print(to_json(row))
    else:
        print_result(result, display)


# ----------------------------------------------------------------------------------------------- measure


@command(MEASURE, name="evaluate", optional=["files"])
def evaluate(options: o.EvaluateOptions, stdin: StdinOptions, display: DisplayOptions) -> None:
    run(stemformer.evaluate, replace(options, files=read_files(options.files, stdin)), display)


@command(MEASURE, name="fewshot", optional=["tasks", "model"])
def fewshot(options: o.FewShotOptions, instead: FewShotDisplay, display: DisplayOptions) -> None:
    if instead.list_tasks:
        print_result({"tasks": stemformer.list_tasks()}, display)
    elif instead.dry_run:
        if options.out:
            raise ConfigError("--dry-run writes nothing into --out. Remove one of them.")
        shared = {name: getattr(options, name) for name in ("tasks", "num_shots", "demonstrations", "seed")}
        prompts = stemformer.show_prompts(**shared)
        if display.json:
            print_result(prompts, display)
        else:
            for row in prompts:
                print(f"=== {row['task']}, {row['num_shots']}-shot ===\n{row['prompt']}[{row['right']}]\n")
    else:
        with display.progress() as progress:
            result = stemformer.fewshot(options=options, progress=progress)
        # All results are printed as JSON only.
        shown = result if display.json else {key: value for key, value in result.items() if key != "results"}
        print_result(shown, display)


@command(MEASURE, name="compare")
def compare(options: o.CompareOptions, display: DisplayOptions) -> None:
    run(stemformer.compare, options, display)


@command(MEASURE, name="scaling-laws")
def scaling_laws(options: o.ScalingLawsOptions, display: DisplayOptions) -> None:
    run(stemformer.scaling_laws, options, display)


@command(None, name="glue", of=benchmark_app)
def benchmark_glue(options: o.GlueOptions, display: DisplayOptions) -> None:
    run(stemformer.benchmark_glue, options, display)


@command(None, name="squad", of=benchmark_app)
def benchmark_squad(options: o.SquadOptions, display: DisplayOptions) -> None:
    run(stemformer.benchmark_squad, options, display)


# -------------------------------------------------------------------------------------------------- keep


@command(KEEP, name="inspect")
def inspect(options: o.InspectOptions, display: DisplayOptions) -> None:
    print_result(stemformer.inspect(options=options), display)


@command(KEEP, name="report")
def report(options: o.ReportOptions, display: DisplayOptions) -> None:
    print_result(stemformer.report(options=options), display)


@command(KEEP, name="runs")
def runs(options: o.RunsOptions, display: DisplayOptions) -> None:
    print_result(stemformer.list_runs(options=options), display)


@command(KEEP, name="env")
def env(options: o.EnvOptions, display: DisplayOptions) -> None:
    print_result(stemformer.env(), display)


# -------------------------------------------------------------------------------------------------- main


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; an error is one line on standard error.

    Args:
        arguments: Words after `stemformer`; by default those of the process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    words, notes = new_words(words, _options_of)
    if not {"--quiet", "-q"} & set(words):
        for note in notes:
            print(note, file=sys.stderr)
    if _is_unknown(words):
        # Without --help, cyclopts reports the unknown command, with a suggestion.
        words = [word for word in words if word not in ("--help", "-h")]
    # Threads that spin while they wait make a run several times slower as soon as another program
    # needs a core (docs/log.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    bound = None
    with signals_raise() as raised, warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            chosen, bound, _ = app.parse_args(words, print_error=False, exit_on_error=False)
            chosen(*bound.args, **bound.kwargs)
            sys.stdout.flush()
        except CycloptsError as error:
            name = " ".join(["stemformer", *(error.command_chain or ())])
            print(f"error: {' '.join(str(error).split())} See {name} --help.", file=sys.stderr)
            return 2
        except (Exception, KeyboardInterrupt) as error:
            if "--debug" in words:
                traceback.print_exc()
            code, line = verdict(error)
            if code == 1 and raised:
                error = raised[-1]
                code, line = verdict(error)
            if bound is not None and _can_resume(words[0], bound, error):
                line += ". Finished work was kept; continue with --resume"
            if line and _is_reported_here(error):
                print(line, file=sys.stderr)
            return code
    return 0


def run(function: Callable[..., Any], options: o.Options, display: DisplayOptions) -> None:
    """Call a function of the Python API with progress, and print its result."""
    with display.progress() as progress:
        result = function(options=options, progress=progress)
    if getattr(options, "show_config", False) and not display.json:
        print(result["config"], end="")
    else:
        print_result(result, display)


def _command_app(name: str) -> Any:
    """Return the app of a command such as `benchmark glue`; None if there is none."""
    found: Any = app
    for part in name.split():
        if part.startswith("-") or part not in found:
            return None
        found = found[part]
    return found


def _options_of(name: str) -> tuple[type[o.Options], ...]:
    found = _command_app(name)
    return tuple(found.default_command.classes.values()) if found and found.default_command else ()


def _is_unknown(words: Sequence[str]) -> bool:
    names = [word for word in words[: 2 if words[:1] == ["benchmark"] else 1] if not word.startswith("-")]
    return bool(names) and _command_app(" ".join(names)) is None


def _can_resume(name: str, bound: BoundArguments, error: BaseException) -> bool:
    """Return whether a command that ended early left work behind that --resume continues, and did not say so itself."""
    out = bound.arguments.get("out")
    is_full = isinstance(error, OSError) and error.errno in FULL and "resume" in bound.signature.parameters
    is_stopped = isinstance(error, KeyboardInterrupt) and name in ("prepare", "fewshot", "scaling-laws")
    return (is_full or is_stopped) and out is not None and os.path.isdir(out) and any(os.scandir(out))


def _is_reported_here(error: BaseException) -> bool:
    """Return whether this rank reports an error: the first of its machine, or another one that is not ended soon after."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        return True
    if isinstance(error, KeyboardInterrupt):
        return False
    try:
        # torchrun ends this rank as soon as the first one, which met the same error, has ended.
        time.sleep(_RANK_PATIENCE)
    except KeyboardInterrupt:
        return False
    return True


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    print(f"warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
