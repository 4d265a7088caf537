import tomllib
from dataclasses import is_dataclass, replace
from typing import get_args, get_type_hints

import pytest
import tomli_w

from stemformer.config import from_toml, to_toml, with_settings
from stemformer.errors import ConfigError
from stemformer.options import read_duration
from stemformer.recipes import RECIPES, find_recipe
from stemformer.training.config import (
    RENAMED_SETTINGS,
    RUN_CONFIGS,
    BatchConfig,
    BudgetConfig,
    FinetuneConfig,
    PhaseConfig,
    RunConfig,
    TaskBatchConfig,
    num_steps_for,
    read_run_config,
)


def run_of(rows=4, **budget):
    return replace(find_recipe("bert_tiny"), batch=BatchConfig(size=rows), budget=BudgetConfig(**budget))


def steps(num_examples=10, num_tokens=1000, rows=4, **budget):
    return num_steps_for(run_of(rows, **budget), num_examples=[num_examples], num_tokens=[num_tokens])


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_comes_back_from_toml(recipe):
    config = find_recipe(recipe)
    text = to_toml(config)
    assert read_run_config(text, source=recipe) == config


def test_pretraining_needs_a_learning_rate():
    with pytest.raises(ConfigError, match=r"optimizer\.learning_rate is none: expected a number"):
        with_settings(find_recipe("bert_tiny"), ["optimizer.learning_rate=none"])


def test_settings_of_every_table_come_back_from_toml():
    settings = ["seed=7", "log_every=3", "model.hidden_size=32", "model.num_attention_heads=2", "objective.unit=span"]
    settings += ["batch.size=6", "batch.micro_size=2", "budget.epochs=1.5", "optimizer.learning_rate=1e-3"]
    settings += ["schedule.warmup_steps=5", "compute.compile=true", "evaluation.every=9", "checkpoints.keep=1"]
    config = with_settings(find_recipe("bert_tiny"), settings)
    assert from_toml(RunConfig, to_toml(config)) == config
    assert config.budget.epochs == 1.5
    assert config.compute.compile is True


def test_steps_are_taken_as_they_are():
    assert steps(steps=17) == 17


@pytest.mark.parametrize(("tokens", "expected"), [(1, 1), (400, 1), (401, 2), (4000, 10), (4001, 11)])
def test_tokens_are_rounded_up_to_steps_of_the_mean_size(tokens, expected):
    assert steps(tokens=tokens) == expected  # 100 tokens a row, 4 rows a step


def test_tokens_count_exactly_where_floats_would_not():
    assert steps(tokens=10**18 + 1, num_examples=10**6, num_tokens=10**8, rows=10) == 10**15 + 1


@pytest.mark.parametrize(("epochs", "expected"), [(1.0, 3), (2.0, 5), (0.8, 2), (0.5, 2), (10.0, 25), (1.1, 3)])
def test_epochs_are_rounded_up_to_full_steps(epochs, expected):
    assert steps(epochs=epochs) == expected  # 10 rows, 4 a step


@pytest.mark.parametrize(("epochs", "num_examples", "expected"), [(0.05, 10, 1), (0.5, 3, 2)])
def test_part_of_a_row_is_rounded_up_too(epochs, num_examples, expected):
    assert steps(epochs=epochs, num_examples=num_examples, rows=1) == expected


@pytest.mark.parametrize("budget", [{"tokens": 4000}, {"epochs": 1.0}, {"seconds": 60.0}], ids=lambda b: next(iter(b)))
def test_two_budgets_are_refused(budget):
    with pytest.raises(ConfigError, match="more than one of steps, tokens, epochs and seconds"):
        steps(steps=7, **budget)


def test_steps_of_a_budget_on_the_clock_are_not_known():
    assert steps(seconds=60.0) is None


