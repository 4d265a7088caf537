"""Recipes: named configurations of complete pre-training runs.

Sizes: `bert_base_2018` and `bert_large_2018` Devlin et al. 2019, section 3; smaller ones Turc et
al. 2019, table 1; `gpt2_...` Radford et al. 2019, table 2.
"""

from dataclasses import asdict, replace
from typing import Any, NamedTuple

from stemformer.config import nearest
from stemformer.errors import ConfigError
from stemformer.models.bart import BartConfig
from stemformer.models.bert import BertConfig
from stemformer.models.gpt import GptConfig
from stemformer.models.llama import ArceeConfig, EuroBertConfig, LlamaConfig, Qwen3Config
from stemformer.models.modernbert import ModernBertConfig
from stemformer.objectives.causal_lm import CausalLmConfig
from stemformer.objectives.masked_lm import MaskedLmConfig
from stemformer.training.config import (
    ArceeRunConfig,
    BartRunConfig,
    BatchConfig,
    BudgetConfig,
    EuroBertRunConfig,
    GptRunConfig,
    LlamaRunConfig,
    ModernBertRunConfig,
    PhaseConfig,
    Qwen3RunConfig,
    RunConfig,
)
from stemformer.training.lr_schedule import ScheduleConfig
from stemformer.training.optimizer import OptimizerConfig


class Recipe(NamedTuple):
    """Configuration of a complete pre-training run, and what it is for."""

    config: RunConfig
    purpose: str


