import json
from dataclasses import asdict, replace
from itertools import pairwise
from types import SimpleNamespace

import pytest

import stemformer
from stemformer import io as io_module
from stemformer.config import with_settings
from stemformer.data.examples.sampling import prefetch
from stemformer.errors import ConfigError
from stemformer.recipes import find_recipe
from stemformer.training.budget import ClockSchedule, TrainingBudget
from stemformer.training.config import BudgetConfig


def timed(folder, seconds=100.0, *settings):
    config = with_settings(replace(find_recipe("bert_tiny"), budget=BudgetConfig(seconds=seconds)), list(settings))
    return TrainingBudget(config, None, folder)


def counted(folder, num_steps, *settings):
    config = with_settings(replace(find_recipe("bert_tiny"), budget=BudgetConfig(steps=num_steps)), list(settings))
    return TrainingBudget(config, num_steps, folder)


def decided(table, *, step, seconds):
    """Lets the clock decide, and follows it as the loop does."""
    table.record(*table.decide(step, seconds))
    return table.clock


def ends(clock):
    return clock.decay_step, clock.last_step


# The rate


def test_rate_on_the_clock_rises_stays_and_falls(tmp_path):
    table = timed(tmp_path, 100.0, "schedule.warmup_steps=4", "schedule.decay_ratio=0.2")
    assert [table.lr_factor(step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert table.lr_factor(10**6) == 1.0  # for as long as nothing is decided
    assert decided(table, step=40, seconds=80.0) == ClockSchedule(100.0, decay_step=40, last_step=50)
    assert [table.lr_factor(step) for step in (38, 39)] == [1.0, 1.0]
    assert [table.lr_factor(step) for step in range(40, 50)] == pytest.approx([1 - i / 10 for i in range(10)])


def test_progress_on_the_clock_ends_at_the_budget_however_slow_the_decay_is(tmp_path):
    table = timed(tmp_path, 100.0, "schedule.decay_ratio=0.2")
    assert [table.position(step, seconds) for step, seconds in ((1, 2.0), (39, 78.0))] == [2.0, 78.0]
    decided(table, step=40, seconds=80.0)  # ends at 50
    assert [table.position(step, 87.0 + step - 40) for step in (40, 45, 50)] == [80.0, 90.0, 100.0]
    assert table.describe_overrun(100.5) == ""
    assert "took 107 seconds of 100: the length of the decay (10 steps)" in table.describe_overrun(107.0)
    assert counted(tmp_path, 9).position(3, 50.0) == 3


def test_overrun_of_a_decay_of_one_step_is_in_the_singular(tmp_path):
    table = timed(tmp_path, 100.0)
    decided(table, step=40, seconds=100.0)
    assert "the length of the decay (1 step) was fixed" in table.describe_overrun(107.0)


def test_rate_falls_to_the_final_share(tmp_path):
    table = timed(tmp_path, 100.0, "schedule.warmup_steps=0", "schedule.min_lr_ratio=0.4")
    decided(table, step=40, seconds=80.0)
    assert table.lr_factor(0) == 1.0
    assert table.lr_factor(45) == pytest.approx(0.4 + 0.6 * 0.5)
    assert table.lr_factor(50) == pytest.approx(0.4)


def test_fall_that_begins_within_the_warm_up_goes_no_higher(tmp_path):
    table = timed(tmp_path, 10.0, "schedule.warmup_steps=100")
    decided(table, step=40, seconds=8.0)  # ends at 50
    factors = [table.lr_factor(step) for step in range(50)]
    assert max(factors) <= 0.5
    assert factors[-1] == pytest.approx(0.1)


def test_warm_up_on_the_clock_takes_its_share_of_the_time(tmp_path):
    table = timed(tmp_path, 100.0, "schedule.warmup_ratio=0.2")
    # Three seconds before the first step, and two of that step, are not those of a usual step of half a second.
    for step in range(1, 11):
        assert not any(table.decide(step, 5.0 + 0.5 * (step - 1)))
        assert table.lr_factor(step) == (step + 1) / 200
    assert decided(table, step=11, seconds=10.0).warmup_steps == 40
    assert table.lr_factor(19) == 0.5
    assert [table.lr_factor(step) for step in (39, 1000)] == [1.0, 1.0]
    assert decided(table, step=40, seconds=60.0).warmup_steps == 40
    again = timed(tmp_path, 100.0, "schedule.warmup_ratio=0.2")
    again.replay()
    assert again.clock == table.clock


def test_warm_up_of_a_run_of_few_steps_is_decided_with_its_decay(tmp_path):
    table = timed(tmp_path, 10.0, "schedule.warmup_ratio=0.4", "schedule.decay_ratio=0.5")
    assert table.decide(1, 2.0) == (0, 0, 0, 0)
    assert decided(table, step=4, seconds=5.0) == ClockSchedule(10.0, warmup_steps=3, decay_step=4, last_step=8)
    assert timed(tmp_path, 10.0).decide(1, 9.0)[0] == 1


def test_rate_of_counted_steps_is_that_of_the_schedule(tmp_path):
    table = counted(tmp_path, 10, "schedule.warmup_steps=2")
    assert [table.lr_factor(step) for step in (0, 1, 2, 9)] == [0.5, 1.0, 1.0, 0.125]
    assert not any(table.decide(9, 1e9))
    assert [step for step in range(20) if table.is_last(step)] == [10]


# What the clock decides


def test_nothing_is_decided_before_the_time_of_the_fall(tmp_path):
    table = timed(tmp_path, 100.0, "schedule.decay_ratio=0.25", "schedule.warmup_steps=2")
    assert not any(table.decide(30, 74.9))
    assert not (tmp_path / "schedule.json").exists()
    assert table.decide(30, 75.0) == (0, 0, 30, 40)


@pytest.mark.parametrize(("seconds", "last"), [(80.0, 50), (90.0, 44), (100.0, 41), (500.0, 41)])
def test_steps_left_are_those_that_the_time_left_allows_and_one_at_least(tmp_path, seconds, last):
    assert timed(tmp_path).decide(40, seconds)[3] == last  # 40 steps took so long: 10 x 40 / 90 = 4.4


def test_steps_left_are_those_of_the_current_phase(tmp_path):
    phases = "phases=[{start_ratio=0.1,size=4,sequence_length=32}]"
    table = timed(tmp_path, 100.0, phases, "schedule.warmup_steps=2", "schedule.decay_ratio=0.2")
    follow(table, range(1, 7), 2.0)  # two seconds a step in the first phase
    assert table.phase_starts() == [0, 6]
    follow(table, range(7, 80), 1.0, since=6.0)
    assert ends(table.clock) == (74, 94)
    # Without enough steps, the mean of all.
    assert timed(tmp_path, 100.0).decide(40, 80.0)[2:] == (40, 50)


def test_run_without_a_fall_ends_one_step_after_its_time(tmp_path):
    table = timed(tmp_path, 100.0, "schedule.decay_ratio=0.0", "schedule.warmup_steps=0")
    assert not any(table.decide(40, 99.0))
    assert decided(table, step=41, seconds=101.0).last_step == 42
    assert table.lr_factor(41) == 1.0


def test_run_that_falls_from_the_start_decides_at_once(tmp_path):
    table = timed(tmp_path, 100.0, "schedule.decay_ratio=1.0")
    assert ends(decided(table, step=1, seconds=4.0)) == (1, 25)


def test_decision_is_made_once(tmp_path):
    table = timed(tmp_path)
    decided(table, step=40, seconds=80.0)
    assert not any(table.decide(41, 90.0))
    assert [step for step in range(60) if table.is_last(step)] == [50]


def test_decision_is_on_the_disk_before_it_is_used(tmp_path, monkeypatch):
    table = timed(tmp_path)
    synced = []
    monkeypatch.setattr(io_module.os, "fsync", lambda file: synced.append((tmp_path / "schedule.json").exists()))
    decision = table.decide(40, 80.0)
    assert (table.clock, table.num_steps) == (ClockSchedule(100.0), None)  # it is used when all ranks have heard of it
    assert synced == [False, True]  # fsynced under another name, renamed, then the directory fsynced
    table.record(*decision)
    assert json.loads((tmp_path / "schedule.json").read_text()) == {**asdict(table.clock), "phase_steps": []}
    assert [path.name for path in tmp_path.iterdir()] == ["schedule.json"]


def test_evaluations_before_the_decay_do_not_shorten_it(tmp_path):
    settings = ["schedule.decay_ratio=0.2", "schedule.warmup_steps=2", "evaluation.every=50"]
    table = timed(tmp_path, 100.0, *settings)
    # A second a step, and ten for the evaluation after step 50; the next one would be after step 100.
    follow(table, range(1, 51), 1.0)
    for step in range(51, 71):
        table.record(*table.decide(step, step + 10.0, evaluating=10.0, cost=10.0))
    assert ends(table.clock) == (70, 90)


def test_evaluations_in_the_decay_leave_fewer_steps(tmp_path):
    table = timed(tmp_path, 200.0, "schedule.decay_ratio=0.2", "evaluation.every=20")
    # Steps of one second, and five for the evaluations after steps 20, 40, ..., 120; 140 is between 130 and 160.
    table.record(*table.decide(119, 144.0, evaluating=25.0, cost=5.0))
    for step in range(120, 131):
        table.record(*table.decide(step, step + 30.0, evaluating=30.0, cost=5.0))
    assert ends(table.clock) == (130, 160)
    # The evaluation that is due after the step takes its time too, and with the clock they are at most a thirtieth.
    assert timed(tmp_path, 100.0, "evaluation.every=20").decide(80, 80.0, cost=5.0, is_eval_due=True)[3] == 95
    assert timed(tmp_path, 100.0).decide(80, 82.0, evaluating=2.0, cost=2.0)[3] == 98


def test_early_evaluation_does_not_shorten_the_warm_up(tmp_path):
    table = timed(tmp_path, 100.0, "schedule.warmup_ratio=0.2")
    follow(table, range(1, 6), 0.5)
    for step in range(6, 12):
        table.record(*table.decide(step, 0.5 * step + 20.0, evaluating=20.0, cost=20.0))
    assert table.clock.warmup_steps == 40


# Phases


PHASES = "phases=[{start_ratio=0.1,size=4,sequence_length=32},{start_ratio=0.7,size=2,sequence_length=64}]"


def follow(table, steps, seconds_per_step, *, since=0.0):
    """Let the clock decide after each step."""
    for step in steps:
        table.record(*table.decide(step, since + seconds_per_step * step))


def test_phases_on_the_clock_start_at_their_shares_of_the_time(tmp_path):
    table = timed(tmp_path, 100.0, PHASES, "schedule.warmup_steps=2", "schedule.decay_ratio=0.2")
    follow(table, range(1, 5), 1.0)
    assert table.phase_starts() == [0]
    assert decided(table, step=5, seconds=5.0).phase_steps == (10,)  # the batches of five steps are being made
    follow(table, range(6, 79), 1.0)
    assert table.phase_starts() == [0, 10, 70]
    follow(table, range(79, 81), 1.0)
    assert ends(table.clock) == (80, 100)
    again = timed(tmp_path, 100.0, PHASES)
    again.replay()
    assert (replace(again.clock, warmup_steps=None), again.phase_starts()) == (table.clock, [0, 10, 70])


def test_shares_of_phases_leave_out_the_time_before_the_first_step(tmp_path):
    table = timed(tmp_path, 100.0, PHASES, "schedule.warmup_steps=2")
    table.started = 20.0
    follow(table, range(1, 70), 1.0, since=20.0)
    assert table.phase_starts() == [0, 8, 56]


def test_phases_due_at_once_start_one_after_the_other(tmp_path):
    table = timed(tmp_path, 100.0, PHASES.replace("0.7", "0.2"), "schedule.warmup_steps=2")
    assert decided(table, step=1, seconds=50.0).phase_steps == (6,)
    assert decided(table, step=2, seconds=51.0).phase_steps == (6, 7)


def test_phase_within_the_decay_of_a_timed_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"starts at 0\.9 of a budget in seconds.*start it by 0\.8"):
        timed(tmp_path, 100.0, PHASES.replace("0.7", "0.9"))
    assert timed(tmp_path, 100.0, PHASES.replace("0.7", "0.9"), "schedule.decay_ratio=0.1").phase_starts() == [0]


def test_run_without_a_warm_up_starts_at_the_peak(tmp_path):
    assert timed(tmp_path, 100.0, "schedule.warmup_ratio=0").lr_factor(0) == 1.0


def test_warm_up_of_a_resumed_run_does_not_begin_again(tmp_path):
    # A run of an earlier version, which decided its end only; and one with a longer budget.
    timed(tmp_path).replay()
    old = timed(tmp_path)
    old.replay()
    assert [old.lr_factor(step) for step in (99, 1000)] == [0.5, 1.0]
    follow(old, range(1001, 1030), 0.05)
    assert old.lr_factor(1030) == 1.0


def test_phases_of_counted_steps_start_at_their_shares_of_them(tmp_path):
    assert counted(tmp_path, 50, PHASES).phase_starts() == [0, 5, 35]


def test_phase_starts_after_the_batches_that_are_made_already():
    made = []
    for step in prefetch(lambda step: made.append(step) or step, range(30)):
        assert max(made) <= step + 5
        if step == 20:
            break


# Again


def test_resumed_run_falls_at_the_same_steps(tmp_path):
    table = timed(tmp_path)
    decided(table, step=40, seconds=80.0)
    again = timed(tmp_path)
    again.replay()
    assert (again.clock, again.num_steps) == (table.clock, 50)
    assert [again.lr_factor(step) for step in range(50)] == [table.lr_factor(step) for step in range(50)]
    assert not any(again.decide(45, 99.0))


def test_resumed_run_with_another_budget_decides_anew(tmp_path):
    decided(timed(tmp_path, 100.0), step=40, seconds=80.0)
    longer = timed(tmp_path, 200.0)
    longer.replay()
    assert longer.num_steps is None
    assert longer.clock.warmup_steps == 2  # a warm-up that has ended does not begin again
    assert decided(longer, step=80, seconds=160.0).last_step == 100
    assert json.loads((tmp_path / "schedule.json").read_text())["seconds"] == 200.0


def test_resumed_run_in_steps_ignores_what_a_clock_decided(tmp_path):
    decided(timed(tmp_path), step=40, seconds=80.0)
    table = counted(tmp_path, 70)
    table.replay()
    assert (table.num_steps, table.clock) == (70, ClockSchedule(0.0))


@pytest.fixture(scope="module")
def overwriting(tiny, no_timing, tmp_path_factory):
    """A run of half a second in a folder that holds the decision of an older one, and how it ended."""
    out = tmp_path_factory.mktemp("timed") / "run"
    out.mkdir()
    # No clock decides before the first step, so none decides the same.
    old = ClockSchedule(0.5, decay_step=0, last_step=2)
    (out / "schedule.json").write_text(json.dumps(asdict(old)))
    sizes = ["model.hidden_size=16", "model.intermediate_size=32", "batch.size=2", "batch.sequence_length=16"]
    seldom = ["evaluation.num_examples=2", "evaluation.num_cloze_examples=0", "evaluation.every=1000"]
    options = {"settings": [*sizes, *seldom], "time": 0.5, "overwrite": True, "device": "cpu"}
    return out, stemformer.pretrain("bert_tiny", data=str(tiny / "data"), out=str(out), **options)


def test_new_run_does_not_follow_what_an_overwritten_one_decided(overwriting):
    out, ended = overwriting
    stored = SimpleNamespace(**json.loads((out / "schedule.json").read_text()))
    assert stored.decay_step > 0
    assert ended["steps"] == stored.last_step


def test_finished_run_on_the_clock_does_not_go_on(overwriting, tiny):
    out, ended = overwriting
    again = stemformer.pretrain(data=str(tiny / "data"), out=str(out), resume=True)
    assert (again["steps"], again["tokens"]) == (ended["steps"], ended["tokens"])


def test_time_that_is_used_up_is_refused_on_resume(overwriting, tiny):
    out, _ = overwriting
    with pytest.raises(ConfigError, match="Pass a larger --time"):
        stemformer.pretrain(data=str(tiny / "data"), out=str(out), resume=True, time=0.25)


# What comes back


def due(table, step, seconds=0.0, previous_seconds=0.0, *, every=None, times=20):
    return table.is_due(every=every, times=times, step=step, seconds=seconds, previous_seconds=previous_seconds)


@pytest.mark.parametrize(
    ("num_steps", "every", "expected"),
    [(1000, None, 50), (1000, 7, 7), (1019, None, 50), (60, None, 10), (3, None, 10), (60, 2, 2)],
)
def test_counted_steps_are_due_at_even_distances(tmp_path, num_steps, every, expected):
    table = counted(tmp_path, num_steps)
    found = [step for step in range(1, num_steps + 1) if due(table, step, every=every)]
    assert found == list(range(expected, num_steps + 1, expected))


def test_distance_in_steps_goes_before_the_clock(tmp_path):
    assert [step for step in range(1, 10) if due(timed(tmp_path), step, 99.0, 1.0, every=3)] == [3, 6, 9]


@pytest.mark.parametrize("step_seconds", [0.03, 1.0, 4.0])
def test_clock_is_due_as_often_as_requested_and_never_more(tmp_path, step_seconds):
    table = timed(tmp_path, 60.0)  # 20 times: every three seconds
    now = [i * step_seconds for i in range(round(60 / step_seconds) + 1)]
    found = [b for step, (a, b) in enumerate(pairwise(now), start=1) if due(table, step, b, a)]
    expected = min(20, len(now) - 1)
    assert abs(len(found) - expected) <= 1  # rounding decides about the very last
    assert min(b - a for a, b in pairwise(found)) >= min(3.0, step_seconds) - step_seconds


def test_clock_that_jumps_over_several_times_is_due_once(tmp_path):
    table = timed(tmp_path, 60.0)
    assert due(table, 5, seconds=31.0, previous_seconds=10.0)
    assert not due(table, 6, seconds=31.5, previous_seconds=31.0)


def test_decision_does_not_change_what_is_due_by_the_clock(tmp_path):
    table = timed(tmp_path, 60.0)
    decided(table, step=40, seconds=50.0)
    assert due(table, 41, seconds=51.5, previous_seconds=50.5)
    assert not due(table, 50, seconds=52.0, previous_seconds=51.5)
