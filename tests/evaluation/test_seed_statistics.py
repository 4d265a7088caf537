import math

import pytest

from stemformer.evaluation.seed_statistics import (
    difference,
    differences_from_random,
    labels_to_match,
    means,
    sentences,
    table_row,
)


def runs(**by_start):
    """Figures from `start={size: [figure of seed 0, of seed 1, ...]}`."""
    return {start: {n: dict(enumerate(each)) for n, each in sizes.items()} for start, sizes in by_start.items()}


TRAINED = {100: [80.0, 82.0], 1000: [84.0, 88.0], 10_000: [90.0, 91.0]}
SCRATCH = {100: [60.0, 62.0], 1000: [70.0, 72.0], 10_000: [82.0, 84.0]}
BODY = {100: [65.0, 68.0], 1000: [72.0, 75.0], 10_000: [85.0, 86.0]}

# differences


def test_spread_of_a_difference_is_over_pairs():
    figures = runs(pretrained={10: [50.0, 90.0]}, random={10: [40.0, 80.0]})
    assert means(figures["random"])[10][1] > 28
    assert difference(figures, "pretrained", "random", 10) == (10.0, 0.0, 2)


def test_seeds_that_only_one_start_has_do_not_count():
    figures = {"pretrained": {10: {0: 50.0, 1: 70.0}}, "random": {10: {1: 60.0, 2: 0.0}}}
    assert difference(figures, "pretrained", "random", 10) == (10.0, 0.0, 1)


def test_differences_tell_how_many_records_each_is_worth():
    rows = differences_from_random(runs(pretrained=TRAINED, random=SCRATCH))
    assert [row["records"] for row in rows] == [100, 1000, 10_000]
    assert rows[0]["records_from_scratch"] == pytest.approx(1000 * 10 ** (10 / 12))
    assert rows[2]["records_from_scratch"] is None
    assert differences_from_random(runs(pretrained=TRAINED)) == []


def test_a_row_has_no_spread_with_one_seed():
    assert "±" not in str(table_row(runs(pretrained={10: [80.0]}, random={10: [70.0]}), 10))
    assert table_row(runs(pretrained=TRAINED, random=SCRATCH), 100)["pretrained - random"] == "20.0 ± 0.0"


# interpolation


def test_records_needed_lie_on_a_line_over_the_logarithm():
    assert labels_to_match({100: 60.0, 10_000: 80.0}, 65.0) == pytest.approx(100 * 100**0.25)


def test_records_needed_are_those_of_a_size_that_just_reaches_it():
    assert labels_to_match({100: 60.0, 1000: 70.0, 10_000: 80.0}, 70.0) == pytest.approx(1000)


def test_records_needed_are_the_fewest_where_a_curve_goes_up_and_down():
    assert labels_to_match({10: 50.0, 100: 70.0, 1000: 60.0, 10_000: 80.0}, 65.0) == pytest.approx(10 * 10**0.75)


def test_no_more_is_claimed_than_the_curve_shows():
    assert labels_to_match({10: 50.0, 100: 60.0}, 61.0) is None
    assert labels_to_match({10: 50.0, 100: 60.0}, 40.0) == 10  # nothing is known below


def test_a_flat_curve_reaches_nothing_above_it():
    assert labels_to_match({10: 50.0, 100: 50.0}, 50.1) is None


# sentences


def test_sentences_are_computed_from_the_runs():
    gain, labels, body = sentences(runs(pretrained=TRAINED, random=SCRATCH, reembedded=BODY), metric="accuracy")
    assert gain == (
        "pre-training was worth 7.5 ± 0.7 points of accuracy at 10,000 records (2 seeds), and 20.0 ± 0.0 at 100"
    )
    assert labels == (
        "from scratch needs 68 times the labels (68 to 68 over the seeds) to reach what the pre-trained model has with 100 (81.0)"
    )
    assert body == (
        "the pre-trained body alone, with word embeddings drawn anew, was worth 2.5 ± 0.7 points of accuracy at 10,000 records "
        "(2 seeds), and 5.5 ± 0.7 at 100"
    )


