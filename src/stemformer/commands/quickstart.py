"""What the command line and Python users call: joins the parts, holds no mathematics."""

from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

from stemformer.commands.prepare import prepare
from stemformer.commands.pretrain import pretrain
from stemformer.commands.train_tokenizer import train_tokenizer
from stemformer.io import read_jsonl
from stemformer.output_dir import clear_dir, exclusive_output_dir, prepare_output_dir
from stemformer.progress import Progress, Silent


@exclusive_output_dir
def quickstart(
    *,
    out: str = "runs/quickstart",
    overwrite: bool = False,
    seed: int = 0,
    device: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Takes the embedded English and Chinese texts all the way: tokenizer, shards, a very small BERT, blanks filled, a report.

    Args:
        out: Folder of everything that is made.
        overwrite: Replace what it holds.
        seed: Of everything that is random.
        device: As for `pretrain`, like the next two.
        precision: Number format.
        threads: Processor threads.
        progress: Told how far it is.

    Returns:
        How training ended, `blanks` (held-out sentences, the hidden word, and what was put there before and after), and what to do `next`.
    """
    progress = progress or Silent()
    folder = prepare_output_dir(out, overwrite=overwrite)
    clear_dir(folder)
    samples = package_files("stemformer") / "samples"
    texts = [str(samples / language) for language in ("english", "chinese")]
    tokenizer, data, run = (str(folder / name) for name in ("tokenizer", "data", "run"))
    train_tokenizer(texts, out=tokenizer, vocab_size=6000, lowercase=True, documents="blank", progress=progress)
    prepare(texts, tokenizer=tokenizer, out=data, held_out=0.05, documents="blank", progress=progress)
    ended = pretrain(
        "bert_tiny",
        data=data,
        out=run,
        time=_QUICKSTART_SECONDS,
        settings=_QUICKSTART_SETTINGS,
        seed=seed,
        device=device,
        precision=precision,
        threads=threads,
        progress=progress,
    )
    first, last = (fills["fills"] for fills in _first_and_last(read_jsonl(Path(run) / "log.jsonl"), "fills"))
    blanks = [
        {"sentence": a["text"], "hidden": a["answer"], "before": a["guess"], "after": b["guess"]}
        for a, b in zip(first[:_QUICKSTART_BLANKS], last, strict=False)
    ]
    steps = [
        f"open {ended['report']} in a browser",
        f'stemformer fill "He [MASK] the door and went out." --model {run}',
        f"stemformer pretrain --data {data} --out {run} --resume --time 10m   (goes on, and learns more)",
        "stemformer tokenizer my_texts/ --out tokenizer   (the same with your own text: see the README)",
    ]
    return {**ended, "blanks": blanks, "next": steps}


_QUICKSTART_SECONDS = 200


_QUICKSTART_SETTINGS = [  # short rows: the model finds out soonest that neighbours matter (docs/log.md)
    *["batch.row_length=32", "batch.rows=64", "schedule.warmup_steps=50"],
    *["evaluation.rows=128", "evaluation.blanks=200"],
]


_QUICKSTART_BLANKS = 12


def _first_and_last(lines: list[dict[str, Any]], kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    found = [line for line in lines if line["kind"] == kind]
    return found[0], found[-1]
