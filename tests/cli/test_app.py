import errno
import io
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest

import stemformer
from stemformer.cli.app import Source, app, main
from stemformer.cli.exit_codes import Terminated
from stemformer.cli.terminal import Terminal
from stemformer.errors import CheckpointError, ConfigError, TrainingError
from stemformer.progress import Silent

COMMANDS = ["fill", "inspect", "plan", "prepare", "pretrain", "quickstart", "report", "scale", "synthetic", "tokenizer"]
FILLED = [
    {
        "text": "Paris is the [MASK] of France.",
        "masks": [{"candidates": [{"token": "capital", "probability": 0.93}, {"token": "city", "probability": 0.01}]}],
        "filled": "Paris is the capital of France.",
    }
]


class Api(types.ModuleType):
    """Stands in for stemformer.api: notes how it is called, then returns or raises what the test asked for."""

    def __init__(self, outcome):
        super().__init__("stemformer.api")
        self.outcome, self.calls = outcome, []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args, **options):
            self.calls.append((name, args, options))
            if isinstance(self.outcome, BaseException):
                raise self.outcome
            return self.outcome() if callable(self.outcome) else self.outcome

        return call


@pytest.fixture
def use_api(monkeypatch):
    def use(outcome):
        api = Api(outcome)
        monkeypatch.setitem(sys.modules, "stemformer.api", api)
        monkeypatch.setattr(stemformer, "api", api, raising=False)
        return api

    return use


def run_python(*arguments, **options):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, **options)


def test_help_needs_no_torch_and_answers_at_once():
    code = (
        "import sys; from stemformer.cli import main; code = main(['--help']);"
        "heavy = {'torch', 'numpy', 'tokenizers', 'datasets', 'jaxtyping'} & set(sys.modules);"
        "sys.exit(f'heavy: {heavy}' if heavy else code)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = run_python("-c", code)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert run.returncode == 0, run.stderr
    assert all(command in run.stdout for command in COMMANDS)
    assert after.ru_utime - before.ru_utime < 1.0  # 0.25 s alone; a busy machine slows processor time too


def test_no_arguments_print_help(capsys):
    assert main([]) == 0
    assert "Usage: stemformer COMMAND" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_and_describes_every_option(command, capsys):
    assert main([command, "--help"]) == 0
    assert "Usage: stemformer" in capsys.readouterr().out
    for argument in app[command].assemble_argument_collection(parse_docstring=True):
        assert argument.children or argument.parameter.help, argument.name


def test_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == stemformer.__version__


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["filll"], 'error: Unknown command "filll". Did you mean "fill"?'),
        (["fill", "x", "--modle", "y"], "error: Unknown option: --modle. Did you mean --model?"),
        (["fill", "x"], 'error: Command "fill" parameter --model requires an argument. See stemformer fill --help.'),
        (["fill", "x", "--model", "m", "--top-k", "a"], "error: Invalid value for --top-k: unable to convert"),
        (["tokenizer", "a", "--out", "b", "--kind", "wordpeice"], 'error: Invalid value "wordpeice" for --kind.'),
        (["prepare", "--tokenizer", "t", "--out", "o"], 'error: Command "prepare" parameter FILES requires'),
    ],
)
def test_wrong_command_line_is_one_line_and_exit_code_2(words, message, use_api, capsys):
    api = use_api({})
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(message)
    assert captured.err.count("\n") == 1
    assert api.calls == []


