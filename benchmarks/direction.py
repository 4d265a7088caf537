r"""A bidirectional model against two unidirectional ones joined: fine-tuned on the same data, over seeds.

    stemformer pretrain --recipe bert_mini --data D --tokens N --out M
    stemformer pretrain --recipe gpt_mini --data D --tokens N --out F    and, with --set objective.direction=backward, --out B
    python benchmarks/direction.py --masked M --forward F --backward B --out DIRECTORY \
        --data classify TRAIN DEV --data tag TRAIN DEV --rates 3e-5 1e-4 3e-4 --steps 500

Models, of one WordPiece vocabulary and one size:

    masked     a BERT: `[CLS] text [SEP]`, scored by the state of `[CLS]` or of the first piece of each word
    forward    a GPT: `[SEP] text`, scored by the state of the last token or of the last piece of each word
    joined     that GPT next to one that reads each text backwards, both trained; their states are concatenated before the
               head, each where it has read everything: the second at the first token of the text, or at the first piece of
               each word

Equal: records, steps, batch size, schedule, optimizer, seeds, dropout. Each model is run with every learning rate and
compared at the one that is best on the dev data, so all scores are slightly too good. Not equal: two joined models have
twice the parameters of one; a BERT has a pooler between `[CLS]` and its scores. Runs are added to
`DIRECTORY/runs.jsonl` and not repeated; `direction.svg` and `direction.json` show all.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import frame
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stemformer.commands.finetune import make_config, make_finetuning_context
from stemformer.data.labelled.splits import subset_order
from stemformer.data.tokenization.tokenizer import Tokenizer
from stemformer.device import choose_device
from stemformer.huggingface.load import load_model_and_tokenizer
from stemformer.io import append_jsonl, read_jsonl, write_json
from stemformer.models.gpt import Gpt
from stemformer.models.layers import initialize_weights
from stemformer.models.model import ARCHITECTURES, Model
from stemformer.options import FinetuneOptions
from stemformer.progress import Silent
from stemformer.reports.plots import new_figure, style_axes, to_svg
from stemformer.tasks.dataset import read_labelled, stratification_keys
from stemformer.tasks.examples import TaskExamples
from stemformer.tasks.metrics import mean_std
from stemformer.tasks.task import Task
from stemformer.tasks.token_classification import first_tokens, last_tokens
from stemformer.training.context import TrainState
from stemformer.training.distributed import init_distributed
from stemformer.training.initialization import load_initial_model, prepare_training
from stemformer.training.log import MetricAccumulator
from stemformer.training.loop import train

SIDES = ("masked", "forward", "joined")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    for name in ("masked", "forward", "backward"):
        add(f"--{name}", required=True, help="pre-trained model")
    add("--data", nargs=3, action="append", required=True, metavar=("TASK", "TRAIN", "DEV"), help="repeatable")
    add("--out", required=True)
    add("--examples", type=int, help="number of training records, the same for all; default: all")
    add("--dev-examples", type=int)
    add("--rates", type=float, nargs="+", default=[3e-5, 1e-4, 3e-4])
    add("--seeds", type=int, default=3)
    add("--steps", type=int, default=500)
    add("--batch", type=int, default=32)
    add("--max-length", type=int, default=128)
    add("--sides", nargs="+", choices=SIDES, default=SIDES)
    add("--precision", default="auto")
    add("--threads", type=int)
    # `make bench` calls every script without arguments.
    if len(sys.argv) == 1:
        return print("Skipped: needs --masked, --forward, --backward, --data and --out", file=sys.stderr)
    args = parser.parse_args()
    torch.set_num_threads(args.threads or torch.get_num_threads())
    check_same_shape([args.masked, args.forward, args.backward])
    tables = [Table(args, *data) for data in args.data]
    report(run_all(args, tables), tables, args)


# ------------------------------------------------------------------------------------------------------------------ the joined models


class BothWays(nn.Module):
    """Two GPTs of the same width, the second of which reads each text backwards; the first token of a sequence stays first."""

    def __init__(self, forward: Gpt, backward: Gpt) -> None:
        super().__init__()
        self.left, self.right = forward, backward

    @property
    def embeddings(self) -> nn.Module:
        return self.left.embeddings

    @property
    def layers(self) -> nn.ModuleList:
        return nn.ModuleList([*self.left.layers, *self.right.layers])

    @property
    def blocks(self) -> list[nn.Module]:
        return [*self.left.layers, *self.right.layers]

    def forward(
        self,
        input_ids: Int[Tensor, "N"],
        position_ids: Int[Tensor, "N"],
        steps_back: Int[Tensor, "N"],
        cu_seqlens: Int[Tensor, "S1"],
        max_seqlen: int,
        *,
        rows: Int[Tensor, "R"] | None = None,
        causal: bool = False,
    ) -> Float[Tensor, "R 2D"]:
        """Return the forward and backward states of each token, or of each of `rows`; `causal` changes nothing.

        `steps_back`, passed as token types, which GPTs do not have: number of tokens before a token at which the backward
        state is taken.
        """
        lengths = cu_seqlens.diff().long()
        firsts, ends = (x.long().repeat_interleave(lengths) for x in (cu_seqlens[:-1], cu_seqlens[1:]))
        positions = torch.arange(len(input_ids), device=input_ids.device)
        mirror = torch.where(positions == firsts, positions, firsts + ends - positions)
        rows = positions if rows is None else rows
        rest = (position_ids, steps_back, cu_seqlens, max_seqlen)  # a GPT ignores token types
        left = self.left(input_ids, *rest, rows=rows)
        right = self.right(input_ids[mirror], *rest, rows=mirror[rows - steps_back[rows]])
        return torch.cat([left, right], 1)


def with_steps_back(examples: TaskExamples, records: Sequence[Any], task: Task, tokenizer: Tokenizer) -> TaskExamples:
    """Return the examples of a GPT with the distance from each scored token to where the backward GPT has read everything."""
    widths: list[Any] = []
    if task.head == "token":
        for record, encoded in zip(records, tokenizer.encode_batch([r.text for r in records]), strict=True):
            firsts, lasts = first_tokens(record, encoded), last_tokens(record, encoded)
            widths.append(np.where(firsts < 0, 0, lasts - firsts))
    out = []
    for number, (example, owner) in enumerate(zip(examples.examples, examples.records.tolist(), strict=True)):
        back = np.zeros(len(example.input_ids), np.int64)
        if task.head == "token":
            positions = example.label_positions
            back[positions] = np.minimum(
                positions - 1, widths[owner][examples.scored[number]]
            )  # a window begins anywhere
        else:
            back[-1] = max(0, len(back) - 2)
        out.append(replace(example, token_type_ids=back))
    return replace(examples, examples=out)


def check_same_shape(folders: Sequence[str]) -> None:
    """Exit if the models differ in vocabulary or size."""
    opened = [load_model_and_tokenizer(folder, ()) for folder in folders]
    if len({(m.num_parameters(embeddings=False), m.config.hidden_size, t.fingerprint) for m, t in opened}) > 1:
        sys.exit(
            "The three models differ in vocabulary or size. Pre-train them on the same tokenized data, with the same "
            "shape."
        )


def join(model: Model, folder: str, task: Task, seed: int) -> None:
    """Join a second GPT to that of a model, in place, with a new head on both."""
    second = load_model_and_tokenizer(folder, ())[0]
    assert isinstance(model.body, Gpt) and isinstance(second.body, Gpt)
    wide = replace(model.config, hidden_size=2 * model.config.hidden_size)
    head = ARCHITECTURES["gpt2"].task_heads[task.head](wide, task.num_labels)
    initialize_weights(head, std=model.config.initializer_range, generator=torch.Generator().manual_seed(seed))
    model.body = BothWays(model.body, second.body)  # type: ignore[assignment]
    model.heads = nn.ModuleDict({task.head: head})


# ---------------------------------------------------------------------------------------------------------------------------- the runs


class Table:
    """Task, its records, and their examples for each model."""

    def __init__(self, args: argparse.Namespace, task: str, train_file: str, dev_file: str) -> None:
        self.name = " ".join([task, *Path(train_file).parts[-2:]])
        self.config = make_config(
            FinetuneOptions(
                task=task,
                out="unused",
                model=args.forward,
                train=(train_file,),
                dev=(dev_file,),
                steps=args.steps,
                batch_size=args.batch,
                max_length=args.max_length,
                precision=args.precision,
                threads=args.threads,
                settings=("evaluation.every=1000000",),
            )
        )
        config = self.config
        data = read_labelled(
            config.task,
            Silent(),
            train=config.train,
            dev=config.dev,
            dev_fraction=config.dev_fraction,
            seed=config.seed,
        )
        task_config = data.task.config
        train = subset_order(stratification_keys(task_config, data.train), 0)[: args.examples]
        dev = subset_order(stratification_keys(task_config, data.dev), 0)[: args.dev_examples]
        self.data = replace(data, train=[data.train[i] for i in train], dev=[data.dev[i] for i in dev])
        self.metric = data.task.main_metric
        self.sides = {side: self._encode(side, args) for side in args.sides}

    def _encode(self, side: str, args: argparse.Namespace) -> tuple[str, Tokenizer, list[TaskExamples]]:
        folder = args.masked if side == "masked" else args.forward
        task, both = self.data.task, (self.data.train, self.data.dev)
        _, tokenizer, _ = load_initial_model(self.config, task, Path(folder))
        encoded = [task.encode(records, tokenizer, max_length=args.max_length) for records in both]
        if side == "joined":
            encoded = [with_steps_back(e, r, task, tokenizer) for e, r in zip(encoded, both, strict=True)]
        return folder, tokenizer, encoded

    def run(self, side: str, rate: float, seed: int, args: argparse.Namespace) -> dict[str, Any]:
        """Fine-tune a model, and return its score and size."""
        config = replace(self.config, seed=seed, optimizer=replace(self.config.optimizer, learning_rate=rate))
        task, (source, tokenizer, encoded) = self.data.task, self.sides[side]
        with tempfile.TemporaryDirectory() as folder, init_distributed(choose_device(config.compute.device)) as ranks:
            model, _, _ = load_initial_model(config, task, Path(source))
            if side == "joined":
                join(model, args.backward, task, seed)
            shared = (*encoded, tokenizer, ranks, Path(folder), args.max_length)
            context = replace(make_finetuning_context(config, self.data, *shared)[0], saves_checkpoints=False)
            module, optimizer = prepare_training(model, context)
            state = TrainState(metrics=MetricAccumulator(None, ranks))
            metrics = train(model, module, optimizer, context, state, progress=Silent())
        score = metrics[f"dev_{self.metric}"]
        return {"parameters": model.num_parameters(), "seconds": round(state.seconds, 1), "score": score}


def run_all(args: argparse.Namespace, tables: Sequence[Table]) -> list[dict[str, Any]]:
    """Return all runs, including those of earlier calls."""
    file = Path(args.out) / "runs.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    by_name = {t.name: t for t in tables}
    names = "masked forward backward steps batch max_length examples dev_examples precision"
    same = {key: getattr(args, key) for key in names.split()}
    wanted = [
        {"task": name, "rate": rate, "side": side, "seed": seed, **same}
        for seed, name, rate, side in product(range(args.seeds), by_name, args.rates, args.sides)
    ]
    done = {json.dumps({key: line.get(key) for key in wanted[0]}): line for line in read_jsonl(file)}
    for run in wanted:
        if (key := json.dumps(run)) not in done:
            done[key] = run | by_name[run["task"]].run(run["side"], run["rate"], run["seed"], args)
            append_jsonl(file, done[key])
        shown = (done[key][name] for name in ("task", "side", "rate", "seed", "score", "seconds"))
        print(*shown, file=sys.stderr, flush=True)
    return [done[json.dumps(run)] for run in wanted]


# -------------------------------------------------------------------------------------------------------------------------- the result


def report(runs: Sequence[dict[str, Any]], tables: Sequence[Table], args: argparse.Namespace) -> None:
    """Print the table, and write results and plot."""
    best: dict[str, dict[str, list[float]]] = {}
    rows = []
    for table in tables:
        at_best = best.setdefault(f"{table.name} ({table.metric})", {})
        for side in dict.fromkeys(r["side"] for r in runs):
            own = [r for r in runs if (r["task"], r["side"]) == (table.name, side)]
            by_rate = {r["rate"]: [x["score"] for x in own if x["rate"] == r["rate"]] for r in own}
            chosen = max(by_rate, key=lambda rate: statistics.fmean(by_rate[rate]))
            at_best[side] = by_rate[chosen]
            for rate, scores in by_rate.items():
                shown = f"{rate:g}" + (" (best)" if rate == chosen and len(by_rate) > 1 else "")
                row = [table.name, side, f"{own[0]['parameters']:,}", shown, table.metric]
                rows.append([*row, *(f"{x:.4f}" for x in mean_std(scores)), " ".join(f"{x:.4f}" for x in scores)])
    frame.print_table(("task", "model", "parameters", "rate", "metric", "mean", "spread", "each"), rows)
    for name, at_best in best.items():
        first, *others = at_best
        for other in others:
            mean, deviation = mean_std([a - b for a, b in zip(at_best[first], at_best[other], strict=True)])
            print(f"\n{name}: {first} above {other} by {mean:+.4f}, spread {deviation:.4f} over paired seeds")
    print(f"\n{frame.processor()}")
    write_json(Path(args.out) / "direction.json", {"best": best, "runs": list(runs)})
    plot(best, Path(args.out) / "direction.svg")


def plot(best: dict[str, dict[str, list[float]]], file: Path) -> None:
    """Write a panel for each task: a point for each seed, a line at the mean."""
    figure = new_figure(3.6 * len(best), 3.2)
    for number, (name, at_best) in enumerate(best.items(), 1):
        axes = figure.add_subplot(1, len(best), number)
        for x, scores in enumerate(at_best.values()):
            axes.plot([x] * len(scores), scores, "o", color=f"C{x}", alpha=0.6)
            axes.hlines(statistics.fmean(scores), x - 0.25, x + 0.25, color=f"C{x}")
        axes.set_xticks(range(len(at_best)), list(at_best))
        axes.set_xlim(-0.5, len(at_best) - 0.5)
        axes.set_title(name, fontsize=9)
        style_axes(axes)
    file.write_text(to_svg(figure), encoding="utf-8")


if __name__ == "__main__":
    main()
