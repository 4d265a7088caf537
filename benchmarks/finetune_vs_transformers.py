"""Fine-tuning beside transformers: the same checkpoint, records, hyper-parameters and seed; wall-clock and dev metric.

    python benchmarks/finetune_vs_transformers.py --task sst2 --train TRAIN --dev DEV --model FOLDER --examples 4000

Each measurement is a process of its own (the script calls itself with `--side`); sides take turns, round by round. The clock runs from
the files to the dev predictions: reading, encoding, training, evaluating once at the end; not the imports. Sides:

    ours        `stemformer finetune`'s own functions, in what it takes by default (bf16 where the processor has it)
    ours_fp32   the same in fp32
    default     transformers' example of the task (run_glue, run_ner, run_qa): Trainer, fp32; run_glue and run_qa pad to the maximum
                length (128, 384), run_ner to the longest of a batch
    best        the same with padding to the longest of a batch, bf16 autocast, fused AdamW
    grouped     that, and texts of about one length in a batch (`group_by_length`, which gives up some of the order's randomness)

Equal: records (the first so many of a shuffle by a fixed seed), checkpoint, batch size, epochs, peak learning rate, linear warm-up over a
tenth and linear fall, weight decay 0.01, clipping at 1, hidden dropout 0.1. Not equal: transformers drops attention probabilities too
(0.1, as BertConfig has it), ours does not. Tasks: `sst2` (a text, two classes), `pos` (a tag a word), `squad` (answers in passages).
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import scipy.stats  # noqa: F401 - imported by ours in the course of a run, like the next three; no side's clock shall see imports
import seqeval.metrics  # noqa: F401
import sklearn.metrics  # noqa: F401
import torch
import torch._dynamo
import transformers
from matplotlib.backends import backend_svg  # noqa: F401

from stemformer.commands import finetune as finetuning
from stemformer.data.examples.batch import Example
from stemformer.device import choose_precision
from stemformer.progress import Silent
from stemformer.tasks.dataset import LabelledData, make_labelled_task, read_records
from stemformer.tasks.examples import TaskExamples
from stemformer.tasks.metrics import score_predictions
from stemformer.tasks.question_answering import QuestionAnswering, Window
from stemformer.tasks.task import TaskConfig
from stemformer.tasks.token_classification import TagPrediction
from stemformer.training.config import FinetuneConfig

TASKS = {"sst2": "classify", "pos": "tag", "squad": "qa"}
LONGEST = {"sst2": 128, "pos": 512, "squad": 384}
STRIDE = 128
SIDES = ("ours", "ours_fp32", "default", "best", "grouped")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--task", choices=list(TASKS), default="sst2")
    add("--train", nargs="+", required=True)
    add("--dev", nargs="+", required=True)
    add("--model", required=True)
    add("--examples", type=int, default=2000, help="of the training data; all sides the same ones")
    add("--dev-examples", type=int, default=1000)
    add("--epochs", type=int, default=1)
    add("--rate", type=float, default=5e-5)
    add("--batch", type=int, default=32)
    add("--seed", type=int, default=0)
    add("--rounds", type=int, default=2, help="each with a seed of its own")
    add("--threads", type=int, default=2)
    add("--sides", default=",".join(SIDES))
    add("--json", help="file for all measurements")
    add("--side", choices=SIDES, help=argparse.SUPPRESS)
    if (
        len(sys.argv) == 1
    ):  # as `make bench` calls it: there is no labelled text or model that could be taken by default
        return print("not run: give " + "--train, --dev and --model", file=sys.stderr)
    args = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if args.side:
        print(json.dumps(measure(args)))
    else:
        compare(args)


def compare(args: argparse.Namespace) -> None:
    sides = args.sides.split(",")
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "PYTHONWARNINGS": "ignore"}
    for number in range(args.rounds):
        for side in sides:
            options = ["--task", args.task, "--model", args.model, "--train", *args.train, "--dev", *args.dev]
            for name in ("examples", "dev_examples", "epochs", "rate", "batch", "threads"):
                options += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
            command = [sys.executable, __file__, "--side", side, "--seed", str(args.seed + number), *options]
            ran = subprocess.run(command, env=environment, capture_output=True, text=True)
            if ran.returncode:
                sys.exit(f"{side} failed:\n{ran.stderr[-3000:]}")
            found[side].append(json.loads(ran.stdout.splitlines()[-1]))
            print(f"round {number + 1}, {side}: {found[side][-1]}", file=sys.stderr, flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps({"arguments": vars(args), "measurements": found}, indent=1) + "\n")
    report(found, args)


def report(found: dict[str, list[dict[str, Any]]], args: argparse.Namespace) -> None:
    first = next(iter(found))
    print("| side | precision | seconds | ours is faster by | " + " | ".join(found[first][0]["metrics"]) + " |")
    print("|---" * (4 + len(found[first][0]["metrics"])) + "|")
    for side, runs in found.items():
        ratios = [b["seconds"] / a["seconds"] for a, b in zip(found[first], runs, strict=True)]
        metrics = [" ".join(f"{run['metrics'][name]:.4f}" for run in runs) for name in found[first][0]["metrics"]]
        seconds = statistics.median(run["seconds"] for run in runs)
        print(
            f"| {side} | {runs[0]['precision']} | {seconds:,.1f} | {statistics.median(ratios):.2f} | {' | '.join(metrics)} |"
        )
    print(f"""
{args.task}: {args.examples:,} training records, {args.dev_examples:,} of dev, {args.epochs} epochs, batch {args.batch}, rate {args.rate},
{args.threads} threads; medians of {args.rounds} rounds, each with a seed of its own (figures in their order); imports not counted.""")


def records_of(args: argparse.Namespace) -> tuple[Any, list[Any], list[Any]]:
    """Returns the task's settings and the records that all sides see."""
    from collections import Counter

    config = TaskConfig(TASKS[args.task], max_length=None if args.task == "pos" else LONGEST[args.task])
    train, config = read_records(config, args.train, counted=Counter())
    dev, _ = read_records(config, args.dev, counted=Counter())
    train = [r for r in train if args.task != "squad" or r.answers]
    shuffle = random.Random(0)
    shuffle.shuffle(train)
    shuffle.shuffle(dev)
    return config, train[: args.examples], dev[: args.dev_examples]