def test_no_budget_is_refused():
    with pytest.raises(ConfigError, match="Pass --steps, --tokens, --epochs or --time"):
        steps()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["seed=-1"], "seed is -1"),
        (["seed=18446744073709551616"], "seed is 18446744073709551616"),  # a key has 64 bits
        (["log_every=0"], "log_every is 0"),
        (["batch.size=0"], "batch.size is 0"),
        (["batch.size=8", "batch.micro_size=3"], r"batch.micro_size is 3: expected a divisor of batch.size \(8\)"),
        (["batch.micro_size=0"], "batch.micro_size is 0"),
        (["batch.sequence_length=513"], "batch.sequence_length is 513, the model has 512 positions"),
        (["budget.steps=0"], "budget.steps is 0"),
        (["budget.epochs=-1.0"], "budget.epochs is -1.0"),
        (["model.num_attention_heads=3"], "model.hidden_size 128 is not divisible by 3 heads"),
        (["objective.mask_rate=2.0"], "objective.mask_rate is 2.0"),
        (["evaluation.every=0"], "evaluation.every is 0"),
        (["evaluation.num_examples=0"], "evaluation.num_examples is 0"),
        (["checkpoints.every=-1"], "checkpoints.every is -1"),
        (["checkpoints.keep=0"], "checkpoints.keep is 0"),
        (["compute.threads=-1"], "compute.threads is -1"),
    ],
)
def test_impossible_setting_is_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        with_settings(find_recipe("bert_tiny"), settings)


def test_unknown_setting_names_the_nearest():
    with pytest.raises(ConfigError, match=r"did you mean 'optimizer.learning_rate'"):
        with_settings(find_recipe("bert_tiny"), ["optimizer.learning_rat=1e-3"])


# Phases


def phased(*phases, rows=10, **budget):
    later = tuple(PhaseConfig(start_ratio=share, size=of, sequence_length=length) for share, of, length in phases)
    return replace(run_of(rows, **budget), phases=later)


def phased_steps(config, num_examples=(100, 30), num_tokens=(10_000, 10_500)):
    return num_steps_for(config, num_examples=num_examples, num_tokens=num_tokens)


def test_parts_of_a_run_are_its_batch_and_then_its_phases():
    config = phased((0.5, 4, 256), (0.9, 2, 512))
    assert [(share, batch.size, batch.sequence_length) for share, batch in config.all_phases()] == [
        (0.0, 10, 128),
        (0.5, 4, 256),
        (0.9, 2, 512),
    ]


@pytest.mark.parametrize(("tokens", "expected"), [(11_000, 10), (11_001, 11), (1, 1), (1_100_000, 1000)])
def test_tokens_of_phases_are_shared_out_by_their_steps(tokens, expected):
    # nine tenths of the steps see 10 rows of 100 tokens, one tenth 10 rows of 200: 1,100 a step in the mean
    config = phased((0.9, 10, 512), tokens=tokens)
    assert phased_steps(config, num_examples=(100, 100), num_tokens=(10_000, 20_000)) == expected


@pytest.mark.parametrize(("epochs", "expected"), [(1.0, 8), (0.25, 2), (0.26, 3), (3.0, 24)])
def test_epochs_of_phases_are_shared_out_by_their_steps(epochs, expected):
    # half of the steps see 10 of 100 rows, half 5 of 33.33 as it were: a tenth and 0.15 of an epoch, 0.125 in the mean
    config = phased((0.5, 3, 256), epochs=epochs)
    assert phased_steps(config, num_examples=(100, 20)) == expected


def test_steps_of_phases_are_taken_as_they_are():
    assert phased_steps(phased((0.9, 5, 256), steps=17)) == 17


@pytest.mark.parametrize("shares", [(0.9, 0.5), (0.5, 0.5), (0.2, 0.7, 0.6)])
def test_phases_that_do_not_ascend_are_refused(shares):
    with pytest.raises(ConfigError, match="expected ascending fractions of the run"):
        phased(*((share, 4, 128) for share in shares))


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 1.5])
def test_phase_outside_of_the_run_is_refused(share):
    with pytest.raises(ConfigError, match=f"start_ratio is {share}: expected a fraction between 0 and 1"):
        phased((share, 4, 128))


def test_longest_row_of_any_phase_must_fit_the_positions():
    with pytest.raises(ConfigError, match="sequence_length is 1024, the model has 512 positions"):
        phased((0.5, 4, 1024), (0.9, 4, 256))


def test_phases_can_be_taken_from_a_recipe_for_a_budget_on_the_clock():
    config = with_settings(find_recipe("bert_base_2018"), ["phases=[]", "budget.steps=none", "budget.seconds=60"])
    assert (config.phases, config.budget.seconds) == ((), 60.0)


def test_phases_come_back_from_toml():
    config = phased((0.5, 4, 256), (0.75, 2, 512), steps=9)
    assert from_toml(RunConfig, to_toml(config)) == config
    setting = "phases=[{start_ratio=0.5, size=4, sequence_length=256}, {start_ratio=0.75, size=2, sequence_length=512}]"
    assert with_settings(find_recipe("bert_tiny"), [setting]).phases == config.phases


