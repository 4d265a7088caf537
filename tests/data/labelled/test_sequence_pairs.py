"""Pairs of sources and targets: columns, references, nested translations, parallel files, and what is refused."""

import json
from collections import Counter

import pytest

from stemformer.data.labelled.sequence_pairs import (
    choose_pair_columns,
    expand_parallel,
    make_pairs,
    read_pair_table,
    split_parallel,
)
from stemformer.data.labelled.splits import connected_groups
from stemformer.errors import DataError


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(name, *lines):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return name

    return write


def read(*files, source=None, targets=(), needs_target=True):
    counts = Counter()
    how = {"needs_target": needs_target}
    names = [name for name in (source, *targets) if name]
    table = read_pair_table(files, names=names, counts=counts, **how)
    source, targets = choose_pair_columns(table, source, targets, **how)
    records = make_pairs(table, source, targets, counts=counts, **how)
    return [(r.source, r.targets) for r in records], source, targets, dict(counts)


@pytest.mark.parametrize("names", [("source", "target"), ("src", "tgt"), ("document", "Summary"), ("en", "fr")])
def test_columns_are_found_by_name_or_order(write, names):
    file = write("pairs.tsv", "\t".join(names), "a cat sat\tun chat", "a dog ran\tun chien")
    records, source, targets, counts = read(file)
    assert records == [("a cat sat", ("un chat",)), ("a dog ran", ("un chien",))]
    assert (source, targets) == (names[0], (names[1],))
    assert +Counter(counts) == ({"first lines taken for a header ('en', 'fr')": 1} if "en" in names else {})


def test_columns_of_languages_are_no_texts(write):
    file = write("pairs.tsv", "from\tlang\ta\tb", "en\tfr\ta cat\tun chat", "fr\ten\tun chien\ta dog")
    languages, counts = ("from", "lang"), Counter()
    table = read_pair_table([file], names=languages, counts=counts, needs_target=True)
    how = {"needs_target": True, "languages": languages}
    source, targets = choose_pair_columns(table, None, (), **how)
    assert (source, targets) == ("a", ("b",))
    records = make_pairs(table, source, targets, counts=counts, **how)
    assert [r.languages for r in records] == [("en", "fr"), ("fr", "en")]
    assert choose_pair_columns(table, None, ("b",), needs_target=False, languages=languages)[0] == "a"


def test_a_usual_name_wins_over_the_order_of_other_columns(write):
    file = write("pairs.csv", "id,target,source", "7,b,a")
    assert read(file)[:3] == ([("a", ("b",))], "source", ("target",))


def test_named_columns_may_be_several_references(write):
    file = write("pairs.csv", "x,one,two,three", "a,b,c,d", "e,,f,")
    found = read(file, source="x", targets=("one", "two"))
    assert found[0] == [("a", ("b", "c")), ("e", ("f",))]


def test_lists_of_references_and_nested_translations_are_read(write):
    file = write("a.jsonl", json.dumps({"source": "a", "target": ["b", "c"]}))
    assert read(file)[0] == [("a", ("b", "c"))]
    file = write("b.jsonl", json.dumps({"translation": {"en": "a", "fr": "b"}}))
    assert read(file)[:3] == ([("a", ("b",))], "en", ("fr",))
    assert read(file, source="fr")[:3] == ([("b", ("a",))], "fr", ("en",))


def test_parallel_files_are_read_line_by_line(write):
    write("a.en", "one\ttab", "two", "")
    write("a.fr", "un", "deux", "trois")
    records, *columns, counts = read("a.en,a.fr")
    assert records == [("one\ttab", ("un",)), ("two", ("deux",))]
    assert columns == ["source", ("target",)] and +Counter(counts) == {"empty source (left out)": 1}


def test_a_file_with_a_comma_in_its_name_is_one_file(write):
    file = write("a,b.tsv", "source\ttarget", "x\ty")
    assert split_parallel(file) is None and split_parallel("a.en,a.fr") == ("a.en", "a.fr")
    assert read(file)[0] == [("x", ("y",))]


def test_pairs_without_a_side_are_left_out_and_counted(write):
    file = write("pairs.csv", "source,target", "a,b", " ,c", "d,")
    records, *_, counts = read(file)
    assert records == [("a", ("b",))]
    assert +Counter(counts) == {"empty source (left out)": 1, "empty target (left out)": 1}


def test_sources_alone_have_no_targets(write):
    assert read(write("a.txt", "one", "two"), needs_target=False)[0] == [("one", None), ("two", None)]
    assert read(write("b.csv", "source,target", "a,b"), needs_target=False)[0] == [("a", None)]
    # A row for each line.
    records, *_, counts = read(write("c.txt", "one", " ", "two"), needs_target=False)
    assert records == [("one", None), ("", None), ("two", None)] and counts["empty source (no prediction)"] == 1


def test_white_space_around_texts_and_cells_with_lists(write):
    file = write("pairs.csv", "source,target", "a, b ", """x,"['y', 'z']\"""")
    assert read(file)[0] == [("a", ("b",)), ("x", ("y", "z"))]


def test_translations_with_ids_are_flattened(write):
    file = write("a.jsonl", json.dumps({"id": "7", "translation": {"en": "a", "fr": "b"}}))
    assert read(file)[:3] == ([("a", ("b",))], "en", ("fr",))


def test_a_reference_wins_over_other_columns(write):
    assert read(write("a.csv", "src,mt,ref", "a,b,c"))[0] == [("a", ("c",))]


def test_names_of_parallel_files_are_expanded(write):
    assert expand_parallel(["a.en,a.fr", "b.csv"]) == ["a.en", "a.fr", "b.csv"]


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        (("id,one,two", "1,a,b"), {}, r"Cannot tell source and target\. Columns: 'id', 'one', 'two'"),
        (("source,target", "a,b"), {"source": "sorce"}, "sorce"),
        (("source,target", "a,b"), {"source": "source", "targets": ("source",)}, "both source and target"),
    ],
)
def test_columns_that_do_not_exist_or_are_ambiguous_are_refused(write, lines, options, message):
    with pytest.raises(DataError, match=message):
        read(write("pairs.csv", *lines), **options)


def test_bad_files_are_refused(write):
    write("a.en", "one", "two")
    write("a.fr", "un")
    write("pairs.tsv", "source\ttarget", "a\tb")
    with pytest.raises(DataError, match=r"a\.en has 2 lines, a\.fr has 1\. Line n of one file must belong"):
        read("a.en,a.fr")
    with pytest.raises(DataError, match=r"a\.de does not exist\. Expected two text files with as many lines"):
        read("a.en,a.de")
    with pytest.raises(DataError, match=r"a\.en: There is one text a line, and no target"):
        read("a.en")
    with pytest.raises(DataError, match=r"pairs\.tsv: Expected two files with a comma between their names"):
        read("a.en,a.fr", "pairs.tsv")


def test_records_that_share_a_text_are_in_one_group():
    groups = connected_groups([("a", "x"), ("b", "y"), ("c", "x"), ("d", "z"), ("c", "y")])
    assert len(set(groups)) == 2 and groups[0] == groups[1] == groups[2] == groups[4] != groups[3]
