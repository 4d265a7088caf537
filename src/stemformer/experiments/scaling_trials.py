"""The runs of a scaling command: one for each size of a model; which there are, and how each is made."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from stemformer.commands.pretrain import pretrain
from stemformer.config import from_toml, parse_toml, to_toml
from stemformer.data.shards.manifest import Manifest
from stemformer.errors import CheckpointError, ConfigError
from stemformer.io import read_jsonl, write_file
from stemformer.models.model import make_model
from stemformer.objectives.objective import OBJECTIVES, objective_name
from stemformer.output_dir import clear_dir
from stemformer.progress import Progress, SubProgress
from stemformer.training.config import GptRunConfig, RunConfig
from stemformer.training.resume import check_config_unchanged

_LOSSES = ("held_out_causal_lm_loss", "held_out_masked_lm_loss")
_HEAD_SIZE = 64


@dataclass(frozen=True)
class Size:
    """Layers and width of a model.

    Attributes:
        layers: At least one.
        width: Of the hidden states.
    """

    layers: int
    width: int

    @property
    def name(self) -> str:
        """As it is given, and of its folder."""
        return f"{self.layers}x{self.width}"

    @property
    def heads(self) -> int:
        """Attention heads of about 64 numbers each, so many as divide the width."""
        return next(h for h in range(max(1, self.width // _HEAD_SIZE), 0, -1) if self.width % h == 0)

    def of_model(self) -> dict[str, Any]:
        """Returns it in the names of a model's configuration."""
        return {
            "num_hidden_layers": self.layers,
            "hidden_size": self.width,
            "num_attention_heads": self.heads,
            "intermediate_size": 4 * self.width,
        }


@dataclass(frozen=True)
class ScaleConfig:
    """Runs at several sizes as data: what their `config.toml` holds.

    Attributes:
        sizes: As given, such as 4x256.
        data: Fingerprint of the prepared data.
        rate_power: The learning rate of a width is the recipe's times (recipe's width / width) to this power.
        tokens_per_parameter: The budget of a size is so many tokens for each of its parameters; None takes the budget of `run`.
        run: The recipe with all that is laid over it; its own sizes and rate are those that the rule starts from.
    """

    sizes: tuple[str, ...]
    data: str
    rate_power: float = 0.5
    tokens_per_parameter: float | None = None
    run: RunConfig = field(default_factory=RunConfig)


@dataclass(frozen=True)
class GptScaleConfig(ScaleConfig):
    """The same for a GPT."""

    run: GptRunConfig = field(default_factory=GptRunConfig)


_MAY_CHANGE = ("sizes", "run.compute.")
"""Keys that may change where the command goes on: sizes may be added."""


def read_model_sizes(sizes: Sequence[str], *, and_also: Iterable[str] = ()) -> list[Size]:
    """Returns sizes from text such as 4x256, the smallest first.

    Args:
        sizes: What the user named.
        and_also: Names of more, which may be among them.

    Raises:
        ConfigError: One of them cannot be read or stands there twice, or there are fewer than two in all.

    Example:
        >>> [size.name for size in read_model_sizes(["4x256", "2x64"])]
        ['2x64', '4x256']
    """
    found: list[Size] = []
    named = {text.strip().lower() for text in sizes}
    for text in [*sizes, *(name for name in and_also if name not in named)]:
        match = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,5})", text.strip().lower())
        if match is None:
            raise ConfigError(f"--sizes {text}: expected layers x width, such as 4x256")
        size = Size(int(match[1]), int(match[2]))
        if size in found:
            raise ConfigError(f"--sizes: {size.name} is there twice: give each size once")
        found.append(size)
    if len(found) < 2:
        given = ",".join(sizes) or "(none)"
        raise ConfigError(f"--sizes {given}: expected at least two, with commas, such as 2x64,2x128,4x128,4x256")
    return sorted(found, key=lambda size: (size.layers * (12 * size.width**2 + 13 * size.width), size.width))


