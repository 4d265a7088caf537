"""What a user can get wrong: one line that says what was given and what to do, and the exit code of the design's section 3."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import stemformer
from stemformer.cli.app import main

SMALL = [
    *["--set", "model.hidden_size=32", "--set", "model.intermediate_size=64", "--set", "batch.size=4"],
    *[
        "--set",
        "batch.sequence_length=32",
        "--set",
        "evaluation.num_examples=8",
        "--set",
        "log_every=1",
        "--precision",
        "fp32",
    ],
]


pytestmark = pytest.mark.usefixtures("no_timing")


@pytest.fixture(scope="module")
def made(tiny, no_timing, tmp_path_factory):
    """A folder with text.txt, tok/, data/ and a finished run/ of two steps; not to be changed."""
    root = tmp_path_factory.mktemp("made")
    shutil.copytree(tiny, root, dirs_exist_ok=True)
    arguments = ["pretrain", "--recipe", "bert_tiny", "--data", str(root / "data"), "--out", str(root / "run")]
    assert main([*arguments, *SMALL, "--steps=2", "-q"]) == 0
    return root


@pytest.fixture
def fails(capsys):
    """Runs the command line, and checks its exit code and the essential words of the one line that it ends with."""

    def run(arguments, code, *words):
        assert main([str(argument) for argument in arguments]) == code
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1, captured.err
        missing = [word for word in words if str(word) not in captured.err]
        assert not missing, (missing, captured.err)

    return run


def pretrain(data, out, *more):
    return ["pretrain", "--recipe", "bert_tiny", "--data", data, "--out", out, "-q", *SMALL, "--steps", "2", *more]


def prepare(file, made, out, *more):
    return ["prepare", file, "--tokenizer", made / "tok", "--out", out, "-q", "--num-workers", "1", *more]


# Text files


def test_missing_file(fails, made, tmp_path):
    fails(prepare(tmp_path / "no.txt", made, tmp_path / "d"), 2, "does not exist", tmp_path / "no.txt")
    assert not (tmp_path / "d").exists()


def test_empty_file(fails, made, tmp_path):
    (tmp_path / "empty.txt").write_bytes(b"")
    fails(prepare(tmp_path / "empty.txt", made, tmp_path / "d"), 2, "empty.txt", "The file is empty (0 bytes)")
    assert not (tmp_path / "d").exists()


def test_file_of_white_space(fails, made, tmp_path):
    (tmp_path / "blank.txt").write_text("\n \n\n")
    fails(prepare(tmp_path / "blank.txt", made, tmp_path / "d"), 2, "no document with a token")


def test_binary_file(fails, made, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"abc\0\x01\x02" * 50)
    fails(prepare(tmp_path / "a.txt", made, tmp_path / "d"), 2, "a.txt", "binary file", "NUL byte at offset 3")


def test_file_that_is_not_utf8_is_named_with_the_byte(fails, made, tmp_path):
    (tmp_path / "latin.txt").write_bytes("Caf\xe9 au lait\n".encode("latin-1"))
    fails(
        prepare(tmp_path / "latin.txt", made, tmp_path / "d"),
        2,
        "latin.txt",
        "byte 0xe9 at offset 3",
        "--errors replace",
    )


def test_file_that_is_not_utf8_is_read_with_errors_replace(made, make_text, tmp_path, capsys):
    text = make_text(seed=1).encode() + b"Caf\xe9 au lait\n"
    (tmp_path / "latin.txt").write_bytes(text)
    arguments = prepare(tmp_path / "latin.txt", made, tmp_path / "d", "--errors", "replace", "--json")
    assert main([str(argument) for argument in arguments]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["skipped"] == {"invalid UTF-8 bytes replaced": 1} and "iconv" not in err


def test_text_of_another_encoding_is_noted_with_the_share_of_replaced_bytes(made, make_text, tmp_path, capsys):
    # Two of eight characters.
    (tmp_path / "czech.txt").write_bytes("k\u016f\u0148 sees\n".encode("cp1250") * 40)
    note = "of the characters are replaced bytes that are not UTF-8: the files probably have another encoding"
    for arguments in (
        prepare(tmp_path / "czech.txt", made, tmp_path / "d", "--errors", "replace", "--held-out", "0"),
        ["train-tokenizer", tmp_path / "czech.txt", "--out", tmp_path / "t", "--vocab-size", "90", "--errors=replace"],
    ):
        assert main([str(argument) for argument in arguments if argument != "-q"]) == 0
        err = capsys.readouterr().err
        assert f"25.0% {note}" in err and "iconv -f ENCODING -t UTF-8" in err


def test_tokenizer_of_an_empty_file(fails, tmp_path):
    (tmp_path / "empty.txt").write_bytes(b"")
    fails(["train-tokenizer", tmp_path / "empty.txt", "--out", tmp_path / "t", "-q"], 2, "empty")
    assert not (tmp_path / "t").exists()


# Too little


def test_corpus_too_small_for_a_batch(fails, made, make_text, tmp_path, capsys):
    (tmp_path / "small.txt").write_text(make_text(num_documents=2))
    assert main([str(a) for a in prepare(tmp_path / "small.txt", made, tmp_path / "d", "--held-out", "0")]) == 0
    capsys.readouterr()
    arguments = pretrain(tmp_path / "d", tmp_path / "run", "--set", "batch.size=64")
    fails(arguments, 2, "a batch has 64", "lower the batch size", "--set batch.size=")
    assert not (tmp_path / "run").exists()


def test_corpus_too_small_for_a_held_out_part(fails, made, tmp_path):
    (tmp_path / "small.txt").write_text("a king\n")
    words = ["Of 1 document, none is in the held-out split", "Raise --held-out"]
    for documents, advice in (("line", "--held-out, or"), ("blank", "more documents with --documents line, or")):
        options = ("--held-out=0.0001", f"--documents={documents}")
        fails(prepare(tmp_path / "small.txt", made, tmp_path / "d", *options), 2, *words, advice)
    assert not (tmp_path / "d").exists()


# What does not belong together


def copy_of_data(made, tmp_path):
    return Path(shutil.copytree(made / "data", tmp_path / "data"))


def test_tokenizer_in_the_data_that_did_not_make_it(fails, made, tmp_path):
    data = copy_of_data(made, tmp_path)
    stemformer.train_tokenizer([str(made / "text.txt")], out=str(tmp_path / "tok"), vocab_size=80, documents="line")
    shutil.rmtree(data / "tokenizer")
    shutil.copytree(tmp_path / "tok", data / "tokenizer")
    fails(pretrain(data, tmp_path / "run"), 2, "80 ids", "the data was prepared with")


@pytest.mark.parametrize("file", ["train/shard-00000.bin", "held_out/shard-00000.word", "unigram.npy"])
def test_truncated_shard_is_damage(fails, made, tmp_path, file):
    path = copy_of_data(made, tmp_path) / file
    path.write_bytes(path.read_bytes()[:-2])
    fails(pretrain(tmp_path / "data", tmp_path / "run"), 3, file, "bytes, the manifest says", "prepare the data again")


@pytest.mark.parametrize("file", ["train/shard-00000.bin", "held_out/shard-00000.sent", "train/shard-00000.word"])
def test_flipped_byte_in_a_shard_is_damage(fails, made, tmp_path, file):
    path = copy_of_data(made, tmp_path) / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    fails(pretrain(tmp_path / "data", tmp_path / "run"), 3, file, "was changed since it was written")


def test_missing_shard_is_damage(fails, made, tmp_path):
    (copy_of_data(made, tmp_path) / "train/shard-00000.bin").unlink()
    fails(pretrain(tmp_path / "data", tmp_path / "run"), 3, "train/shard-00000.bin is missing")


def test_changed_manifest_is_damage(fails, made, tmp_path):
    path = copy_of_data(made, tmp_path) / "manifest.json"
    path.write_text(path.read_text().replace('"held_out": 0.1', '"held_out": 0.2'))
    fails(pretrain(tmp_path / "data", tmp_path / "run"), 3, "manifest.json was changed")


def test_folder_that_is_no_data(fails, made, tmp_path):
    fails(pretrain(made / "tok", tmp_path / "run"), 2, "no manifest.json", "Run stemformer prepare")


# Names


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pretrian"], ["pretrian", "did you mean 'pretrain'?"]),
        (["pretrain", "--recpie", "bert_tiny", "--data", "d", "--out", "o"], ["--recpie", "Did you mean --recipe?"]),
    ],
)
def test_unknown_command_or_option_names_the_nearest(fails, arguments, words):
    fails(arguments, 2, *words)


def test_unknown_recipe_names_the_nearest(fails, made, tmp_path):
    arguments = pretrain(made / "data", tmp_path / "run")
    arguments[2] = "bert_tyni"
    fails(arguments, 2, "Recipe 'bert_tyni' does not exist", "did you mean 'bert_tiny'?")


def test_missing_recipe_is_an_error(fails, made, tmp_path):
    fails(["pretrain", "--data", made / "data", "--out", tmp_path / "run", "-q"], 2, "--recipe", "bert_tiny")


def test_unknown_setting_names_the_nearest(fails, made, tmp_path):
    arguments = pretrain(made / "data", tmp_path / "run", "--set", "optimizer.learning_rat=1")
    fails(arguments, 2, "optimizer.learning_rat is not a setting", "did you mean 'optimizer.learning_rate'?")


def test_setting_of_the_wrong_type(fails, made, tmp_path):
    fails(
        pretrain(made / "data", tmp_path / "run", "--set", "batch.size=many"), 2, "batch.size", "expected int", "'many'"
    )


def test_two_budgets(fails, made, tmp_path):
    fails(pretrain(made / "data", tmp_path / "run", "--epochs", "1"), 2, "--steps, --epochs", "Pass only one")


def test_no_budget(fails, made, tmp_path):
    arguments = ["pretrain", "--recipe", "bert_tiny", "--data", made / "data", "--out", tmp_path / "run", "-q", *SMALL]
    fails(arguments, 2, "Pass --steps, --tokens, --epochs or --time")


def test_missing_config_file(fails, made, tmp_path):
    fails(pretrain(made / "data", tmp_path / "run", "--config", tmp_path / "no.toml"), 2, "no.toml", "does not exist")


def test_seed_that_is_too_large(fails, made, tmp_path):
    fails(pretrain(made / "data", tmp_path / "run", "--seed", 2**64), 2, f"seed is {2**64}")


# Folders


@pytest.mark.parametrize("command", ["pretrain", "prepare", "train-tokenizer"])
def test_folder_that_is_not_empty_is_refused_and_left_alone(fails, made, tmp_path, command):
    out = tmp_path / "full"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    arguments = {
        "pretrain": pretrain(made / "data", out),
        "prepare": prepare(made / "text.txt", made, out),
        "train-tokenizer": ["train-tokenizer", made / "text.txt", "--out", out, "-q"],
    }[command]
    fails(arguments, 2, out, "is not empty", "--overwrite")
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


def test_overwriting_the_folder_of_the_tokenizer_in_use_is_refused(fails, made, make_text, tmp_path):
    shutil.copytree(made / "tok", tmp_path / "all" / "tok")
    (tmp_path / "all" / "text.txt").write_text(make_text())
    arguments = [
        "prepare",
        tmp_path / "all/text.txt",
        "--tokenizer",
        tmp_path / "all/tok",
        "--out",
        tmp_path / "all",
        "-q",
    ]
    fails([*arguments, "--overwrite", "--num-workers=1"], 2, "--out")
    assert (tmp_path / "all" / "text.txt").is_file()  # the user's only copy, perhaps


def test_overwriting_the_folder_of_the_data_in_use_is_refused(fails, made, tmp_path):
    data = copy_of_data(made, tmp_path)
    fails(pretrain(data, data, "--overwrite"), 2, "--out")
    assert (data / "manifest.json").is_file()


def test_resuming_where_there_is_no_run(fails, made, tmp_path):
    arguments = ["pretrain", "--data", made / "data", "--out", tmp_path / "run", "--resume", "-q"]
    fails(arguments, 2, "holds no run to resume", "Remove --resume")


def test_resuming_with_every_checkpoint_damaged(fails, made, tmp_path):
    run = Path(shutil.copytree(made / "run", tmp_path / "run"))
    for file in run.glob("checkpoints/*/model.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])
    arguments = ["pretrain", "--data", made / "data", "--out", run, "--resume", "--steps", "4", "-q"]
    fails(arguments, 3, "holds no valid checkpoint", "model.safetensors is damaged")


# Models


def test_fill_without_a_mask(fails, made):
    fails(["fill", "Nothing is hidden.", "--model", made / "run"], 2, "No [MASK] in", "Put [MASK]")


def test_fill_with_a_missing_model(fails, tmp_path):
    fails(["fill", "A [MASK].", "--model", tmp_path / "none"], 2, tmp_path / "none", "does not exist")


def test_fill_with_damaged_weights(fails, made, tmp_path):
    model = Path(shutil.copytree(made / "run" / "final", tmp_path / "model"))
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    fails(["fill", "A [MASK].", "--model", model], 3, "model.safetensors cannot be read")


def test_fill_with_a_text_longer_than_the_model(fails, made):
    fails(["fill", "king " * 600 + "[MASK]", "--model", made / "run"], 2, "601 tokens; the model accepts 510")


@pytest.mark.parametrize("top_k", [0, -3])
def test_fill_of_no_word(fails, made, top_k):
    fails(["fill", "A [MASK].", "--model", made / "run", f"--top-k={top_k}"], 2, f"top_k is {top_k}")


def test_inspecting_what_is_not_there(fails, tmp_path):
    fails(["inspect", tmp_path / "none"], 2, "does not exist")


def test_inspecting_a_folder_of_something_else(fails, tmp_path):
    (tmp_path / "a.txt").write_text("a")
    fails(["inspect", tmp_path], 2, "holds neither tokenized data nor a run")


# Numbers that are not finite


@pytest.mark.parametrize("steps", [5, 1])
def test_loss_that_is_not_finite_ends_with_exit_code_4(fails, made, tmp_path, steps):
    arguments = pretrain(made / "data", tmp_path / "run", "--set", "optimizer.learning_rate=1e30")
    arguments[arguments.index("--steps") + 1] = str(steps)  # after the only step, the held-out loss tells
    fails(arguments, 4, "not finite", "learning_rate")
    assert not (tmp_path / "run" / "final").exists()


# Being stopped


def stop_at_first_step(monkeypatch, number):
    def advance(self, amount, note=""):
        if amount == 1:
            signal.raise_signal(number)

    monkeypatch.setattr("stemformer.progress.Silent.advance", advance)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_the_run_after_saving(fails, made, tmp_path, monkeypatch, number, code):
    stop_at_first_step(monkeypatch, number)
    arguments = pretrain(made / "data", tmp_path / "run")
    arguments[arguments.index("--steps") + 1] = "50"
    fails(arguments, code, "stopped")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000001"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_process_that_is_signalled_saves_and_tells(made, tmp_path, number, code):
    arguments = [str(a) for a in pretrain(made / "data", tmp_path / "run")]
    arguments[arguments.index("--steps") + 1] = "1000000"
    start = "from stemformer.cli import app; from stemformer.commands import pretrain; pretrain.matmul_rate = lambda *a: 1e11; import sys; sys.exit(app.main())"  # noqa: E501
    environ = {**os.environ, "STEMFORMER_NO_TYPECHECK": "1", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", start, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environ,
    ) as process:
        log = tmp_path / "run" / "log.jsonl"
        try:
            while process.poll() is None and not (log.is_file() and '"kind": "train"' in log.read_text()):
                time.sleep(0.1)
            process.send_signal(number)
            out, err = process.communicate()
        finally:
            process.kill()  # where the suite's limit ended the wait; else it has ended
    assert process.returncode == code, err
    assert out == ""
    assert err.count("\n") == 1
    assert "stopped" in err
    last = json.loads(log.read_text().splitlines()[-1])["step"]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == [f"step-{last:08d}"]
