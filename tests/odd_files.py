"""Odd input files, as users have them, and what each command makes of them.

    python tests/odd_files.py > table.md

prints a table of all files and commands. A cell is the number of texts that came out, with the number that were
skipped and reported, or the error. It must not be a crash, a hang, or fewer texts without a word.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import signal
import sys
import tarfile
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

TEXTS = ["The cook read a book.", "The farmer sold a horse.", "A sailor saw the sea.", "The child fed a dog."]
LABELS = ["good", "bad", "good", "bad"]


def _csv(rows, sep=",", end="\n", header=("text", "label")) -> bytes:
    lines = [sep.join(header)] if header else []
    return (end.join(lines + [sep.join(row) for row in rows]) + end).encode()


def _rows() -> list[tuple[str, str]]:
    return list(zip(TEXTS, LABELS, strict=True)) * 3


def _tar(content: bytes, name: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def _jsonl(rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _records() -> list[dict]:
    return [{"text": text, "label": label} for text, label in _rows()]


def _parquet(columns: dict) -> bytes:
    import pyarrow
    from pyarrow import parquet

    out = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), out)
    return out.getvalue()


def _plain() -> bytes:
    return "".join(f"{text}\n" for text in TEXTS * 3).encode()


def _folder(path: Path) -> None:
    (path / "sub").mkdir(parents=True)
    (path / "a.txt").write_bytes(_plain())
    (path / "sub" / "b.txt").write_bytes(_plain())


def _folder_with_dangling_link(path: Path) -> None:
    _folder(path)
    (path / "gone.txt").symlink_to("nowhere.txt")


def _loop(path: Path) -> None:
    path.mkdir()
    (path / "a.txt").write_bytes(_plain())
    (path / "again").symlink_to(".")


PLAIN = _plain()

# name -> (content, number of texts in it); a callable content writes something else than one file
FILES: dict[str, tuple[bytes | Callable[[Path], None], int]] = {
    "plain.txt": (PLAIN, 12),
    "no_newline_at_end.txt": (PLAIN[:-1], 12),
    "crlf.txt": (PLAIN.replace(b"\n", b"\r\n"), 12),
    "cr.txt": (PLAIN.replace(b"\n", b"\r"), 12),
    "bom.txt": (b"\xef\xbb\xbf" + PLAIN, 12),
    "utf16.txt": ((PLAIN.decode().encode("utf-16")), 12),
    "latin1.txt": (("Das Café ist schön.\n" * 12).encode("latin-1"), 12),
    "nul_bytes.txt": (PLAIN.replace(b"cook", b"co\0ok"), 12),
    "blank_lines.txt": (PLAIN.replace(b"\n", b"\n\n"), 12),
    "tabs_in_each_line.txt": (b"".join(b"%d\t" % i + line + b"\n" for i, line in enumerate(PLAIN.splitlines())), 12),
    "tabs_in_some_lines.txt": (PLAIN.replace(b"cook", b"co\tok"), 12),
    "quotes.txt": (PLAIN.replace(b"The", b'"The'), 12),
    "no_suffix": (PLAIN, 12),
    "right_to_left.txt": (("الكتاب على الطاولة.\nהספר על השולחן.\n" * 6).encode(), 12),
    "combining_marks.txt": (("Cafe\u0301 a\u0308 n\u0303.\nकिताब मेज पर है।\n" * 6).encode(), 12),
    "emoji.txt": (("A 👩‍👩‍👧 family 🏳️‍🌈.\nGood 👍🏽 day.\n" * 6).encode(), 12),
    "zero_width.txt": (("\u200bThe\u200b cook\ufeff reads.\n" * 12).encode(), 12),
    "line_separators.txt": (("The cook\u2028reads\u0085a book\x0bnow.\n" * 12).encode(), 12),
    "long_word.txt": (PLAIN + b"x" * 200_000 + b"\n", 13),
    "long_line.txt": (PLAIN + b"The cook read a book. " * 20_000 + b"\n", 13),
    "empty.txt": (b"", 0),
    "only_spaces.txt": (b"  \n \t\n", 0),
    "good.csv": (_csv(_rows()), 12),
    "crlf.csv": (_csv(_rows(), end="\r\n"), 12),
    "semicolons.csv": (_csv(_rows(), sep=";"), 12),
    "no_header.csv": (_csv(_rows(), header=None), 12),
    "one_column_no_header.csv": (("".join(f"{text}\n" for text in TEXTS * 3).encode()), 12),
    "one_column_header.csv": ((("text\n" + "".join(f"{text}\n" for text in TEXTS * 3)).encode()), 12),
    "quoted_newlines.csv": (_csv([(f'"{t}\r\nNext line, here."', label) for t, label in _rows()]), 12),
    "doubled_quotes.csv": (_csv([(f'"He said ""{t}"""', label) for t, label in _rows()]), 12),
    "open_quote.csv": (_csv([*_rows(), ('"The end', "good")]), 13),
    "uneven_rows.csv": (_csv(_rows()) + b"one,two,three\n", 13),
    "empty_cells.csv": (_csv([*_rows(), ("", "good"), ("The sea.", "")]), 14),
    "list_cells.csv": (
        _csv([(t, "\"['music', 'health care']\"" if i % 2 else "\"['sport']\"") for i, (t, _) in enumerate(_rows())]),
        12,
    ),
    "repeated_header.csv": (_csv(_rows(), header=("text", "text")), 12),
    "good.tsv": (_csv(_rows(), sep="\t"), 12),
    "quotes.tsv": (_csv([(f'"{t}', label) for t, label in _rows()], sep="\t"), 12),
    "no_header.tsv": (_csv(_rows(), sep="\t", header=None), 12),
    "good.jsonl": (_jsonl(_records()), 12),
    "repeated_ids.jsonl": (_jsonl([{"id": i % 3, **row} for i, row in enumerate(_records())]), 12),
    "nested.jsonl": (_jsonl([{"text": {"en": t}, "label": label} for t, label in _rows()]), 12),
    "null_text.jsonl": (_jsonl([*_records(), {"text": None, "label": "good"}]), 13),
    "bad_line.jsonl": (_jsonl(_records()) + b'{"text": "cut', 13),
    "lone_surrogate.jsonl": (_jsonl(_records()) + b'{"text": "half \\ud83d", "label": "good"}\n', 13),
    "list.json": ((json.dumps(_records()).encode()), 12),
    "data_key.json": ((json.dumps({"version": 1, "data": _records()}).encode()), 12),
    "deeply_nested.json": (b"[" * 100_000 + b"]" * 100_000, 0),
    "good.parquet": (_parquet({"text": TEXTS * 3, "label": LABELS * 3}), 12),
    "list_column.parquet": (_parquet({"text": TEXTS * 3, "label": LABELS * 3, "tags": [["a", "b"]] * 12}), 12),
    "good.txt.gz": (gzip.compress(PLAIN, mtime=0), 12),
    "cut.txt.gz": (gzip.compress(PLAIN * 100, mtime=0)[:-20], 12),
    "good.csv.xz": (lzma.compress(_csv(_rows())), 12),
    "good.jsonl.bz2": (bz2.compress(_jsonl(_records())), 12),
    "gzip_named.txt": (gzip.compress(PLAIN, mtime=0), 12),
    "archive.tar": (_tar(PLAIN, "in/a.txt"), 12),
    "tags.conll": (("".join(f"{w}\tO\n" if w else "\n" for t in TEXTS * 3 for w in [*t.split(), ""]).encode()), 12),
    "folder": (_folder, 24),
    "folder_with_dangling_link": (_folder_with_dangling_link, 24),
    "dangling_link.txt": (lambda path: path.symlink_to("nowhere.txt"), 0),
    "link.txt": (lambda path: path.symlink_to("plain.txt"), 12),
    "link_loop": (_loop, 12),
}