def test_what_scratch_never_reaches_is_told_as_more_than_all():
    figures = runs(pretrained={100: [80.0, 82.0], 800: [84.0, 88.0]}, random={100: [60.0, 62.0], 800: [70.0, 72.0]})
    assert sentences(figures, metric="f1")[1] == (
        "from scratch needs more than all 800 records, more than 8.0 times the labels, to reach what the pre-trained model has "
        "with 100 (81.0): with all of them it has 71.0"
    )


def test_a_seed_that_never_reaches_it_is_told():
    figures = runs(pretrained={100: [70.0, 70.0], 1000: [84.0, 88.0]}, random={100: [60.0, 60.0], 1000: [69.0, 77.0]})
    assert "(more than all in some seeds)" in sentences(figures, metric="accuracy")[1]


def test_a_difference_within_the_spread_is_no_gain():
    figures = runs(pretrained={10: [50.0, 54.0], 20: [50.0, 60.0]}, random={10: [51.0, 52.0], 20: [52.0, 54.0]})
    gain, labels = sentences(figures, metric="accuracy")
    assert gain.startswith(
        "pre-training made no difference beyond the spread of the seeds: 2.0 ± 5.7 points of accuracy"
    )
    assert labels.startswith("nothing is claimed about labels: at 10 records")


def test_a_loss_is_told_as_a_cost():
    figures = runs(pretrained={10: [50.0, 51.0]}, random={10: [60.0, 61.5]})
    assert sentences(figures, metric="accuracy")[0].startswith("pre-training cost 10.2 ± 0.4 points of accuracy at 10")


def test_a_gain_at_one_size_and_a_loss_at_another_are_told_apart():
    figures = runs(pretrained={10: [62.0, 62.2], 20: [58.0, 58.4]}, random={10: [60.0, 60.0], 20: [60.0, 60.0]})
    assert sentences(figures, metric="accuracy")[0] == (
        "pre-training cost 1.8 ± 0.3 points of accuracy at 20 records (2 seeds); at 10 it was worth 2.1 ± 0.1"
    )


@pytest.mark.parametrize(
    ("figures", "told"),
    [
        (runs(pretrained={10: [80.0], 20: [81.0]}, random={10: [50.0], 20: [51.0]}), "with one seed"),
        (runs(pretrained=TRAINED, reembedded=BODY), "it takes the start 'random'"),
        (runs(random=SCRATCH), "it takes the start 'random' and another one"),
    ],
)
def test_nothing_is_claimed_where_the_runs_do_not_suffice(figures, told):
    (sentence,) = sentences(figures, metric="accuracy")
    assert sentence.startswith("nothing is claimed") and told in sentence


def test_one_size_claims_nothing_about_labels():
    figures = runs(pretrained={10: [80.0, 81.0]}, random={10: [50.0, 51.0]})
    gain, labels = sentences(figures, metric="accuracy")
    assert gain == "pre-training was worth 30.0 ± 0.0 points of accuracy at 10 records (2 seeds)"
    assert labels == "nothing is claimed about labels: it takes two sizes (--sizes)"


def test_a_start_that_learned_nothing_is_told():
    figures = runs(pretrained=TRAINED, random={100: [50.0, 51.0], 1000: [50.0, 52.0], 10_000: [51.0, 53.0]})
    assert len(sentences(figures, metric="accuracy", baseline=50.0)) == 2
    caution = sentences(figures, metric="accuracy", baseline=51.0)[2]
    assert caution.startswith("with 10,000 records random did not get beyond the most frequent label (51.0)")


def test_figures_are_finite():
    assert all(math.isfinite(row["mean"]) for row in differences_from_random(runs(pretrained=TRAINED, random=SCRATCH)))
