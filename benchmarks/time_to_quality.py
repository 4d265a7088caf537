"""Validation loss over time: the same minutes for ours and for peers, on the same text and held-out text.

    python benchmarks/time_to_quality.py
    python benchmarks/time_to_quality.py train --side SIDE --data TOKENIZED_DATA --out DIRECTORY --minutes 60
    python benchmarks/time_to_quality.py train --recipe gpt_mini --side SIDE --data TOKENIZED_DATA --out DIRECTORY --minutes 5
    python benchmarks/time_to_quality.py show DIRECTORY --picture FILE

Without arguments, a minute for each side of a BERT on the embedded samples. Sides of a BERT:

    ours      `stemformer pretrain` with the recipe as it is; its clock includes its evaluations and checkpoints
    tuned     transformers' masked-LM class of the recipe's architecture by hand: bf16 if the processor has it, fused
              AdamW, torch.compile (included in its clock), prefetched batches, freed memory kept; learning rate, betas,
              warm-up and decay, rows in a step, fraction of masked words and no dropout, all as in our recipe
    shipped   the defaults of transformers' run_mlm example: float32, eager, 8 rows, 5e-5 with linear decay, 15 % masked,
              dropout 0.1

Text of these peers: documents joined end to end and cut into rows of 128 (run_mlm's group_texts), shuffled each epoch. All
see the same held-out rows with the same masks, 15 % of the tokens; each of their sequences begins at position 0 with
[CLS]. What ours has and tuned has not: Muon, an output bias initialized by unigram frequencies, positions initialized as
sinusoids, chunks of documents that do not see each other, and in ModernBERT's recipes embeddings from co-occurrence counts
and a softmax over a sample of the ids.

Sides of a GPT (data tokenized with a byte-level BPE), all with the recipe's shape and sequence length:

    ours      `stemformer pretrain` with the recipe and `--documents`; its clock includes its evaluations and checkpoints
    example   the defaults of transformers' run_clm example: float32, eager, 8 blocks in a step, AdamW, 5e-5 with linear decay,
              dropout 0.1
    nanogpt   a loop in nanoGPT's style (`nano_gpt.py`): bf16 if the processor has it, fused AdamW with betas 0.9 and 0.99 and
              decay 0.1 on matrices, 1e-3 with cosine decay to a tenth after 100 steps, as many rows as ours, no dropout

All are scored on the same held-out text in rows of the same length: ours in the form of its training (`apart`: each chunk
of a document by itself; `stream`: rows that continue across documents), the others as a stream. Bits per byte count every
token and every document's end, over the bytes of the text.

The clock of a peer runs while it trains and is stopped while it is evaluated, by our evaluation, on weights converted by
`models.hf_names`.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import frame
import numpy as np
import torch
import transformers
from nano_gpt import NanoGpt, as_hugging_face, sample_batch
from pretrain_frame import CPU, join_documents, prepare_samples, transformers_model
from torch import Tensor

import stemformer
from stemformer.config import with_settings
from stemformer.data.examples.packing import pack_documents
from stemformer.data.examples.sampling import permuted, prefetch
from stemformer.data.shards.reader import Shards, open_shards
from stemformer.data.tokenization.tokenizer import END_OF_TEXT, load_tokenizer
from stemformer.device import autocast, choose_precision, configure_allocator
from stemformer.evaluation.held_out import held_out_masks, make_held_out_evaluation
from stemformer.generation.text import generate_samples, sample_prompts
from stemformer.huggingface.load import load_model_and_tokenizer
from stemformer.io import read_jsonl, write_json
from stemformer.models.hf_names import GPT, from_hugging_face
from stemformer.models.model import ARCHITECTURES, Model, make_model
from stemformer.objectives.causal_lm import CausalLm, CausalLmConfig
from stemformer.objectives.masked_lm import MaskedLm, MaskedLmConfig, SpecialIds
from stemformer.objectives.objective import OBJECTIVES, LossModule
from stemformer.recipes import find_recipe
from stemformer.training.optimizer import make_optimizer


@dataclass(frozen=True)
class Family:
    """Sides and metrics of a kind of model.

    Attributes:
        sides: Name and title of each side.
        loss: Key of the held-out loss.
        metric: Key of the metric that is compared, lower is better.
        label: Label of the metric.
        shown: Key, heading and format of a further column.
        defaults: Default options of `train`.
    """

    sides: dict[str, str]
    loss: str
    metric: str
    label: str
    shown: tuple[str, str, str]
    defaults: dict[str, Any]


BERT = Family(
    {
        "ours": "stemformer",
        "tuned": "transformers by hand, same learning rate and batch",
        "shipped": "transformers, defaults of run_mlm",
    },
    "held_out_masked_lm_loss",
    "held_out_masked_lm_loss",
    "held-out loss (nats per masked word)",
    ("held_out_masked_lm_accuracy", "masked words correct", ".1%"),
    {"minutes": 60, "threads": 2, "held_out_rows": 256, "evaluations": 60},
)
GPT_FAMILY = Family(
    {
        "ours": "stemformer",
        "example": "transformers, defaults of run_clm",
        "nanogpt": "a loop in nanoGPT's style",
    },
    "held_out_causal_lm_loss",
    "held_out_bits_per_byte",
    "held-out bits per byte",
    ("held_out_bits_per_byte", "bits per byte", ".3f"),
    {"minutes": 5, "threads": 1, "held_out_rows": 128, "evaluations": 12},
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command")
    train = commands.add_parser("train")
    add = train.add_argument
    add("--side", choices=list(BERT.sides | GPT_FAMILY.sides), required=True)
    add("--data", required=True, help="directory of tokenized data (output of `stemformer prepare`)")
    add("--out", required=True, help="output directory, the same for all sides")
    add("--recipe", default="bert_mini")
    add("--set", action="append", default=[], help="key=value: override of the recipe, for all sides; repeatable")
    add("--minutes", type=float, help="default: 60 for a BERT, 5 for a GPT")
    add("--threads", type=int, help="default: 2 for a BERT, 1 for a GPT")
    add("--held-out-rows", type=int, help="default: 256 for a BERT, 128 for a GPT")
    add("--every", type=int, help="steps between evaluations of ours; default: that of the recipe")
    add("--documents", choices=["apart", "stream"], help="documents of our GPT; default: those of the recipe")
    add("--seed", type=int, default=0)
    show = commands.add_parser("show")
    show.add_argument("out")
    show.add_argument("--picture")
    args = parser.parse_args()
    if args.command is None:
        return try_samples()
    if args.command == "show":
        return report(Path(args.out), args.picture)
    args.config = with_settings(find_recipe(args.recipe), args.set)
    family = family_of(args.config)
    if args.side not in family.sides:
        parser.error(f"--side {args.side}: expected one of {', '.join(family.sides)} for {args.recipe}")
    for name, value in family.defaults.items():
        if getattr(args, name, None) is None:
            setattr(args, name, value)
    torch.set_num_threads(args.threads)
    Path(args.out).mkdir(parents=True, exist_ok=True)
    model = train_ours(args) if args.side == "ours" else train_peer(args)
    if family is GPT_FAMILY:
        tokenizer = load_tokenizer(Path(args.data) / "tokenizer")
        prompts = sample_prompts(open_shards(args.data, "held_out"), tokenizer, number=2)
        samples = generate_samples(model, tokenizer, prompts, max_length=args.config.batch.sequence_length)
        write_json(Path(args.out) / f"{args.side}-samples.json", samples)


def family_of(config: Any) -> Family:
    return GPT_FAMILY if "causal_lm" in OBJECTIVES[config.objective.name].heads else BERT


def try_samples() -> None:
    """Train each side of a BERT for a minute on the embedded samples: a check that the script works, not a result."""
    with tempfile.TemporaryDirectory(prefix="stemformer-bench-") as folder:
        data = prepare_samples(Path(folder))
        for side in BERT.sides:
            options = [f"--side={side}", f"--data={data}", f"--out={folder}/out", "--minutes=1"]
            subprocess.run([sys.executable, __file__, "train", *options], check=True)
        report(Path(folder) / "out", None)


# ---------------------------------------------------------------------------------------- Training


def train_ours(args: argparse.Namespace) -> Model:
    run = str(Path(args.out) / "ours")
    settings = [f"evaluation.num_examples={args.held_out_rows}", "evaluation.num_cloze_examples=0"]
    settings += [f"evaluation.every={args.every}"] if args.every else []
    settings += [f"objective.documents={args.documents}"] if args.documents else []
    stemformer.pretrain(
        args.recipe,
        data=args.data,
        out=run,
        time=f"{args.minutes}m",
        threads=args.threads,
        seed=args.seed,
        settings=[*settings, *args.set],
    )
    return load_model_and_tokenizer(run)[0]


@dataclass
class Peer:
    """Training of a peer.

    Attributes:
        peak: Peak learning rate.
        factor: Learning rate relative to its peak, from the step and the elapsed fraction of the time.
        batches: Endless batches.
        loss: Loss of a batch.
        to_ours: Model of ours with the current weights.
        evaluate: Held-out metrics of such a model.
    """

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    precision: str
    peak: float
    factor: Callable[[int, float], float]
    clip_norm: float
    tokens_per_step: int
    batches: Iterator[Any]
    loss: Callable[[Any], Tensor]
    to_ours: Callable[[], Model]
    evaluate: Callable[[Model], dict[str, float]]


def train_peer(args: argparse.Namespace) -> Model:
    """Train a peer until its time is over, log its held-out metrics, and return its weights as a model of ours."""
    torch.manual_seed(args.seed)
    peer = (gpt_peer if family_of(args.config) is GPT_FAMILY else bert_peer)(args)
    seconds, spent, step, num_evaluated, loss = 60 * args.minutes, 0.0, 0, 0, float("nan")
    with (Path(args.out) / f"{args.side}.jsonl").open("w", encoding="utf-8", buffering=1) as log:

        def write() -> None:
            line = {"step": step, "tokens": step * peer.tokens_per_step, "seconds": round(spent, 2)}
            metrics = peer.evaluate(peer.to_ours())
            log.write(json.dumps({**line, **({"loss": loss} if step else {}), **metrics}) + "\n")

        write()
        while spent < seconds:
            start = time.perf_counter()
            batch = next(peer.batches)
            for group in peer.optimizer.param_groups:
                group["lr"] = peer.peak * peer.factor(step, spent / seconds)
            with autocast(CPU, peer.precision):
                tensor = peer.loss(batch)
            tensor.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(peer.model.parameters(), peer.clip_norm)
            peer.optimizer.step()
            peer.optimizer.zero_grad(set_to_none=True)
            loss = tensor.item()
            spent += time.perf_counter() - start
            step += 1
            if int(spent / seconds * args.evaluations) > num_evaluated or spent >= seconds:
                num_evaluated = int(spent / seconds * args.evaluations)
                write()
    return peer.to_ours()


def linear_decay(step: int, fraction: float) -> float:
    return 1 - fraction


# -------------------------------------------------------------------------------------- BERT peers


def bert_peer(args: argparse.Namespace) -> Peer:
    config, is_tuned = args.config, args.side == "tuned"
    tokenizer = load_tokenizer(Path(args.data) / "tokenizer")
    ours = replace(config.model, vocab_size=tokenizer.vocab_size)
    architecture = ARCHITECTURES[config.model_type]
    # The defaults of run_mlm keep BERT's dropout; ModernBERT has none.
    dropout: dict[str, float] = {}
    if not is_tuned and config.model_type == "bert":
        dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    model = transformers_model(ours, **dropout)
    if is_tuned:
        configure_allocator(CPU)
        rows, rate, peak = config.batch.size, config.objective.mask_rate, config.optimizer.learning_rate
        clip_norm = config.optimizer.max_grad_norm
        optimizer = make_optimizer(model, replace(config.optimizer, kind="adamw"))
        precision, forward = choose_precision("auto", CPU), torch.compile(model)
    else:
        rows, rate, peak, clip_norm = 8, 0.15, 5e-5, 1.0
        optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.0, fused=True)
        precision, forward = "fp32", model
    special = SpecialIds(cls=tokenizer.cls_token_id, sep=tokenizer.sep_token_id, mask=tokenizer.mask_token_id)
    objective = MaskedLm(held_out_masks(MaskedLmConfig()), special=special, vocab_size=tokenizer.vocab_size)
    held_out = pack_documents(open_shards(args.data, "held_out"), sequence_length=config.batch.sequence_length)
    collate = transformers.DataCollatorForLanguageModeling(
        transformers.AutoTokenizer.from_pretrained(Path(args.data) / "tokenizer"), mlm_probability=rate
    )
    converted = make_model(ours, ["masked_lm"])

    def to_ours() -> Model:
        names = architecture.parameter_names
        converted.load_state_dict(from_hugging_face(model.state_dict(), list(converted.state_dict()), names)[0])
        return converted

    return Peer(
        model,
        optimizer,
        precision,
        peak,
        wsd_factor if is_tuned else linear_decay,
        clip_norm,
        rows * config.batch.sequence_length,
        masked_batches(open_shards(args.data), collate, special, rows, config.batch.sequence_length, args.seed),
        lambda batch: forward(**batch).loss,
        to_ours,
        evaluation(held_out, objective, args),
    )


def wsd_factor(step: int, fraction: float) -> float:
    """Return the learning rate of our timed runs, relative to its peak: warm-up, constant, decay over the last fifth."""
    return min(max(fraction, 1e-3) / 0.05, 1.0, (1 - fraction) / 0.2)


def masked_batches(
    shards: Shards, collate: Any, special: SpecialIds, rows: int, length: int, seed: int
) -> Iterator[Any]:
    """Return masked batches of rows cut from documents joined end to end, in another order each epoch."""
    parts: list[Any] = []
    for number in range(shards.num_documents):
        parts += [[special.cls], shards.tokens(*shards.document_starts[number : number + 2]), [special.sep]]
    joined = np.concatenate(parts)
    table = joined[: len(joined) // length * length].reshape(-1, length)

    def make(step: int) -> Any:
        epoch, first = divmod(step * rows, len(table) // rows * rows)
        chosen = permuted(np.arange(first, first + rows), len(table), seed=seed, epoch=epoch)
        ids = table[chosen].astype(np.int64)
        is_special = ((ids == special.cls) | (ids == special.sep)).astype(int)
        batch = collate([{"input_ids": a, "special_tokens_mask": b} for a, b in zip(ids, is_special, strict=True)])
        batch.pop("attention_mask", None)  # nothing is padded: the faster way
        return dict(batch)

    return iter(prefetch(make, range(2**40)))


# --------------------------------------------------------------------------------------- GPT peers


def gpt_peer(args: argparse.Namespace) -> Peer:
    config, is_nano = args.config, args.side == "nanogpt"
    tokenizer = load_tokenizer(Path(args.data) / "tokenizer")
    end = tokenizer.token_to_id(END_OF_TEXT)
    assert end is not None, "a byte-level BPE"
    length = config.batch.sequence_length
    sizes = replace(config.model, vocab_size=tokenizer.vocab_size, eos_token_id=end, hidden_dropout_prob=0.0)
    if is_nano:
        configure_allocator(CPU)
        model: Any = NanoGpt(sizes).train()
        matrices = [p for p in model.parameters() if p.ndim > 1]
        others = [p for p in model.parameters() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), fused=True)
        precision, rows = choose_precision("auto", CPU), config.batch.size
    else:
        # The defaults of run_clm keep GPT-2's dropout; Llama has none.
        dropout = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1} if sizes.model_type == "gpt2" else {}
        model = transformers_model(sizes, tie_word_embeddings=True, **dropout)
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.0)
        precision, rows = "fp32", 8
    objective = CausalLm(CausalLmConfig(documents="stream"), special=SpecialIds(eos=end))
    held_out = objective.make_examples(open_shards(args.data, "held_out"), length)
    converted = make_model(replace(sizes, hidden_act="gelu") if is_nano else sizes, ["causal_lm"])

    def compute_loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        ids, labels = batch
        loss: Tensor = model(ids, labels) if is_nano else model(input_ids=ids, labels=labels, use_cache=False).loss
        return loss

    def to_ours() -> Model:
        state = as_hugging_face(model.state_dict()) if is_nano else model.state_dict()
        converted.load_state_dict(from_hugging_face(state, list(converted.state_dict()), GPT)[0])
        return converted

    return Peer(
        model,
        optimizer,
        precision,
        1e-3 if is_nano else 5e-5,
        cosine_factor if is_nano else linear_decay,
        1.0,
        rows * length,
        causal_batches(args, rows, length, end, is_nano=is_nano),
        compute_loss,
        to_ours,
        evaluation(held_out, objective, args),
    )


def cosine_factor(step: int, fraction: float) -> float:
    """Return the learning rate relative to its peak: warm-up over 100 steps, cosine decay to a tenth."""
    return min((step + 1) / 100, 1.0) * (0.1 + 0.45 * (1 + math.cos(math.pi * fraction)))


def causal_batches(
    args: argparse.Namespace, rows: int, length: int, end: int, *, is_nano: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield ids and labels: from random positions for nanoGPT, otherwise run_clm's blocks in another order each epoch."""
    shards = open_shards(args.data)
    stream = torch.tensor(join_documents(shards, shards.num_tokens + shards.num_documents, after=[end]))
    table = stream[: len(stream) // length * length].view(-1, length)
    step = 0
    while True:
        if is_nano:
            yield sample_batch(stream, rows=rows, length=length, seed=args.seed, step=step)
        else:
            epoch, first = divmod(step * rows, len(table) // rows * rows)
            chosen = permuted(np.arange(first, first + rows), len(table), seed=args.seed, epoch=epoch)
            ids = table[torch.from_numpy(chosen.astype("int64"))]
            yield ids, ids
        step += 1


def evaluation(held_out: Any, objective: Any, args: argparse.Namespace) -> Callable[[Model], dict[str, float]]:
    score = make_held_out_evaluation(held_out, objective, num_examples=args.held_out_rows, device=CPU)
    return lambda model: dict(score(LossModule(model, objective)))


# ----------------------------------------------------------------------------------------- Results


def report(folder: Path, picture: str | None) -> None:
    """Print the table, samples of a GPT, and write the plot."""
    family, logs = read_logs(folder)
    header = ("side", "steps", "tokens", "minutes", "held-out loss", family.shown[1])
    rows = []
    for side, lines in logs.items():
        last = lines[-1]
        passed = None if side == "ours" else seconds_to(logs.get("ours", []), family.metric, last[family.metric])
        key, _, form = family.shown
        rows.append(
            (
                side,
                f"{last['step']:,}",
                f"{last['tokens'] / 1e6:.2f} M",
                f"{last['seconds'] / 60:.1f}",
                f"{last[family.loss]:.3f}",
                f"{last[key]:{form}}",
                "" if passed is None else f"{passed / 60:.1f} min",
                "" if passed is None else f"{passed / last['seconds']:.2f}",
            )
        )
    frame.print_table((*header, "ours passed it after", "fraction of its time"), rows)
    first = next(iter(logs.values()))[0]
    print(f"\nUnigram baseline: {first['held_out_unigram_loss']:.3f} nats, ", end="")
    print(f"{first['held_out_unigram_accuracy']:.1%} correct. {frame.processor()}")
    for side in logs:
        file = folder / f"{side}-samples.json"
        for sample in json.loads(file.read_text(encoding="utf-8")) if file.is_file() else ():
            print(f"\n{side}: [{sample['prompt']}]{sample['text']}")
    if picture:
        plot(family, logs, picture)


def read_logs(folder: Path) -> tuple[Family, dict[str, list[dict[str, Any]]]]:
    """Return the kind of model of a directory, and the evaluations of each side."""
    for family in (BERT, GPT_FAMILY):
        files = {side: folder / (f"{side}.jsonl" if side != "ours" else "ours/log.jsonl") for side in family.sides}
        logs = {side: [line for line in read_jsonl(file) if family.metric in line] for side, file in files.items()}
        if found := {side: lines for side, lines in logs.items() if lines}:
            return family, found
    sys.exit(f"{folder} holds no logs of this comparison.")


def seconds_to(lines: list[dict[str, Any]], metric: str, value: float) -> float | None:
    """Return the time of the first evaluation at or below a value."""
    return next((line["seconds"] for line in lines if line[metric] <= value), None)


def plot(family: Family, logs: dict[str, list[dict[str, Any]]], picture: str) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for side, lines in logs.items():
        minutes = [line["seconds"] / 60 for line in lines]
        axes.plot(minutes, [line[family.metric] for line in lines], label=family.sides[side], linewidth=2)
    axes.set(xlabel="minutes of training", ylabel=family.label, xlim=(0, None))
    if family is BERT:
        unigram = next(iter(logs.values()))[0]["held_out_unigram_loss"]
        axes.axhline(unigram, color="gray", linestyle=":", label="unigram baseline")
        axes.set_ylim(None, unigram + 1)
    if {"ours", "tuned"} <= set(logs):
        last = logs["tuned"][-1][family.metric]
        passed = seconds_to(logs["ours"], family.metric, last)
        axes.axhline(last, color="gray", linewidth=0.8)
        if passed is not None:
            axes.plot([passed / 60], [last], "ko")
            axes.annotate(f"{passed / 60:.0f} min", (passed / 60, last), xytext=(6, 6), textcoords="offset points")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=150)


if __name__ == "__main__":
    main()
