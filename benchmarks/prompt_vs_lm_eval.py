"""Few-shot scoring beside lm-evaluation-harness with its own Hugging Face model.

    python benchmarks/prompt_vs_lm_eval.py --data ../shared/data --shape mini

Tasks of lm-evaluation-harness are written for local files: SST-2 (two answers), AG News (four), COPA (two, whose lengths differ).
Each measurement is a process of its own (the script calls itself with `--side`); sides take turns, round by round. The clock runs over
`simple_evaluate` on loaded models: prompts, their tokens, the model, and figures. Sides:

    ours        our model in the harness (`harness.HarnessModel`), float32
    ours_bf16   the same in bfloat16
    own         what `stemformer prompt` does on the same questions, with its own draw of examples, float32
    default     the harness's model at its default, one text at a time, float32
    best        the fastest of its batch sizes 8, 32 and 64 (the time of choosing is not counted)

Equal: weights (drawn at random by ours, or a folder), questions, number of examples, and precision but for ours_bf16.
"""

import argparse
import json
import lzma
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

SIDES = ("ours", "ours_bf16", "own", "default", "best")
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
    if len(sys.argv) == 1:  # as `make bench` calls it: there is nothing that could be taken by default
        return print("not run: give --data", file=sys.stderr)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", required=True)
    add("--shape", choices=list(SHAPES), default="mini")
    add("--model", help="a GPT folder in the place of random weights")
    add("--shots", type=int, default=4)
    add("--number", type=int, default=100, help="questions of a task")
    add("--rounds", type=int, default=3)
    add("--threads", type=int, default=1)
    add("--sides", default=",".join(SIDES))
    add("--side", choices=SIDES)
    add("--task", choices=list(TASKS))
    add("--batch", type=int, default=1)
    add("--work")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.side:
        print(json.dumps(measure(args)))
        return
    with tempfile.TemporaryDirectory() as work:
        args.work = work
        make_ready(args, Path(work))
        compare(args)


def make_ready(args: argparse.Namespace, work: Path) -> None:
    """Writes the questions, the tasks and the model that all sides share."""
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
    (work / "tasks").mkdir()
    for name, (source, plain) in sources.items():
        (work / plain).write_bytes(lzma.decompress(source.read_bytes()))
        rows = read_table([work / plain]).rows[: args.number + 50]
        (work / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        task = {
            "task": f"{name}_local",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(work / f"{name}.jsonl")}},
            "test_split": "test",
            "fewshot_split": "test",
            "output_type": "multiple_choice",
            "metric_list": [{"metric": "acc"}],
            **TASKS[name],
        }
        (work / "tasks" / f"{name}.yaml").write_text(json.dumps(task))  # JSON is YAML
    if args.model is None:
        folder = work / "tokenizer"
        folder.mkdir()
        for source, name in (("gpt2_encoder.json.xz", "vocab.json"), ("gpt2_vocab.bpe.xz", "merges.txt")):
            (folder / name).write_bytes(lzma.decompress((data / "vocabs" / source).read_bytes()))
        model = make_model(GptConfig(**SHAPES[args.shape]), ["causal_lm"], generator=torch.Generator().manual_seed(0))
        save_model(model, work / "model", load_tokenizer(folder))
        args.model = str(work / "model")


def compare(args: argparse.Namespace) -> None:
    for task in TASKS:
        times: dict[str, list[float]] = {side: [] for side in args.sides.split(",")}
        figures: dict[str, float] = {}
        best = min((8, 32, 64), key=lambda size: run(args, task, "best", size)["seconds"]) if "best" in times else 1
        for number in range(args.rounds):
            for side in times if number % 2 == 0 else reversed(times):
                told = run(args, task, side, best if side == "best" else 1)
                times[side].append(told["seconds"])
                figures[side] = told["accuracy"]
        print(
            f"\n{task}: {args.number} questions, {args.shots} examples, {args.shape if args.model else args.model}, {args.threads} threads"
        )
        ours = statistics.median(times.get("ours", times[next(iter(times))]))
        for side, seconds in times.items():
            note = f" (batches of {best})" if side == "best" else ""
            middle = statistics.median(seconds)
            print(
                f"  {side + note:24s} {middle:8.2f} s  ours is {middle / ours:5.2f} times as fast   accuracy {figures[side]:.4f}",
                flush=True,
            )


def run(args: argparse.Namespace, task: str, side: str, batch: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--side", side, "--task", task, "--batch", str(batch)]
    for name in ("data", "shape", "model", "shots", "number", "threads", "work"):
        command += [f"--{name}", str(getattr(args, name))]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(args.threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    told: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return told


def measure(args: argparse.Namespace) -> dict[str, float]:
    warnings.simplefilter("ignore")
    return measure_own(args) if args.side == "own" else measure_in_harness(args)


def measure_in_harness(args: argparse.Namespace) -> dict[str, float]:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    if args.side.startswith("ours"):
        from stemformer.evaluation.few_shot.lm_eval_adapter import HarnessModel

        model: Any = HarnessModel(args.model, device="cpu", dtype="bf16" if args.side == "ours_bf16" else "fp32")
    else:
        from lm_eval.models.huggingface import HFLM

        model = HFLM(pretrained=args.model, device="cpu", dtype="float32", batch_size=args.batch)
    manager = TaskManager(include_path=str(Path(args.work) / "tasks"), include_defaults=False)
    settings: dict[str, Any] = {
        "model": model,
        "tasks": [f"{args.task}_local"],
        "num_fewshot": args.shots,
        "task_manager": manager,
        "bootstrap_iters": 0,
        "log_samples": False,
    }
    simple_evaluate(limit=4, **settings)
    started = time.perf_counter()
    told = simple_evaluate(limit=args.number, **settings)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "accuracy": told["results"][f"{args.task}_local"]["acc,none"]}


def measure_own(args: argparse.Namespace) -> dict[str, float]:
    from stemformer.evaluation.few_shot.dataset import FewShotDataset, read_few_shot_examples
    from stemformer.evaluation.few_shot.evaluate import aggregate, evaluate_few_shot
    from stemformer.evaluation.few_shot.task import open_task
    from stemformer.huggingface.load import load_model_and_tokenizer

    model, tokenizer = load_model_and_tokenizer(args.model)
    task = open_task(f"{args.task}={Path(args.work) / args.task}.jsonl")
    started = time.perf_counter()
    items = read_few_shot_examples(task.data, task)
    told = evaluate_few_shot(
        model.eval(), tokenizer, task, FewShotDataset(items, items), range(args.number), num_shots=args.shots, seed=0
    )
    return {"seconds": time.perf_counter() - started, "accuracy": aggregate([told], task, items)["acc"]}


if __name__ == "__main__":
    main()
