"""CoNLL, CoNLL-U and lists of tagged words; entity tags."""

from collections import Counter
from pathlib import Path

import pytest

from stemformer.data.labelled.token_classification import (
    TaggedSentence,
    as_bioes,
    find_scheme,
    has_entity_tags,
    join_tokens,
    read_tagged,
    repair_entity_tags,
)
from stemformer.errors import DataError


def read(path: Path, text: str, **options: object) -> list[TaggedSentence]:
    path.write_text(text, encoding="utf-8")
    return read_tagged(str(path), **{"counts": Counter(), **options})  # type: ignore[arg-type]


def pairs(sentences: list[TaggedSentence]) -> list[tuple[object, object]]:
    return [(" ".join(s.words), s.tags and " ".join(s.tags)) for s in sentences]


# CoNLL


@pytest.mark.parametrize(
    "text",
    [
        "Anna\tB-PER\nsings\tO\n\nYes\tO\n",
        "Anna B-PER\nsings O\n\n\nYes O",
        "Anna NNP B-PER\nsings VBZ O\n \t \nYes UH O\n",
        "-DOCSTART- -X- O\n\nAnna NNP B-PER\nsings VBZ O\n\nYes UH O\n",
        "-DOCSTART- O\nAnna B-PER\nsings O\n-DOCSTART- O\nYes O\n",
        "# id 5239 domain=en\nAnna _ _ B-PER\nsings _ _ O\n\n# id 5240 domain=en\nYes _ _ O\n",
        "en:Anna\tB-PER\nen:sings\tO\n\nen:Yes\tO\n",
        "Anna\tB-PER\r\nsings\tO\r\n\r\nYes\tO\r\n",
    ],
)
def test_words_and_their_last_column_are_read(tmp_path: Path, text: str) -> None:
    assert pairs(read(tmp_path / "a.conll", text)) == [("Anna sings", "B-PER O"), ("Yes", "O")]


def test_document_marks_are_counted(tmp_path: Path) -> None:
    counts: Counter[str] = Counter()
    read(tmp_path / "a.conll", "-DOCSTART- O\n\nAnna O\n", counts=counts)
    assert counts == {"-DOCSTART- lines": 1}


def test_number_of_a_column_chooses_the_tags(tmp_path: Path) -> None:
    assert pairs(read(tmp_path / "a.txt", "Anna NNP B-PER\n", column="2")) == [("Anna", "NNP")]


def test_words_alone_have_no_tags(tmp_path: Path) -> None:
    assert pairs(read(tmp_path / "a.txt", "Anna\nsings\n\nYes O\n")) == [("Anna sings", None), ("Yes", "O")]


def test_signs_that_look_like_comments_are_words(tmp_path: Path) -> None:
    assert pairs(read(tmp_path / "a.txt", "# O\n#tag O\n= O\n")) == [("# #tag =", "O O O")]
    assert pairs(read(tmp_path / "a.tsv", "#\tO\n# a = b\tO\n")) == [("# # a = b", "O O")]


def test_a_prefix_of_some_words_is_not_a_language(tmp_path: Path) -> None:
    assert pairs(read(tmp_path / "a.tsv", "en:Anna\tO\nsings\tO\n")) == [("en:Anna sings", "O O")]


def test_characters_that_are_spaces_elsewhere_are_words(tmp_path: Path) -> None:
    (sentence,) = read(tmp_path / "a.txt", "a O\n\u3000 O\nb\u2028c O\n")
    assert sentence.words == ("a", "\u3000", "b\u2028c")


def test_text_offsets_and_locations(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    one, two = read(path, "Anna O\nsings O\n\n好 O\n的 O\n")
    assert (one.text, one.offsets, one.location) == ("Anna sings", ((0, 4), (5, 10)), f"{path}:1")
    assert (two.text, two.location) == ("好 的", f"{path}:4")
    assert join_tokens("好的", "") == ("好的", ((0, 1), (1, 2)))


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("Anna\tO\nsings\n", {}, r"a\.txt:2: Found 1 column \('sings'\), expected 2"),
        ("Anna O\nsings V O\n", {}, r"a\.txt:2: Found 3 columns \('sings V O'\), expected 2"),
        ("Anna\tO\n\tO\n", {}, r"a\.txt:2: .*beginning with a word"),
        ("Anna O\n", {"column": "3"}, r"'3' is not a number from 2 to 2"),
        ("Anna O\n", {"column": "ner"}, r"The columns have no names, and 'ner'"),
        ("-DOCSTART- O\n", {}, r"No sentences"),
    ],
)
def test_ragged_lines_and_missing_columns_raise(
    tmp_path: Path, text: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path / "a.txt", text, **options)


# CoNLL-U

