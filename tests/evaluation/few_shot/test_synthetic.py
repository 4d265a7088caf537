"""Synthetic in-context tasks: their rules hold, answers are known from examples and not before, files are the same for a seed."""

import json
import re
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import chisquare

from stemformer.errors import ConfigError
from stemformer.evaluation.few_shot.synthetic import (
    SYNTHETIC_TASKS,
    WORD_CLASSES,
    episode_text,
    find_synthetic,
    synthetic_documents,
    write_synthetic,
)

CLASS_OF = {word: name for name, words in WORD_CLASSES.items() for word in words}
CLOSED = [name for name, task in SYNTHETIC_TASKS.items() if task.is_closed]


def number(text):
    return int(text.replace(" ", ""))


def is_one_to_one(pairs):
    """Whether equal inputs have equal outputs and others others."""
    return len(set(pairs)) == len({given for given, _ in pairs}) == len({answer for _, answer in pairs})


def has_border(pairs):
    """Whether there is a number below which all have one label, and above which all have another."""
    labels = [label for _, label in sorted((number(given), label) for given, label in pairs)]
    return sum(a != b for a, b in pairwise(labels)) <= 1


def is_one_place(pairs):
    return len({tuple(word == answer for word in given.split()) for given, answer in pairs}) == 1


def is_one_class(pairs):
    return len({CLASS_OF[answer] for _, answer in pairs}) == 1 and all(
        answer in given.split() and len({CLASS_OF[word] for word in given.split()}) == 3 for given, answer in pairs
    )


def is_one_shift(pairs):
    letters = [letters for given, answer in pairs for letters in zip(given.split(), answer.split(), strict=True)]
    shifts = {(ord(b) - ord(a)) % 26 for a, b in letters}
    return len(shifts) == 1 and shifts <= {1, 2, 3, 4, 5}


RULES = {
    "association": is_one_to_one,
    "label_by_class": lambda pairs: is_one_to_one([(CLASS_OF[word], label) for word, label in pairs]),
    "threshold": has_border,
    "position": is_one_place,
    "pick_class": is_one_class,
    "copy": lambda pairs: all(given == answer for given, answer in pairs),
    "reverse": lambda pairs: all(given[::-1] == answer for given, answer in pairs),
    "sort": lambda pairs: all(sorted(given.split()) == answer.split() for given, answer in pairs),
    "shift": is_one_shift,
    "add_constant": lambda pairs: len({number(answer) - number(given) for given, answer in pairs}) == 1,
    "addition": lambda pairs: all(sum(map(number, given.split("+"))) == number(answer) for given, answer in pairs),
    "unscramble": lambda pairs: all(sorted(given.split()) == sorted(answer) for given, answer in pairs),
}
"""Whether each pair follows the rule, found anew from the pairs."""


def test_every_task_has_a_rule_here():
    assert list(RULES) == list(SYNTHETIC_TASKS)


@pytest.mark.parametrize("name", SYNTHETIC_TASKS)
def test_every_pair_of_an_episode_follows_its_rule(name):
    for seed in range(20):
        episode = SYNTHETIC_TASKS[name].episode(17, np.random.default_rng(seed))
        assert len(episode.pairs) == 17
        assert RULES[name](episode.pairs)


@pytest.mark.parametrize("name", SYNTHETIC_TASKS)
def test_an_exchanged_answer_breaks_the_rule(name):
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
def test_candidates_are_as_many_as_told_and_hold_the_answer(name):
    task = SYNTHETIC_TASKS[name]
    for seed in range(20):
        episode = task.episode(5, np.random.default_rng(seed))
        assert len(set(episode.candidates)) == len(episode.candidates) == task.num_candidates
        assert episode.pairs[-1][1] in episode.candidates
    assert task.chance == 1 / task.num_candidates


@pytest.mark.parametrize("name", CLOSED)
def test_without_an_example_every_candidate_is_as_likely(name):
    rng = np.random.default_rng(11)
    episodes = [SYNTHETIC_TASKS[name].episode(1, rng) for _ in range(1200)]
    places = Counter(episode.candidates.index(episode.pairs[0][1]) for episode in episodes)
    assert len(places) == SYNTHETIC_TASKS[name].num_candidates
    assert chisquare(list(places.values())).pvalue > 1e-3  # a fixed seed: this cannot fail by chance from run to run


def test_letters_do_not_tell_which_of_the_letter_rules_is_meant():
    forms = {
        re.sub("[a-z]", "x", pair[0])
        for name in ("copy", "reverse", "sort")
        for pair in SYNTHETIC_TASKS[name].episode(40, np.random.default_rng(0)).pairs
    }
    assert forms == {"x x x", "x x x x", "x x x x x"}


def test_no_word_is_in_two_classes_or_has_the_letters_of_another():
    words = [word for words in WORD_CLASSES.values() for word in words]
    assert len({"".join(sorted(word)) for word in words}) == len(words)
    assert min(len(words) for words in WORD_CLASSES.values()) >= 16


def test_text_has_a_pair_a_line():
    assert episode_text([("k r t", "t r k"), ("1 7", "2 0")]) == "k r t -> t r k\n1 7 -> 2 0"


def test_documents_take_turns_and_have_8_to_40_pairs():
    documents = list(synthetic_documents(240, seed=5))
    assert Counter(d["task"] for d in documents) == dict.fromkeys(SYNTHETIC_TASKS, 20)
    lengths = {len(d["text"].split("\n")) for d in documents}
    assert (min(lengths), max(lengths)) == (8, 40)
    for document in documents:
        assert RULES[document["task"]]([tuple(line.split(" -> ")) for line in document["text"].split("\n")])


def test_the_same_seed_gives_the_same_bytes_and_another_other_ones(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_synthetic(tmp_path / name, 24, seed=seed)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b
    assert not set(a.splitlines()) & set(c.splitlines())


def test_more_documents_begin_with_the_fewer(tmp_path):
    few, more = (list(synthetic_documents(n, seed=1, tasks=["copy", "shift"])) for n in (3, 6))
    assert more[:3] == few


def test_file_holds_text_and_task(tmp_path):
    told = []
    counted = write_synthetic(tmp_path / "icl.jsonl", 4, seed=0, tasks=["copy", "shift"], on_document=told.append)
    records = [json.loads(line) for line in (tmp_path / "icl.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [record["task"] for record in records] == ["copy", "shift", "copy", "shift"]
    assert all(" -> " in record["text"] for record in records)
    assert counted == {"copy": 2, "shift": 2}
    assert told == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["revers"], "no synthetic task 'revers'.*reverse.*expected some of association"),
        (["copy", "copy"], "copy is named twice"),
    ],
)
def test_wrong_names_are_told(names, message):
    with pytest.raises(ConfigError, match=message):
        find_synthetic(names)


def test_less_than_one_is_told():
    with pytest.raises(ConfigError, match="an episode of 0 pairs: expected at least 1"):
        SYNTHETIC_TASKS["copy"].episode(0, np.random.default_rng(0))
    with pytest.raises(ConfigError, match="--documents 0: expected at least 1"):
        list(synthetic_documents(0, seed=0))