# Names of earlier versions


OLD_SETTINGS = {new: old for old, new in RENAMED_SETTINGS.items()}


def with_old_names(value, path=""):
    if isinstance(value, list):
        return [with_old_names(item, path) for item in value]
    if not isinstance(value, dict):
        return value
    keys = {name: f"{path}.{name}".removeprefix(".") for name in value if name != "model_type"}
    names = {name: OLD_SETTINGS.get(key, key).rpartition(".")[2] for name, key in keys.items()}
    return {names[name]: with_old_names(value[name], key) for name, key in keys.items()}


def old_text(config):
    """The TOML text of a configuration as an earlier version wrote it."""
    return tomli_w.dumps(with_old_names(tomllib.loads(to_toml(config))))


@pytest.mark.parametrize("recipe", ["bert_base_2018", "gpt_mini"])
def test_run_stored_with_old_names_is_read_silently(recipe):
    config = find_recipe(recipe)
    text = old_text(config)
    assert "\nrows = " in text
    assert "clip_norm = " in text
    assert "model_type" not in text
    assert "sequence_length" not in text
    assert read_run_config(text, source="config.toml") == config


def test_fine_tuning_stored_with_old_names_is_read_silently():
    config = FinetuneConfig(
        "model", ("train.csv",), dev_fraction=0.2, reinitialize="all", batch=TaskBatchConfig(size=4)
    )
    text = old_text(config)
    assert "dev_share = 0.2\n" in text
    assert 'fresh = "all"\n' in text
    assert from_toml(FinetuneConfig, text, renamed=RENAMED_SETTINGS) == config


@pytest.mark.parametrize("old", RENAMED_SETTINGS)
def test_renamed_setting_exists_and_its_old_name_does_not(old):
    keys = [key for cls in (*RUN_CONFIGS.values(), FinetuneConfig) for key in keys_of(cls)]
    assert RENAMED_SETTINGS[old] in keys
    assert old not in keys
    assert RENAMED_SETTINGS[old].rpartition(".")[0] == old.rpartition(".")[0]


def keys_of(cls, table=""):
    for name, kind in get_type_hints(cls).items():
        inner = next((c for c in (*get_args(kind), kind) if is_dataclass(c)), None)
        yield from keys_of(inner, f"{table}{name}.") if inner else [f"{table}{name}"]


def test_old_phases_are_read_with_a_note_for_each_name():
    setting = "phases=[{from_share=0.5, rows=4, row_length=256}]"
    with pytest.warns(UserWarning) as caught:
        config = with_settings(find_recipe("bert_tiny"), [setting], renamed=RENAMED_SETTINGS)
    assert config.phases == (PhaseConfig(0.5, 4, 256),)
    assert [str(warning.message) for warning in caught] == [
        "Setting 'phases.from_share' is now 'phases.start_ratio'.",
        "Setting 'phases.rows' is now 'phases.size'.",
        "Setting 'phases.row_length' is now 'phases.sequence_length'.",
    ]


def test_unknown_model_type_is_refused():
    with pytest.raises(ConfigError, match=r"x\.toml: model_type is 'rnn': expected one of bert, modernbert, gpt2"):
        read_run_config('model_type = "rnn"', source="x.toml")


# Time


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (90, 90),
        (0.5, 0.5),
        ("90", 90),
        ("90s", 90),
        ("30m", 1800),
        ("1h30m", 5400),
        ("1.5h", 5400),
        ("2d", 172_800),
        ("1d2h3m4s", 93_784),
        (" 30M ", 1800),
        (".5m", 30),
    ],
)
def test_time_is_read_as_people_write_it(text, expected):
    assert read_duration(text) == expected


@pytest.mark.parametrize(
    "text", ["m", "x", "1h30", "30 minutes", "-5m", ".h", ".", "1..5m", "1e3", "5ms5", "1h 30m", "½h", "inf"]
)
def test_time_that_cannot_be_read_is_refused(text):
    with pytest.raises(ConfigError, match="expected a duration such as 90s, 30m, 1h30m or 2d"):
        read_duration(text)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan")])
def test_budget_on_the_clock_that_is_no_time_is_refused(seconds):
    with pytest.raises(ConfigError, match=r"budget.seconds is .*: expected a positive number"):
        BudgetConfig(seconds=seconds)
