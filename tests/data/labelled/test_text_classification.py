"""Columns and examples of labelled tables, train/dev splits, and the sizes of real data sets."""

import re
from collections import Counter
from pathlib import Path

import pytest

from stemformer.data.labelled.multiple_choice import read_choices
from stemformer.data.labelled.question_answering import read_questions
from stemformer.data.labelled.splits import grouped_split, train_dev_split
from stemformer.data.labelled.table import Table, read_table
from stemformer.data.labelled.text_classification import TextColumns, choose_columns, make_text_examples
from stemformer.data.labelled.token_classification import read_tagged
from stemformer.errors import DataError

LONG, OTHER = "A text of more than a few words", "Another one, of not many more"


def table_of(columns: dict[str, list[object]]) -> Table:
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return Table("a.csv", tuple(columns), rows, [f"a.csv:{number + 2}" for number in range(len(rows))])


def one_row(*names: str) -> Table:
    return table_of({name: [f"value {name}"] for name in names})


# columns


@pytest.mark.parametrize(
    ("names", "texts", "label"),
    [
        (("sentence", "label"), ("sentence",), "label"),
        (("id", "Review", "Sentiment"), ("Review",), "Sentiment"),
        (("title", "text", "class"), ("text",), "class"),
        (("title", "body", "category"), ("body",), "category"),
        (("sequence", "label", "score"), ("sequence",), "label"),
        (("tweet", "label1", "gold_label"), ("tweet",), "gold_label"),
        (("index", "sentence1", "sentence2", "label"), ("sentence1", "sentence2"), "label"),
        (("premise", "hypothesis", "label"), ("premise", "hypothesis"), "label"),
        (("id", "qid1", "qid2", "question1", "question2", "is_duplicate"), ("question1", "question2"), "is_duplicate"),
        (("index", "question", "sentence", "label"), ("question", "sentence"), "label"),
        (("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"), ("#1 String", "#2 String"), "Quality"),
        (("pair_ID", "sentence_A", "sentence_B", "relatedness_score"), ("sentence_A", "sentence_B"), "relatedness_score"),
        (("text_a", "text_b", "similarity"), ("text_a", "text_b"), "similarity"),
    ],
)  # fmt: skip
def test_usual_names_are_known(names: tuple[str, ...], texts: tuple[str, ...], label: str) -> None:
    columns = choose_columns(one_row(*names), num_texts=len(texts), needs_label=True)
    assert columns == TextColumns(texts, label)


def test_explicit_names_have_priority() -> None:
    table = one_row("text", "label", "summary", "grade")
    columns = choose_columns(table, num_texts=1, texts=["summary"], label="grade", needs_label=True)
    assert columns == TextColumns(("summary",), "grade")


def test_content_tells_columns_without_usual_names() -> None:
    table = table_of(
        {"a": ["7", "8", "9", "10"], "b": ["yes", "no", "no", "yes"], "c": [LONG, OTHER, LONG, OTHER + "!"]}
    )
    assert choose_columns(table, num_texts=1, needs_label=True) == TextColumns(("c",), "b")
    assert choose_columns(table, num_texts=1, needs_label=False) == TextColumns(("c",), None)


def test_of_several_columns_of_few_values_the_label_counts_classes() -> None:
    table = table_of(
        {
            "a": ["x", "y", "x", "y"],
            "b": ["1", "0", "0", "1"],
            "c": ["5", "7", "7", "5"],
            "d": [LONG, OTHER, LONG, LONG + "."],
        }
    )
    assert choose_columns(table, num_texts=1, needs_label=True).label == "b"