def measure(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    start = time.perf_counter()
    config, train, dev = records_of(args)
    problem = make_labelled_task(config, train)
    precision = "fp32" if args.side in ("ours_fp32", "default") else choose_precision("auto", torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        if args.side.startswith("ours"):
            metrics = by_us(args, problem, train, dev, precision, Path(folder))
            seconds = time.perf_counter() - start
        else:
            predictions, seconds = by_trainer(args, problem, train, dev, folder, start)
            metrics = score_predictions(problem.task, predictions, dev, entities=problem.entities)
    names = {"sst2": ["accuracy"], "pos": ["accuracy"], "squad": ["exact_match", "f1"]}[args.task]
    return {
        "side": args.side,
        "precision": precision,
        "seconds": round(seconds, 2),
        "metrics": {n: metrics[n] for n in names},
    }


def by_us(
    args: argparse.Namespace, problem: Any, train: list[Any], dev: list[Any], precision: str, folder: Path
) -> Any:
    given = FinetuneConfig(args.model, (), seed=args.seed, task=problem.task.config)
    given = finetuning.resolve(
        given,
        None,
        [f"batch.rows={args.batch}", f"optimizer.learning_rate={args.rate}", f"evaluation.every={10**9}"],
        budget={"epochs": args.epochs},
        compute={"precision": precision, "threads": args.threads},
    )
    data = LabelledData(problem, train, dev, [])
    return finetuning._run(given, data, folder / "run", resume=False, progress=Silent())


# ----------------------------------------------------------------------------------------------------------------------- transformers


def by_trainer(
    args: argparse.Namespace, problem: Any, train: list[Any], dev: list[Any], folder: str, start: float
) -> tuple[list[Any], float]:
    """Returns predictions of a model that transformers' Trainer has trained, and the seconds until they were there."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
    whole = args.side == "default" and args.task != "pos"
    make = {"sst2": encode_texts, "pos": encode_words, "squad": encode_questions}[args.task]
    features, _ = make(train, tokenizer, problem, whole, with_answers=True)
    dev_features, windows = make(dev, tokenizer, problem, whole, with_answers=False)
    kind = {
        "sst2": transformers.AutoModelForSequenceClassification,
        "pos": transformers.AutoModelForTokenClassification,
        "squad": transformers.AutoModelForQuestionAnswering,
    }[args.task]
    transformers.set_seed(args.seed)
    labels = {} if args.task == "squad" else {"num_labels": len(problem.task.labels)}
    model = kind.from_pretrained(args.model, **labels)
    best, grouped = args.side in ("best", "grouped"), args.side == "grouped"
    arguments = transformers.TrainingArguments(
        folder,
        per_device_train_batch_size=args.batch,
        per_device_eval_batch_size=args.batch,
        num_train_epochs=args.epochs,
        learning_rate=args.rate,
        warmup_steps=0.1,
        weight_decay=0.01,
        seed=args.seed,
        bf16=best and choose_precision("auto", torch.device("cpu")) == "bf16",
        **({"train_sampling_strategy": "group_by_length"} if grouped else {}),
        optim="adamw_torch_fused",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    collator = transformers.DataCollatorForTokenClassification(tokenizer) if args.task == "pos" else None
    collator = collator or (
        transformers.default_data_collator if whole else transformers.DataCollatorWithPadding(tokenizer)
    )
    trainer = transformers.Trainer(
        model, arguments, collator, datasets.Dataset.from_list(features), processing_class=tokenizer
    )
    trainer.train()
    order = list(range(len(dev_features)))
    if grouped:  # sorted by hand: with group_by_length, Trainer would give predictions back in another order
        trainer.args.train_sampling_strategy = "random"
        order.sort(key=lambda i: -len(dev_features[i]["input_ids"]))
    sorted_logits = trainer.predict(datasets.Dataset.from_list([dev_features[i] for i in order])).predictions
    whole_logits = sorted_logits if isinstance(sorted_logits, tuple) else (sorted_logits,)
    back = np.argsort(order)
    logits = tuple(part[back] for part in whole_logits)
    logits = logits if isinstance(sorted_logits, tuple) else logits[0]
    seconds = time.perf_counter() - start
    return decode(args.task, problem, logits, dev_features, windows, dev), seconds


def encode_texts(records: list[Any], tokenizer: Any, problem: Any, whole: bool, *, with_answers: bool) -> Any:
    texts = [r.texts[0] for r in records]
    rows = tokenizer(texts, truncation=True, max_length=128, padding="max_length" if whole else False)
    features = [{name: rows[name][i] for name in rows} for i in range(len(records))]
    if with_answers:
        for feature, record in zip(features, records, strict=True):
            feature["labels"] = problem.task.labels.index(record.label)
    return features, None


def encode_words(records: list[Any], tokenizer: Any, problem: Any, whole: bool, *, with_answers: bool) -> Any:
    rows = tokenizer([list(r.words) for r in records], truncation=True, max_length=512, is_split_into_words=True)
    features, firsts = [], []
    for i, record in enumerate(records):
        feature = {name: rows[name][i] for name in rows}
        owners = rows.word_ids(i)
        first = [o is not None and (j == 0 or owners[j - 1] != o) for j, o in enumerate(owners)]
        firsts.append([(j, o) for j, o in enumerate(owners) if first[j]])
        if with_answers:
            feature["labels"] = [
                problem.task.labels.index(record.tags[o]) if f else -100 for o, f in zip(owners, first, strict=True)
            ]
        features.append(feature)
    return features, firsts


def encode_questions(records: list[Any], tokenizer: Any, problem: Any, whole: bool, *, with_answers: bool) -> Any:
    rows = tokenizer(
        [r.question.lstrip() for r in records],
        [r.context for r in records],
        truncation="only_second",
        max_length=LONGEST["squad"],
        stride=STRIDE,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        padding="max_length" if whole else False,
    )
    owners, offsets = rows.pop("overflow_to_sample_mapping"), rows.pop("offset_mapping")
    features, windows = [], []
    for i, owner in enumerate(owners):
        feature = {name: rows[name][i] for name in rows}
        places = [j for j, s in enumerate(rows.sequence_ids(i)) if s == 1]
        window = Window(places[0], np.array([offsets[i][j] for j in places]))
        if with_answers:
            text, begin = records[owner].answers[0]
            inside = (window.offsets[:, 1] > begin) & (window.offsets[:, 0] < begin + len(text))
            tokens = np.flatnonzero(inside)
            fits = window.offsets[0, 0] <= begin and window.offsets[-1, 1] >= begin + len(text) and len(tokens)
            feature["start_positions"] = places[tokens[0]] if fits else 0
            feature["end_positions"] = places[tokens[-1]] if fits else 0
        features.append(feature)
        windows.append((owner, window))
    return features, windows


def decode(task: str, problem: Any, logits: Any, features: list[Any], windows: Any, dev: list[Any]) -> list[Any]:
    """Returns predictions from transformers' scores by our rules, so that a metric compares models and nothing else."""
    none = np.empty(0, np.int64)
    if task == "pos":
        predictions = []
        for row, firsts, record in zip(logits, windows, dev, strict=True):
            tags = [problem.task.filler] * len(record.words)
            for place, word in firsts:
                tags[word] = problem.task.labels[int(row[place].argmax())]
            predictions.append(TagPrediction(tuple(tags), (0.0,) * len(tags)))
        return predictions
    examples = [Example(np.array(f["input_ids"]), np.array([len(f["input_ids"])]), none, none) for f in features]
    if task == "sst2":
        return problem.task.decode(list(logits[:, None]), TaskExamples(examples, np.arange(len(dev)), (), {}), dev)
    assert isinstance(problem.task, QuestionAnswering)
    scores = [np.stack([a, b], -1) for a, b in zip(*logits[:2], strict=True)]
    owners = np.array([owner for owner, _ in windows])
    return problem.task.decode(scores, TaskExamples(examples, owners, [w for _, w in windows], {}), dev)


if __name__ == "__main__":
    main()