def _sizes(layers: int, hidden: int, heads: int) -> dict[str, Any]:
    sizes = {"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads}
    return {**sizes, "intermediate_size": 4 * hidden}


def _settings(run: RunConfig) -> dict[str, Any]:
    """Return the settings of a run that fit another architecture with the same objective."""
    names = ("embedding_init", "objective", "batch", "optimizer", "schedule")
    return {name: getattr(run, name) for name in names}


def _gated_size(hidden: int) -> int:
    """Return the intermediate size of gated layers with as many weights as others of four times the hidden size."""
    return round(8 * hidden / 3 / 32) * 32


def _bert(name: str, layers: int, hidden: int, heads: int, learning_rate: float) -> RunConfig:
    """Return a BERT run for modest hardware.

    No dropout, since such runs see each text only a few times. 30 % of the tokens are masked
    (Wettig et al. 2023, section 3) and Muon updates the layers' matrices (Jordan et al. 2024): at
    this size the model learns in a fraction of the steps (`docs/log.md`).
    """
    return RunConfig(
        recipe=name,
        model=BertConfig(**_sizes(layers, hidden, heads), hidden_dropout_prob=0.0),
        objective=MaskedLmConfig(mask_rate=0.3),
        batch=BatchConfig(size=16, sequence_length=128),
        optimizer=OptimizerConfig(kind="muon", learning_rate=learning_rate, beta2=0.98),
        schedule=ScheduleConfig(kind="linear", warmup_ratio=0.05),
    )


def _modernbert(name: str, layers: int, hidden: int, heads: int, learning_rate: float) -> RunConfig:
    """Return a ModernBERT run for modest hardware: as BERT's, with rotary positions and gated layers.

    Two thirds of BERT's intermediate size, rounded to 32, give the same number of weights. A theta of
    10,000 suits short sequences; all layers see the full sequence. Embeddings start from counts of tokens that
    occur together, 40 % of the tokens are masked, of a large vocabulary a step's softmax sums over a sample, Muon
    takes every second step with four times BERT's rate, and rates are constant until the last fifth (`docs/log.md`).
    """
    run = _bert(name, layers, hidden, heads, learning_rate)
    sizes = {**_sizes(layers, hidden, heads), "intermediate_size": _gated_size(hidden)}
    settings = {
        **_settings(run),
        "embedding_init": "cooccurrence",
        "objective": replace(run.objective, mask_rate=0.4, sampled_softmax=4096),
        "optimizer": replace(run.optimizer, muon_lr_multiplier=4.0, muon_interval=2, momentum=0.9),
        "schedule": replace(run.schedule, kind="wsd"),
    }
    model = ModernBertConfig(**sizes, max_position_embeddings=512, global_rope_theta=10_000.0)
    return ModernBertRunConfig(recipe=name, model=model, **settings)


def _eurobert(name: str, layers: int, hidden: int, heads: int, learning_rate: float) -> RunConfig:
    """Return a EuroBERT run: ModernBERT's, with RMS norm and no transform before the output.

    The first quarter of the run trains as a causal LM (`docs/log.md`, 2026-11-29).
    """
    run = _modernbert(name, layers, hidden, heads, learning_rate)
    sizes = {**_sizes(layers, hidden, heads), "intermediate_size": _gated_size(hidden)}
    objective = replace(run.objective, causal_start_ratio=0.25)
    settings = {**_settings(run), "embedding_init": "random", "objective": objective}
    return EuroBertRunConfig(recipe=name, model=EuroBertConfig(**sizes, max_position_embeddings=512), **settings)


def _bart(name: str, layers: int, hidden: int, heads: int, learning_rate: float) -> BartRunConfig:
    """Return a BART run for modest hardware: as many layers in the decoder as in the encoder, no dropout, Muon."""
    run = _gpt(name, layers, hidden, heads, learning_rate)
    settings = {key: value for key, value in _settings(run).items() if key != "objective"}
    options: dict[str, Any] = {"hidden_dropout_prob": 0.0, "max_position_embeddings": 256}
    model = BartConfig(**_sizes(layers, hidden, heads), num_decoder_layers=layers, **options)
    return BartRunConfig(recipe=name, model=model, **settings)


def _bart_2019(name: str, layers: int, hidden: int, heads: int, learning_rate: float) -> BartRunConfig:
    """Return a BART run with noise, batch size and steps of Lewis et al. 2020, section 5.1; base has the sizes of section 4.

    They do not give the optimizer's settings and refer to RoBERTa, whose values are used (Liu et al. 2019, table 9).
    Differences: no dropout on activations and attention probabilities, dropout until the end of the run, gradients are
    clipped, and positions start as sinusoids.
    """
    small = _bart(name, layers, hidden, heads, learning_rate)
    options: dict[str, Any] = {"hidden_dropout_prob": 0.1, "max_position_embeddings": 1024}
    return replace(
        small,
        model=replace(small.model, **options),
        batch=BatchConfig(size=8000, micro_size=8, sequence_length=512),
        budget=BudgetConfig(steps=500_000),
        optimizer=OptimizerConfig(learning_rate=learning_rate, weight_decay=0.01, beta2=0.98, eps=1e-6),
        schedule=ScheduleConfig(kind="linear", warmup_steps=24_000 if layers == 6 else 30_000),
    )


def _bert_2018(name: str, layers: int, hidden: int, heads: int) -> RunConfig:
    """Return a BERT run with the 2018 hyper-parameters.

    Differences: no dropout on attention probabilities, initial weights not truncated at two
    standard deviations, positions initialized as sinusoids and the output bias from word
    frequencies, bias correction in AdamW, and decay that starts at the end of warm-up.
    """
    small = _bert(name, layers, hidden, heads, 1e-4)
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


def _gpt(name: str, layers: int, hidden: int, heads: int, learning_rate: float) -> GptRunConfig:
    """Return a GPT run for modest hardware: sequences of 256, no dropout, Muon.

    The exact GELU takes a third of the CPU time of GPT-2's tanh approximation (`docs/log.md`).
    """
    options: dict[str, Any] = {"hidden_act": "gelu", "hidden_dropout_prob": 0.0, "max_position_embeddings": 256}
    return GptRunConfig(
        recipe=name,
        model=GptConfig(**_sizes(layers, hidden, heads), **options),
        batch=BatchConfig(size=16, sequence_length=256),
        optimizer=OptimizerConfig(kind="muon", learning_rate=learning_rate, beta2=0.98),
        schedule=ScheduleConfig(kind="linear", warmup_ratio=0.05),
    )


def _llama(name: str, layers: int, hidden: int, heads: int, learning_rate: float) -> LlamaRunConfig:
    """Return a Llama run for modest hardware: as GPT's, with rotary positions, RMS norm and gated layers.

    Embeddings start from counts of tokens that follow each other; the output matrix is one of its own. A step's softmax
    sums over a sample of a large vocabulary, and Muon takes every second step (`docs/log.md`).
    """
    run = _gpt(name, layers, hidden, heads, learning_rate)
    sizes = {**_sizes(layers, hidden, heads), "intermediate_size": _gated_size(hidden)}
    settings = {
        **_settings(run),
        "embedding_init": "cooccurrence",
        "objective": replace(run.objective, sampled_softmax=2048),
        "optimizer": replace(run.optimizer, muon_interval=2),
    }
    return LlamaRunConfig(recipe=name, model=LlamaConfig(**sizes, max_position_embeddings=256), **settings)


def _qwen3(name: str, layers: int, hidden: int, heads: int, learning_rate: float) -> Qwen3RunConfig:
    """Return a Qwen3 run: as Llama's, with normed queries and keys."""
    run = _llama(name, layers, hidden, heads, learning_rate)
    model = Qwen3Config(**asdict(run.model))
    return Qwen3RunConfig(recipe=name, model=model, **_settings(run))


def _arcee(name: str, layers: int, hidden: int, heads: int, learning_rate: float) -> ArceeRunConfig:
    """Return an Arcee run: as Llama's, with squared ReLU."""
    run = _llama(name, layers, hidden, heads, learning_rate)
    model = ArceeConfig(**_sizes(layers, hidden, heads), max_position_embeddings=256)
    return ArceeRunConfig(recipe=name, model=model, **_settings(run))


def _gpt_char(name: str, layers: int, hidden: int, heads: int) -> GptRunConfig:
    """Return a GPT run on a small text as a stream of characters or bytes.

    With a byte-level BPE of 257 ids each token is a byte. Source: nanoGPT,
    config/train_shakespeare_char.py; width, batch size and dropout (384, 64, 0.2 there) are lower,
    so that an hour on two cores is some twenty epochs.
    """
    small = _gpt(name, layers, hidden, heads, 1e-3)
    model = replace(small.model, hidden_dropout_prob=0.1)
    return replace(small, model=model, objective=CausalLmConfig(documents="stream"))


def _gpt2(name: str, layers: int, hidden: int, heads: int) -> GptRunConfig:
    """Return a GPT-2 run, with rate and batch size of the smallest GPT-3 (Brown et al. 2020, table 2.1)."""
    small = _gpt(name, layers, hidden, heads, 6e-4)
    return replace(
        small,
        model=replace(small.model, hidden_act="gelu_new", hidden_dropout_prob=0.1, max_position_embeddings=1024),
        batch=BatchConfig(size=512, micro_size=4, sequence_length=1024),
        optimizer=OptimizerConfig(learning_rate=6e-4, beta2=0.95, weight_decay=0.1),
        schedule=ScheduleConfig(kind="cosine", warmup_steps=700, min_lr_ratio=0.1),
    )


# Name, layers, width, heads and, if it varies, peak learning rate; purpose.
_RECIPES: tuple[tuple[RunConfig, str], ...] = (
    (_bert("bert_tiny", 2, 128, 2, 2e-3), "BERT with 2 layers of width 128, for tests and one-minute demonstrations"),
    (_bert("bert_mini", 4, 256, 4, 1e-3), "BERT with 4 layers of width 256: a first real run on two CPU cores"),
    (_bert("bert_small", 4, 512, 8, 7e-4), "BERT with 4 layers of width 512"),
    (_bert("bert_medium", 8, 512, 8, 5e-4), "BERT with 8 layers of width 512"),
    (_modernbert("modernbert_tiny", 2, 128, 2, 2e-3), "ModernBERT with 2 layers of width 128, for tests"),
    (_modernbert("modernbert_mini", 4, 256, 4, 1e-3), "ModernBERT with 4 layers of width 256, for two CPU cores"),
    (_modernbert("modernbert_small", 4, 512, 8, 7e-4), "ModernBERT with 4 layers of width 512"),
    (_modernbert("modernbert_base", 12, 768, 12, 5e-4), "ModernBERT with 12 layers of width 768"),
    (_eurobert("eurobert_mini", 4, 256, 4, 1e-3), "EuroBERT (Llama as an encoder) with 4 layers of width 256"),
    (
        _bert_2018("bert_base_2018", 12, 768, 12),
        "BERT-base with the 2018 hyper-parameters: masked LM and next sentence, 1M steps",
    ),
    (
        _bert_2018("bert_large_2018", 24, 1024, 16),
        "BERT-large with the 2018 hyper-parameters; see `bert_base_2018` for the differences",
    ),
    (_bart("bart_tiny", 2, 128, 2, 2e-3), "BART with 2 + 2 layers of width 128, for tests"),
    (_bart("bart_mini", 4, 256, 4, 1e-3), "BART with 4 + 4 layers of width 256, for two CPU cores"),
    (_bart("bart_small", 4, 512, 8, 7e-4), "BART with 4 + 4 layers of width 512"),
    (_bart_2019("bart_base_2019", 6, 768, 12, 6e-4), "BART-base with the noise and steps of 2019"),
    (_bart_2019("bart_large_2019", 12, 1024, 16, 4e-4), "BART-large with the noise and steps of 2019"),
    (_gpt("gpt_tiny", 2, 128, 2, 2e-3), "GPT with 2 layers of width 128, for tests and one-minute demonstrations"),
    (_gpt("gpt_mini", 4, 256, 4, 1e-3), "GPT with 4 layers of width 256: a first real run on two CPU cores"),
    (_gpt_char("gpt_small_char", 6, 256, 4), "GPT with 6 layers of width 256 for a small text in characters or bytes"),
    (_llama("llama_tiny", 2, 128, 2, 2e-3), "Llama with 2 layers of width 128, for tests"),
    (_llama("llama_mini", 4, 256, 4, 1e-3), "Llama with 4 layers of width 256, for two CPU cores"),
    (_llama("llama_small", 4, 512, 8, 7e-4), "Llama with 4 layers of width 512"),
    (_llama("llama_base", 12, 768, 12, 5e-4), "Llama with 12 layers of width 768"),
    (_qwen3("qwen3_mini", 4, 256, 4, 1e-3), "Qwen3 (Llama with normed queries and keys) with 4 layers of width 256"),
    (_arcee("arcee_mini", 4, 256, 4, 1e-3), "Arcee (Llama with squared ReLU) with 4 layers of width 256"),
    (_gpt2("gpt2_small", 12, 768, 12), "GPT-2 small: 12 layers of width 768"),
    (_gpt2("gpt2_medium", 24, 1024, 16), "GPT-2 medium: 24 layers of width 1024"),
    (_gpt2("gpt2_large", 36, 1280, 20), "GPT-2 large: 36 layers of width 1280"),
    (_gpt2("gpt2_xl", 48, 1600, 25), "GPT-2 XL: 48 layers of width 1600"),
)
RECIPES = {config.recipe: Recipe(config, purpose) for config, purpose in _RECIPES}
"""Name -> recipe."""


def find_recipe(name: str) -> RunConfig:
    """Return the configuration of a recipe."""
    if not name:
        raise ConfigError(f"No recipe. Pass one of {', '.join(RECIPES)} with --recipe.")
    if name not in RECIPES:
        expected = f"Expected one of {', '.join(RECIPES)}."
        raise ConfigError(f"Recipe {name!r} does not exist{nearest(name, RECIPES)}. {expected}")
    return RECIPES[name].config