CONLLU = """# sent_id = 1
# text = I don't know du, it.
1\tI\tI\tPRON\tPRP\tCase=Nom\t4\tnsubj\t_\t_
2-3\tdon't\t_\t_\t_\t_\t_\t_\t_\t_
2\tdo\tdo\tAUX\tVBP\t_\t4\taux\t_\t_
3\tn't\tnot\tPART\tRB\t_\t4\tadvmod\t_\t_
4\tknow\tknow\tVERB\tVB\t_\t0\troot\t_\t_
4.1\tx\tx\tNOUN\t_\t_\t_\t_\t_\t_
5-6\tdu\t_\t_\t_\t_\t_\t_\t_\tSpaceAfter=No
5\tde\tde\tADP\t_\t_\t4\tcase\t_\t_
6\tle\tle\tDET\t_\t_\t4\tdet\t_\t_
7\t,\t,\tPUNCT\t,\t_\t4\tpunct\t_\t_
8\tit\tit\tPRON\tPRP\t_\t4\tobj\t_\tX=1|SpaceAfter=No
9\t.\t.\tPUNCT\t.\t_\t4\tpunct\t_\t_
"""


def test_conllu_is_recognized_by_its_lines(tmp_path: Path) -> None:
    counts: Counter[str] = Counter()
    (sentence,) = read(tmp_path / "a.txt", CONLLU, counts=counts)
    assert sentence.words == ("I", "do", "n't", "know", "de", "le", ",", "it", ".")
    assert sentence.tags == ("PRON", "AUX", "PART", "VERB", "ADP", "DET", "PUNCT", "PRON", "PUNCT")
    assert sentence.text == "I don't know de le, it."
    assert [sentence.text[begin:end] for begin, end in sentence.offsets] == list(sentence.words)
    assert counts == {"ranges of words": 2, "empty nodes": 1}


@pytest.mark.parametrize(
    ("column", "first"), [("upos", "PRON"), ("xpos", "PRP"), ("feats", "Case=Nom"), ("deprel", "nsubj")]
)
def test_conllu_columns_have_names(tmp_path: Path, column: str, first: str) -> None:
    tags = read(tmp_path / "a.conllu", CONLLU, column=column)[0].tags
    assert tags is not None and tags[0] == first


def test_conllu_without_tags_has_none(tmp_path: Path) -> None:
    assert read(tmp_path / "a.conllu", "1\tYes" + "\t_" * 8 + "\n")[0].tags is None


def test_conllu_mistakes_raise(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"No column 'pos'\. .*'upos'.*--label-column"):
        read(tmp_path / "a.conllu", CONLLU, column="pos")
    with pytest.raises(DataError, match=r"a\.conllu:15: Found 2 columns, the first '10'\. Expected the 10"):
        read(tmp_path / "a.conllu", CONLLU + "10\tx\n")


# records


@pytest.mark.parametrize(
    ("record", "tags"),
    [
        ('{"tokens": ["a", "b"], "ner_tags": [0, 3]}', ("0", "3")),
        ('{"words": ["a", "b"], "tags": ["X", "O"], "id": "1"}', ("X", "O")),
        ('{"tokens": ["a", "b"], "labels": null}', None),
        ('{"tokens": ["a", "b"]}', None),
    ],
)
def test_lists_of_words_are_read(tmp_path: Path, record: str, tags: object) -> None:
    (sentence,) = read(tmp_path / "a.jsonl", record)
    assert (sentence.words, sentence.tags, sentence.text) == (("a", "b"), tags, "a b")


@pytest.mark.parametrize("cell", ["\"['Anna', 'sings']\"", '"[""Anna"", ""sings""]"'])
def test_lists_of_words_are_read_from_tables(tmp_path: Path, cell: str) -> None:
    text = f"id,tokens,ner_tags\n0,{cell},\"['B-PER', 'O']\"\n"
    assert pairs(read(tmp_path / "a.csv", text)) == [("Anna sings", "B-PER O")]
    assert pairs(read(tmp_path / "a.csv", text, needs_tags=False)) == [("Anna sings", "B-PER O")]
    text = "id\ttokens\tner_tags\n0\t['Anna', 'sings']\t['B-PER', 'O']\n"
    assert pairs(read(tmp_path / "a.tsv", text)) == [("Anna sings", "B-PER O")]


def test_column_of_records_is_chosen_by_name(tmp_path: Path) -> None:
    record = '{"tokens": ["a"], "pos_tags": ["X"], "ner_tags": ["O"]}'
    assert read(tmp_path / "a.jsonl", record, column="pos_tags")[0].tags == ("X",)
    assert read(tmp_path / "a.jsonl", record)[0].tags == ("O",)


