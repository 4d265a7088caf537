"""The pages do what they say: their Python blocks run in order, their command lines parse and, with tiny files, run."""

import doctest
import json
import re
import shlex
from pathlib import Path

import pytest

from stemformer.cli.app import app, main

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "docs/guide.md", "docs/tour.md")
SHORTER = {
    "bert_mini": "bert_tiny",
    "modernbert_mini": "modernbert_tiny",
    "gpt_mini": "gpt_tiny",
    "bart_mini": "bart_tiny",
    "8000": "2000",
    "10000": "2100",
    "20000": "60",
    "2x64,2x128,4x256": "1x16,1x32",
}
"""What is put in place of values of a page's commands, so that they take seconds."""
BUDGETS = ("--steps", "--tokens", "--epochs", "--time")


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a page that are in a language."""
    return re.findall(
        rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


def command_lines(page: str) -> list[list[str]]:
    """The words of each line of a page's shell blocks."""
    return [
        shlex.split(line, comments=True) for block in blocks(page, "sh") for line in block.splitlines() if line.strip()
    ]


def stemformer_commands(page: str) -> list[list[str]]:
    return [words[1:] for words in command_lines(page) if words[0] == "stemformer"]


def shortened(words: list[str]) -> list[str]:
    """The same command with a tiny model and two steps."""
    out = [SHORTER.get(word, word) for word in words]
    for place, word in enumerate(out):
        if word in BUDGETS:
            out[place : place + 2] = ["--steps", "2"]
    if out[0] == "samples":  # the pages' commands read a shortened my_texts
        out[1:] = ["full_samples"]
    if out[0] == "ablate":
        out += ["--num-seeds", "1", "--variant", "infilling", "--variant", "rotation", "--set", "batch.size=4"]
        out += ["--set", "evaluation.num_examples=8", "--finetune-set", "budget.steps=2"]
    if out[0] in ("pretrain", "scale"):
        out += ["--set", "batch.size=4", "--set", "evaluation.num_examples=8"]
    return out


def write_texts(folder: Path) -> None:
    """Write what the commands of the pages read: the files of `samples`, shortened, and the user's own."""
    assert main(["samples", str(folder / "my_texts"), "--quiet"]) == 0
    texts = folder / "my_texts"
    novel = (texts / "english" / "jekyll_and_hyde.txt").read_text(encoding="utf-8")
    for path in (texts / "english").iterdir():
        path.unlink()
    for number in range(460):  # each a document, of which about one in a hundred is held out
        part = novel[number * 300 : (number + 1) * 300]
        (texts / "english" / f"{number:03}.txt").write_text(part, encoding="utf-8")
    for name in ("books.csv", "books_test.csv"):
        header, *rows = (texts / name).read_text(encoding="utf-8").splitlines()
        (texts / name).write_text("\n".join([header, *rows[:: len(rows) // 40]]) + "\n", encoding="utf-8")
    sentences = (texts / "punctuation.conll").read_text(encoding="utf-8").split("\n\n")
    (texts / "punctuation.conll").write_text("\n\n".join(sentences[::10]), encoding="utf-8")

    # Files of the user's own.
    (folder / "novel.txt").write_text(novel, encoding="utf-8")
    lines = [line for line in novel.split("\n") if len(line) > 40][:40]
    speech = [json.dumps({"text": line, "label": str('"' in line)}) for line in lines]
    (folder / "speech.jsonl").write_text("\n".join(speech) + "\n", encoding="utf-8")
    pairs = [(line, line.lower()) for line in lines]
    (folder / "pairs.tsv").write_text(
        "".join(f"{a}\t{b}\n" for a, b in [("source", "target"), *pairs]), encoding="utf-8"
    )
    for number, suffix in enumerate(("en", "fr")):
        (folder / f"train.{suffix}").write_text("".join(f"{pair[number]}\n" for pair in pairs), encoding="utf-8")
    both = [{"source": a, "target": b, "from": "en", "to": "fr"} for a, b in pairs]
    both += [{"source": b, "target": a, "from": "fr", "to": "en"} for a, b in pairs]
    (folder / "both_ways.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in both), encoding="utf-8")
    dna = [f">s{number} label={number % 2}\n{'ACGT'[number % 4] * 8}" for number in range(20)]
    (folder / "dna.fa").write_text("\n".join(dna) + "\n", encoding="utf-8")
    (folder / "blimp").mkdir()
    pair = {"sentence_good": "The door is open.", "sentence_bad": "The door are open.", "field": "morphology"}
    (folder / "blimp" / "agreement.jsonl").write_text(json.dumps(pair) + "\n", encoding="utf-8")


def run_python(page: str) -> None:
    """Run the Python blocks of a page in order, with shared names; what follows a `>>>` line must be printed."""
    names: dict[str, object] = {"__name__": "__main__"}
    found = blocks(page, "python")
    assert found, f"{page} has no Python block"
    for number, block in enumerate(found):
        if ">>>" not in block:
            exec(compile(block, f"{page}, block {number + 1}", "exec"), names)
            continue
        test = doctest.DocTestParser().get_doctest(block, names, f"{page}, block {number + 1}", page, 0)
        said: list[str] = []
        outcome = doctest.DocTestRunner(verbose=False).run(test, out=said.append, clear_globs=False)
        assert outcome.attempted
        assert not outcome.failed, "".join(said)
        names = test.globs


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "stemformer.commands.pretrain.matmul_rate", lambda device, precision: 1e11
    )  # seconds, and only MFU needs it
    write_texts(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", ["README.md", "docs/tour.md"])
def test_python_blocks_run_in_order(page, workplace):
    run_python(page)


def test_a_wrong_result_in_a_page_is_seen(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "page.md").write_text(
        "```python\n>>> x = 1\n\n```\n\n```python\n>>> x + 1\n3\n\n```\n", encoding="utf-8"
    )
    with pytest.raises(AssertionError, match=r"(?s)Expected:\s+3\s+Got:\s+2"):
        run_python("page.md")


@pytest.mark.parametrize(
    "words", [pytest.param(words, id=" ".join(words)[:60]) for page in PAGES for words in stemformer_commands(page)]
)
def test_command_line_parses(words):
    _, bound, _ = app.parse_args(words, print_error=False, exit_on_error=False)
    assert bound.args or bound.kwargs


@pytest.mark.parametrize("words", [["fill", "x", "--model", "m", "--no-such-option", "1"], ["no-such-command"]])
def test_a_wrong_command_line_does_not_parse(words):
    assert main(words) == 2


@pytest.mark.parametrize("page", PAGES)
def test_command_lines_run_in_order(page, workplace, capfd):
    commands = stemformer_commands(page)
    assert commands, f"{page} has no command line"
    for words in commands:
        code = main([*shortened(words), "--quiet"])
        captured = capfd.readouterr()
        assert code == 0, f"stemformer {shlex.join(words)}: {captured.err}"
        assert captured.out.strip()


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_exist(page):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = re.findall(r"make ([a-z]+)(?=[\s`])", (ROOT / page).read_text(encoding="utf-8"))
    assert page != "README.md" or {"quickstart", "test"} <= set(named)
    assert set(named) <= targets


def test_files_that_pages_name_exist():
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for name in re.findall(r"(?:`|\]\()((?:docs|src|benchmarks)/[\w./-]+\.\w+)[`)]", text):
            assert (ROOT / name).is_file(), f"{page} names {name}"
        for name in re.findall(r"`([a-z_]+(?:/[a-z_]+)*\.py)`", text):
            assert (ROOT / "src" / "stemformer" / name).is_file(), f"{page} names {name}"
