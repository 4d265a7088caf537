import errno
import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

import stemformer
from stemformer import options as o
from stemformer.cli.app import app, main
from stemformer.cli.exit_codes import Terminated
from stemformer.cli.terminal import Terminal
from stemformer.errors import CheckpointError, ConfigError, TrainingError
from stemformer.progress import Silent

COMMANDS = [
    *("quickstart", "recipes", "plan", "train-tokenizer", "prepare", "make-synthetic", "pretrain", "finetune"),
    *(
        "fill",
        "score",
        "generate",
        "rewrite",
        "embed",
        "predict",
        "evaluate",
        "fewshot",
        "compare",
        "scaling-laws",
        "ablate",
        "benchmark",
    ),
    *("inspect", "report", "runs", "env"),
]
FILLED = [
    {
        "text": "Paris is the [MASK] of France.",
        "masks": [{"candidates": [{"token": "capital", "probability": 0.93}, {"token": "city", "probability": 0.01}]}],
        "filled": "Paris is the capital of France.",
    }
]


class Api:
    """Replaces the functions of the package: records the calls, then returns or raises the outcome."""

    def __init__(self, outcome):
        self.outcome, self.calls = outcome, []

    def function(self, name):
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
        for name in stemformer.__all__:
            if name[0].islower():
                # Not setattr, which would import the function first.
                monkeypatch.setitem(vars(stemformer), name, api.function(name))
        return api

    return use


def run_python(*arguments, **options):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, **options)


