"""Fine-tuning next to transformers: same checkpoint, records, hyper-parameters and seed; wall-clock time and dev metric.

    python benchmarks/finetune_vs_transformers.py --task sst2 --train TRAIN --dev DEV --model MODEL --examples 4000

The clock runs from the files to the dev predictions: reading, tokenization, training, one evaluation at the end; not the
imports. Each round has its own seed. Sides:

    ours        the functions of `stemformer finetune` with its default precision (bf16 if the processor has it)
    ours_fp32   the same in fp32
    default     transformers' example of the task (run_glue, run_ner, run_qa): Trainer, fp32; run_glue and run_qa pad to the
                maximum length (128, 384), run_ner to the longest of a batch
    best        the same with padding to the longest of a batch, bf16 autocast, fused AdamW
    grouped     best, with texts of similar length in a batch (`group_by_length`, which makes the order less random)

Equal: records (the first ones after a shuffle with a fixed seed), checkpoint, batch size, epochs, peak learning rate,
linear warm-up over a tenth and linear decay, weight decay 0.01, clipping at 1, hidden dropout 0.1. Not equal: transformers
also has dropout on attention probabilities (0.1, the default of BertConfig), ours does not. Tasks: `sst2` (text
classification, two classes), `pos` (token classification), `squad` (question answering).
"""

import argparse
import random
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import frame
import numpy as np
import scipy.stats  # noqa: F401 - imported before the clock starts, as the modules below that ours imports during a run
import seqeval.metrics  # noqa: F401
import sklearn.metrics  # noqa: F401
import torch
import torch._dynamo
import transformers
from matplotlib.backends import backend_svg  # noqa: F401

from stemformer.commands import finetune as finetuning
from stemformer.data.examples.batch import Example
from stemformer.device import choose_precision
from stemformer.options import FinetuneOptions
from stemformer.progress import Silent
from stemformer.tasks.dataset import LabelledData, make_labelled_task, read_records
from stemformer.tasks.examples import TaskExamples
from stemformer.tasks.question_answering import QuestionAnswering, Window
from stemformer.tasks.task import TaskConfig
from stemformer.tasks.token_classification import TagPrediction

TASKS = {"sst2": "classify", "pos": "tag", "squad": "qa"}
MAX_LENGTHS = {"sst2": 128, "pos": 512, "squad": 384}
STRIDE = 128
SIDES = ("ours", "ours_fp32", "default", "best", "grouped")


def main() -> None:
    parser = frame.make_parser(__doc__, SIDES, rounds=2)
    add = parser.add_argument
    add("--task", choices=list(TASKS), default="sst2")
    add("--train", nargs="+", required=True)
    add("--dev", nargs="+", required=True)
    add("--model", required=True)
    add("--examples", type=int, default=2000, help="number of training records, the same for all sides")
    add("--dev-examples", type=int, default=1000)
    add("--epochs", type=int, default=1)
    add("--rate", type=float, default=5e-5, help="peak learning rate")
    add("--batch", type=int, default=32)
    add("--seed", type=int, default=0, help="seed of the first round")
    frame.run(
        parser,
        measure,
        report,
        describe=str,
        per_round=lambda args, number: [f"--seed={args.seed + number}"],
        environment={"TOKENIZERS_PARALLELISM": "true"},
        requires="--train, --dev and --model",
    )


def report(found: frame.Measurements, args: argparse.Namespace) -> None:
    first = next(iter(found.values()))
    names = list(first[0]["metrics"])
    rows = [
        (
            side,
            runs[0]["precision"],
            f"{frame.median(runs, 'seconds'):,.1f}",
            f"{frame.speedup(first, runs, 'seconds', is_rate=False):.2f}",
            *(" ".join(f"{run['metrics'][name]:.4f}" for run in runs) for name in names),
        )
        for side, runs in found.items()
    ]
    frame.print_table(("side", "precision", "seconds", "ours is faster by", *names), rows)
    print(
        f"\n{args.task}: {args.examples:,} training records, {args.dev_examples:,} dev records, {args.epochs} epochs, "
        f"batch {args.batch}, learning rate {args.rate}, {args.threads} threads; medians of {args.rounds} rounds, "
        "each with its own seed (metrics in their order); imports not counted."
    )


