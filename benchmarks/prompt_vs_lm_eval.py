"""Few-shot scoring next to lm-evaluation-harness with its own Hugging Face model.

    python benchmarks/prompt_vs_lm_eval.py --data DIRECTORY --shape mini

Tasks of lm-evaluation-harness are written for local files: SST-2 (two answers), AG News (four), COPA (two of different
lengths). The clock runs over `simple_evaluate` on loaded models: prompts, their tokens, the model, and metrics. Sides:

    ours        our model in the harness (`lm_eval_adapter.HarnessModel`), float32
    ours_bf16   the same in bfloat16
    own         `stemformer fewshot` on the same questions, with its own sample of demonstrations, float32
    default     the harness's model with its default, one text at a time, float32
    best        the fastest of its batch sizes 8, 32 and 64 (the time to find it is not counted)

Equal: weights (random, by ours, or a model directory), questions, number of demonstrations, and precision except for
ours_bf16.
"""

import argparse
import json
import lzma
import time
import warnings
from pathlib import Path
from typing import Any

import frame
import torch

SIDES = ("ours", "ours_bf16", "own", "default", "best")
BATCH_SIZES = (8, 32, 64)
SHAPES = {
    "mini": {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024},
    "small": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
}
TASKS: dict[str, dict[str, Any]] = {
    "sst2": {
        "doc_to_text": "Review: {{sentence}}\nSentiment:",
        "doc_to_choice": ["terrible", "great"],
        "doc_to_target": "{{label|int}}",
    },
    "agnews": {
        "doc_to_text": "{{column2}}\nTopic:",
        "doc_to_choice": ["World", "Sports", "Business", "Technology"],
        "doc_to_target": "{{column1|int - 1}}",
    },
    "copa": {
        "doc_to_text": "{{premise[:-1]}} {{'because' if question == 'cause' else 'so'}}",
        "doc_to_choice": "{{[choice1[:1].lower() + choice1[1:], choice2[:1].lower() + choice2[1:]]}}",
        "doc_to_target": "label",
    },
}