def test_help_needs_no_torch_and_answers_at_once():
    code = (
        "import sys; from stemformer.cli.app import main; code = main(['--help']);"
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


@pytest.mark.parametrize("command", [*COMMANDS[:-5], "inspect", "report", "runs", "env", "benchmark glue"])
def test_each_command_has_help_and_describes_every_option(command, capsys):
    assert main([*command.split(), "--help"]) == 0
    assert f"Usage: stemformer {command}" in capsys.readouterr().out
    found = app
    for part in command.split():
        found = found[part]
    for argument in found.assemble_argument_collection(parse_docstring=True):
        assert argument.children or argument.parameter.help, argument.name


def test_help_is_in_groups(capsys):
    main(["--help"])
    shown = capsys.readouterr().out
    titles = ["Start", "Data", "Train", "Use", "Measure", "Keep"]
    offsets = [shown.index(f"─ {title} ─") for title in titles]
    assert offsets == sorted(offsets)
    main(["pretrain", "--help"])
    shown = capsys.readouterr().out
    assert all(f"─ {title} ─" in shown for title in ("Budget", "Config", "Compute", "Output"))


def test_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == stemformer.__version__


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["filll"],
            "error: Command 'filll' does not exist (did you mean 'fill'?). List all commands with stemformer --help.",
        ),
        (["xyzzy"], "error: Command 'xyzzy' does not exist. List all commands with stemformer --help."),
        (["fill", "x", "--modle", "y"], "error: Unknown option: --modle. Did you mean --model?"),
        (
            ["train-tokenizer"],
            "error: --out is missing. Expected FILES, --out, for example: stemformer train-tokenizer FILE --out NEW_FOLDER.",
        ),
        (["fill", "x"], "error: --model is missing. Expected TEXTS, --model, for example: stemformer fill "),
        (["fill", "x", "--model"], 'error: Command "fill" parameter --model requires an argument.'),
        (["fill", "x", "--model", "m", "--top-k", "a"], "error: Invalid value for --top-k: unable to convert"),
        (["fintune", "--help"], "error: Command 'fintune' does not exist (did you mean 'finetune'?)."),
        (["benchmark", "gleu", "-h"], "error: Command 'benchmark gleu' does not exist (did you mean 'benchmark glue'"),
        (
            ["fewshot", "a", "--model", "m", "--num-shots", "x"],
            "error: Invalid value for --num-shots: expected integers",
        ),
        (["train-tokenizer", "a", "--out", "b", "--kind", "wordpeice"], 'error: Invalid value "wordpeice" for --kind.'),
        (["--foo"], "error: Expected a command before --foo. See stemformer --help."),
        (["--foo", "fill", "x"], "error: Expected a command before --foo. See stemformer fill --help."),
        (["--foo", "filll", "x"], "error: Command 'filll' does not exist (did you mean 'fill'?)."),
        ([""], "error: Command '' does not exist. List all commands"),
        (["benchmark", "--x"], "error: Expected a command before --x. See stemformer benchmark --help."),
        (["benchmark", "--x", "glue"], "error: Expected a command before --x. See stemformer benchmark glue --help."),
        (["benchmark", "--x", "foo"], "error: Command 'benchmark foo' does not exist (did you mean "),
        (
            ["benchmark", "--help", "gleu"],
            "error: Command 'benchmark gleu' does not exist (did you mean 'benchmark glue'",
        ),
        (["inspect"], "error: PATH is missing. Expected PATH, for example: stemformer inspect FOLDER."),
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
    ("words", "name", "options"),
    [
        (
            "train-tokenizer a.txt b.txt --out tok --vocab-size 99 --lowercase",
            "train_tokenizer",
            o.TrainTokenizerOptions(files=["a.txt", "b.txt"], out="tok", vocab_size=99, lowercase=True),
        ),
        (
            "prepare a.txt --tokenizer tok --out d --documents line --num-workers=2",
            "prepare",
            o.PrepareOptions(files=["a.txt"], tokenizer="tok", out="d", documents="line", num_workers=2),
        ),
        (
            "pretrain --recipe bert_mini --data d --out r --time 30m --no-compile --set model.hidden_size=8 "
            "--set optimizer.beta2=0.9 --device cpu --seed=0 --learning-rate 1e-3 --batch-size 8",
            "pretrain",
            o.PretrainOptions(
                recipe="bert_mini",
                data="d",
                out="r",
                time="30m",
                compile=False,
                settings=("model.hidden_size=8", "optimizer.beta2=0.9"),
                device="cpu",
                seed=0,
                learning_rate=1e-3,
                batch_size=8,
            ),
        ),
        (
            ["fill", "a [MASK].", "b [MASK].", "--model", "m", "--candidates", "x", "--candidates", "y", "--threads=1"],
            "fill",
            o.FillOptions(texts=["a [MASK].", "b [MASK]."], model="m", candidates=("x", "y"), threads=1),
        ),
        (
            ["compare", "classify", "--model=m", "--train=a", "--train=b", "--out=o", "--sizes", "9, 0.5"],
            "compare",
            o.CompareOptions(task="classify", model="m", train=("a", "b"), out="o", sizes=("9", "0.5")),
        ),
        (
            "fewshot copy --model m --num-shots 0,2",
            "fewshot",
            o.FewShotOptions(tasks=("copy",), model=("m",), num_shots=(0, 2)),
        ),
        (
            "benchmark glue g --model=m --out=o --learning-rates=1e-3,2e-3 --tasks RTE,CoLA",
            "benchmark_glue",
            o.GlueOptions(folder="g", model="m", out="o", learning_rates=(1e-3, 2e-3), tasks=("RTE", "CoLA")),
        ),
        ("inspect folder", "inspect", o.InspectOptions(path="folder")),
        ("report run", "report", o.ReportOptions(path="run")),
        ("plan bert_mini --set a.b=1", "plan", o.PlanOptions(recipe="bert_mini", settings=("a.b=1",))),
        ("quickstart --out q", "quickstart", o.QuickstartOptions(out="q")),
    ],
)
def test_command_calls_one_function_with_its_options(words, name, options, use_api):
    api = use_api({})
    words = words.split() if isinstance(words, str) else words
    assert main([*words, "--quiet"]) == 0
    [(called, arguments, keywords)] = api.calls
    progress = keywords.pop("progress", None)
    assert (called, arguments, keywords) == (name, (), {"options": options})
    assert isinstance(progress, Silent) == (name not in ("fill", "inspect", "report"))


