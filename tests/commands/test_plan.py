import re

import pytest

import stemformer
from stemformer.errors import ConfigError
from stemformer.progress import Silent

SMALL = ["model.hidden_size=32", "model.intermediate_size=64", "batch.size=4", "batch.sequence_length=32"]


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr("stemformer.commands.plan.matmul_rate", lambda *args: 1e11)


def test_plan_adds_up(tiny):
    result = stemformer.plan("bert_tiny", data=str(tiny / "data"), settings=[*SMALL, "budget.steps=1000"])
    rows = result["sequence_length_32"]
    assert rows["batch_size"] == 4
    assert rows["tokens_per_step"] <= 4 * 32
    assert rows["tokens_per_second"] == pytest.approx(rows["tokens_per_step"] / rows["seconds_per_step"], rel=0.2)
    assert result["steps"] == 1000
    assert result["tokens"] == pytest.approx(1000 * rows["tokens_per_step"])
    assert result["hours"] == pytest.approx(1000 * rows["seconds_per_step"] / 3600, rel=0.2)
    assert result["hours_per_epoch"] == pytest.approx(
        result["steps_per_epoch"] * rows["seconds_per_step"] / 3600, rel=0.2
    )


def test_plan_without_data_takes_full_rows():
    result = stemformer.plan("bert_tiny", settings=[*SMALL, "model.vocab_size=500", "objective.sentences=next"])
    assert result["sequence_length_32"]["tokens_per_step"] == 4 * 32
    assert "hours" not in result


def test_plan_measures_each_phase():
    phases = "phases=[{start_ratio=0.5,size=2,sequence_length=64}]"
    result = stemformer.plan("bert_tiny", settings=[*SMALL, "model.vocab_size=500", "budget.steps=10", phases])
    assert result["sequence_length_64"]["tokens_per_step"] == 128
    assert result["tokens"] == 10 * 128


def test_micro_batches_are_multiplied():
    result = stemformer.plan(
        "bert_tiny", settings=[*SMALL, "model.vocab_size=500", "batch.size=64", "batch.micro_size=4"]
    )
    assert result["sequence_length_32"]["tokens_per_step"] == 64 * 32


def test_memory_is_left_out_where_the_process_has_used_more_before(monkeypatch):
    class Lines(Silent):
        def say(self, line):
            lines.append(line)

    settings = [*SMALL, "model.vocab_size=500", "compute.device=cpu"]
    for peaks, found in (([900.0, 900.0], None), ([900.0, 950.0], 50)):
        lines, rest = [], iter(peaks)
        monkeypatch.setattr("stemformer.commands.plan._resident_mb", lambda rest=rest: next(rest))
        result = stemformer.plan("bert_tiny", settings=settings, progress=Lines())
        assert result.get("memory_mb") == found
        assert any("memory is not measured" in line for line in lines) == (found is None)


def test_unknown_recipe_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'bert_tiny'"):
        stemformer.plan("bert_tin")


def test_examples_show_masks_and_the_tokens_behind_them(tiny):
    settings = [*SMALL, "objective.mask_replace_prob=1.0", "objective.random_replace_prob=0.0"]
    found = stemformer.plan("bert_tiny", data=str(tiny / "data"), settings=settings)
    assert len(found["examples"]) == 3
    for row in found["examples"]:
        # A row may have its masks in later texts.
        parts = map(re.escape, re.split(r" ?\[MASK\] ?", row["source"]))
        assert re.fullmatch(".+".join(parts), row["target"])
    assert any("[MASK]" in row["source"] for row in found["examples"])
    assert "noise" not in found
    assert "examples" not in stemformer.plan("gpt_tiny", data=str(tiny / "data"), settings=SMALL)
