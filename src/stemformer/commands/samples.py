"""Write the built-in texts and labelled files made from them."""

import csv
import io
import re
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

from stemformer.io import write_file
from stemformer.options import SamplesOptions, accepts
from stemformer.output_dir import check_output_file

# Paragraphs of each book: the first for training, the next for testing, the last without label.
_NUM_TRAIN, _NUM_TEST, _NUM_UNLABELLED = 80, 20, 4
_WORD = re.compile(r"([^\W_]+(?:['’-][^\W_]+)*)([.,;:!?]?)")
_TAGS = {"": "O", ",": "COMMA", ";": "COMMA", ":": "COMMA", ".": "PERIOD", "?": "PERIOD", "!": "PERIOD"}
_FEW_SHOT_TASK = """\
# Which book is a paragraph from? Prompts: stemformer fewshot books.toml --dry-run
data = "books_test.csv"
template = "{text}\\nThis is from {answer}."
label = "label"

[answers]
"""


@accepts(SamplesOptions)
def samples(options: SamplesOptions) -> dict[str, Any]:
    """Write the built-in texts, and labelled files made from them, to try every command on.

    Returns:
        The directory, and what each file holds.

    Raises:
        ConfigError: One of the files exists.
    """
    package, folder = package_files("stemformer") / "samples", Path(options.out)
    english = {
        path.name: path.read_text("utf-8")
        for path in sorted((package / "english").iterdir(), key=lambda path: path.name)
    }
    books = {Path(name).stem: _paragraphs(text) for name, text in english.items()}
    end = _NUM_TRAIN + _NUM_TEST
    train = [(text, book) for book, texts in books.items() for text in texts[:_NUM_TRAIN]]
    test = [(text, book) for book, texts in books.items() for text in texts[_NUM_TRAIN:end]]
    unlabelled = [text for texts in books.values() for text in texts[end : end + _NUM_UNLABELLED]]
    contents = {
        **{f"english/{name}": (text, "a novel") for name, text in english.items()},
        "chinese/song_ci.txt": ((package / "chinese" / "song_ci.txt").read_text("utf-8"), "poems"),
        "books.csv": (_csv(train), "paragraphs with the book they are from: finetune classify"),
        "books_test.csv": (_csv(test), "other paragraphs: evaluate"),
        "books_new.txt": ("".join(f"{text}\n" for text in unlabelled), "paragraphs without a label: predict"),
        "books.toml": (
            _FEW_SHOT_TASK + "".join(f'{book} = "{book.replace("_", " ").title()}"\n' for book in books),
            "a task of fewshot",
        ),
        "punctuation.conll": (
            "\n".join(map(_tag_words, (text for text, _ in train))),
            "words with the mark after each: finetune tag",
        ),
    }
    for name in contents:
        check_output_file(str(folder / name), overwrite=options.overwrite)
    for name, (content, _) in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_file(folder / name, [content.encode()])
    return {"samples": str(folder), "files": [{"file": name, "content": what} for name, (_, what) in contents.items()]}


def _paragraphs(text: str) -> list[str]:
    """Return paragraphs of medium length, evenly spaced over a book."""
    found = [paragraph for paragraph in text.split("\n\n") if 80 <= len(paragraph) <= 450 and "\n" not in paragraph]
    number = _NUM_TRAIN + _NUM_TEST + _NUM_UNLABELLED
    # Neighbors in the result are far apart in the book, so that training and test are of the same kind.
    chosen = found[:: len(found) // number][:number]
    return chosen[::2] + chosen[1::2]


def _csv(rows: list[tuple[str, str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("text", "label"), *rows])
    return text.getvalue()


def _tag_words(text: str) -> str:
    return "".join(f"{word}\t{_TAGS[mark]}\n" for word, mark in _WORD.findall(text))