@pytest.mark.parametrize(
    ("words", "note", "same"),
    [
        (
            "tokenizer a --out t --column c",
            "'stemformer tokenizer' is now 'stemformer train-tokenizer'.\n--column is now --text-column.\n",
            "train-tokenizer a --out t --text-column c",
        ),
        (
            "finetune pair --model=m --train=a --out=o --text=x --text=y --label=l --trials=2",
            "--text is now --text-column.\n--label is now --label-column.\n--trials is now --num-seeds.\n",
            "finetune pair --model=m --train=a --out=o --text-column=x --text-column=y --label-column=l --num-seeds=2",
        ),
        (
            "finetune classify --model=m --train=a --out=o --regression",
            "--regression is now --kind score.\n",
            "finetune classify --model=m --train=a --out=o --kind score",
        ),
        (
            "compare tag --model=m --train=a --out=o --seeds=2 --rate random=1 --starts=random",
            "--seeds is now --num-seeds.\n--rate is now --learning-rates.\n--starts is now --initializations.\n",
            "compare tag --model=m --train=a --out=o --num-seeds=2 --learning-rates random=1 --initializations=random",
        ),
        (
            "evaluate f --model m --worst 3",
            "--worst is now --num-worst.\n",
            "evaluate f --model m --num-worst 3",
        ),
        ("fill a --model m --among x", "--among is now --candidates.\n", "fill a --model m --candidates x"),
        (
            "fill a --model m --score",
            "'stemformer fill --score' is now 'stemformer score'.\n",
            "score a --model m",
        ),
        (
            "generate a --model m --slide --json",
            "--slide is now --sliding-window.\n",
            "generate a --model m --sliding-window --json",
        ),
        (
            "glue g --model=m --out=o --task=RTE --task=CoLA --learning-rate=1e-3",
            "'stemformer glue' is now 'stemformer benchmark glue'.\n--task is now --tasks.\n"
            "--learning-rate is now --learning-rates.\n",
            "benchmark glue g --model=m --out=o --tasks=RTE,CoLA --learning-rates=1e-3",
        ),
        (
            "prompt copy --model=m --examples copy=f --draws=2",
            "'stemformer prompt' is now 'stemformer fewshot'.\n--examples is now --demonstrations.\n"
            "--draws is now --num-draws.\n",
            "fewshot copy --model=m --demonstrations copy=f --num-draws=2",
        ),
        (
            "scale --recipe=r --data=d --out=o --rate-power=1 --prompt-task=copy",
            "'stemformer scale' is now 'stemformer scaling-laws'.\n--rate-power is now --lr-width-exponent.\n"
            "--prompt-task is now --fewshot-tasks.\n",
            "scaling-laws --recipe=r --data=d --out=o --lr-width-exponent=1 --fewshot-tasks=copy",
        ),
        (
            "synthetic --out f.jsonl --documents 9",
            "'stemformer synthetic' is now 'stemformer make-synthetic'.\n--documents is now --num-documents.\n",
            "make-synthetic --out f.jsonl --num-documents 9",
        ),
    ],
)
def test_old_name_does_the_same_and_is_noted_once(words, note, same, use_api, capsys):
    api = use_api({})
    assert main(words.split()) == 0
    assert capsys.readouterr().err == note
    assert main(same.split()) == 0
    assert capsys.readouterr().err == ""
    (old, _, old_options), (new, _, new_options) = api.calls
    assert (old, old_options["options"]) == (new, new_options["options"])


def test_quiet_leaves_out_the_note_on_old_names(use_api, capsys):
    use_api({})
    assert main(["evaluate", "f", "--model", "m", "--worst", "3", "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_show_config_prints_toml(use_api, capsys):
    use_api({"config": "seed = 3\n"})
    assert main(["pretrain", "--recipe", "bert_mini", "--data", "d", "--out", "o", "--show-config"]) == 0
    assert capsys.readouterr().out == "seed = 3\n"


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
    assert main(["score", "a", "b", "--model", "m"]) == 0
    assert capsys.readouterr().out.splitlines() == ["score   text", "-1.5    a", "-12.25  b"]


@pytest.mark.parametrize(("words", "expected"), [([], ["x", "y"]), (["-"], ["x", "y"]), (["a", "-"], ["a", "x", "y"])])
def test_fill_reads_standard_input(words, expected, use_api, monkeypatch):
    api = use_api([])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"x\n\ny\r\n")))
    assert main(["fill", *words, "--model", "m"]) == 0
    assert api.calls[0][2]["options"].texts == expected


def test_embed_keeps_blank_lines_of_standard_input(use_api, monkeypatch, capsys):
    api = use_api({"embeddings": SimpleNamespace(tolist=lambda: [[0.5]] * 4)})
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"x\n\n \ny\n")))
    assert main(["embed", "-", "--model", "m"]) == 0
    assert api.calls[0][2]["options"].texts == ["x", "", " ", "y"]
    assert [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()] == ["x", "", " ", "y"]