@pytest.mark.parametrize(
    ("words", "name", "args", "options"),
    [
        (
            ["tokenizer", "a.txt", "b.txt", "--out", "tok", "--kind", "wordpiece", "--vocab-size", "99", "--lowercase"],
            "train_tokenizer",
            (["a.txt", "b.txt"],),
            {
                **{
                    "out": "tok",
                    "init": None,
                    "kind": "wordpiece",
                    "vocab_size": 99,
                    "lowercase": True,
                    "documents": "auto",
                },
                **{"column": "text", "errors": "strict", "max_characters": 100_000_000, "seed": 0, "overwrite": False},
            },
        ),
        (
            ["prepare", "a.txt", "--tokenizer", "tok", "--out", "d", "--documents", "line", "--num-workers=2"],
            "prepare",
            (["a.txt"],),
            {
                **{"tokenizer": "tok", "out": "d", "held_out": None, "documents": "line", "column": "text"},
                **{"errors": "strict", "words": "tokenizer", "num_workers": 2, "overwrite": False, "resume": False},
            },
        ),
        (
            [
                *["pretrain", "--recipe", "bert_mini", "--data", "d", "--out", "r", "--time", "30m", "--no-compile"],
                *[
                    "--set",
                    "model.hidden_size=8",
                    "--set",
                    "training.learning_rate=1e-3",
                    "--device",
                    "cpu",
                    "--seed=0",
                ],
            ],
            "pretrain",
            ("bert_mini",),
            {
                **{
                    "data": "d",
                    "out": "r",
                    "init": None,
                    "config": None,
                    "steps": None,
                    "tokens": None,
                    "epochs": None,
                },
                **{"settings": ["model.hidden_size=8", "training.learning_rate=1e-3"], "time": "30m", "compile": False},
                **{"resume": False, "overwrite": False, "device": "cpu", "seed": 0},
            },
        ),
        (
            ["fill", "a [MASK].", "b [MASK].", "--model", "m", "--among", "x", "--among", "y", "--threads", "1"],
            "fill",
            (["a [MASK].", "b [MASK]."],),
            {"model": "m", "top_k": 5, "among": ["x", "y"], "score": False, "threads": 1},
        ),
        (["inspect", "folder"], "inspect", ("folder",), {}),
        (["report", "run"], "report", ("run",), {}),
        (["plan", "bert_mini", "--set", "a.b=1"], "plan", ("bert_mini",), {"data": None, "settings": ["a.b=1"]}),
        (["quickstart", "--out", "q"], "quickstart", (), {"out": "q", "overwrite": False}),
    ],
)
def test_command_calls_one_function_with_what_was_given(words, name, args, options, use_api):
    api = use_api({})
    assert main([*words, "--quiet"]) == 0
    [(called, got_args, got_options)] = api.calls
    progress = got_options.pop("progress", None)
    assert (called, got_args, got_options) == (name, args, options)
    assert isinstance(progress, Silent) == (name not in ("fill", "inspect", "report"))


def test_without_quiet_the_job_gets_a_terminal_progress(use_api):
    api = use_api({})
    main(["quickstart"])
    assert isinstance(api.calls[0][2]["progress"], Terminal)


@pytest.mark.parametrize("outcome", [{}, KeyboardInterrupt(), ConfigError("x")])
def test_bar_is_ended_however_the_job_ends(outcome, use_api, monkeypatch):
    ended = []
    monkeypatch.setattr(Terminal, "finish", lambda self: ended.append(self))
    use_api(outcome)
    main(["quickstart"])
    assert len(ended) == 1


def test_result_is_text_for_people(use_api, capsys):
    use_api({"steps": 1000, "loss": 2.34567, "data": {"tokens": 12}, "is_whole": True, "kinds": ["a", "b"]})
    assert main(["inspect", "x"]) == 0
    out = "steps     1,000\nloss      2.346\ndata\n  tokens  12\nis_whole  yes\nkinds     a, b\n"
    assert capsys.readouterr().out == out


