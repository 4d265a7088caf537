"""SARI and GLEU against the authors' implementations.

`edited_texts.jsonl` has texts written for this test, and for each the values of the official code: SARI of EASSE
(`corpus_sari` of its default branch at 6a4352e, tokens 13a, lower case) and GLEU of `compute_gleu` (cnap/gec-ranking at
50b5032, Python 2.7), on the same tokens in their case.
"""

import json
import tarfile
from pathlib import Path

import pytest

from stemformer.tasks.rewriting_metrics import rewriting_metrics, truncated

CASES = [json.loads(line) for line in (Path(__file__).parent / "edited_texts.jsonl").read_text().splitlines()]


def metrics(cases, *, number=None):
    outcomes = [(case["source"], case["references"][:number], case["written"], True) for case in cases]
    return rewriting_metrics(outcomes, with_baselines=False)[0]


@pytest.mark.parametrize("number", range(len(CASES)))
def test_each_text_has_the_official_values(number):
    found = metrics([CASES[number]])
    assert found["sari"] == pytest.approx(CASES[number]["sari"], abs=1e-8)
    assert found["gleu"] == pytest.approx(CASES[number]["gleu"], abs=1e-8)


def test_a_corpus_has_the_official_values():
    found = metrics(CASES, number=1)
    assert (found["sari"], found["gleu"]) == pytest.approx((68.1778315988928, 51.4134726105), abs=1e-8)
    found = metrics([case for case in CASES if len(case["references"]) > 1], number=2)
    assert (found["sari"], found["gleu"]) == pytest.approx((62.99585559141237, 38.1146933655), abs=1e-8)


def test_texts_may_have_different_numbers_of_references():
    found = metrics(CASES)
    one_less = metrics([*CASES[1:], {**CASES[0], "references": CASES[0]["references"][:2]}])
    assert 0 < found["gleu"] < 100 and 0 < found["sari"] < 100
    assert found["sari"] != one_less["sari"]


def test_empty_and_short_texts_have_values():
    assert metrics([{"source": "a b", "references": ["a"], "written": ""}])["gleu"] == 0.0
    assert metrics([{"source": "a b", "references": ["a"], "written": ""}])["sari"] > 0
    assert (
        metrics([{"source": "我去年去了北京", "references": ["我去年到了北京"], "written": "我去年到了北京"}])["gleu"]
        == 100
    )


def test_truncating_keeps_a_sentence_or_most_of_one():
    assert truncated("He came. She left. All slept.") == "He came."
    assert truncated("one two three four five six seven eight nine ten") == "one two three four five six seven eight"
    assert truncated("word") == "word"
    assert truncated("一二三四五六七八九十", by_word=False) == "一二三四五六七八"
    assert truncated("") == ""


# ASSET as the output of systems: SARI of EASSE for the source, and for each simplification against the other nine.
ASSET_SARI = {
    "orig": 20.73382634687167,
    **dict(
        zip(
            map(str, range(10)),
            [
                *(44.58937782033863, 44.37561685314039, 44.993637076192414, 44.555609326566405, 45.52675884453052),
                *(45.0361872818753, 45.396476720064676, 45.24211155586152, 45.03958365971288, 44.11718840546708),
            ],
            strict=True,
        )
    ),
}


@pytest.mark.data
@pytest.mark.slow
def test_asset_has_the_official_sari(shared_data):
    with tarfile.open(shared_data / "asset_simplification" / "asset.tar.xz") as archive:

        def lines(name):
            return archive.extractfile(f"dataset/asset.test.{name}").read().decode().splitlines()

        source, columns = lines("orig"), [lines(f"simp.{i}") for i in range(10)]
    for name, expected in ASSET_SARI.items():
        written = source if name == "orig" else columns[int(name)]
        references = zip(*(column for column in columns if column is not written), strict=True)
        rows = [(s, refs, text, True) for s, refs, text in zip(source, references, written, strict=True)]
        metrics, _ = rewriting_metrics(rows, with_baselines=False)
        assert metrics["sari"] == pytest.approx(expected, abs=1e-8), name
        if name == "orig":
            # compute_gleu of Python 2.7 on the same tokens.
            assert metrics["gleu"] == pytest.approx(16.1900264608, abs=1e-8)
