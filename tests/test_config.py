from dataclasses import dataclass, field
from typing import Literal

import pytest

from stemformer.config import differences, from_toml, merge_toml, nearest, to_toml, with_settings
from stemformer.errors import ConfigError


@dataclass(frozen=True)
class Model:
    hidden_size: int = 768
    dropout: float = 0.1
    activation: Literal["gelu", "relu"] = "gelu"
    layers: tuple[int, ...] = (1, 2)

    def __post_init__(self):
        if self.hidden_size < 1:
            raise ValueError("hidden_size must be positive")


@dataclass(frozen=True)
class Stage:
    name: str
    steps: int = 1


@dataclass(frozen=True)
class Training:
    learning_rate: float = 1e-4
    steps: int | None = None
    epochs: float | None = 3.0
    name: str = "run"
    is_compiled: bool = False


@dataclass(frozen=True)
class Run:
    model: Model = Model()
    training: Training = Training()
    init: Model | None = None
    stages: tuple[Stage, ...] = ()
    weights: dict[str, float] = field(default_factory=dict)
    seed: int = 0


@pytest.mark.parametrize(
    "config",
    [
        Run(),
        Run(training=Training(steps=5, epochs=None), init=Model(layers=())),
        Run(model=Model(activation="relu", dropout=1e-12), stages=(Stage("a"), Stage("b", 2)), weights={"nsp": 0.5}),
        Run(training=Training(name='quote " and\nline 語', learning_rate=float("inf"))),
    ],
)
def test_toml_round_trip_gives_an_equal_config(config):
    assert from_toml(Run, to_toml(config)) == config


def test_none_is_left_out_where_it_is_the_default_and_written_elsewhere():
    assert "steps" not in to_toml(Training())
    assert 'epochs = "none"' in to_toml(Training(epochs=None))


def test_unknown_key_names_the_full_key_and_the_nearest():
    with pytest.raises(ConfigError) as caught:
        from_toml(Run, "[training]\nlearning_rat = 1", source="run.toml")
    assert str(caught.value) == (
        "run.toml: training.learning_rat is not a setting (did you mean 'training.learning_rate'?)"
    )


def test_known_name_in_the_wrong_table_is_found_elsewhere():
    with pytest.raises(ConfigError, match=r"steps is not a setting \(did you mean 'training\.steps'\?\)"):
        with_settings(Run(), ["steps=3"])


@pytest.mark.parametrize(
    ("setting", "meant"),
    [
        ("model.hidden", "'model.hidden_size'"),
        ("lr", "'training.learning_rate'"),
        ("training.lr", "'training.learning_rate'"),
        ("learning_rat", "'training.learning_rate'"),
        ("training.compiled", "'training.is_compiled'"),
    ],
)
def test_shortened_key_names_the_full_one(setting, meant):
    with pytest.raises(ConfigError, match=rf"\(did you mean {meant}\?\)"):
        with_settings(Run(), [f"{setting}=3"])


def test_unknown_key_like_no_other_lists_what_there_is():
    with pytest.raises(
        ConfigError, match=r"model\.zzz is not a setting; expected one of model\.hidden_size, model\.dr"
    ):
        with_settings(Run(), ["model.zzz=3"])


def test_unknown_key_inside_a_tuple_of_tables_is_refused():
    with pytest.raises(ConfigError, match=r"stages\.1\.step is not a setting"):
        from_toml(Run, 'stages = [{name = "a"}, {name = "b", step = 2}]')


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.hidden_size=abc", "Setting: model.hidden_size: expected int, got 'abc'"),
        ("model.hidden_size=1.5", "Setting: model.hidden_size: expected int, got 1.5"),
        ("model.hidden_size=true", "Setting: model.hidden_size: expected int, got True"),
        ("training.steps=x", "Setting: training.steps: expected int or none, got 'x'"),
        (
            "model.activation=glu",
            "Setting: model.activation: expected one of 'gelu', 'relu', got 'glu' (did you mean 'gelu'?)",
        ),
        ("model.layers=[1, 'a']", "Setting: model.layers: expected a list of int, got [1, 'a']"),
        ("model=3", "Setting: model: expected a table (hidden_size, dropout, activation, layers), got 3"),
        ("seed.x=3", "Setting: seed: expected int, got {'x': 3}; it holds no keys of its own"),
        ("model.hidden_size=0", "Setting: model: hidden_size must be positive"),
        ("seed", "Setting 'seed': expected key=value, such as model.hidden_size=..."),
        ("model..x=1", "Setting 'model..x=1': expected key=value, such as model.hidden_size=..."),
    ],
)
def test_wrong_setting_is_reported_in_one_line(setting, message):
    with pytest.raises(ConfigError) as caught:
        with_settings(Run(), [setting])
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("setting", "read", "value"),
    [
        ("training.learning_rate=1e-3", lambda run: run.training.learning_rate, 1e-3),
        ("training.learning_rate=1", lambda run: run.training.learning_rate, 1.0),
        ("training.steps=1e6", lambda run: run.training.steps, 1_000_000),
        ("training.epochs=none", lambda run: run.training.epochs, None),
        ("training.name=bare-word", lambda run: run.training.name, "bare-word"),
        ("training.name='a b'", lambda run: run.training.name, "a b"),
        ("training.name=2024", lambda run: run.training.name, "2024"),
        ("training.name=a=b", lambda run: run.training.name, "a=b"),
        ("training.name=none", lambda run: run.training.name, "none"),
        ("training.is_compiled=true", lambda run: run.training.is_compiled, True),
        (" model.hidden_size = 3", lambda run: run.model.hidden_size, 3),
        ("model={hidden_size = 4}", lambda run: run.model.hidden_size, 4),
        ("init.hidden_size=5", lambda run: run.init.hidden_size, 5),
        ("weights.nsp=0.5", lambda run: run.weights, {"nsp": 0.5}),
    ],
)
def test_setting_sets_its_field_and_its_type(setting, read, value):
    got = read(with_settings(Run(), [setting]))
    assert got == value
    assert type(got) is type(value)


