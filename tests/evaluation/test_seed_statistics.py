import math

import pytest

from stemformer.evaluation.seed_statistics import (
    add_mean,
    differences_from_random,
    find_best,
    gain_sentences,
    interval,
    labels_to_match,
    means,
    paired_difference,
    table_row,
)


def runs(**by_start):
    """Scores from `start={size: [figure of seed 0, of seed 1, ...]}`."""
    return {start: {n: dict(enumerate(each)) for n, each in sizes.items()} for start, sizes in by_start.items()}


TRAINED = {100: [80.0, 82.0], 1000: [84.0, 88.0], 10_000: [90.0, 91.0]}
SCRATCH = {100: [60.0, 62.0], 1000: [70.0, 72.0], 10_000: [82.0, 84.0]}
BODY = {100: [65.0, 68.0], 1000: [72.0, 75.0], 10_000: [85.0, 86.0]}

# differences


def test_deviation_of_a_difference_is_over_pairs():
    scores = runs(pretrained={10: [50.0, 90.0]}, random={10: [40.0, 80.0]})
    assert means(scores["random"])[10][1] > 28
    assert paired_difference(scores, "pretrained", "random", 10) == (10.0, 0.0, 2)


def test_seeds_of_only_one_start_do_not_count():
    scores = {"pretrained": {10: {0: 50.0, 1: 70.0}}, "random": {10: {1: 60.0, 2: 0.0}}}
    assert paired_difference(scores, "pretrained", "random", 10) == (10.0, 0.0, 1)


def test_differences_include_the_records_needed_from_scratch():
    rows = differences_from_random(runs(pretrained=TRAINED, random=SCRATCH))
    assert [row["records"] for row in rows] == [100, 1000, 10_000]
    assert rows[0]["records_from_scratch"] == pytest.approx(1000 * 10 ** (10 / 12))
    assert rows[2]["records_from_scratch"] is None
    assert differences_from_random(runs(pretrained=TRAINED)) == []


def test_row_has_no_deviation_with_one_seed():
    assert "±" not in str(table_row(runs(pretrained={10: [80.0]}, random={10: [70.0]}), 10))
    assert table_row(runs(pretrained=TRAINED, random=SCRATCH), 100)["pretrained - random"] == "20.0 ± 0.0"


# intervals and means over tasks


def test_interval_is_students_t():
    # Scores 70, 73, 76: mean 73, deviation 3; t of two degrees of freedom is 4.302653.
    assert interval(73.0, 3.0, 3) == pytest.approx((73 - 4.302653 * 3**0.5, 73 + 4.302653 * 3**0.5))
    assert interval(73.0, 3.0, 2) is None


def test_mean_over_tasks_is_by_seed_and_of_seeds_with_all_tasks():
    scores = {"a": {"x": {0: 50.0, 1: 70.0, 2: 10.0}, "y": {0: 70.0, 1: 80.0}}, "b": {"x": {}, "y": {0: 1.0}}}
    found = add_mean(scores, ["x", "y"], "mean")
    assert found["a"]["mean"] == {0: 60.0, 1: 75.0}
    assert found["b"]["mean"] == {}
    assert found["a"]["x"] == scores["a"]["x"] and "mean" not in scores["a"]


def test_best_row_and_those_that_may_be_as_good():
    scores = {
        "best": {"x": {0: 80.0, 1: 81.0, 2: 82.0}},
        # Always 2 less than the best, although the ranges overlap.
        "lower": {"x": {0: 78.0, 1: 79.0, 2: 80.0}},
        # Differences 3, -1, 1: mean 1, deviation 2, interval -4 to 6.
        "close": {"x": {0: 77.0, 1: 82.0, 2: 81.0}},
        "failed": {"x": {}},
    }
    assert find_best(scores, "x") == (["best"], ["close"])


def test_best_row_of_two_seeds_is_not_distinguishable_from_others():
    assert find_best({"a": {"x": {0: 80.0, 1: 80.0}}, "b": {"x": {0: 10.0, 1: 11.0}}}, "x") == (["a"], ["b"])
    assert find_best({"a": {"x": {}}}, "x") == ([], [])


def test_rows_with_equal_means_are_all_best():
    scores = {"a": {"x": {0: 50.0, 1: 50.0}}, "b": {"x": {0: 49.0, 1: 51.0}}, "c": {"x": {0: 0.0, 1: 1.0}}}
    assert find_best(scores, "x") == (["a", "b"], ["c"])


@pytest.mark.parametrize("order", ["abc", "bac", "cab", "cba"])
def test_row_is_behind_only_if_it_is_behind_each_of_those_that_tie(order):
    # Always 5 behind a; behind b by -5, 5 and 15, whose interval has 0.
    rows = {"a": [50.0, 50.0, 50.0], "b": [40.0, 50.0, 60.0], "c": [45.0, 45.0, 45.0]}
    best, close = find_best({row: {"x": dict(enumerate(rows[row]))} for row in order}, "x")
    assert (sorted(best), close) == (["a", "b"], ["c"])


# interpolation


def test_labels_to_match_interpolates_over_the_logarithm():
    assert labels_to_match({100: 60.0, 10_000: 80.0}, 65.0) == pytest.approx(100 * 100**0.25)


