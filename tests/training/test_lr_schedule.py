import math

import pytest

from stemformer.errors import ConfigError
from stemformer.training.lr_schedule import ScheduleConfig, learning_rate_factor

KINDS = ["linear", "cosine", "constant", "wsd"]


def factors(num_steps, **config):
    return [learning_rate_factor(step, num_steps, ScheduleConfig(**config)) for step in range(num_steps)]


@pytest.mark.parametrize("kind", KINDS)
def test_warmup_rises_evenly_to_the_peak(kind):
    assert factors(20, kind=kind, warmup_steps=4)[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]


@pytest.mark.parametrize("kind", KINDS)
def test_first_step_moves_without_warmup(kind):
    assert factors(20, kind=kind, warmup_steps=0)[0] == 1.0


def test_warmup_ratio_is_a_fraction_of_the_full_run():
    assert factors(40, warmup_ratio=0.25)[:10] == [(step + 1) / 10 for step in range(10)]


def test_warmup_steps_win_over_the_share():
    assert factors(40, warmup_ratio=0.5, warmup_steps=2)[:3] == [0.5, 1.0, 1.0]


def test_linear_falls_evenly_and_its_last_step_still_moves():
    assert factors(8, kind="linear", warmup_steps=4) == [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25]


def test_linear_would_reach_zero_one_step_behind_the_last():
    assert learning_rate_factor(8, 8, ScheduleConfig(warmup_steps=4)) == 0.0


def test_cosine_is_half_way_in_the_middle():
    config = ScheduleConfig(kind="cosine", warmup_steps=0)
    assert learning_rate_factor(50, 100, config) == pytest.approx(0.5)
    assert learning_rate_factor(25, 100, config) == pytest.approx(0.5 + 0.5 * math.cos(math.pi / 4))


def test_constant_stays():
    assert factors(30, kind="constant", warmup_steps=3)[2:] == [1.0] * 28


def test_wsd_stays_and_falls_over_the_last_share():
    got = factors(20, kind="wsd", warmup_steps=2, decay_ratio=0.25)
    assert got == pytest.approx([0.5, *[1.0] * 15, 0.8, 0.6, 0.4, 0.2])


def test_wsd_falls_over_all_that_warmup_leaves_where_the_share_is_larger():
    got = factors(10, kind="wsd", warmup_steps=6, decay_ratio=0.9)
    assert got[6:] == pytest.approx([1.0, 0.75, 0.5, 0.25])


@pytest.mark.parametrize("kind", ["linear", "cosine", "wsd"])
def test_final_share_is_where_the_fall_ends(kind):
    config = ScheduleConfig(kind=kind, warmup_steps=2, min_lr_ratio=0.1)
    assert learning_rate_factor(100, 100, config) == pytest.approx(0.1)
    assert min(factors(100, kind=kind, warmup_steps=2, min_lr_ratio=0.1)) >= 0.1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("warmup", [0, 1, 5, 1000])
def test_factor_is_above_zero_and_at_most_one_at_every_step(kind, num_steps, warmup):
    assert all(0 < factor <= 1 for factor in factors(num_steps, kind=kind, warmup_steps=warmup))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"warmup_ratio": 1.5}, "schedule.warmup_ratio is 1.5"),
        ({"decay_ratio": -0.1}, "schedule.decay_ratio is -0.1"),
        ({"min_lr_ratio": 2.0}, "schedule.min_lr_ratio is 2.0"),
        ({"warmup_steps": -1}, "schedule.warmup_steps is -1"),
    ],
)
def test_impossible_schedule_is_refused(config, words):
    with pytest.raises(ConfigError, match=words):
        ScheduleConfig(**config)