@pytest.mark.parametrize("command", ["fill", "score", "generate"])
def test_blank_lines_of_standard_input_are_counted(command, use_api, monkeypatch, capsys):
    use_api([])
    for words, note in (([], "blank lines of standard input (skipped): 2\n"), (["-q"], "")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"x\n\n \ny\n")))
        assert main([command, "-", "--model", "m", *words]) == 0
        assert capsys.readouterr().err.startswith(note) and ("skipped" in note or note == "")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"ab\xff\n", "standard input: Not UTF-8: byte 0xff at offset 2"),
        (b"a\0b", "found a binary file (NUL byte"),
        (b"PAR1", "found a parquet file. Write it to a file whose name ends in .parquet."),
    ],
)
@pytest.mark.parametrize("command", ["fill", "embed", "generate", "score"])
def test_standard_input_that_is_no_text_is_the_users_mistake(command, data, message, use_api, monkeypatch, capsys):
    use_api([])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
    assert main([command, "-", "--model", "m"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "name", "expected"),
    [
        ("prepare - --tokenizer t --out o", "files", ["-"]),
        ("prepare a.txt - --tokenizer t --out o", "files", ["a.txt", "-"]),
        ("train-tokenizer --out o -", "files", ["-"]),
        ("predict - --model m", "files", ["-"]),
        ("finetune tag --train - --model m --out o", "train", ("-",)),
        ("finetune tag --train a --dev - --model m --out o", "dev", ("-",)),
        ("compare classify --train - --model m --out o", "train", ("-",)),
    ],
)
def test_a_hyphen_is_standard_input_wherever_files_are_read(words, name, expected, use_api):
    api = use_api({"predictions": []})
    assert main(words.split()) == 0
    assert getattr(api.calls[0][2]["options"], name) == expected


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
def test_fraction_is_refused_for_an_integer(words, capsys):
    assert main(["generate", "x", "--model", "m", *words]) == 2
    result = capsys.readouterr().err
    assert result.startswith(f'error: Invalid value for {words[0]}: expected an integer, got "{words[1]}". See ')


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_that_a_library_turned_into_another_error_is_still_reported(use_api, capsys, number, code):
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
        "import sys, stemformer;"
        "stemformer.inspect = lambda options: {str(i): 'x' * 100 for i in range(100_000)};"
        "from stemformer.cli.app import main; sys.exit(main(['inspect', 'x', '--json']))"
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


@pytest.mark.parametrize("command", ["fill", "embed", "generate", "score"])
def test_name_of_a_file_is_not_taken_for_a_text(command, use_api, tmp_path, monkeypatch, capsys):
    use_api([])
    (tmp_path / "texts.txt").write_text("one\ntwo\n")
    monkeypatch.chdir(tmp_path)
    assert main([command, "texts.txt", "--model", "m"]) == 2
    assert (
        "'texts.txt' is a file, but the command takes texts. Pass its lines: - < texts.txt" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("new.csv", 'id,text\n1,"one, two"\n2,three\n'),
        ("new.tsv", "id\ttext\n1\tone, two\n2\tthree\n"),
        ("new.jsonl", '{"text": "one, two"}\n{"text": "three"}\n'),
        ("new.json", '[{"text": "one, two"}, {"text": "three"}]'),
    ],
)
def test_table_is_not_passed_as_lines(name, content, use_api, tmp_path, monkeypatch, capsys):
    use_api([])
    (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    assert main(["embed", name, "--model", "m"]) == 2
    message = capsys.readouterr().err
    assert f"- < {name}" not in message
    [code] = re.findall(r'python -c "(.*)" > lines\.txt', message)
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "one, two\nthree\n"


@pytest.mark.parametrize("name", ["new.parquet", "new.csv.gz", "lines.txt.gz"])
def test_texts_of_another_file_are_written_as_lines(name, use_api, tmp_path, monkeypatch, capsys):
    use_api([])
    (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert main(["fill", name, "--model", "m"]) == 2
    assert "Write its texts to a file, one per line, and pass - < FILE" in capsys.readouterr().err