def write_files(folder: Path) -> None:
    for name, (content, _) in FILES.items():
        path = folder / name
        if callable(content):
            content(path)
        else:
            path.write_bytes(content)


class Hang(BaseException):
    """A command did not end in time."""


@contextmanager
def _limit(seconds: int) -> Iterator[None]:
    def hang(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run(words: Sequence[object], stdin: bytes | None = None, *, limit: int = 0) -> tuple[int, str, str]:
    """Run a command in this process; return its exit code, standard output and standard error.

    `limit` is the number of seconds after which it counts as hanging; 0: no limit.
    """
    from stemformer.cli.app import main

    out, err, before = io.StringIO(), io.StringIO(), sys.stdin
    if stdin is not None:
        sys.stdin = io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")
    try:
        with redirect_stdout(out), redirect_stderr(err), _limit(limit), warnings.catch_warnings():
            # Shown, as for a user; pytest would raise them.
            warnings.simplefilter("default")
            code = main([str(word) for word in words])
    finally:
        sys.stdin = before
    return code, out.getvalue(), err.getvalue()


class Commands:
    """Small models, and the commands that read files.

    Args:
        folder: Empty directory for models and outputs.
    """

    NAMES = (
        "train-tokenizer",
        "prepare",
        "finetune",
        "compare",
        "evaluate",
        "predict",
        "predict -",
        "embed -",
        "fewshot",
    )

    def __init__(self, folder: Path, *, limit: int = 0) -> None:
        self.folder, self._number, self._limit = folder, 0, limit
        text = folder / "text.txt"
        text.write_bytes(PLAIN * 30)
        tiny = [
            *("--steps", 2, "--batch-size", 2, "--set", "model.hidden_size=16", "--set", "model.num_hidden_layers=1"),
            *("--set", "model.num_attention_heads=2", "--set", "model.intermediate_size=32"),
        ]
        (folder / "labelled.csv").write_bytes(_csv(_rows()))
        for kind, size, recipe in (("wordpiece", 200, "bert_tiny"), ("bpe", 300, "gpt_tiny")):
            tokenizer, data = folder / f"{kind}", folder / f"{kind}_data"
            self._need("train-tokenizer", text, "--kind", kind, "--vocab-size", size, "--out", tokenizer)
            self._need("prepare", text, "--tokenizer", tokenizer, "--out", data)
            self._need("pretrain", "--recipe", recipe, "--data", data, "--out", folder / recipe, *tiny)
        labelled = ("--train", folder / "labelled.csv", "--out", folder / "classify", "--steps", 2)
        self._need("finetune", "classify", "--model", folder / "bert_tiny", *labelled)

    def _need(self, *words: object) -> None:
        code, _, err = run([*words, "--quiet"])
        assert code == 0, err

    def __call__(self, name: str, path: Path) -> tuple[int, int | None, str]:
        """Run a command on a file.

        Returns:
            Exit code; number of texts that came out (None for a command that does not say, or after an error); and what
            the command said: its error, or its notes and counts.
        """
        self._number += 1
        out, models = self.folder / f"out{self._number}", self.folder
        bert, gpt, classifier = models / "bert_tiny", models / "gpt_tiny", models / "classify"
        train = ("classify", "--model", bert, "--train", path, "--out", out, "--steps", 1)
        task = self.folder / f"task{self._number}.toml"
        task.write_text(f"data = {json.dumps(str(path))}\n{_TASK}", encoding="utf-8")
        words: dict[str, tuple[object, ...]] = {
            "train-tokenizer": ("train-tokenizer", path, "--out", out, "--vocab-size", 150),
            "prepare": ("prepare", path, "--tokenizer", models / "wordpiece", "--documents", "line", "--out", out),
            "finetune": ("finetune", *train),
            "compare": ("compare", *train, "--num-seeds", 1, "--sizes", 1),
            "evaluate": ("evaluate", path, "--model", classifier),
            "predict": ("predict", path, "--model", classifier, "--out", f"{out}.csv"),
            "predict -": ("predict", "-", "--model", classifier),
            "embed -": ("embed", "-", "--model", bert),
            "fewshot": ("fewshot", task, "--model", gpt, "--num-shots", 0, "--out", out),
        }
        code, stdout, stderr = run(
            [*words[name], "--json"], path.read_bytes() if name.endswith("-") else None, limit=self._limit
        )
        if code:
            return code, None, stderr.strip().split("\n")[-1]
        return code, self._count(name, stdout, Path(f"{out}.csv")), f"{stderr} {stdout}"

    def _count(self, name: str, stdout: str, predictions: Path) -> int | None:
        if name == "predict":
            with predictions.open(newline="", encoding="utf-8") as file:
                return sum(1 for _ in csv.DictReader(file))
        if name.endswith("-"):
            return stdout.count("\n")
        result = json.loads(stdout)
        if name == "prepare":
            return result["train"]["documents"] + result["held_out"]["documents"]
        if name == "finetune":
            return result["train"] + result["dev"]
        return result["records"] if name == "evaluate" else None


_TASK = """\
template = "{text} It is {answer}"
label = "label"
[answers]
bad = "bad"
good = "good"
"""


def main() -> None:
    print("| file | texts | " + " | ".join(Commands.NAMES) + " |")
    print("|---" * (2 + len(Commands.NAMES)) + "|")
    with tempfile.TemporaryDirectory() as folder:
        inputs, models = Path(folder, "inputs"), Path(folder, "models")
        inputs.mkdir()
        models.mkdir()
        write_files(inputs)
        commands = Commands(models, limit=240)
        for name, (_, size) in FILES.items():
            cells = []
            for command in Commands.NAMES:
                if command.endswith("-") and not (inputs / name).is_file():
                    cells.append("")
                    continue
                try:
                    code, number, said = commands(command, inputs / name)
                except Hang:
                    cells.append("HANG")
                    continue
                error = said.replace(f"{inputs}/", "").removeprefix("error: ")[:60].replace("|", "/")
                cells.append(error if code else "ok" if number is None else str(number))
            print(f"| {name} | {size} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
