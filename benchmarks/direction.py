r"""One model that sees both sides beside two that see one side each: fine-tuned on the same data, over seeds.

    stemformer pretrain --recipe bert_mini --data D --tokens N --out M
    stemformer pretrain --recipe gpt_mini --data D --tokens N --out F    and, with --set objective.direction=backward, --out B
    python benchmarks/direction.py --masked M --forward F --backward B --out FOLDER \
        --data classify TRAIN DEV --data tag TRAIN DEV --rates 3e-5 1e-4 3e-4 --steps 500

Models, of one WordPiece vocabulary and one size:

    masked     a BERT: `[CLS] text [SEP]`, scored by the state of `[CLS]` or of the first piece of each word
    forward    a GPT: `[SEP] text`, scored by the state of the last token or of the last piece of each word
    joined     that GPT, and side by side with it one that reads each text from its end, both trained; their states are joined before the
               head, each where it has read the whole: of the second at the first token of the text, or the first piece of each word

Equal: records, steps, records a step, schedule, optimizer, seeds, dropout. Each model is run with every learning rate, and compared at
the one that is best on the dev data, so each figure is a little too good. Not equal: two models side by side have twice the parameters
of one; a BERT has a pooler between `[CLS]` and its scores.
Runs are added to `FOLDER/runs.jsonl`, and those that are there are not done again; `direction.svg` and `direction.json` show all.
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

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stemformer.commands.finetune import make_config, make_finetuning_context
from stemformer.data.labelled.splits import subset_order
from stemformer.data.tokenization.tokenizer import Tokenizer
from stemformer.device import choose_device
from stemformer.huggingface.load import load_model_and_tokenizer
from stemformer.models.gpt import Gpt
from stemformer.models.heads import initialize_weights
from stemformer.models.model import ARCHITECTURES, Model
from stemformer.options import FinetuneOptions
from stemformer.progress import Silent
from stemformer.tasks.dataset import read_labelled, stratification_keys
from stemformer.tasks.examples import TaskExamples
from stemformer.tasks.metrics import mean_std
from stemformer.tasks.task import Task
from stemformer.tasks.token_classification import first_tokens, last_tokens
from stemformer.training.distributed import init_distributed
from stemformer.training.initialization import load_initial_model, prepare_training
from stemformer.training.log import MetricAccumulator
from stemformer.training.loop import TrainState, train

SIDES = ("masked", "forward", "joined")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    for name in ("masked", "forward", "backward"):
        add(f"--{name}", required=True, help="folder of the pre-trained model")
    add("--data", nargs=3, action="append", required=True, metavar=("TASK", "TRAIN", "DEV"), help="once or more")
    add("--out", required=True)
    add("--examples", type=int, help="of the training records, the same for all; all by default")
    add("--dev-examples", type=int)
    add("--rates", type=float, nargs="+", default=[3e-5, 1e-4, 3e-4])
    add("--seeds", type=int, default=3)
    add("--steps", type=int, default=500)
    add("--batch", type=int, default=32)
    add("--max-length", type=int, default=128)
    add("--sides", nargs="+", choices=SIDES, default=SIDES)
    add("--precision", default="auto")
    add("--threads", type=int)
    if len(sys.argv) == 1:  # as `make bench` calls it: there is nothing that could be taken by default
        return print("not run: give --masked, --forward, --backward, --data and --out", file=sys.stderr)
    args = parser.parse_args()
    torch.set_num_threads(args.threads or torch.get_num_threads())
    check_alike([args.masked, args.forward, args.backward])
    tables = [Table(args, *given) for given in args.data]
    tell(run_all(args, tables), tables, args)


# ------------------------------------------------------------------------------------------------------------------ the joined models


class BothWays(nn.Module):
    """Two GPTs side by side, the second of which reads each text from its end; the token that begins a sequence stays the first.

    Args:
        forward: Its embeddings and layers are told as those of both where a run asks for them.
        backward: Of the same width.
    """

    def __init__(self, forward: Gpt, backward: Gpt) -> None:
        super().__init__()
        self.left, self.right = forward, backward

    @property
    def embeddings(self) -> nn.Module:
        return self.left.embeddings

    @property
    def layers(self) -> nn.ModuleList:
        return nn.ModuleList([*self.left.layers, *self.right.layers])

    def forward(
        self,
        input_ids: Int[Tensor, "N"],
        position_ids: Int[Tensor, "N"],
        steps_back: Int[Tensor, "N"],
        cu_seqlens: Int[Tensor, "S1"],
        max_seqlen: int,
        *,
        rows: Int[Tensor, "R"] | None = None,
    ) -> Float[Tensor, "R 2D"]:
        """Returns for each token, or each of `rows`, its state read forwards beside one read backwards.

        `steps_back` stands in the place of segments, which GPTs do not have: how many tokens before a token the state read backwards is
        taken.
        """
        lengths = cu_seqlens.diff().long()
        firsts, behind = (x.long().repeat_interleave(lengths) for x in (cu_seqlens[:-1], cu_seqlens[1:]))
        places = torch.arange(len(input_ids), device=input_ids.device)
        mirror = torch.where(places == firsts, places, firsts + behind - places)
        rows = places if rows is None else rows
        rest = (position_ids, steps_back, cu_seqlens, max_seqlen)  # a GPT looks at no segments
        left = self.left(input_ids, *rest, rows=rows)
        right = self.right(input_ids[mirror], *rest, rows=mirror[rows - steps_back[rows]])
        return torch.cat([left, right], 1)


def with_steps_back(examples: TaskExamples, records: Sequence[Any], task: Task, tokenizer: Tokenizer) -> TaskExamples:
    """Returns a GPT's examples that say how far before each scored token the other GPT has read the whole text or word."""
    widths: list[Any] = []
    if task.head == "token":
        for record, encoded in zip(records, tokenizer.encode_batch([r.text for r in records]), strict=True):
            firsts, lasts = first_tokens(record, encoded), last_tokens(record, encoded)
            widths.append(np.where(firsts < 0, 0, lasts - firsts))
    out = []
    for number, (example, owner) in enumerate(zip(examples.examples, examples.records.tolist(), strict=True)):
        back = np.zeros(len(example.input_ids), np.int64)
        if task.head == "token":
            places = example.label_positions
            back[places] = np.minimum(places - 1, widths[owner][examples.scored[number]])  # a window begins anywhere
        else:
            back[-1] = max(0, len(back) - 2)
        out.append(replace(example, token_type_ids=back))
    return replace(examples, examples=out)


