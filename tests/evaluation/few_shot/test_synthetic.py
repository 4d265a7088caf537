"""Synthetic tasks: rules hold, answers follow only from examples, and files are a function of the seed."""

import json
import re
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import chisquare

from stemformer import make_synthetic
from stemformer.errors import ConfigError
from stemformer.evaluation.few_shot.synthetic import (
    SYNTHETIC_TASKS,
    WORD_CLASSES,
    find_synthetic,
    synthetic_documents,
)

CLASS_OF = {word: name for name, words in WORD_CLASSES.items() for word in words}
CLOSED = [name for name, task in SYNTHETIC_TASKS.items() if task.num_candidates]


def number(text):
    return int(text.replace(" ", ""))


def is_one_to_one(pairs):
    """Tell whether the mapping of inputs to outputs is injective."""
    return len(set(pairs)) == len({source for source, _ in pairs}) == len({answer for _, answer in pairs})


def has_border(pairs):
    """Tell whether a threshold separates the labels."""
    labels = [label for _, label in sorted((number(source), label) for source, label in pairs)]
    return sum(a != b for a, b in pairwise(labels)) <= 1


def is_one_position(pairs):
    return len({tuple(word == answer for word in source.split()) for source, answer in pairs}) == 1


def is_one_class(pairs):
    return len({CLASS_OF[answer] for _, answer in pairs}) == 1 and all(
        answer in source.split() and len({CLASS_OF[word] for word in source.split()}) == 3 for source, answer in pairs
    )


def is_one_shift(pairs):
    letters = [letters for source, answer in pairs for letters in zip(source.split(), answer.split(), strict=True)]
    shifts = {(ord(b) - ord(a)) % 26 for a, b in letters}
    return len(shifts) == 1 and shifts <= {1, 2, 3, 4, 5}


RULES = {
    "association": is_one_to_one,
    "label_by_class": lambda pairs: is_one_to_one([(CLASS_OF[word], label) for word, label in pairs]),
    "threshold": has_border,
    "position": is_one_position,
    "pick_class": is_one_class,
    "copy": lambda pairs: all(source == answer for source, answer in pairs),
    "reverse": lambda pairs: all(source[::-1] == answer for source, answer in pairs),
    "sort": lambda pairs: all(sorted(source.split()) == answer.split() for source, answer in pairs),
    "shift": is_one_shift,
    "add_constant": lambda pairs: len({number(answer) - number(source) for source, answer in pairs}) == 1,
    "addition": lambda pairs: all(sum(map(number, source.split("+"))) == number(answer) for source, answer in pairs),
    "unscramble": lambda pairs: all(sorted(source.split()) == sorted(answer) for source, answer in pairs),
}
"""Tell whether each pair follows the rule, checked from the pairs alone."""


def test_every_task_has_a_rule_here():
    assert list(RULES) == list(SYNTHETIC_TASKS)


@pytest.mark.parametrize("name", SYNTHETIC_TASKS)
def test_every_pair_of_an_episode_follows_its_rule(name):
    for seed in range(20):
        episode = SYNTHETIC_TASKS[name].episode(17, np.random.default_rng(seed))
        assert len(episode.pairs) == 17
        assert RULES[name](episode.pairs)


@pytest.mark.parametrize("name", SYNTHETIC_TASKS)
def test_swapped_answer_breaks_the_rule(name):
    pairs = SYNTHETIC_TASKS[name].episode(17, np.random.default_rng(3)).pairs
    lengths = [len(answer) for _, answer in pairs]
    other = next(i for i in range(1, 17) if pairs[i][1] != pairs[0][1] and lengths[i] == lengths[0])
    broken = [(pairs[0][0], pairs[other][1]), *pairs[1:], pairs[0]]
    assert not RULES[name](broken)


@pytest.mark.parametrize("name", SYNTHETIC_TASKS)
def test_episodes_differ(name):
    episodes = [SYNTHETIC_TASKS[name].episode(30, np.random.default_rng(seed)) for seed in range(8)]
    assert len({episode.pairs for episode in episodes}) == 8