def finished_sizes(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns what is known of the sizes in a folder that are finished, by their names."""
    return {line["size"]: line for line in read_jsonl(folder / "sizes.jsonl")}


def prepare_scaling(folder: Path, asked: ScaleConfig, progress: Progress, *, resume: bool) -> dict[str, dict[str, Any]]:
    """Makes the folder ready, and returns what is known of the sizes that are finished, by their names."""
    file = folder / "config.toml"
    done: dict[str, dict[str, Any]] = {}
    if resume and folder.is_dir() and any(folder.iterdir()):
        if not file.is_file() or not (folder / "sizes").is_dir():
            raise CheckpointError(f"{folder} holds no runs at several sizes to resume: give another --out")
        text = file.read_text(encoding="utf-8")
        is_gpt = "eos_token_id" in parse_toml(text, str(file)).get("run", {}).get("model", {})
        stored = from_toml(GptScaleConfig if is_gpt else ScaleConfig, text, source=str(file))
        check_config_unchanged(stored, asked, may_change=_MAY_CHANGE, what="these runs")
        done = finished_sizes(folder)
        progress.say(f"{sum(name in done for name in asked.sizes)} of {len(asked.sizes)} sizes are done already")
    else:
        clear_dir(folder)  # that it may be replaced was asked before
    (folder / "sizes").mkdir(parents=True, exist_ok=True)
    write_file(file, [to_toml(asked).encode()])
    return done


_BESIDE = 2_000_000
"""What a token costs beside matrix products, in parameters that cost as much; measured on a CPU, for the time that is left."""


def run_sizes(
    asked: ScaleConfig,
    sizes: Sequence[Size],
    manifest: Manifest,
    folder: Path,
    done: dict[str, dict[str, Any]],
    options: Mapping[str, Any],
    progress: Progress,
) -> None:
    """Trains each size that is not in `done`, and puts it there and on the disk."""
    counts = {size.name: _count_parameters(asked, size, manifest.vocab_size) for size in sizes}
    seconds = asked.run.budget.seconds
    if seconds:
        shares = dict.fromkeys(counts, seconds)
    else:  # what a token costs, times how many there are
        work = {
            name: (every + _BESIDE) * (every if asked.tokens_per_parameter else 1)
            for name, (every, _) in counts.items()
        }
        shares = {name: 100 * of_size / sum(work.values()) for name, of_size in work.items()}
    progress.start(f"{len(sizes)} sizes", total=sum(shares.values()), unit="seconds" if seconds else "%")
    progress.advance(sum(share for name, share in shares.items() if name in done))
    for number, size in enumerate(sizes, 1):
        if size.name in done:
            continue
        inner = SubProgress(progress, size.name, share=shares[size.name])
        done[size.name] = _run_size(size, asked, counts[size.name], folder / "sizes" / size.name, options, inner)
        lines = [(json.dumps(line, ensure_ascii=False) + "\n").encode() for line in done.values()]
        write_file(folder / "sizes.jsonl", lines)
        progress.say(f"size {number} of {len(sizes)}: {size.name}: held-out loss {done[size.name]['loss']:.4g}")
    progress.finish()


def _run_size(
    size: Size,
    asked: ScaleConfig,
    counts: tuple[int, int],
    folder: Path,
    options: Mapping[str, Any],
    progress: Progress,
) -> dict[str, Any]:
    """Trains a size, or goes on with it, and returns what is known of it at its end."""
    run = asked.run
    rate = run.optimizer.learning_rate * (run.model.hidden_size / size.width) ** asked.rate_power
    laid_over = [
        *(f"model.{key}={value}" for key, value in size.of_model().items()),
        f"optimizer.learning_rate={rate!r}",
    ]
    told = {**options, "settings": [*options["settings"], *laid_over]}
    if asked.tokens_per_parameter is not None:
        told["tokens"] = round(asked.tokens_per_parameter * counts[0])
    ended = pretrain(run.recipe, out=str(folder), **told, resume=True, progress=progress)
    return {
        "size": size.name,
        **asdict(size),
        "heads": size.heads,
        "parameters": counts[0],
        "parameters_in_layers": counts[1],
        "learning_rate": rate,
        **{key: ended[key] for key in ("steps", "tokens", "seconds")},
        **_figures(read_jsonl(folder / "log.jsonl")),
    }


def _count_parameters(asked: ScaleConfig, size: Size, vocab_size: int) -> tuple[int, int]:
    """Returns the parameters of a size, and how many of them are in its layers; nothing is drawn."""
    sizes = replace(asked.run.model, vocab_size=vocab_size, **size.of_model())
    with torch.device("meta"):
        model = make_model(sizes, OBJECTIVES[objective_name(asked.run.objective)].heads)
    return model.num_parameters(), model.num_parameters(embeddings=False)


def _figures(log: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns what the log of a run says at its end, and its evaluations on the way."""
    evaluations = [line for line in log if line["kind"] == "evaluation"]
    name = next(name for name in _LOSSES if name in evaluations[-1])
    told = {"loss": evaluations[-1][name], "unigram_loss": evaluations[-1]["held_out_unigram_loss"]}
    if "held_out_bits_per_byte" in evaluations[-1]:
        told["bits_per_byte"] = evaluations[-1]["held_out_bits_per_byte"]
    flops = sum(line["flops"] for line in log if line["kind"] == "train")
    curve = [{"tokens": line["tokens"], "loss": line[name]} for line in evaluations if line["step"]]
    return {**told, "flops": flops, "curve": curve}
