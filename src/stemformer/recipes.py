"""Recipes: functions that return the configuration of a complete pre-training run.

Sizes: `bert_base_2018` and `bert_large_2018` Devlin et al. 2019, section 3; smaller ones Turc et
al. 2019, table 1; `gpt2_...` Radford et al. 2019, table 2.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from stemformer.config import nearest
from stemformer.errors import ConfigError
from stemformer.models.bert import BertConfig
from stemformer.models.gpt import GptConfig
from stemformer.objectives.causal_lm import CausalLmConfig
from stemformer.objectives.masked_lm import MaskedLmConfig
from stemformer.training.config import BatchConfig, BudgetConfig, GptRunConfig, PhaseConfig, RunConfig
from stemformer.training.lr_schedule import ScheduleConfig
from stemformer.training.optimizer import OptimizerConfig


def bert_tiny() -> RunConfig:
    """BERT with 2 layers of width 128, for tests and one-minute demonstrations."""
    return _bert("bert_tiny", layers=2, hidden=128, heads=2, learning_rate=2e-3)


def bert_mini() -> RunConfig:
    """BERT with 4 layers of width 256: a first real run on two CPU cores."""
    return _bert("bert_mini", layers=4, hidden=256, heads=4, learning_rate=1e-3)


def bert_small() -> RunConfig:
    """BERT with 4 layers of width 512."""
    return _bert("bert_small", layers=4, hidden=512, heads=8, learning_rate=7e-4)


def bert_medium() -> RunConfig:
    """BERT with 8 layers of width 512."""
    return _bert("bert_medium", layers=8, hidden=512, heads=8, learning_rate=5e-4)


def bert_base_2018() -> RunConfig:
    """BERT-base with the 2018 hyper-parameters: masked LM and next sentence, 1M steps.

    Differences: no dropout on attention probabilities, initial weights not truncated at two
    standard deviations, positions initialized as sinusoids and the output bias from word
    frequencies, bias correction in AdamW, and decay that starts at the end of warm-up.
    """
    return _bert_2018("bert_base_2018", layers=12, hidden=768, heads=12)


def bert_large_2018() -> RunConfig:
    """BERT-large with the 2018 hyper-parameters; see `bert_base_2018` for the differences."""
    return _bert_2018("bert_large_2018", layers=24, hidden=1024, heads=16)


def gpt_tiny() -> GptRunConfig:
    """GPT with 2 layers of width 128, for tests and one-minute demonstrations."""
    return _gpt("gpt_tiny", layers=2, hidden=128, heads=2, learning_rate=2e-3)


def gpt_mini() -> GptRunConfig:
    """GPT with 4 layers of width 256: a first real run on two CPU cores."""
    return _gpt("gpt_mini", layers=4, hidden=256, heads=4, learning_rate=1e-3)


def gpt_small_char() -> GptRunConfig:
    """GPT with 6 layers of width 256 for a small text in characters or bytes.

    With a byte-level BPE of 257 ids each token is a byte. Source: nanoGPT,
    config/train_shakespeare_char.py; width, batch size and dropout (384, 64, 0.2 there) are lower,
    so that an hour on two cores is some twenty epochs.
    """
    small = _gpt("gpt_small_char", layers=6, hidden=256, heads=4, learning_rate=1e-3)
    model = replace(small.model, hidden_dropout_prob=0.1)
    return replace(small, model=model, objective=CausalLmConfig(documents="stream"))


def gpt2_small() -> GptRunConfig:
    """GPT-2 small: 12 layers of width 768."""
    return _gpt2("gpt2_small", layers=12, hidden=768, heads=12)


def gpt2_medium() -> GptRunConfig:
    """GPT-2 medium: 24 layers of width 1024."""
    return _gpt2("gpt2_medium", layers=24, hidden=1024, heads=16)


def gpt2_large() -> GptRunConfig:
    """GPT-2 large: 36 layers of width 1280."""
    return _gpt2("gpt2_large", layers=36, hidden=1280, heads=20)


def gpt2_xl() -> GptRunConfig:
    """GPT-2 XL: 48 layers of width 1600."""
    return _gpt2("gpt2_xl", layers=48, hidden=1600, heads=25)


RECIPES: dict[str, Callable[[], RunConfig]] = {
    recipe.__name__: recipe
    for recipe in (
        *(bert_tiny, bert_mini, bert_small, bert_medium, bert_base_2018, bert_large_2018),
        *(gpt_tiny, gpt_mini, gpt_small_char, gpt2_small, gpt2_medium, gpt2_large, gpt2_xl),
    )
}
"""Name -> recipe."""


def find_recipe(name: str) -> RunConfig:
    """Return the configuration of a recipe."""
    if not name:
        raise ConfigError(f"No recipe. Pass one of {', '.join(RECIPES)} with --recipe.")
    if name not in RECIPES:
        expected = f"Expected one of {', '.join(RECIPES)}."
        raise ConfigError(f"Recipe {name!r} does not exist{nearest(name, RECIPES)}. {expected}")
    return RECIPES[name]()


def _sizes(layers: int, hidden: int, heads: int) -> dict[str, Any]:
    sizes = {"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads}
    return {**sizes, "intermediate_size": 4 * hidden}


def _bert(recipe: str, *, layers: int, hidden: int, heads: int, learning_rate: float) -> RunConfig:
    """Return a BERT run for modest hardware.

    No dropout, since such runs see each text only a few times. 30 % of the tokens are masked
    (Wettig et al. 2023, section 3) and Muon updates the layers' matrices (Jordan et al. 2024): at
    this size the model learns in a fraction of the steps (`docs/log.md`).
    """
    return RunConfig(
        recipe=recipe,
        model=BertConfig(**_sizes(layers, hidden, heads), hidden_dropout_prob=0.0),
        objective=MaskedLmConfig(mask_rate=0.3),
        batch=BatchConfig(size=16, sequence_length=128),
        optimizer=OptimizerConfig(kind="muon", learning_rate=learning_rate, beta2=0.98),
        schedule=ScheduleConfig(kind="linear", warmup_ratio=0.05),
    )


def _bert_2018(recipe: str, *, layers: int, hidden: int, heads: int) -> RunConfig:
    small = _bert(recipe, layers=layers, hidden=hidden, heads=heads, learning_rate=1e-4)
    return replace(
        small,
        model=replace(small.model, hidden_dropout_prob=0.1),
        objective=MaskedLmConfig(mask_rate=0.15, sentences="next"),
        batch=BatchConfig(size=256, micro_size=32, sequence_length=128),
        phases=(PhaseConfig(start_ratio=0.9, size=256, sequence_length=512, micro_size=8),),
        budget=BudgetConfig(steps=1_000_000),
        optimizer=OptimizerConfig(learning_rate=1e-4, weight_decay=0.01),
        schedule=ScheduleConfig(kind="linear", warmup_steps=10_000),
    )


def _gpt(recipe: str, *, layers: int, hidden: int, heads: int, learning_rate: float) -> GptRunConfig:
    """Return a GPT run for modest hardware: sequences of 256, no dropout, Muon.

    The exact GELU takes a third of the CPU time of GPT-2's tanh approximation (`docs/log.md`).
    """
    return GptRunConfig(
        recipe=recipe,
        model=GptConfig(
            **_sizes(layers, hidden, heads), hidden_act="gelu", hidden_dropout_prob=0.0, max_position_embeddings=256
        ),
        batch=BatchConfig(size=16, sequence_length=256),
        optimizer=OptimizerConfig(kind="muon", learning_rate=learning_rate, beta2=0.98),
        schedule=ScheduleConfig(kind="linear", warmup_ratio=0.05),
    )


def _gpt2(recipe: str, *, layers: int, hidden: int, heads: int) -> GptRunConfig:
    """Return a GPT-2 run, with rate and batch size of the smallest GPT-3 (Brown et al. 2020, table 2.1)."""
    small = _gpt(recipe, layers=layers, hidden=hidden, heads=heads, learning_rate=6e-4)
    return replace(
        small,
        model=replace(small.model, hidden_act="gelu_new", hidden_dropout_prob=0.1, max_position_embeddings=1024),
        batch=BatchConfig(size=512, micro_size=4, sequence_length=1024),
        optimizer=OptimizerConfig(learning_rate=6e-4, beta2=0.95, weight_decay=0.1),
        schedule=ScheduleConfig(kind="cosine", warmup_steps=700, min_lr_ratio=0.1),
    )
