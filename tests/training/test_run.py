from dataclasses import replace

import pytest

from stemformer.config import from_toml, to_toml, with_settings
from stemformer.errors import ConfigError
from stemformer.recipes import RECIPES, bert_tiny, find_recipe
from stemformer.training.run import BatchConfig, BudgetConfig, RunConfig, num_steps_of


def run_of(rows=4, **budget):
    return replace(bert_tiny(), batch=BatchConfig(rows=rows), budget=BudgetConfig(**budget))


def steps(num_examples=10, num_tokens=1000, rows=4, **budget):
    return num_steps_of(run_of(rows, **budget), num_examples=[num_examples], num_tokens=[num_tokens])


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_comes_back_from_toml(recipe):
    config = find_recipe(recipe)
    assert from_toml(RunConfig, to_toml(config)) == config


def test_settings_of_every_table_come_back_from_toml():
    settings = ["seed=7", "log_every=3", "model.hidden_size=32", "model.num_attention_heads=2", "objective.unit=span"]
    settings += ["batch.rows=6", "batch.micro_rows=2", "budget.epochs=1.5", "optimizer.learning_rate=1e-3"]
    settings += ["schedule.warmup_steps=5", "compute.compile=true", "evaluation.every=9", "checkpoints.keep=1"]
    config = with_settings(bert_tiny(), settings)
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
def test_epochs_are_rounded_up_to_whole_steps(epochs, expected):
    assert steps(epochs=epochs) == expected  # 10 rows, 4 a step


@pytest.mark.parametrize(("epochs", "num_examples", "expected"), [(0.05, 10, 1), (0.5, 3, 2)])
def test_part_of_a_row_is_rounded_up_too(epochs, num_examples, expected):
    assert steps(epochs=epochs, num_examples=num_examples, rows=1) == expected


def test_two_budgets_are_refused():
    with pytest.raises(ConfigError, match="more than one of steps, tokens, epochs and seconds"):
        steps(steps=7, tokens=4000)


def test_no_budget_is_refused():
    with pytest.raises(ConfigError, match="give --steps, --tokens, --epochs or --time"):
        steps()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["seed=-1"], "seed is -1"),
        (["seed=18446744073709551616"], "seed is 18446744073709551616"),  # a key has 64 bits
        (["log_every=0"], "log_every is 0"),
        (["batch.rows=0"], "batch.rows is 0"),
        (["batch.rows=8", "batch.micro_rows=3"], r"batch.micro_rows is 3: expected a divisor of batch.rows \(8\)"),
        (["batch.micro_rows=0"], "batch.micro_rows is 0"),
        (["batch.row_length=513"], "batch.row_length is 513, the model has 512 positions"),
        (["budget.steps=0"], "budget.steps is 0"),
        (["budget.epochs=-1.0"], "budget.epochs is -1.0"),
        (["model.num_attention_heads=3"], "model.hidden_size 128 cannot be shared among 3 heads"),
        (["objective.rate=2.0"], "objective.rate is 2.0"),
        (["evaluation.every=0"], "evaluation.every is 0"),
        (["evaluation.rows=0"], "evaluation.rows is 0"),
        (["checkpoints.every=-1"], "checkpoints.every is -1"),
        (["checkpoints.keep=0"], "checkpoints.keep is 0"),
        (["compute.threads=-1"], "compute.threads is -1"),
    ],
)
def test_impossible_setting_is_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        with_settings(bert_tiny(), settings)


def test_unknown_setting_names_the_nearest():
    with pytest.raises(ConfigError, match=r"did you mean 'optimizer.learning_rate'"):
        with_settings(bert_tiny(), ["optimizer.learning_rat=1e-3"])
