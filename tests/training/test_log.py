import json
import sys
import time

import pytest
import torch

from stemformer.errors import ConfigError
from stemformer.io import read_jsonl
from stemformer.training.log import MetricAccumulator, RunLog, format_held_out


def write_jsonl(path, steps):
    path.write_text("".join(json.dumps({"kind": "train", "step": step}) + "\n" for step in steps))


def steps_of(path):
    return [line["step"] for line in read_jsonl(path)]


def test_log_gives_back_what_was_written(tmp_path):
    log = RunLog(tmp_path / "log.jsonl", after_step=0)
    log.write(kind="train", step=1, loss=0.1 + 0.2)
    log.write(kind="evaluation", step=1, note="größer")
    log.close()
    assert read_jsonl(tmp_path / "log.jsonl") == [
        {"kind": "train", "step": 1, "loss": 0.1 + 0.2},
        {"kind": "evaluation", "step": 1, "note": "größer"},
    ]


def test_line_is_on_the_disk_before_the_log_is_closed(tmp_path):
    log = RunLog(tmp_path / "log.jsonl", after_step=0)
    log.write(kind="train", step=1)
    assert steps_of(tmp_path / "log.jsonl") == [1]
    log.close()


def test_opening_removes_the_lines_behind_the_step(tmp_path):
    path = tmp_path / "log.jsonl"
    write_jsonl(path, [0, 1, 2, 2, 3, 4])
    log = RunLog(path, after_step=2)
    assert steps_of(path) == [0, 1, 2, 2]
    log.write(kind="train", step=3)
    log.close()
    assert steps_of(path) == [0, 1, 2, 2, 3]
    assert [file.name for file in tmp_path.iterdir()] == ["log.jsonl"]


def test_last_line_that_was_cut_off_is_passed_over(tmp_path):
    path = tmp_path / "log.jsonl"
    write_jsonl(path, [1, 2, 3])
    path.write_text(path.read_text()[:-5])
    assert steps_of(path) == [1, 2]


def test_line_after_a_cut_off_one_begins_a_line(tmp_path):
    path = tmp_path / "log.jsonl"
    write_jsonl(path, [1, 2, 3])
    path.write_text(path.read_text()[:-5])
    log = RunLog(path, after_step=3)
    log.write(kind="train", step=3)
    log.close()
    assert steps_of(path) == [1, 2, 3]


def test_log_without_file_is_empty(tmp_path):
    assert read_jsonl(tmp_path / "log.jsonl") == []


def test_sums_give_means_over_positions():
    sums = MetricAccumulator()
    sums.add_loss("masked_lm", torch.tensor(6.0), torch.tensor(1), 3)
    sums.add_loss("masked_lm", torch.tensor(4.0), torch.tensor(1), 1)
    line = sums.flush(peak_flops=1.0)
    assert line["masked_lm_loss"] == 2.5
    assert line["masked_lm_accuracy"] == 0.5


def test_sums_keep_losses_apart_by_name():
    sums = MetricAccumulator()
    sums.add_loss("masked_lm", torch.tensor(6.0), torch.tensor(1), 3)
    sums.add_loss("next_sentence", torch.tensor(1.0), torch.tensor(2), 2)
    line = sums.flush(peak_flops=1.0)
    assert (line["masked_lm_loss"], line["next_sentence_loss"]) == (2.0, 0.5)


def test_sums_of_no_place_are_zero():
    sums = MetricAccumulator()
    sums.add_loss("masked_lm", torch.tensor(0.0), torch.tensor(0), 0)
    assert sums.flush(peak_flops=1.0)["masked_lm_loss"] == 0.0


def test_sums_begin_again_after_a_line():
    sums = MetricAccumulator()
    sums.add_loss("masked_lm", torch.tensor(6.0), torch.tensor(1), 3)
    sums.flush(peak_flops=1.0)
    sums.add_loss("masked_lm", torch.tensor(1.0), torch.tensor(0), 1)
    assert sums.flush(peak_flops=1.0)["masked_lm_loss"] == 1.0


def test_packing_efficiency_is_the_mean_over_steps():
    sums = MetricAccumulator()
    sums.add_step(tokens=90, capacity=100, num_dropped=0, flops=0.0)
    sums.add_step(tokens=70, capacity=100, num_dropped=8, flops=0.0)
    line = sums.flush(peak_flops=1.0)
    assert line["fill"] == pytest.approx(0.8)
    assert line["displaced"] == pytest.approx(0.05)


def test_sums_of_earlier_versions_are_read():
    names = ("losses", "tokens", "capacity_before", "displaced", "flops", "seconds")
    values = ({"masked_lm": [9.0, 1, 3]}, 80, 100, 4, 500.0, 2.0)
    line = MetricAccumulator(dict(zip(names, values, strict=True))).flush(peak_flops=1.0)
    assert (line["masked_lm_loss"], line["fill"], line["displaced"], line["flops"]) == (3.0, 0.8, 0.05, 500.0)


def test_rates_are_of_the_time_since_the_last_line():
    sums = MetricAccumulator()
    sums.add_step(tokens=100, capacity=100, num_dropped=0, flops=2000.0)
    time.sleep(0.05)
    line = sums.flush(peak_flops=1e6)
    assert 0 < line["tokens_per_second"] <= 100 / 0.05
    assert line["flops"] == 2000.0
    assert line["mfu"] == pytest.approx(2000 / 1e6 * line["tokens_per_second"] / 100)


def test_mfu_is_at_most_one_and_of_the_highest_rate_of_the_run():
    sums = MetricAccumulator()
    sums.add_step(tokens=100, capacity=100, num_dropped=0, flops=1e12)
    fast = sums.flush(peak_flops=1.0)
    sums.add_step(tokens=100, capacity=100, num_dropped=0, flops=1e9)
    time.sleep(0.01)
    assert fast["mfu"] == 1.0
    assert 0 < sums.flush(peak_flops=1.0)["mfu"] < 1


def test_loss_is_let_go_of_its_graph():
    sums = MetricAccumulator()
    total = torch.ones(1, requires_grad=True).sum()
    sums.add_loss("masked_lm", total, torch.tensor(0), 1)
    assert not any(kept.requires_grad for _, kept, _, _ in sums._pending)


def test_tensorboard_gets_the_numbers_of_the_log(tmp_path):
    pytest.importorskip("tensorboard")
    log = RunLog(tmp_path / "log.jsonl", after_step=0, tensorboard=True)
    log.write(kind="train", step=1, masked_lm_loss=2.5)
    log.write(kind="fills", step=1, fills=[])
    log.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["train/masked_lm_loss"]
    assert [(e.step, e.value) for e in events.Scalars("train/masked_lm_loss")] == [(1, 2.5)]


def test_tensorboard_that_is_not_installed_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"pip install .stemformer\[tensorboard\]"):
        RunLog(tmp_path / "log.jsonl", after_step=0, tensorboard=True)
    assert not (tmp_path / "log.jsonl").exists()


def test_ranks_but_the_first_write_no_log(tmp_path):
    log = RunLog(None, after_step=0, tensorboard=True)
    log.write(kind="train", step=1)
    log.close()
    assert list(tmp_path.iterdir()) == []


def test_a_source_gain_of_nearly_zero_has_no_sign():
    names = ("denoising_loss", "unigram_loss", "denoising_accuracy", "unigram_accuracy")
    metrics = {f"held_out_{name}": 0.5 for name in names} | {"held_out_source_gain": -0.0004}
    assert format_held_out(metrics).endswith("| source_gain 0.00")
