"""Plain English: words of the old dialect appear neither in names nor in prose (style guide, section 1).

`python tests/contract/test_language.py PATH ...` lists what it finds.
"""

import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Never, neither as a part of an identifier (between underscores) nor in prose.
BANNED = {
    "told", "asked", "stands", "manieth", "begun", "likewise", "likeliest", "beside", "figures", "nobody",
}  # fmt: skip
# Never as a part of an identifier; in prose they have a plain use.
BANNED_IN_NAMES = {"given", "places", "whole", "drawn"}
# In prose, with the plain uses that are allowed.
PROSE = {
    r"\blaid over\b": None,
    r"\bgoes on\b": None,
    r"\bwhole\b": r"\bwhole[- ]words?\b|\bas a whole\b",
    r"\bplaces\b": r"\bdecimal places\b",
    r"\bdrawn\b": r"random|seed|sampl|uniform|probabilit|generator|plot|axes|chart",
    r"\bgiven\b(?! (?:a|an|the|by|as|in|at|with|to|its?|their|no|that|seed|enough|one|two)\b)": r"\bgiven\b [a-z_`]+",
}
# Identifiers that are terms of the field or a library's.
TERMS = {"whole_word", "whole_words", "masked_whole_words", "num_whole_words"}
EXCEPTIONS = {"tests/contract/test_language.py"}


def words_of(identifier: str) -> set[str]:
    """Split an identifier at underscores and capitals."""
    return {word.lower() for part in identifier.split("_") for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", part)}


def wrong_name(identifier: str) -> str | None:
    if identifier in TERMS or "whole_word" in identifier.lower() or "WholeWord" in identifier:
        return None
    if identifier.startswith("of_"):
        return "of_"
    return next(iter(sorted(words_of(identifier) & (BANNED | BANNED_IN_NAMES))), None)


def wrong_prose(line: str) -> list[str]:
    found = [word for word in re.findall(r"[a-z]+", line.lower()) if word in BANNED]
    for pattern, allowed in PROSE.items():
        matches = re.findall(pattern, line, re.IGNORECASE)
        if matches and not (allowed and re.search(allowed, line, re.IGNORECASE)):
            found += matches
    return found


def faults_of_code(text: str) -> Iterator[tuple[int, str]]:
    """Yield line numbers and banned words of names, comments and strings of Python source."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME:
            if word := wrong_name(token.string):
                yield token.start[0], f"{word} in {token.string}"
        elif token.type in (tokenize.COMMENT, tokenize.STRING):
            for number, line in enumerate(token.string.splitlines()):
                yield from ((token.start[0] + number, word) for word in wrong_prose(line))


def faults_of_prose(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.splitlines(), start=1):
        yield from ((number, word) for word in wrong_prose(line))


def faults(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    found = faults_of_code(text) if path.suffix == ".py" else faults_of_prose(text)
    name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    return [f"{name}:{number}: {word}" for number, word in found]


def checked_files() -> list[Path]:
    code = [path for folder in ("src", "benchmarks", "tests") for path in (ROOT / folder).rglob("*.py")]
    data = [path for ending in ("html", "toml") for path in (ROOT / "src").rglob(f"*.{ending}")]
    # The log keeps its old entries as they were written.
    docs = [path for path in (ROOT / "docs").glob("*.md") if path.name != "log.md"]
    files = [*code, *data, *docs, ROOT / "README.md", ROOT / "pyproject.toml", ROOT / "Makefile"]
    return sorted(path for path in files if str(path.relative_to(ROOT)) not in EXCEPTIONS)


@pytest.mark.parametrize("path", checked_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_file_uses_no_banned_word(path):
    assert faults(path) == []


@pytest.mark.parametrize(
    ("code", "word"),
    [
        ("told = 1", "told"),
        ("x.asked_again()", "asked"),
        ("def f(of_size): pass", "of_"),
        ("class Figures: pass", "figures"),
        ("# where nobody reads", "nobody"),
        ("raise ValueError('a sequence stands alone')", "stands"),
        ('"""Likewise."""', "likewise"),
        ("given = 1", "given"),
    ],
)
def test_checker_finds_a_made_up_fault(code, word):
    assert [found for _, found in faults_of_code(code) if found.split()[0].lower() == word]


@pytest.mark.parametrize(
    "code",
    ["whole_word_masking = True", "# drawn at random with the seed", "x = office.soft_", "# given a list of texts"],
)
def test_checker_accepts_plain_words(code):
    assert list(faults_of_code(code)) == []


if __name__ == "__main__":
    listed = [Path(name).resolve() for name in sys.argv[1:]] or checked_files()
    paths = [file for path in listed for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]
    lines = [line for path in paths for line in faults(path)]
    print("\n".join(lines))
    print(f"{len(lines)} banned words in {len(paths)} files")
