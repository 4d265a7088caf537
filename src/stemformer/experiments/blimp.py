"""The `benchmark blimp` command: accuracy on minimal pairs, next to published results."""

import hashlib
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from stemformer.config import from_toml
from stemformer.data.tokenization.tokenizer import Encoding
from stemformer.device import autocast, choose_device, choose_precision, configure_allocator, set_threads
from stemformer.errors import ConfigError
from stemformer.evaluation.few_shot.evaluate import mean_interval
from stemformer.evaluation.few_shot.scoring import WITHIN_WORD_L2R, check_pll
from stemformer.evaluation.minimal_pairs import (
    PUBLISHED_BLIMP,
    MinimalPairSet,
    count_correct,
    encode_pairs,
    read_minimal_pairs,
)
from stemformer.experiments.few_shot import EvaluatedModel, load_evaluated_model
from stemformer.experiments.run_grid import PlannedRun, Record, RunGrid, prepare_experiment_dir
from stemformer.huggingface.load import find_model_folder
from stemformer.io import write_json
from stemformer.options import BlimpOptions, accepts
from stemformer.output_dir import exclusive_output_dir
from stemformer.progress import Progress, Silent
from stemformer.reports.blimp import accuracy_rows, write_blimp_report

_FILTERED = (
    "published results are of filtered sets, without the pairs whose words the training text lacks, and with other "
    "tokenization: compare with care"
)
_TIES = "a pair whose sentences have equal scores is counted as wrong"


@dataclass(frozen=True)
class BlimpConfig:
    """Config of a run on BLiMP; digests identify the weights and vocabulary, and the sentences."""

    model: str
    data: str
    pll: str
    # Pairs of each set; None for all.
    limit: int | None
    precision: str
    model_digest: str
    data_digest: str


@exclusive_output_dir
@accepts(BlimpOptions)
def benchmark_blimp(options: BlimpOptions, *, progress: Progress | None = None) -> dict[str, Any]:
    """Score the minimal pairs of BLiMP and list the accuracy next to published results.

    A pair is correct if its acceptable sentence has the higher log-likelihood, not divided by length; a tie
    is wrong. A finished set is a line of `finished.jsonl`.

    Returns:
        By scoring (`causal`, or values of `pll`): `accuracy` (mean over the sets), the 95 % `interval` of this mean
        for other pairs of the same sets, and `ties`; `pairs`, `minutes`; in percent, the `table` of all sets, fields
        and phenomena, `sets` and `published` results; `notes`.

    Raises:
        StemformerError: The directory holds no sets, the model has no language-modeling head, or they do not
            fit together.

    Example:
        >>> benchmark_blimp("blimp/data", model="runs/first", out="runs/blimp")["accuracy"]  # doctest: +SKIP
        {'within_word_l2r': 0.643}
    """
    progress = progress or Silent()
    if options.limit is not None and options.limit < 1:
        raise ConfigError(f"--limit {options.limit}: expected at least 1")
    set_threads(options.threads)
    device = choose_device(options.device)
    configure_allocator(device)

    # Model and sentences, all of them checked before anything is written.
    progress.start("reading sentences")
    name = Path(options.model).name
    model = load_evaluated_model(options.model, name, find_model_folder(options.model), device)
    scorings = _scorings(model, options.pll)
    sets = read_minimal_pairs(options.data, limit=options.limit)
    max_tokens = model.body.config.max_position_embeddings - (2 if model.is_masked else 0)
    encoded = {pairs.name: encode_pairs(pairs, model.tokenizer, max_tokens=max_tokens) for pairs in sets}
    model.body.warn_beyond_training(max(len(e.ids) for encodings in encoded.values() for e in encodings))
    notes = [_TIES, _FILTERED]
    if note := model.tokenizer.unknown.note():
        progress.say(note)
        notes.insert(0, note)

    # Output directory.
    config = BlimpConfig(
        model=options.model,
        data=options.data,
        pll=options.pll,
        limit=options.limit,
        precision=choose_precision(options.precision, device),
        model_digest=model.digest[:16],
        data_digest=hashlib.sha256(repr([(x.name, x.sentences) for x in sets]).encode()).hexdigest()[:16],
    )
    grid = RunGrid(
        prepare_experiment_dir(options, [options.data, options.model], command="A benchmark"),
        config,
        key=lambda record: str(record["set"]),
        what="benchmark",
        resume=options.resume,
        stored_config=lambda text, source: from_toml(BlimpConfig, text, source=source),
    )

    # Sets that are not finished.
    plans = {
        pairs.name: PlannedRun(
            pairs.name,
            partial(_run_set, model, pairs, encoded[pairs.name], scorings, config.precision),
            weight=len(pairs.sentences),
        )
        for pairs in sets
    }
    records = grid.run(plans, progress, describe=_describe, name="set", unit="pairs", phase="scoring")
    return _conclude(grid.folder, model, config, records, notes)


def _scorings(model: EvaluatedModel, pll: str) -> tuple[str, ...]:
    """Return how sentences are scored."""
    check_pll(pll, is_causal=not model.is_masked)
    if not model.is_masked:
        return ("causal",)
    return (WITHIN_WORD_L2R, "original") if pll == "both" else (pll,)


def _run_set(
    model: EvaluatedModel,
    pairs: MinimalPairSet,
    encodings: list[Encoding],
    scorings: tuple[str, ...],
    precision: str,
    progress: Progress,
) -> Record:
    begin = time.perf_counter()
    progress.start("scoring", total=1)
    with autocast(model.device, precision):
        counts = count_correct(model.body, model.tokenizer, encodings, scorings)
    progress.advance(1)
    group = {"set": pairs.name, "field": pairs.field, "phenomenon": pairs.phenomenon, "pairs": len(pairs.sentences)}
    return group | counts | {"seconds": round(time.perf_counter() - begin, 2)}


def _describe(record: Record) -> str:
    return ", ".join(f"{name} {100 * number / record['pairs']:.1f}" for name, number in record["correct"].items())


def _conclude(
    folder: Path | None, model: EvaluatedModel, config: BlimpConfig, records: list[Record], notes: list[str]
) -> dict[str, Any]:
    """Write `blimp.json` and the report, and return the result."""
    assert folder is not None
    numbers = [record["pairs"] for record in records]
    shares = {name: [r["correct"][name] / r["pairs"] for r in records] for name in records[0]["correct"]}
    accuracy = {name: fmean(values) for name, values in shares.items()}
    content = {
        "benchmark": "BLiMP",
        "model": config.model,
        "parameters": model.body.num_parameters(),
        "accuracy": accuracy,
        "interval": {name: mean_interval(values, numbers) for name, values in shares.items()},
        "ties": {name: sum(record["ties"][name] for record in records) for name in accuracy},
        "pairs": sum(numbers),
        "minutes": round(sum(record["seconds"] for record in records) / 60, 2),
        **accuracy_rows(records),
        "published": PUBLISHED_BLIMP,
        "notes": notes,
    }
    write_json(folder / "blimp.json", content)
    report = write_blimp_report(folder, f"BLiMP: {model.name}", content)
    return {"run": str(folder), "report": str(report), **content}