def read_data(args: argparse.Namespace) -> tuple[Any, list[Any], list[Any]]:
    """Return the config of the task and the records that all sides see."""
    config = TaskConfig(TASKS[args.task], max_length=None if args.task == "pos" else MAX_LENGTHS[args.task])
    train, config = read_records(config, args.train, counts=Counter())
    dev, _ = read_records(config, args.dev, counts=Counter())
    train = [r for r in train if args.task != "squad" or r.answers]
    shuffle = random.Random(0)
    shuffle.shuffle(train)
    shuffle.shuffle(dev)
    return config, train[: args.examples], dev[: args.dev_examples]


def measure(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    start = time.perf_counter()
    config, train, dev = read_data(args)
    task = make_labelled_task(config, train)
    precision = "fp32" if args.side in ("ours_fp32", "default") else choose_precision("auto", torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        if args.side.startswith("ours"):
            metrics = finetune_ours(args, task, train, dev, precision, Path(folder))
            seconds = time.perf_counter() - start
        else:
            predictions, seconds = finetune_theirs(args, task, train, dev, folder, start)
            metrics, _ = task.compute_metrics(predictions, dev)
    names = {"sst2": ["accuracy"], "pos": ["accuracy"], "squad": ["exact_match", "f1"]}[args.task]
    return {
        "side": args.side,
        "precision": precision,
        "seconds": round(seconds, 2),
        "metrics": {n: metrics[n] for n in names},
    }


def finetune_ours(
    args: argparse.Namespace, task: Any, train: list[Any], dev: list[Any], precision: str, folder: Path
) -> Any:
    options = FinetuneOptions(
        task=TASKS[args.task],
        out="unused",
        model=args.model,
        train=(),
        epochs=args.epochs,
        batch_size=args.batch,
        learning_rate=args.rate,
        seed=args.seed,
        precision=precision,
        threads=args.threads,
        settings=(f"evaluation.every={10**9}",),
    )
    config = replace(finetuning.make_config(options), task=task.config)
    data = LabelledData(task, train, dev, [])
    return finetuning.run_finetuning(config, data, folder / "run", resume=False, progress=Silent())


# ------------------------------------------------------------------------------------- transformers


def finetune_theirs(
    args: argparse.Namespace, task: Any, train: list[Any], dev: list[Any], folder: str, start: float
) -> tuple[list[Any], float]:
    """Return predictions of a model trained by transformers' Trainer, and the seconds until then."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
    is_padded = args.side == "default" and args.task != "pos"
    make = {"sst2": encode_texts, "pos": encode_words, "squad": encode_questions}[args.task]
    features, _ = make(train, tokenizer, task, is_padded, with_answers=True)
    dev_features, windows = make(dev, tokenizer, task, is_padded, with_answers=False)
    kind = {
        "sst2": transformers.AutoModelForSequenceClassification,
        "pos": transformers.AutoModelForTokenClassification,
        "squad": transformers.AutoModelForQuestionAnswering,
    }[args.task]
    transformers.set_seed(args.seed)
    labels = {} if args.task == "squad" else {"num_labels": len(task.labels)}
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
        transformers.default_data_collator if is_padded else transformers.DataCollatorWithPadding(tokenizer)
    )
    trainer = transformers.Trainer(
        model, arguments, collator, datasets.Dataset.from_list(features), processing_class=tokenizer
    )
    trainer.train()
    order = list(range(len(dev_features)))
    if grouped:  # sorted by hand: with group_by_length, Trainer returns predictions in another order
        trainer.args.train_sampling_strategy = "random"
        order.sort(key=lambda i: -len(dev_features[i]["input_ids"]))
    sorted_logits = trainer.predict(datasets.Dataset.from_list([dev_features[i] for i in order])).predictions
    all_logits = sorted_logits if isinstance(sorted_logits, tuple) else (sorted_logits,)
    back = np.argsort(order)
    logits = tuple(part[back] for part in all_logits)
    logits = logits if isinstance(sorted_logits, tuple) else logits[0]
    seconds = time.perf_counter() - start
    return decode(args.task, task, logits, dev_features, windows, dev), seconds


def encode_texts(records: list[Any], tokenizer: Any, task: Any, is_padded: bool, *, with_answers: bool) -> Any:
    texts = [r.texts[0] for r in records]
    rows = tokenizer(texts, truncation=True, max_length=128, padding="max_length" if is_padded else False)
    features = [{name: rows[name][i] for name in rows} for i in range(len(records))]
    if with_answers:
        for feature, record in zip(features, records, strict=True):
            feature["labels"] = task.labels.index(record.label)
    return features, None


def encode_words(records: list[Any], tokenizer: Any, task: Any, is_padded: bool, *, with_answers: bool) -> Any:
    rows = tokenizer([list(r.words) for r in records], truncation=True, max_length=512, is_split_into_words=True)
    features, firsts = [], []
    for i, record in enumerate(records):
        feature = {name: rows[name][i] for name in rows}
        owners = rows.word_ids(i)
        first = [o is not None and (j == 0 or owners[j - 1] != o) for j, o in enumerate(owners)]
        firsts.append([(j, o) for j, o in enumerate(owners) if first[j]])
        if with_answers:
            feature["labels"] = [
                task.labels.index(record.tags[o]) if f else -100 for o, f in zip(owners, first, strict=True)
            ]
        features.append(feature)
    return features, firsts


def encode_questions(records: list[Any], tokenizer: Any, task: Any, is_padded: bool, *, with_answers: bool) -> Any:
    rows = tokenizer(
        [r.question.lstrip() for r in records],
        [r.context for r in records],
        truncation="only_second",
        max_length=MAX_LENGTHS["squad"],
        stride=STRIDE,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        padding="max_length" if is_padded else False,
    )
    owners, offsets = rows.pop("overflow_to_sample_mapping"), rows.pop("offset_mapping")
    features, windows = [], []
    for i, owner in enumerate(owners):
        feature = {name: rows[name][i] for name in rows}
        positions = [j for j, s in enumerate(rows.sequence_ids(i)) if s == 1]
        window = Window(positions[0], np.array([offsets[i][j] for j in positions]))
        if with_answers:
            text, begin = records[owner].answers[0]
            inside = (window.offsets[:, 1] > begin) & (window.offsets[:, 0] < begin + len(text))
            tokens = np.flatnonzero(inside)
            fits = window.offsets[0, 0] <= begin and window.offsets[-1, 1] >= begin + len(text) and len(tokens)
            feature["start_positions"] = positions[tokens[0]] if fits else 0
            feature["end_positions"] = positions[tokens[-1]] if fits else 0
        features.append(feature)
        windows.append((owner, window))
    return features, windows


def decode(name: str, task: Any, logits: Any, features: list[Any], windows: Any, dev: list[Any]) -> list[Any]:
    """Return predictions from transformers' logits by our rules, so that a metric compares only the models."""
    none = np.empty(0, np.int64)
    if name == "pos":
        predictions = []
        for row, firsts, record in zip(logits, windows, dev, strict=True):
            tags = [task.filler] * len(record.words)
            for position, word in firsts:
                tags[word] = task.labels[int(row[position].argmax())]
            predictions.append(TagPrediction(tuple(tags), (0.0,) * len(tags)))
        return predictions
    examples = [Example(np.array(f["input_ids"]), np.array([len(f["input_ids"])]), none, none) for f in features]
    if name == "sst2":
        return task.decode(list(logits[:, None]), TaskExamples(examples, np.arange(len(dev)), (), {}), dev)
    assert isinstance(task, QuestionAnswering)
    scores = [np.stack([a, b], -1) for a, b in zip(*logits[:2], strict=True)]
    owners = np.array([owner for owner, _ in windows])
    return task.decode(scores, TaskExamples(examples, owners, [w for _, w in windows], {}), dev)


if __name__ == "__main__":
    main()
