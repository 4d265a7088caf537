"""Train a small ModernBERT on the built-in texts."""

from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

from stemformer.commands.prepare import prepare
from stemformer.commands.pretrain import pretrain
from stemformer.commands.train_tokenizer import train_tokenizer
from stemformer.io import read_jsonl
from stemformer.options import QuickstartOptions, accepts
from stemformer.output_dir import clear_dir, exclusive_output_dir, prepare_output_dir
from stemformer.progress import Progress, Silent

_SECONDS = 200
_NUM_BLANKS = 12

# Short sequences: the model learns soonest that neighbors matter (docs/log.md).
_SETTINGS = (
    *("batch.sequence_length=32", "batch.size=64"),
    *("evaluation.num_examples=128", "evaluation.num_cloze_examples=200"),
)


@exclusive_output_dir
@accepts(QuickstartOptions)
def quickstart(options: QuickstartOptions, *, progress: Progress | None = None) -> dict[str, Any]:
    """Train a small ModernBERT on the built-in texts in minutes: tokenizer, data, pre-training, filled masks, report.

    Returns:
        The result of `pretrain`, `blanks` (held-out sentences, the masked word, and the predictions before and after),
        and suggestions for the `next` commands.
    """
    progress = progress or Silent()
    folder = prepare_output_dir(options.out, overwrite=options.overwrite)
    clear_dir(folder)
    samples = package_files("stemformer") / "samples"
    texts = [str(samples / language) for language in ("english", "chinese")]
    tokenizer, data, run = (str(folder / name) for name in ("tokenizer", "data", "run"))
    train_tokenizer(texts, out=tokenizer, vocab_size=6000, lowercase=True, documents="blank", progress=progress)
    prepare(texts, tokenizer=tokenizer, out=data, held_out=0.05, documents="blank", progress=progress)
    result = pretrain(
        "modernbert_tiny",
        data=data,
        out=run,
        time=_SECONDS,
        settings=_SETTINGS,
        seed=options.seed,
        **options.compute(),
        progress=progress,
    )
    samples_logged = [line["fills"] for line in read_jsonl(Path(run) / "log.jsonl") if line["kind"] == "fills"]
    first, last = samples_logged[0], samples_logged[-1]
    blanks = [
        {"sentence": a["text"], "hidden": a["answer"], "before": a["guess"], "after": b["guess"]}
        for a, b in zip(first[:_NUM_BLANKS], last, strict=False)
    ]
    steps = [
        f"open {result['report']} in a browser",
        f'stemformer fill "He [MASK] the door and went out." --model {run}',
        f"stemformer pretrain --data {data} --out {run} --resume --time 10m   (trains longer)",
        "stemformer train-tokenizer my_texts/ --out tokenizer   (the same with your own text: see the README)",
    ]
    return {**result, "blanks": blanks, "next": steps}