def check_alike(folders: Sequence[str]) -> None:
    """Refuses models of different vocabularies or sizes."""
    opened = [load_model_and_tokenizer(folder, ()) for folder in folders]
    if len({(m.num_parameters(embeddings=False), m.config.hidden_size, t.fingerprint) for m, t in opened}) > 1:
        sys.exit("the three models differ in vocabulary or size: pre-train them alike, on the same prepared data")


def join(model: Model, folder: str, task: Task, seed: int) -> None:
    """Puts a second GPT beside the first of a model, in place, and a fresh head on both."""
    second = load_model_and_tokenizer(folder, ())[0]
    assert isinstance(model.body, Gpt) and isinstance(second.body, Gpt)
    wide = replace(model.config, hidden_size=2 * model.config.hidden_size)
    head = ARCHITECTURES["gpt2"].task_heads[task.head](wide, task.num_labels)
    initialize_weights(head, std=model.config.initializer_range, generator=torch.Generator().manual_seed(seed))
    model.body = BothWays(model.body, second.body)  # type: ignore[assignment]
    model.heads = nn.ModuleDict({task.head: head})


# ---------------------------------------------------------------------------------------------------------------------------- the runs


class Table:
    """A task, its records, and what each model sees of them."""

    def __init__(self, args: argparse.Namespace, task: str, train_file: str, dev_file: str) -> None:
        self.name = " ".join([task, *Path(train_file).parts[-2:]])
        self.config = make_config(
            FinetuneOptions(
                task=task,
                out="",
                model=args.forward,
                train=[train_file],
                dev=[dev_file],
                steps=args.steps,
                batch_size=args.batch,
                max_length=args.max_length,
                precision=args.precision,
                threads=args.threads,
                settings=["evaluation.every=1000000"],
            )
        )
        data = read_labelled(
        self.config.task, Silent(), train=self.config.train, dev=self.config.dev, dev_fraction=self.config.dev_fraction, seed=self.config.seed
    )
        of_task = data.task.config
        train = subset_order(stratification_keys(of_task, data.train), 0)[: args.examples]
        dev = subset_order(stratification_keys(of_task, data.dev), 0)[: args.dev_examples]
        self.data = replace(data, train=[data.train[i] for i in train], dev=[data.dev[i] for i in dev])
        self.metric = data.task.main_metric
        self.sides = {side: self._seen_by(side, args) for side in args.sides}

    def _seen_by(self, side: str, args: argparse.Namespace) -> tuple[str, Tokenizer, list[TaskExamples]]:
        folder = args.masked if side == "masked" else args.forward
        task, both = self.data.task, (self.data.train, self.data.dev)
        _, tokenizer, _ = load_initial_model(self.config, task, Path(folder))
        encoded = [task.encode(records, tokenizer, max_length=args.max_length) for records in both]
        if side == "joined":
            encoded = [with_steps_back(e, r, task, tokenizer) for e, r in zip(encoded, both, strict=True)]
        return folder, tokenizer, encoded

    def run(self, side: str, rate: float, seed: int, args: argparse.Namespace) -> dict[str, Any]:
        """Returns how good a model is after a run, and how large it is."""
        config = replace(self.config, seed=seed, optimizer=replace(self.config.optimizer, learning_rate=rate))
        task, (source, tokenizer, encoded) = self.data.task, self.sides[side]
        with tempfile.TemporaryDirectory() as folder, init_distributed(choose_device(config.compute.device)) as ranks:
            model, _, _ = load_initial_model(config, task, Path(source))
            if side == "joined":
                join(model, args.backward, task, seed)
            given = (*encoded, tokenizer, model, ranks, Path(folder), args.max_length)
            setup = replace(make_finetuning_context(config, self.data, *given)[0], saves_checkpoints=False)
            module, optimizer = prepare_training(model, setup)
            position = TrainState(metrics=MetricAccumulator(None, ranks))
            figures = train(model, module, optimizer, setup, position, progress=Silent())
        told = {"parameters": model.num_parameters(), "seconds": round(position.seconds, 1)}
        return {**told, "figure": figures[f"dev_{self.metric}"]}