@pytest.mark.parametrize("name", CLOSED)
def test_candidates_have_the_declared_number_and_include_the_answer(name):
    task = SYNTHETIC_TASKS[name]
    for seed in range(20):
        episode = task.episode(5, np.random.default_rng(seed))
        assert len(set(episode.candidates)) == len(episode.candidates) == task.num_candidates
        assert episode.pairs[-1][1] in episode.candidates
    assert task.chance == 1 / task.num_candidates


@pytest.mark.parametrize("name", CLOSED)
def test_without_demonstrations_every_candidate_is_equally_likely(name):
    rng = np.random.default_rng(11)
    episodes = [SYNTHETIC_TASKS[name].episode(1, rng) for _ in range(1200)]
    positions = Counter(episode.candidates.index(episode.pairs[0][1]) for episode in episodes)
    assert len(positions) == SYNTHETIC_TASKS[name].num_candidates
    assert chisquare(list(positions.values())).pvalue > 1e-3  # deterministic, as the seed is fixed


def test_inputs_do_not_reveal_the_letter_rule():
    forms = {
        re.sub("[a-z]", "x", pair[0])
        for name in ("copy", "reverse", "sort")
        for pair in SYNTHETIC_TASKS[name].episode(40, np.random.default_rng(0)).pairs
    }
    assert forms == {"x x x", "x x x x", "x x x x x"}


def test_no_word_is_in_two_categories_or_an_anagram_of_another():
    words = [word for words in WORD_CLASSES.values() for word in words]
    assert len({"".join(sorted(word)) for word in words}) == len(words)
    assert min(len(words) for words in WORD_CLASSES.values()) >= 16


def test_text_has_one_pair_per_line():
    [document] = synthetic_documents(1, seed=0, tasks=["reverse"])
    assert document["text"].startswith("p g j -> j g p\ne o n -> n o e\n")


def test_documents_alternate_tasks_and_have_8_to_40_pairs():
    documents = list(synthetic_documents(240, seed=5))
    assert Counter(d["task"] for d in documents) == dict.fromkeys(SYNTHETIC_TASKS, 20)
    lengths = {len(d["text"].split("\n")) for d in documents}
    assert (min(lengths), max(lengths)) == (8, 40)
    for document in documents:
        assert RULES[document["task"]]([tuple(line.split(" -> ")) for line in document["text"].split("\n")])


def test_bytes_depend_on_the_seed_only(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_synthetic(out=str(tmp_path / f"{name}.jsonl"), num_documents=24, seed=seed)
    a, b, c = ((tmp_path / f"{name}.jsonl").read_bytes() for name in "abc")
    assert a == b
    assert not set(a.splitlines()) & set(c.splitlines())


def test_fewer_documents_are_a_prefix_of_more(tmp_path):
    few, more = (list(synthetic_documents(n, seed=1, tasks=["copy", "shift"])) for n in (3, 6))
    assert more[:3] == few


def test_file_contains_text_and_task(tmp_path):
    out = str(tmp_path / "icl.jsonl")
    result = make_synthetic(out=out, num_documents=4, seed=0, tasks=["copy", "shift"])
    records = [json.loads(line) for line in (tmp_path / "icl.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [record["task"] for record in records] == ["copy", "shift", "copy", "shift"]
    assert all(" -> " in record["text"] for record in records)
    assert {row["task"]: row["documents"] for row in result["tasks"]} == {"copy": 2, "shift": 2}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["revers"], "Unknown synthetic task 'revers'.*reverse.*Expected some of association"),
        (["copy", "copy"], "Duplicate synthetic task 'copy'"),
    ],
)
def test_wrong_names_are_refused(names, message):
    with pytest.raises(ConfigError, match=message):
        find_synthetic(names)


def test_number_below_one_is_refused():
    with pytest.raises(ConfigError, match=r"--num-documents is 0\. Expected at least 1"):
        list(synthetic_documents(0, seed=0))