def test_settings_lie_over_the_config_and_the_last_wins():
    start = Run(model=Model(hidden_size=5, dropout=0.3), seed=7)
    run = with_settings(start, ["model.hidden_size=6", "model.hidden_size=8", "model.layers=[3]"])
    assert run == Run(model=Model(hidden_size=8, dropout=0.3, layers=(3,)), seed=7)
    assert start.model.hidden_size == 5


def test_setting_adds_to_a_dict():
    run = with_settings(Run(weights={"mlm": 1.0}), ["weights.nsp=0.5"])
    assert run.weights == {"mlm": 1.0, "nsp": 0.5}
    with pytest.raises(ConfigError, match=r"^Setting: weights\.nsp: expected float, got 'much'$"):
        with_settings(run, ["weights.nsp=much"])


def test_no_settings_change_nothing():
    assert with_settings(Run(), []) == Run()


def test_merge_lays_a_partial_file_over_the_config():
    start = Run(training=Training(steps=10, name="kept"))
    merged = merge_toml(start, "seed = 3\n[training]\nsteps = 20", source="more.toml")
    assert merged == Run(training=Training(steps=20, name="kept"), seed=3)


def test_merge_names_its_source():
    with pytest.raises(ConfigError, match=r"^more\.toml: training\.steps: expected int or none, got 'a'$"):
        merge_toml(Run(), "training = {steps = 'a'}", source="more.toml")


def test_text_that_is_no_toml_is_refused():
    with pytest.raises(ConfigError, match=r"^run\.toml is not valid TOML: .*line 1"):
        from_toml(Run, "seed 3", source="run.toml")


def test_missing_required_key_is_named():
    with pytest.raises(ConfigError, match=r"^name is missing: give it a value \(str\)$"):
        from_toml(Stage, "steps = 3")


def test_differences_are_flat_and_complete():
    a, b = Run(seed=1), Run(model=Model(dropout=0.0), init=Model())
    found = differences(a, b)
    assert ("model.dropout", 0.1, 0.0) in found
    assert ("seed", 1, 0) in found
    assert ("init.hidden_size", None, 768) in found
    assert not [key for key, left, right in found if left == right]
    assert differences(a, a) == []


def test_nearest_offers_only_what_is_like_it():
    assert nearest("hiden_size", ["hidden_size", "seed"]) == " (did you mean 'hidden_size'?)"
    assert nearest("zzz", ["hidden_size", "seed"]) == ""
    assert nearest("bert_tyni", ["bert_mini", "bert_tiny"]) == " (did you mean 'bert_tiny'?)"
    # Never the name itself.
    assert nearest("seed", ["seed", "speed"]) == " (did you mean 'speed'?)"


# Renamed settings

RENAMED = {"training.rate": "training.learning_rate", "stages.number": "stages.steps", "random_seed": "seed"}


def test_old_keys_of_stored_configs_are_read_silently():
    text = 'random_seed = 3\nstages = [{name = "a", number = 2}]\n[training]\nrate = 0.5'
    expected = Run(training=Training(learning_rate=0.5), stages=(Stage("a", 2),), seed=3)
    assert from_toml(Run, text, renamed=RENAMED) == expected


def test_old_keys_are_read_where_the_config_is_part_of_another_one():
    @dataclass(frozen=True)
    class Grid:
        run: Run = Run()

    grid = from_toml(Grid, "[run.training]\nrate = 0.5", renamed=RENAMED)
    assert grid.run.training.learning_rate == 0.5


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("training.rate=0.5", "Setting 'training.rate' is now 'training.learning_rate'."),
        ("training={rate=0.5}", "Setting 'training.rate' is now 'training.learning_rate'."),
        ("random_seed=3", "Setting 'random_seed' is now 'seed'."),
        ("stages=[{name='a', number=2}]", "Setting 'stages.number' is now 'stages.steps'."),
    ],
)
def test_old_key_of_a_setting_works_and_the_new_one_is_shown(setting, message):
    with pytest.warns(UserWarning) as caught:
        config = with_settings(Run(), [setting], renamed=RENAMED)
    assert [str(warning.message) for warning in caught] == [message]
    assert config != Run()


def test_old_key_in_a_file_of_the_user_is_reported():
    with pytest.warns(UserWarning, match=r"^Setting 'training\.rate' is now 'training\.learning_rate'\.$"):
        assert (
            merge_toml(Run(), "training.rate = 0.5", source="more.toml", renamed=RENAMED).training.learning_rate == 0.5
        )


def test_last_of_an_old_and_a_current_key_wins():
    settings = ["training.rate=0.5", "training.learning_rate=0.25"]
    with pytest.warns(UserWarning):
        assert with_settings(Run(), settings, renamed=RENAMED).training.learning_rate == 0.25
        assert with_settings(Run(), settings[::-1], renamed=RENAMED).training.learning_rate == 0.5


def test_old_key_without_a_table_of_renamed_keys_is_unknown():
    with pytest.raises(ConfigError, match=r"training\.rate is not a setting"):
        with_settings(Run(), ["training.rate=0.5"])