def test_kind_decides_between_scores_and_classes() -> None:
    table = table_of(
        {"sentence_A": [LONG], "sentence_B": [OTHER], "relatedness_score": ["3.6"], "entailment_judgment": ["NEUTRAL"]}
    )
    assert choose_columns(table, num_texts=2, needs_label=True, kind="score").label == "relatedness_score"
    assert choose_columns(table, num_texts=2, needs_label=True, kind="class").label == "entailment_judgment"
    with pytest.raises(DataError, match=r"it may be 'relatedness_score', 'entailment_judgment'\. .*--label-column"):
        choose_columns(table, num_texts=2, needs_label=True)
    assert choose_columns(table, num_texts=2, needs_label=False).label is None


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"text": ["a"], "label": ["b"]}, {"label": "lable"}, r"No column 'lable'\. Columns \(nearest first\): 'label', 'text'"),
        ({"text": ["a"], "label": ["b"]}, {"texts": ["text"], "label": "text"}, r"Column 'text' is set twice"),
        ({"text": ["a"], "label": ["b"]}, {"texts": ["text"], "num_texts": 2},
         r"Found 1 text column, expected 2\. .*each with --text-column"),
        ({"text": ["a"], "x": ["b"]}, {}, r"Cannot tell which column is the label: none holds .*'text', 'x'\. Set it with --label-column"),
        ({"premise": ["a"], "hypothesis": ["b"], "label": ["c"]}, {}, r"'premise' and 'hypothesis' look like .*--text-column"),
        ({"a": [LONG], "b": [OTHER], "label": ["c"]}, {}, r"Cannot tell which column is the text\. Columns: .*--text-column"),
        ({"a": [LONG], "b": [OTHER], "c": [LONG], "label": ["c"]}, {"num_texts": 2},
         r"which 2 of the columns are .*each with --text-column"),
        ({"column1": ["a"], "column2": ["b"]}, {}, r"\(the first line is not a header\)"),
    ],
)  # fmt: skip
def test_ambiguous_columns_raise(columns: dict[str, list[object]], options: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        choose_columns(table_of(columns), **{"num_texts": 1, "needs_label": True, **options})  # type: ignore[arg-type]


def test_few_distinct_texts_are_not_the_label() -> None:
    table = table_of({"a": [LONG, OTHER] * 4, "b": ["good", "bad"] * 4})
    assert choose_columns(table, num_texts=1, needs_label=True) == TextColumns(("a",), "b")


def test_lines_with_tabs_may_be_a_table_of_another_name() -> None:
    with pytest.raises(DataError, match=r"There is no label column, only 'text'\. Name the file \.tsv if tabs"):
        choose_columns(table_of({"text": ["a\tb"]}), num_texts=1, needs_label=True)


@pytest.mark.parametrize("columns", [{"text": [LONG, OTHER]}, {"column1": ["x", "y", "x", "y"]}])
def test_a_single_column_has_no_label(columns: dict[str, list[object]]) -> None:
    with pytest.raises(DataError, match=r"There is no label column, only '\w+'\. Pass a table"):
        choose_columns(table_of(columns), num_texts=1, needs_label=True)


def test_table_with_one_text_is_none_of_pairs() -> None:
    with pytest.raises(
        DataError, match=r"Pairs need two text columns and a label column, found one text column \('text'\)"
    ):
        choose_columns(table_of({"text": [LONG, OTHER], "label": ["x", "y"]}), num_texts=2, needs_label=True)


# examples


def labels_of(values: list[object], kind: str, **options: str) -> tuple[list[object], Counter[str]]:
    counts: Counter[str] = Counter()
    table = table_of({"text": ["some"] * len(values), "label": values})
    examples = make_text_examples(table, TextColumns(("text",), "label"), kind=kind, counts=counts, **options)  # type: ignore[arg-type]
    return [example.label for example in examples], counts


@pytest.mark.parametrize(
    ("kind", "values", "labels"),
    [
        ("class", ["1", "1.0", " positive ", 1, 1.0, 0.5, True, False], ["1", "1.0", "positive", "1", "1", "0.5", "true", "false"]),
        ("labels", ["a, b,a", "", ["x", 2], []], [("a", "b"), (), ("x", "2"), ()]),
        ("labels", ['["a, b", "c"]', "['a', 'b']", "[]", "('a',)", "[1, 2]", "a (b, c), d".replace(", c", "")],
         [("a, b", "c"), ("a", "b"), (), ("a",), ("1", "2"), ("a (b)", "d")]),
        ("score", ["3.8", 4, 0.5, "-1e-1"], [3.8, 4.0, 0.5, -0.1]),
    ],
)  # fmt: skip
def test_labels_are_read_by_kind(kind: str, values: list[object], labels: list[object]) -> None:
    assert labels_of(values, kind) == (labels, {})


def test_rows_that_make_no_example_are_counted() -> None:
    counts: Counter[str] = Counter()
    table = table_of({"a": ["x", " ", None, "x", "x", "x"], "b": ["y"] * 6, "label": ["1", "1", "1", None, "", "-"]})
    examples = make_text_examples(table, TextColumns(("a", "b"), "label"), kind="class", counts=counts)
    assert [(e.texts, e.label, e.row, e.location) for e in examples] == [(("x", "y"), "1", table.rows[0], "a.csv:2")]
    assert counts == {"empty text": 2, "no label": 2, "no gold label": 1}


def test_minus_is_a_label_if_plus_is_one() -> None:
    assert labels_of(["+", "-"], "class") == (["+", "-"], {})


def test_without_a_label_column_there_are_no_labels() -> None:
    examples = make_text_examples(one_row("text"), TextColumns(("text",), None), kind="class", counts=Counter())
    assert [example.label for example in examples] == [None]


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("score", "high", r"a\.csv:2: Column 'label' holds 'high', expected a number"),
        ("score", "nan", r"a\.csv:2: Column 'label' holds 'nan', expected a number"),
        ("class", ["a"], r"a\.csv:2: Column 'label' holds list, expected text or number"),
        ("labels", [["a"]], r"a\.csv:2: Column 'label' holds list"),
    ],
)
def test_labels_of_another_kind_are_refused(kind: str, value: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        labels_of([value], kind)


# parts


def test_dev_has_the_same_share_of_each_class() -> None:
    keys = ["a"] * 200 + ["b"] * 50 + ["c"] * 2 + ["d"]
    train, dev = train_dev_split(keys, share=0.1, seed=3)
    assert sorted(train + dev) == list(range(len(keys))) and train == sorted(train) and dev == sorted(dev)
    assert Counter(keys[i] for i in dev) == {"a": 20, "b": 5, "c": 1}


def test_each_class_stays_in_training_even_for_a_large_share() -> None:
    train, _ = train_dev_split(["a", "a", "b", "b", "b"], share=0.9)
    assert len(train) == 2


def test_dev_depends_on_the_seed() -> None:
    keys = ["a"] * 100
    assert train_dev_split(keys, seed=1) == train_dev_split(keys, seed=1) != train_dev_split(keys, seed=2)
    assert (
        grouped_split(list(range(100)), seed=1)
        == grouped_split(list(range(100)), seed=1)
        != grouped_split(list(range(100)), seed=2)
    )


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_not_divided(seed: int) -> None:
    groups = [f"article {number}" for number in range(40) for _ in range(1 + number % 7)]
    train, dev = grouped_split(groups, share=0.2, seed=seed)
    assert sorted(train + dev) == list(range(len(groups)))
    assert not {groups[i] for i in train} & {groups[i] for i in dev}
    assert abs(len(dev) - 0.2 * len(groups)) <= 4  # half of the largest group, rounded up


@pytest.mark.parametrize(("groups", "num_dev"), [(["a"] * 9 + ["b"], 1), (["a"] * 5, 0), (["a"] * 50 + ["b"] * 50, 50)])
def test_each_part_has_a_group_where_there_are_two(groups: list[str], num_dev: int) -> None:
    train, dev = grouped_split(groups, share=0.1)
    assert (len(train), len(dev)) == (len(groups) - num_dev, num_dev)


# real data


@pytest.mark.parametrize(
    "cell", ["['a' 'b']", "['a', 'b", '"a", "b"', "'a', 'b'", "[a, b]", "a (b, c)", 'a, "b', "{'a', b}"]
)
def test_pieces_of_a_list_are_no_labels(cell: str) -> None:
    with pytest.raises(DataError, match=r"a\.csv:2: Column 'label' holds .* cut at its commas it gives .* JSON"):
        labels_of([cell], "labels")


@pytest.mark.parametrize("separator", ["|", ";"])
def test_labels_joined_by_another_character_are_refused(separator: str) -> None:
    def read(*cells: object) -> list[object]:
        table = table_of({"text": [LONG] * len(cells), "label": list(cells)})
        examples = make_text_examples(table, TextColumns(("text",), "label"), kind="labels", counts=Counter())
        return [example.label for example in examples]

    joined = f"a{separator}b"
    message = (
        rf"a\.csv:2: Column 'label' holds the label '{re.escape(joined)}', which is made of other labels joined by"
    )
    with pytest.raises(DataError, match=rf"{message} '{re.escape(separator)}'\. Replace '.*' by ','"):
        read(joined, f"a{separator}c", "", "b", "c")
    # No part is a label of its own, or the labels are in a list.
    assert read(joined, f"c{separator}d", "e") == [(joined,), (f"c{separator}d",), ("e",)]
    assert read(f'["{joined}"]', "a, b") == [(joined,), ("a", "b")]


def flagged(rows: list[dict[str, object]]) -> tuple[list[object], Counter[str]]:
    counts: Counter[str] = Counter()
    table = Table("a.csv", tuple(rows[0]), rows, [f"a.csv:{i}" for i in range(len(rows))])
    columns = choose_columns(table, num_texts=1, label=("toxic", "insult"), needs_label=True, kind="labels")
    assert columns == TextColumns(("text",), ("toxic", "insult"))
    return [e.label for e in make_text_examples(table, columns, kind="labels", counts=counts)], counts


def test_columns_of_0_and_1_are_labels() -> None:
    cells = [("1", "0"), (1, 1.0), ("0.0", False), ("-1", "-1"), (None, "1")]
    found = flagged([{"text": "some", "toxic": toxic, "insult": insult} for toxic, insult in cells])
    assert found == ([("toxic",), ("toxic", "insult"), ()], {"no label": 2})


def test_a_label_column_of_several_holds_0_or_1() -> None:
    with pytest.raises(DataError, match=r"a\.csv:0: Column 'insult' holds 'mild', but .* 1 or 0"):
        flagged([{"text": "some", "toxic": "1", "insult": "mild"}])


def test_columns_of_0_and_1_are_proposed_as_labels() -> None:
    table = table_of({"comment": [LONG, OTHER] * 2, "toxic": ["0", "1"] * 2, "insult": ["1", "0"] * 2})
    with pytest.raises(DataError, match=r"If 'toxic', 'insult' are labels .* set each with --label-column"):
        choose_columns(table, num_texts=1, needs_label=True, kind="class")


def test_a_list_is_no_class() -> None:
    with pytest.raises(DataError, match=r"holds list, expected text or number\. .*--kind labels"):
        labels_of(["['a', 'b']"], "class")


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "num_texts", "num_rows", "counts"),
    [
        ("glue/CoLA/train.tsv.xz", 1, 8551, {"1": 6023, "0": 2528}),
        ("glue/CoLA/dev.tsv.xz", 1, 1043, {"1": 721, "0": 322}),
        ("glue/CoLA/test.tsv.xz", 1, 1063, None),
        ("glue/SST-2/train.tsv.xz", 1, 67349, {"1": 37569, "0": 29780}),
        ("glue/SST-2/dev.tsv.xz", 1, 872, {"1": 444, "0": 428}),
        ("glue/MRPC/train.tsv.xz", 2, 3667, {"1": 2473, "0": 1194}),
        ("glue/MRPC/dev.tsv.xz", 2, 408, {"1": 279, "0": 129}),
        ("glue/STS-B/train.tsv.xz", 2, 5749, 5749),
        ("glue/STS-B/dev.tsv.xz", 2, 1500, 1500),
        ("glue/STS-B/test.tsv.xz", 2, 1379, None),
        ("glue/RTE/train.tsv.xz", 2, 2490, {"entailment": 1249, "not_entailment": 1241}),
        ("glue/QNLI/dev.tsv.xz", 2, 5463, {"not_entailment": 2761, "entailment": 2702}),
        ("glue/WNLI/train.tsv.xz", 2, 635, {"0": 323, "1": 312}),
        ("glue/diagnostic/diagnostic.tsv.xz", 2, 1104, None),
        ("sick_sts_msrp/sts/sick2014/SICK_train.txt.xz", 2, 4500, 4500),
        ("sick_sts_msrp/sts/semeval-sts/all/2015.train.tsv.xz", 2, 3000, 3000),
        ("sick_sts_msrp/para/msr/msr-para-train.tsv.xz", 2, 3576, {"1": 2407, "0": 1169}),
        ("nli_en_pairs/snli/dev.txt.xz", 2, 9842, {"1": 3235, "0": 3329, "2": 3278}),
        ("counterfactual_nli_sentiment/NLI/all_combined/train.tsv.xz", 2, 8330,
         {"contradiction": 2782, "neutral": 2778, "entailment": 2770}),
        ("counterfactual_nli_sentiment/sentiment/orig/train.tsv.xz", 1, 1707, {"Positive": 856, "Negative": 851}),
        ("agnews_test/test.csv.xz", 1, 7600, {"1": 1900, "2": 1900, "3": 1900, "4": 1900}),
        ("xnli/dev-en.tsv.xz", 2, 2490, {"neutral": 830, "contradiction": 830, "entailment": 830}),
        ("xnli/test-en.tsv.xz", 2, 5010, None),
        ("ocnli/dev.json.xz", 2, 3000, {"entailment": 947, "neutral": 1103, "contradiction": 900}),
        ("dna_gue/splice/reconstructed/dev.csv.xz", 1, 4562, {"1": 987, "0": 1001, "2": 2574}),
        ("dna_splice_promoter/splice.data.xz", 1, 3190, {"EI": 767, "IE": 768, "N": 1655}),
        ("dna_splice_promoter/promoters.data", 1, 106, {"+": 53, "-": 53}),
    ],
)  # fmt: skip
def test_real_tables_have_their_documented_rows(
    shared_data: Path, tmp_path: Path, name: str, num_texts: int, num_rows: int, counts: dict[str, int] | int | None
) -> None:
    path = shared_data / name
    if ".txt" in name:
        # A text per line, unless the name says that it is a table.
        path = tmp_path / path.name.replace(".txt", ".tsv")
        path.symlink_to(shared_data / name)
    table = read_table(str(path))
    kind = "score" if isinstance(counts, int) else "class"
    columns = choose_columns(table, num_texts=num_texts, needs_label=counts is not None, kind=kind)
    examples = make_text_examples(table, columns, kind=kind, counts=Counter())
    labels = Counter(example.label for example in examples if example.label is not None)
    assert len(table.rows) == num_rows
    assert (labels.total() if isinstance(counts, int) else labels or None) == counts


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "num_sentences", "num_words", "num_tags"),
    [
        ("ud_treebanks/UD_English-EWT/en_ewt-ud-dev.conllu.xz", 2001, 25147, 17),
        ("ud_treebanks/UD_French-Sequoia/fr_sequoia-ud-train.conllu.xz", 2231, 50502, 16),
        ("wikiann_panx/en_train.conll.xz", 20000, 160394, 7),
        ("wikiann_panx/dev-zh.tsv.xz", 10000, 213682, 7),
        ("wnut17_ner/wnut17train.conll.xz", 3394, 62730, 13),
        ("wnut17_ner/emerging.test.annotated.xz", 1287, 23394, 13),
        ("ner_zh/ResumeNER/train.char.bmes.xz", 3821, 124099, 28),
        ("ner_zh/weiboNER_2nd_conll.train.xz", 1350, 73778, 17),
        ("udpos_xtreme/dev-en.tsv.xz", 3974, 62632, 17),
    ],
)
def test_real_tagged_files_have_their_documented_words(
    shared_data: Path, name: str, num_sentences: int, num_words: int, num_tags: int
) -> None:
    sentences = read_tagged(str(shared_data / name), counts=Counter())
    tags = {tag for sentence in sentences for tag in sentence.tags or ()}
    assert (len(sentences), sum(len(s.words) for s in sentences), len(tags)) == (num_sentences, num_words, num_tags)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "num_questions", "num_impossible", "num_unplaced"),
    [
        ("squad/cs224n_dev-v2.0.json.xz", 6078, 3168, 0),
        ("squadshifts/new_wiki_v1.0.json.xz", 7938, 0, 0),
        ("squadshifts/reddit_v1.0.json.xz", 9803, 0, 0),
        ("qa_zh/cmrc2018_dev.json.xz", 3219, 0, 193),
        ("qa_zh/cmrc2018_trial.json.xz", 1002, 0, 0),
        ("qa_zh/DRCD_test.json.xz", 3493, 0, 0),
        ("xquad/xquad.zh.json.xz", 1190, 0, 0),
    ],
)
def test_real_passages_have_their_documented_questions(
    shared_data: Path, name: str, num_questions: int, num_impossible: int, num_unplaced: int
) -> None:
    counts: Counter[str] = Counter()
    questions = read_questions(str(shared_data / name), counts=counts)
    assert (len(questions), sum(q.is_impossible for q in questions)) == (num_questions, num_impossible)
    assert counts["answer not in its passage"] == num_unplaced >= sum(len(q.answers) < len(q.gold) for q in questions)
    assert all(q.context.startswith(text, at) for q in questions for text, at in q.answers)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("dream/dev.json.xz", {0: 652, 1: 703, 2: 685}),
        ("c3/c3-m-dev.json.xz", {0: 527, 1: 524, 2: 501, 3: 439}),
        ("copa_xcopa_siqa_piqa/copa_en/train-en.jsonl.xz", {0: 195, 1: 205}),
        ("copa_xcopa_siqa_piqa/xcopa/test.zh.jsonl", {0: 250, 1: 250}),
        ("copa_xcopa_siqa_piqa/siqa/socialIQa_v1.4_dev.jsonl.xz", {0: 643, 1: 654, 2: 657}),
        ("copa_xcopa_siqa_piqa/piqa/valid.jsonl.xz", {0: 910, 1: 928}),
    ],
)
def test_real_choices_have_their_documented_answers(shared_data: Path, name: str, counts: dict[int, int]) -> None:
    questions = read_choices(str(shared_data / name), counts=Counter())
    assert Counter(question.answer for question in questions) == counts


def test_column_of_many_numbers_is_not_guessed_as_classes():
    rows = [{"review": f"text number {i}", "stars": f"{1 + i / 30}", "verdict": "ab"[i % 2]} for i in range(60)]
    table = Table("a.csv", ("review", "stars", "verdict"), rows, [str(i) for i in range(60)])
    assert choose_columns(table, num_texts=1, needs_label=True, kind="class").label == "verdict"
    assert choose_columns(table, num_texts=1, needs_label=True, kind="score").label == "stars"
    alone = Table("a.csv", ("review", "stars"), [{k: r[k] for k in ("review", "stars")} for r in rows], table.locations)
    with pytest.raises(DataError, match="'stars' holds many different numbers"):
        choose_columns(alone, num_texts=1, needs_label=True, kind="class")
