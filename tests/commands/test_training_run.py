"""Config of a run from its options."""

import pytest

from stemformer.commands.training_run import resolve
from stemformer.options import PretrainOptions
from stemformer.recipes import find_recipe


def resolved(**options):
    return resolve(find_recipe("bert_tiny"), PretrainOptions.make(recipe="bert_tiny", data="d", out="o", **options))


def test_schedule_that_needs_the_number_of_steps_warns_under_a_budget_of_time(tmp_path):
    with pytest.warns(UserWarning, match=r"^schedule\.kind = cosine has no effect with a budget of time.*Remove it"):
        resolved(time="1m", settings=["schedule.kind=cosine"])
    (tmp_path / "run.toml").write_text('[schedule]\nkind = "constant"\n')
    with pytest.warns(UserWarning, match=r"^schedule\.kind = constant has no effect"):
        resolved(time="1m", config=str(tmp_path / "run.toml"))
    # Warnings are errors: no other run warns.
    resolved(time="1m")
    resolved(time="1m", settings=["schedule.kind=wsd"])
    resolved(steps=5, settings=["schedule.kind=cosine"])