@pytest.mark.parametrize(
    ("record", "options", "message"),
    [
        ('{"tokens": ["a", "b"], "tags": ["X"]}', {}, r"a\.jsonl:1: Found 2 words, but 1 tag"),
        ('{"tokens": "a b", "tags": ["X"]}', {}, r"a\.jsonl:1: Column 'tokens' holds str, expected a list"),
        ('{"text": "a b"}', {}, r"No column of words\. Columns: text"),
        ('{"tokens": ["a"], "pos": ["X"]}', {"column": "pso"}, r"No column 'pso'\. Columns \(nearest first\): 'pos'"),
    ],
)  # fmt: skip
def test_mistakes_in_records_raise(tmp_path: Path, record: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path / "a.jsonl", record, **options)


# entities


@pytest.mark.parametrize(
    ("tags", "repaired", "num_broken"),
    [
        ("B-A I-A O B-B", "B-A I-A O B-B", 0),
        ("O I-A I-A O", "O B-A I-A O", 1),
        ("B-A I-B I-B", "B-A B-B I-B", 1),
        ("I-A", "B-A", 1),
        ("B-A M-A E-A S-B O", "B-A M-A E-A S-B O", 0),
        ("B-A E-A I-A O E-B", "B-A E-A B-A O S-B", 2),
        ("NOUN VERB", "NOUN VERB", 0),
    ],
)
def test_broken_entities_are_repaired(tags: str, repaired: str, num_broken: int) -> None:
    assert repair_entity_tags(tags.split()) == (repaired.split(), num_broken)


@pytest.mark.parametrize(
    ("tags", "scheme"),
    [
        ("O B-A I-A B-A", "BIO"),
        ("B-A I-A I-B", "BIO"),
        ("I-A I-A O I-A B-A I-A", "IOB1"),
        ("B-A I-A E-A S-B", "BIOES"),
        ("B-A M-A E-A S-B O", "BMES"),
        ("B-A L-A U-A", "BILOU"),
        ("B-A I", None),
        ("O O", None),
        ("B I O", None),
        ("NOUN PUNCT", None),
    ],
)
def test_scheme_is_found(tags: str, scheme: str | None) -> None:
    assert find_scheme(tags.split()) == scheme
    assert has_entity_tags(set(tags.split())) == (scheme is not None)


def test_tags_of_other_schemes_become_bioes() -> None:
    assert as_bioes(["KING", "B-A", "I"]) == ["O", "B-A", "O"]
    assert as_bioes(["U-A", "O", "B-B", "L-B", "B-C", "M-C", "E-C"]) == ["S-A", "O", "B-B", "E-B", "B-C", "I-C", "E-C"]


def test_words_are_joined_by_the_string_after_each() -> None:
    assert join_tokens(["a", "b", "c"], ["", " ", "!"]) == ("ab c", ((0, 1), (1, 2), (3, 4)))
    assert join_tokens(["do", "n't", "!"], ["", " ", ""]) == ("don't !", ((0, 2), (2, 5), (6, 7)))


# Without tags


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Anna sings\nYes\n", [("Anna sings", None), ("Yes", None)]),
        ("Anna sings loud\n\nYes she does\n", [("Anna sings loud", None), ("Yes she does", None)]),
        ("Anna\nsings\n\nYes\n", [("Anna sings", None), ("Yes", None)]),
        ("Anna O\nsings O\n", [("Anna sings", "O O")]),
        ("Anna\tO\nsings\tO\n", [("Anna sings", "O O")]),
    ],
    ids=["lines", "lines apart", "words", "columns", "tabs"],
)
def test_lines_may_be_sentences_where_no_tags_are_needed(tmp_path: Path, text: str, found: object) -> None:
    assert pairs(read(tmp_path / "a.txt", text, needs_tags=False)) == found


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.conll", "Anna B-PER\nsings O\n"),
        ("a.conllu", "1\tAnna\t_\tPROPN\t_\t_\t0\t_\t_\t_\n2\tsings\t_\tVERB\t_\t_\t0\t_\t_\t_\n"),
        ("a.jsonl", '{"tokens": ["Anna", "sings"], "tags": ["O", "O"]}\n'),
    ],
)
def test_column_may_be_missing_where_no_tags_are_needed(tmp_path: Path, name: str, text: str) -> None:
    assert pairs(read(tmp_path / name, text, column="7", needs_tags=False)) == [("Anna sings", None)]
    with pytest.raises(DataError):
        read(tmp_path / name, text, column="7")


def test_lines_and_records_without_words_are_counted(tmp_path):
    counts = Counter()
    (tmp_path / "a.txt").write_text("the old king\n\n \nriver\n\n")
    (tmp_path / "b.jsonl").write_text('{"words": []}\n{"words": ["a"]}\n')
    found = read_tagged([str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl")], needs_tags=False, counts=counts)
    assert [len(s.words) for s in found] == [3, 1, 1]
    assert +counts == {"blank lines (skipped)": 2, "sentences without words (skipped)": 1}