def main() -> None:
    parser = frame.make_parser(__doc__, SIDES, rounds=3)
    parser.set_defaults(threads=1)
    add = parser.add_argument
    add("--data", required=True, help="directory with SST-2, AG News, COPA and the vocabulary of GPT-2")
    add("--shape", choices=list(SHAPES), default="mini")
    add("--model", help="directory of a GPT; default: random weights")
    add("--shots", type=int, default=4, help="number of demonstrations")
    add("--number", type=int, default=100, help="number of questions of a task")
    frame.run(
        parser,
        measure,
        report,
        describe=lambda result: ", ".join(f"{task} {result[f'{task}_seconds']:.1f} s" for task in TASKS),
        prepare=prepare,
        environment={"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        requires="--data",
    )


def prepare(args: argparse.Namespace, folder: Path) -> None:
    """Write the questions, the tasks and the model that all sides share."""
    from stemformer.data.labelled.table import read_table
    from stemformer.data.tokenization.tokenizer import load_tokenizer
    from stemformer.huggingface.save import save_model
    from stemformer.models.gpt import GptConfig
    from stemformer.models.model import make_model

    data = Path(args.data)
    sources = {
        "sst2": (data / "glue/SST-2/dev.tsv.xz", "dev.tsv"),
        "agnews": (data / "agnews_test/test.csv.xz", "test.csv"),
        "copa": (data / "copa_xcopa_siqa_piqa/copa_en/train-en.jsonl.xz", "copa.jsonl"),
    }
    (folder / "tasks").mkdir()
    for name, (source, file) in sources.items():
        (folder / file).write_bytes(lzma.decompress(source.read_bytes()))
        rows = read_table([folder / file]).rows[: args.number + 50]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        task = {
            "task": f"{name}_local",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.jsonl")}},
            "test_split": "test",
            "fewshot_split": "test",
            "output_type": "multiple_choice",
            "metric_list": [{"metric": "acc"}],
            **TASKS[name],
        }
        (folder / "tasks" / f"{name}.yaml").write_text(json.dumps(task))  # JSON is YAML
    if args.model is None:
        (folder / "tokenizer").mkdir()
        for source, name in (("gpt2_encoder.json.xz", "vocab.json"), ("gpt2_vocab.bpe.xz", "merges.txt")):
            (folder / "tokenizer" / name).write_bytes(lzma.decompress((data / "vocabs" / source).read_bytes()))
        model = make_model(GptConfig(**SHAPES[args.shape]), ["causal_lm"], generator=torch.Generator().manual_seed(0))
        args.model = str(folder / "model")
        save_model(model, args.model, load_tokenizer(folder / "tokenizer"))


def report(found: frame.Measurements, args: argparse.Namespace) -> None:
    first = next(iter(found.values()))
    rows = [
        (
            task,
            side,
            str(runs[0][f"{task}_batch"]),
            f"{frame.median(runs, f'{task}_seconds'):.2f}",
            f"{frame.speedup(first, runs, f'{task}_seconds', is_rate=False):.2f}",
            f"{runs[0][f'{task}_accuracy']:.4f}",
        )
        for task in TASKS
        for side, runs in found.items()
    ]
    frame.print_table(("task", "side", "batch size", "seconds", "ours is faster by", "accuracy"), rows)
    print(
        f"\n{args.number} questions, {args.shots} demonstrations, {args.shape}, {args.threads} threads; medians of "
        f"{args.rounds} rounds."
    )


def measure(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    result: dict[str, Any] = {}
    for task in TASKS:
        batch_size: int | str = 1 if args.side == "default" else ""
        if args.side == "best":
            batch_size = min(BATCH_SIZES, key=lambda size: measure_in_harness(task, size, args)[0])
        measured = measure_own(task, args) if args.side == "own" else measure_in_harness(task, batch_size, args)
        result |= {f"{task}_seconds": measured[0], f"{task}_accuracy": measured[1], f"{task}_batch": batch_size}
    return result


def measure_in_harness(task: str, batch_size: int | str, args: argparse.Namespace) -> tuple[float, float]:
    """Return seconds and accuracy in lm-evaluation-harness."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    if args.side.startswith("ours"):
        from stemformer.evaluation.few_shot.lm_eval_adapter import HarnessModel

        model: Any = HarnessModel(args.model, device="cpu", dtype="bf16" if args.side == "ours_bf16" else "fp32")
    else:
        from lm_eval.models.huggingface import HFLM

        model = HFLM(pretrained=args.model, device="cpu", dtype="float32", batch_size=batch_size)
    settings: dict[str, Any] = {
        "model": model,
        "tasks": [f"{task}_local"],
        "num_fewshot": args.shots,
        "task_manager": TaskManager(include_path=f"{args.folder}/tasks", include_defaults=False),
        "bootstrap_iters": 0,
        "log_samples": False,
    }
    simple_evaluate(limit=4, **settings)
    start = time.perf_counter()
    results = simple_evaluate(limit=args.number, **settings)["results"]
    return time.perf_counter() - start, results[f"{task}_local"]["acc,none"]


def measure_own(task: str, args: argparse.Namespace) -> tuple[float, float]:
    """Return seconds and accuracy of our few-shot evaluation."""
    from stemformer.evaluation.few_shot.dataset import FewShotDataset, read_few_shot_examples
    from stemformer.evaluation.few_shot.evaluate import aggregate, evaluate_few_shot
    from stemformer.evaluation.few_shot.task import open_task
    from stemformer.huggingface.load import load_model_and_tokenizer

    model, tokenizer = load_model_and_tokenizer(args.model)
    opened = open_task(f"{task}={args.folder}/{task}.jsonl")
    start = time.perf_counter()
    items = read_few_shot_examples(opened.data, opened)
    data, numbers = FewShotDataset(items, items), range(args.number)
    predictions = evaluate_few_shot(model.eval(), tokenizer, opened, data, numbers, num_shots=args.shots, seed=0)
    return time.perf_counter() - start, aggregate([predictions], opened, items)["acc"]


if __name__ == "__main__":
    main()
