"""FASTA files and symbol maps."""

import re
from collections import Counter
from pathlib import Path

import pytest

from stemformer.data.labelled.fasta import find_alphabet, read_fasta
from stemformer.data.labelled.symbol_map import SymbolMap
from stemformer.errors import DataError

VOCABULARY = [
    "[CLS]",
    "##ing",
    "7",
    "don't",
    "Ö",
    *(f"word{chr(97 + i)}{chr(97 + j)}" for i in range(9) for j in range(9)),
]


# FASTA


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        (">a first one\nAC GT\n\nac\n>b\nTT", [{"name": "a", "sequence": "ACGTac"}, {"name": "b", "sequence": "TT"}]),
        (">a|1\nAC\n", [{"name": "a", "sequence": "AC", "label": "1"}]),
        (">a label=pos x|y\nAC\n", [{"name": "a", "sequence": "AC", "label": "pos"}]),
        (">sp|P1|X Y\n;comment\nAC\n", [{"name": "sp|P1|X", "sequence": "AC"}]),
    ],
)
def test_fasta_is_read(text: str, rows: list[dict[str, str]]) -> None:
    assert [row for _, row in read_fasta(text, "x.fa")] == rows


def test_location_of_a_row_is_its_header() -> None:
    assert [location for location, _ in read_fasta(">a|1\nACGT\nAC\n>b|0\nTT\n", "x.fa")] == ["x.fa:1", "x.fa:4"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("AC\n>a\nAC\n", r"x\.fa:1: Found a sequence before any header"),
        (">a\n>b\nAC\n", r"x\.fa:1: Found a header without"),
    ],
)
def test_fasta_mistakes_raise(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_fasta(text, "x.fa")


# maps


@pytest.mark.parametrize(
    ("size", "stride", "text", "words"),
    [
        (1, 1, "AC\nCA", "A C C A"),
        (2, 1, "ACCA", "AC CC CA"),
        (2, 2, "ACCA", "AC CA"),
    ],
)
def test_runs_of_symbols_become_words(size: int, stride: int, text: str, words: str) -> None:
    map_ = SymbolMap.draw("AC", VOCABULARY, size=size, stride=stride)
    assert map_.apply(text) == " ".join(map_.words[run] for run in words.split())


def test_random_words_are_full_and_distinct_and_depend_on_the_seed() -> None:
    map_ = SymbolMap.draw("ACGT", VOCABULARY, size=3, seed=5)
    assert len(map_.words) == 64 == len(set(map_.words.values()))
    assert all(re.fullmatch(r"word\w\w|Ö", word) for word in map_.words.values())
    assert map_ == SymbolMap.draw("ACGT", reversed(VOCABULARY), size=3, seed=5)
    assert map_ != SymbolMap.draw("ACGT", VOCABULARY, size=3, seed=6)


def test_words_of_byte_level_vocabularies_are_those_behind_a_space() -> None:
    map_ = SymbolMap.draw("AC", ["Ġsun", "Ġsea", "ing", "Ġ12", "ĠÃ©"], size=1)
    assert set(map_.words.values()) == {"sun", "sea"}


def test_small_letters_count_as_capitals_where_there_is_one_case() -> None:
    assert (
        SymbolMap({"A": "sun", "C": "sea"}).apply("aC") == SymbolMap({"a": "sun", "c": "sea"}).apply("Ac") == "sun sea"
    )
    with pytest.raises(DataError, match=r"no word for 'c' \(1 times\)"):
        SymbolMap({"a": "sun", "C": "sea"}).apply("aCc")


def test_unknown_symbols_raise_or_get_a_word() -> None:
    counts: Counter[str] = Counter()
    with pytest.raises(
        DataError, match=r"^x\.fa:3: The symbol map has no word for 'N' \(2 times\), 'R' \(1 times\)\. Add .*'\*'"
    ):
        SymbolMap({"A": "sun"}).apply("ANNR", location="x.fa:3")
    assert SymbolMap({"A": "sun", "*": "fog"}).apply("ANR", counts=counts) == "sun fog fog"
    assert counts == {"unknown symbols": 2}


def test_symbols_behind_the_last_run_are_counted() -> None:
    counts: Counter[str] = Counter()
    assert SymbolMap({"AA": "sun"}, 2, 2).apply("AAAAA", counts=counts) == "sun sun"
    assert counts == {"symbols behind the last run": 1}


@pytest.mark.parametrize("name", ["map.json", "map.tsv"])
def test_maps_come_back_from_their_files(tmp_path: Path, name: str) -> None:
    map_ = SymbolMap.draw("ACGT", VOCABULARY, size=2)
    map_.save(tmp_path / name)
    assert SymbolMap.load(tmp_path / name) == map_


def test_map_with_a_stride_comes_back_from_json_alone(tmp_path: Path) -> None:
    map_ = SymbolMap({"AA": "sun", "*": "fog"}, 2, 2)
    map_.save(tmp_path / "map.json")
    assert SymbolMap.load(tmp_path / "map.json") == map_
    with pytest.raises(DataError, match=r"map\.tsv: .*stride of 2\. Save as \.json"):
        map_.save(tmp_path / "map.tsv")


def test_json_may_have_symbols_as_keys(tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text('{"A": "sun", "C": "sea"}')
    assert SymbolMap.load(tmp_path / "map.json") == SymbolMap({"A": "sun", "C": "sea"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A\tsun\nC sea\n", r"map\.tsv:2: Found 'C sea'\. Expected a symbol, a tab"),
        ("A\tsun\nA\tsea\n", r"map\.tsv:2: 'A' is repeated"),
        ("A\tsun\nC\tsun\n", r"map\.tsv: Symbol map: 'sun' is the word of 'A' and 'C'"),
        ("A\tsun\nCC\tsea\n", r"map\.tsv: Symbol map: 'A' has 1 symbol, expected 2"),
        ("A\t\n", r"map\.tsv: Symbol map: The word for 'A' is ''"),
        ("*\tsun\n", r"map\.tsv: Symbol map: It has no symbols"),
        ('{"A": ', r"map\.tsv: Bad JSON"),
    ],
)
def test_mistakes_in_map_files_raise(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "map.tsv").write_text(text)
    with pytest.raises(DataError, match=message):
        SymbolMap.load(tmp_path / "map.tsv")


def test_other_mistakes_raise() -> None:
    with pytest.raises(DataError, match=r"The stride is 3, expected 1 to 2, the size"):
        SymbolMap({"AA": "sun"}, 2, 3)
    with pytest.raises(
        DataError, match=r"256 runs of 4 symbols of 'ACGT' need a word each, but the vocabulary has only 82"
    ):
        SymbolMap.draw("ACGT", VOCABULARY, size=4)
    with pytest.raises(DataError, match=r"x: Found 1 symbol, but a word is for 2"):
        SymbolMap({"AA": "sun"}, 2).apply("A", location="x")


def test_alphabet_is_of_frequent_symbols() -> None:
    assert find_alphabet(["TGCA" * 20 + "N", " a*\n"]) == "ACGNTa"
    assert find_alphabet(["TGCA" * 3000 + "N"]) == "ACGT"


def test_all_other_symbols_may_share_a_word() -> None:
    map_ = SymbolMap.draw("AC", VOCABULARY, size=2, others=True, seed=3)
    assert len(set(map_.words.values())) == len(map_.words) == 5
    assert map_.apply("ANC") == f"{map_.words['*']} {map_.words['*']}"
    without = SymbolMap.draw("AC", VOCABULARY, size=2, seed=3)
    assert "*" not in without.words


def test_too_many_runs_are_refused_before_they_are_made() -> None:
    with pytest.raises(DataError, match="Use a smaller size"):
        SymbolMap.draw("ACDEFGHIKLMNPQRSTVWY", VOCABULARY, size=12)


@pytest.mark.parametrize("headers", [(">a|1", ">b"), (">a label=1", ">b")])
def test_header_without_the_label_that_others_have_keeps_its_row(headers):
    rows = read_fasta("".join(f"{header}\nACGT\n" for header in headers), "x.fa")
    assert [row for _, row in rows] == [
        {"name": "a", "sequence": "ACGT", "label": "1"},
        {"name": "b", "sequence": "ACGT", "label": ""},
    ]
