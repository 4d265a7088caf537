"""The command line: read the options, call one function of the Python API, print its result.

Standard output carries the result, standard error the progress; exit codes are in `stemformer.cli.exit_codes`. Nothing
heavy is imported before a command runs, so that `stemformer --help` answers at once.
"""

import contextlib
import os
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from functools import partial
from inspect import BoundArguments

from cyclopts import App, CycloptsError, Group, MissingArgumentError, Parameter, UnknownCommandError

import stemformer
from stemformer import options as o
from stemformer.cli.display import (
    FewShotDisplay,
    StdinOptions,
    fewshot,
    generate,
    print_rows,
    rewrite,
    run,
    run_with_stdin,
)
from stemformer.cli.exit_codes import DISK_FULL, describe_error, report_to_torchrun, signals_raise
from stemformer.cli.parameters import Command, convert_value, new_words
from stemformer.config import SIMILAR, nearest_first

START, DATA, TRAIN, USE, MEASURE, KEEP = (
    Group(name, sort_key=number)
    for number, name in enumerate(("Start", "Data", "Train", "Use", "Measure", "Keep"), start=1)
)

_RANK_WAIT = 10.0
"""Seconds that a rank waits for the first rank of its machine to report the same error."""

app = App(
    name="stemformer",
    help="Your own BERT, GPT or BART from your own text: from raw text to a model, on the computer you have.",
    version=lambda: stemformer.__version__,
    help_format="plaintext",
    default_parameter=Parameter(negative_iterable=(), converter=convert_value),
)
benchmark_app = App(
    name="benchmark", help="Run GLUE, SQuAD or BLiMP and list the results next to published ones.", group=MEASURE
)
app.command(benchmark_app)

COMMANDS = {
    "quickstart": Command(START, partial(run, "quickstart"), o.QuickstartOptions),
    "samples": Command(START, partial(run, "samples"), o.SamplesOptions),
    "recipes": Command(START, partial(run, "list_recipes"), o.RecipesOptions),
    "plan": Command(START, partial(run, "plan"), o.PlanOptions),
    "train-tokenizer": Command(DATA, partial(run_with_stdin, "train_tokenizer"), o.TrainTokenizerOptions, StdinOptions),
    "prepare": Command(DATA, partial(run_with_stdin, "prepare"), o.PrepareOptions, StdinOptions),
    "make-synthetic": Command(DATA, partial(run, "make_synthetic"), o.MakeSyntheticOptions),
    "pretrain": Command(TRAIN, partial(run, "pretrain"), o.PretrainOptions),
    "finetune": Command(TRAIN, partial(run, "finetune"), o.FinetuneOptions),
    "fill": Command(USE, partial(run_with_stdin, "fill"), o.FillOptions, StdinOptions),
    "score": Command(USE, partial(run_with_stdin, "score"), o.ScoreOptions, StdinOptions),
    "generate": Command(USE, generate, o.GenerateOptions, StdinOptions),
    "rewrite": Command(USE, rewrite, o.RewriteOptions, StdinOptions),
    "embed": Command(USE, partial(print_rows, "embed"), o.EmbedOptions, StdinOptions),
    "predict": Command(USE, partial(print_rows, "predict"), o.PredictOptions, StdinOptions),
    "evaluate": Command(MEASURE, partial(run_with_stdin, "evaluate"), o.EvaluateOptions, StdinOptions),
    "fewshot": Command(MEASURE, fewshot, o.FewShotOptions, FewShotDisplay),
    "compare": Command(MEASURE, partial(run, "compare"), o.CompareOptions),
    "scaling-laws": Command(MEASURE, partial(run, "scaling_laws"), o.ScalingLawsOptions),
    "ablate": Command(MEASURE, partial(run, "ablate"), o.AblateOptions),
    "benchmark glue": Command(None, partial(run, "benchmark_glue"), o.GlueOptions),
    "benchmark squad": Command(None, partial(run, "benchmark_squad"), o.SquadOptions),
    "benchmark blimp": Command(None, partial(run, "benchmark_blimp"), o.BlimpOptions),
    "inspect": Command(KEEP, partial(run, "inspect"), o.InspectOptions),
    "report": Command(KEEP, partial(run, "report"), o.ReportOptions),
    "runs": Command(KEEP, partial(run, "list_runs"), o.RunsOptions),
    "env": Command(KEEP, partial(run, "env"), o.EnvOptions),
}
for _number, (_name, _command) in enumerate(COMMANDS.items()):
    # Registered by import path, so that cyclopts inspects the parameters only when the command runs.
    _attribute = f"_command_{_name}"
    globals()[_attribute] = _command
    _parent = benchmark_app if _name.startswith("benchmark ") else app
    _path, _word = f"{__name__}:{_attribute}", _name.split()[-1]
    _parent.command(_path, name=_word, help=_command.help, group=_command.group, sort_key=_number)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; an error is one line on standard error."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    words, notes = new_words(words, COMMANDS)
    if not {"--quiet", "-q"} & set(words):
        for note in notes:
            print(note, file=sys.stderr)
    if _is_unknown(words):
        # Without --help, cyclopts reports the unknown command, with a suggestion.
        words = [word for word in words if word not in ("--help", "-h")]
    # Threads that spin while they wait make a run several times slower when another program needs a core (docs/log.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    bound = None
    with signals_raise() as raised, warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
        try:
            command, bound, _ = app.parse_args(words, print_error=False, exit_on_error=False)
            command(*bound.args, **bound.kwargs)
            sys.stdout.flush()
        except CycloptsError as error:
            line = f"error: {_describe_mistake(error, words)}"
            report_to_torchrun(line)
            if _is_reported_here(error):
                print(line, file=sys.stderr)
            return 2
        except (Exception, KeyboardInterrupt) as error:
            if "--debug" in words:
                traceback.print_exc()
            code, line = describe_error(error)
            if code == 1 and raised:
                error = raised[-1]
                code, line = describe_error(error)
            if bound is not None and _can_resume(words, bound, error):
                line = f"{line.removesuffix('.')}. Finished work was kept; continue with --resume"
            report_to_torchrun(line)
            if line and _is_reported_here(error):
                print(line, file=sys.stderr)
            return code
    return 0