def run_all(args: argparse.Namespace, tables: Sequence[Table]) -> list[dict[str, Any]]:
    """Returns all runs, those of earlier calls among them."""
    file = Path(args.out) / "runs.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = map(json.loads, file.read_text().splitlines()) if file.is_file() else ()
    by_name = {t.name: t for t in tables}
    names = "masked forward backward steps batch max_length examples dev_examples precision"
    same = {key: getattr(args, key) for key in names.split()}
    wanted = [
        {"task": name, "rate": rate, "side": side, "seed": seed, **same}
        for seed, name, rate, side in product(range(args.seeds), by_name, args.rates, args.sides)
    ]
    done = {json.dumps({key: line.get(key) for key in wanted[0]}): line for line in lines}
    for what in wanted:
        if (key := json.dumps(what)) not in done:
            done[key] = what | by_name[what["task"]].run(what["side"], what["rate"], what["seed"], args)
            with file.open("a") as log:
                log.write(json.dumps(done[key]) + "\n")
        told = done[key]
        print(*(told[k] for k in ("task", "side", "rate", "seed", "figure", "seconds")), file=sys.stderr, flush=True)
    return [done[json.dumps(what)] for what in wanted]


# -------------------------------------------------------------------------------------------------------------------------- the result


def tell(runs: Sequence[dict[str, Any]], tables: Sequence[Table], args: argparse.Namespace) -> None:
    """Prints the table, and writes it and its picture."""
    best: dict[str, dict[str, list[float]]] = {}
    print("| task | model | parameters | rate | figure | mean | spread | each |\n" + "|---" * 8 + "|")
    for table in tables:
        at = best.setdefault(f"{table.name} ({table.metric})", {})
        for side in dict.fromkeys(r["side"] for r in runs):
            own = [r for r in runs if (r["task"], r["side"]) == (table.name, side)]
            by_rate = {r["rate"]: [x["figure"] for x in own if x["rate"] == r["rate"]] for r in own}
            chosen = max(by_rate, key=lambda rate: statistics.fmean(by_rate[rate]))
            at[side] = by_rate[chosen]
            for rate, figures in by_rate.items():
                shown = f"{rate:g}" + (" (best)" if rate == chosen and len(by_rate) > 1 else "")
                row = [table.name, side, f"{own[0]['parameters']:,}", shown, table.metric]
                row += [f"{x:.4f}" for x in mean_std(figures)] + [" ".join(f"{x:.4f}" for x in figures)]
                print("|", " | ".join(row), "|")
    for name, at in best.items():
        first, *others = at
        for other in others:
            mean, deviation = mean_std([a - b for a, b in zip(at[first], at[other], strict=True)])
            print(f"\n{name}: {first} above {other} by {mean:+.4f}, spread {deviation:.4f} over paired seeds")
    (Path(args.out) / "direction.json").write_text(json.dumps({"best": best, "runs": runs}, indent=1) + "\n")
    draw(best, Path(args.out) / "direction.svg")


def draw(best: dict[str, dict[str, list[float]]], file: Path) -> None:
    """Draws a panel for each task: a point a seed, a line at the mean."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(best), 3.2), layout="constrained")
    FigureCanvasSVG(figure)
    for number, (name, at) in enumerate(best.items(), 1):
        axes = figure.add_subplot(1, len(best), number)
        for x, figures in enumerate(at.values()):
            axes.plot([x] * len(figures), figures, "o", color=f"C{x}", alpha=0.6)
            axes.hlines(statistics.fmean(figures), x - 0.25, x + 0.25, color=f"C{x}")
        axes.set_xticks(range(len(at)), list(at))
        axes.set_xlim(-0.5, len(at) - 0.5)
        axes.set_title(name, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, metadata={"Date": None})


if __name__ == "__main__":
    main()