def test_labels_to_match_is_exact_at_a_measured_size():
    assert labels_to_match({100: 60.0, 1000: 70.0, 10_000: 80.0}, 70.0) == pytest.approx(1000)


def test_labels_to_match_is_the_smallest_of_a_curve_that_is_not_monotonic():
    assert labels_to_match({10: 50.0, 100: 70.0, 1000: 60.0, 10_000: 80.0}, 65.0) == pytest.approx(10 * 10**0.75)


def test_labels_to_match_does_not_extrapolate():
    assert labels_to_match({10: 50.0, 100: 60.0}, 61.0) is None
    assert labels_to_match({10: 50.0, 100: 60.0}, 40.0) == 10  # no measurement below


def test_flat_curve_does_not_reach_a_higher_target():
    assert labels_to_match({10: 50.0, 100: 50.0}, 50.1) is None


# sentences


def test_sentences_are_computed_from_the_runs():
    gain, labels, body = gain_sentences(runs(pretrained=TRAINED, random=SCRATCH, reembedded=BODY), metric="accuracy")
    assert gain == (
        "pre-training gain in accuracy over 2 seeds: +7.5 ± 0.7 points at 10,000 records, +20.0 ± 0.0 points at 100 records"
    )
    assert labels == (
        "from scratch needs 68.1 times the labels to match pre-training with 100 records (81.0), 68.1 to 68.1 by seed"
    )
    assert body == (
        "pre-trained body with new word embeddings: gain in accuracy over 2 seeds: +2.5 ± 0.7 points at 10,000 records, "
        "+5.5 ± 0.7 points at 100 records"
    )


def test_target_that_scratch_never_reaches_is_more_than_all_labels():
    scores = runs(pretrained={100: [80.0, 82.0], 800: [84.0, 88.0]}, random={100: [60.0, 62.0], 800: [70.0, 72.0]})
    assert gain_sentences(scores, metric="f1")[1] == (
        "from scratch needs more than 8.0 times the labels to match pre-training with 100 records (81.0): "
        "all 800 records give 71.0"
    )


def test_seed_that_never_reaches_the_target_is_reported():
    scores = runs(pretrained={100: [70.0, 70.0], 1000: [84.0, 88.0]}, random={100: [60.0, 60.0], 1000: [69.0, 77.0]})
    assert ", more than all in some seeds" in gain_sentences(scores, metric="accuracy")[1]


def test_difference_within_the_deviation_is_no_gain():
    scores = runs(pretrained={10: [50.0, 54.0], 20: [50.0, 60.0]}, random={10: [51.0, 52.0], 20: [52.0, 54.0]})
    gain, labels = gain_sentences(scores, metric="accuracy")
    assert gain.startswith(
        "pre-training gain in accuracy over 2 seeds: +2.0 ± 5.7 points at 20 records (within the deviation over seeds)"
    )
    assert labels.startswith("no data efficiency computed: no gain beyond the deviation over seeds at 10 records")


def test_loss_is_a_negative_gain():
    scores = runs(pretrained={10: [50.0, 51.0]}, random={10: [60.0, 61.5]})
    (sentence, _) = gain_sentences(scores, metric="accuracy")
    assert sentence == "pre-training gain in accuracy over 2 seeds: -10.2 ± 0.4 points at 10 records"


def test_gain_at_one_size_and_loss_at_another_are_both_reported():
    scores = runs(pretrained={10: [62.0, 62.2], 20: [58.0, 58.4]}, random={10: [60.0, 60.0], 20: [60.0, 60.0]})
    assert gain_sentences(scores, metric="accuracy")[0] == (
        "pre-training gain in accuracy over 2 seeds: -1.8 ± 0.3 points at 20 records, +2.1 ± 0.1 points at 10 records"
    )


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        (runs(pretrained={10: [80.0], 20: [81.0]}, random={10: [50.0], 20: [51.0]}), "with one seed"),
        (runs(pretrained=TRAINED, reembedded=BODY), "it needs the initialization 'random'"),
        (runs(random=SCRATCH), "it needs the initialization 'random' and another one"),
    ],
)
def test_no_gain_is_computed_from_too_few_runs(scores, expected):
    (sentence,) = gain_sentences(scores, metric="accuracy")
    assert sentence.startswith("no gain computed") and expected in sentence


def test_one_size_gives_no_data_efficiency():
    scores = runs(pretrained={10: [80.0, 81.0]}, random={10: [50.0, 51.0]})
    gain, labels = gain_sentences(scores, metric="accuracy")
    assert gain == "pre-training gain in accuracy over 2 seeds: +30.0 ± 0.0 points at 10 records"
    assert labels == "no data efficiency computed: it needs two sizes (--sizes)"


def test_initialization_that_learned_nothing_is_reported():
    scores = runs(pretrained=TRAINED, random={100: [50.0, 51.0], 1000: [50.0, 52.0], 10_000: [51.0, 53.0]})
    assert len(gain_sentences(scores, metric="accuracy", baseline=50.0)) == 2
    warning = gain_sentences(scores, metric="accuracy", baseline=51.0)[2]
    assert warning.startswith("with 10,000 records, random did not exceed the majority baseline (51.0)")


def test_differences_are_finite():
    assert all(math.isfinite(row["mean"]) for row in differences_from_random(runs(pretrained=TRAINED, random=SCRATCH)))