def test_json_prints_the_result_and_nothing_else(use_api, capsys):
    use_api([{"text": "語", "score": -1.5}])
    assert main(["fill", "語", "--model", "m", "--json"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out) == [{"text": "語", "score": -1.5}]
    assert "語" in out


def test_json_takes_numpy_numbers_and_paths(use_api, capsys):
    numpy = pytest.importorskip("numpy")
    use_api({"loss": numpy.float32(0.5), "path": Path("a")})
    assert main(["inspect", "x", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"loss": 0.5, "path": "a"}


def test_fill_prints_an_aligned_table_and_the_filled_sentence(use_api, capsys):
    use_api(FILLED)
    assert main(["fill", "Paris is the [MASK] of France.", "--model", "m"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "Paris is the [MASK] of France.",
        "  mask 1  capital  0.9300",
        "          city     0.0100",
        "  Paris is the capital of France.",
    ]


def test_scores_are_printed_as_columns(use_api, capsys):
    use_api([{"score": -1.5, "text": "a"}, {"score": -12.25, "text": "b"}])
    assert main(["fill", "a", "b", "--model", "m", "--score"]) == 0
    assert capsys.readouterr().out.splitlines() == ["score   text", "-1.5    a", "-12.25  b"]


@pytest.mark.parametrize(("words", "expected"), [([], ["x", "y"]), (["-"], ["x", "y"]), (["a", "-"], ["a", "x", "y"])])
def test_fill_reads_standard_input(words, expected, use_api, monkeypatch):
    api = use_api([])
    monkeypatch.setattr(sys, "stdin", io.StringIO("x\n\ny\r\n"))
    assert main(["fill", *words, "--model", "m"]) == 0
    assert api.calls[0][1] == (expected,)


def test_standard_input_that_is_no_utf8_is_the_users_mistake(use_api, monkeypatch, capsys):
    use_api([])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ab\xff\n"), encoding="utf-8"))
    assert main(["fill", "--model", "m"]) == 2
    assert "standard input is no UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("outcome", "code", "message"),
    [
        (ConfigError("no such recipe"), 2, "error: no such recipe"),
        (CheckpointError("torn", damaged=True), 3, "error: torn"),
        (TrainingError("loss is nan"), 4, "error: loss is nan"),
        (OSError(errno.ENOSPC, "No space left", "/run"), 3, "error: the disk is full at /run: make room and run again"),
        (OSError(errno.ENOSPC, "No space left"), 3, "error: the disk is full: make room and run again"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.txt"), 2, "error: a.txt: No such file"),
        (ValueError("x\ny"), 1, "error: unexpected ValueError: x y; this is a bug of stemformer: run again with --de"),
        (OSError("no path"), 1, "error: unexpected OSError: no path"),
        (KeyboardInterrupt(), 130, "stopped"),
        (Terminated(), 143, "stopped by SIGTERM"),
    ],
)
def test_error_gives_its_exit_code_and_one_line(outcome, code, message, use_api, capsys):
    use_api(outcome)
    assert main(["inspect", "x"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(message)
    assert captured.err.count("\n") == 1


def test_debug_shows_the_traceback(use_api, capsys):
    use_api(ConfigError("no such recipe"))
    assert main(["inspect", "x", "--debug"]) == 2
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert err.endswith("error: no such recipe\n")


def test_sigterm_reaches_the_job_as_a_keyboard_interrupt_and_only_once(use_api):
    saved = []

    def job():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.sigtimedwait([], 5)
        except KeyboardInterrupt as interrupt:
            os.kill(os.getpid(), signal.SIGTERM)  # as `timeout` does: to the process and to its group
            saved.append(type(interrupt))
            raise

    before = signal.getsignal(signal.SIGTERM)
    use_api(job)
    assert main(["inspect", "x"]) == 143
    assert saved == [Terminated]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("words", [["--max-new-tokens", "2.5"], ["--threads", "1.0"]])
def test_fraction_is_refused_where_a_whole_number_is_meant(words, capsys):
    assert main(["generate", "x", "--model", "m", *words]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f'error: Invalid value for {words[0]}: expected a whole number, not "{words[1]}". See ')


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_of_which_a_library_made_another_error_is_still_told_as_such(use_api, capsys, number, code):
    def job():
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            raise RecursionError("maximum recursion depth exceeded") from None

    use_api(job)
    assert main(["inspect", "x"]) == code
    assert capsys.readouterr().err.startswith("stopped")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_main_runs_outside_the_main_thread(use_api):
    use_api({})
    codes = []
    thread = threading.Thread(target=lambda: codes.append(main(["inspect", "x", "--json"])))
    thread.start()
    thread.join()
    assert codes == [0]


def test_reader_that_leaves_is_no_error():
    code = (
        "import sys, types; api = types.ModuleType('stemformer.api');"
        "api.inspect = lambda path: {str(i): 'x' * 100 for i in range(100_000)};"
        "sys.modules['stemformer.api'] = api; from stemformer.cli import main;"
        "sys.exit(main(['inspect', 'x', '--json']))"
    )
    command = f'{sys.executable} -c "$CODE" | head -n 1; echo ${{PIPESTATUS[0]}}'
    run = subprocess.run(["bash", "-c", command], env={**os.environ, "CODE": code}, capture_output=True, text=True)
    assert run.stdout.splitlines()[-1] == "141"
    assert run.stderr == ""


def test_warning_is_one_line(use_api, capsys, monkeypatch):
    import warnings

    def job():
        warnings.simplefilter("default")
        warnings.warn("attention dropout is saved as 0.0", stacklevel=1)
        return {}

    use_api(job)
    assert main(["inspect", "x"]) == 0
    assert capsys.readouterr().err == "warning: attention dropout is saved as 0.0\n"


def test_source_has_the_defaults_of_the_design():
    assert Source() == Source(documents="auto", column="text", errors="strict")