def _describe_mistake(error: CycloptsError, words: Sequence[str]) -> str:
    """Return the line for a mistake in the words of a command: what is wrong, and what was expected."""
    name = " ".join(error.command_chain or ())
    if isinstance(error, UnknownCommandError):
        known = (
            [command for command in COMMANDS if command.startswith(f"{name} ")] if name else [*COMMANDS, "benchmark"]
        )
        word, options = _command_words(words), [word for word in words if word.startswith("-")]
        if options and word in ("", name, *known):
            return f"Expected a command before {options[0]}. See {' '.join(['stemformer', *word.split()])} --help."
        close = nearest_first(word, known, cutoff=SIMILAR)[:3]
        hint = f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""
        return f"Command {word!r} does not exist{hint}. List all commands with stemformer --help."
    if isinstance(error, MissingArgumentError) and error.keyword is None and name in COMMANDS:
        names, example = COMMANDS[name].required()
        missing = error.argument.name if error.argument is not None else "an argument"
        advice = f"Expected {names}, for example: stemformer {name} {example}"
        return f"{missing} is missing. {advice}. See stemformer {name} --help."
    return f"{' '.join(str(error).split())} See {' '.join(['stemformer', *name.split()])} --help."


def _is_unknown(words: Sequence[str]) -> bool:
    return _command_words(words) not in ("", *COMMANDS, "benchmark")


def _command_words(words: Sequence[str]) -> str:
    """Return the words that name the command, of words with options before them."""
    names = [word for word in words if not word.startswith("-")]
    return " ".join(names[: 2 if names[:1] == ["benchmark"] else 1])


def _can_resume(words: Sequence[str], bound: BoundArguments, error: BaseException) -> bool:
    """Return whether a command that ended early left work behind that --resume continues, and did not say so itself."""
    out = bound.arguments.get("out")
    is_disk_full = isinstance(error, OSError) and error.errno in DISK_FULL and "resume" in bound.signature.parameters
    is_resumable = words[0] in ("prepare", "fewshot", "scaling-laws", "ablate") or words[:2] == ["benchmark", "blimp"]
    is_stopped = isinstance(error, KeyboardInterrupt) and is_resumable
    return (is_disk_full or is_stopped) and out is not None and os.path.isdir(out) and any(os.scandir(out))


def _is_reported_here(error: BaseException) -> bool:
    """Return whether this rank reports an error: the first of its machine, or another one that is not ended soon after."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        return True
    if isinstance(error, KeyboardInterrupt):
        return False
    # torchrun ends this rank as soon as the first one, which met the same error, has ended.
    with contextlib.suppress(KeyboardInterrupt):
        time.sleep(_RANK_WAIT)
        return True
    return False
