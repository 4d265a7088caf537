"""Fingerprints of short seeded runs of every kind, to compare before and after a refactoring.

A script, not a test: exact floating-point results hold on one machine only. Run it from the root of the checkout
before a change, and again after it:

    PYTHONPATH=src python tests/golden/yardstick.py --out before.txt
    PYTHONPATH=src python tests/golden/yardstick.py --compare before.txt

Each line is `<name>  weights <hash>  metrics <hash>`, with the first 16 hexadecimal digits of two SHA-256 sums:

- weights: every tensor of the saved model, by name, dtype, shape and bytes; for commands that write no model, the
  content of the files they write; `-` if there is nothing of the kind.
- metrics: the distinct numbers in each record of the returned value, the log and the result files, without their keys,
  so that renaming a key changes nothing. Numbers that depend on time are left out by key, see `TIME_DEPENDENT`.

When the refactoring renames an option, a function, a result file or a time-dependent key, edit the section "The
package's interface". Every call into the package is there. `--values DIR` writes the numbers behind each metrics hash,
to see which of them changed.
"""

import argparse
import dataclasses
import hashlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

# Before torch is imported: sums depend on the number of threads, and waiting threads must not spin on a shared machine.
os.environ |= {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false"}

import numpy as np
from safetensors.numpy import load_file

import stemformer

# ------------------------------------------------------------------------------------------- The package's interface

TIME_DEPENDENT = {"second", "seconds", "duration", "elapsed", "time", "date", "throughput", "mfu", "memory", "rss"}
"""A number is ignored if one of these is a word of its key. Renaming a time-dependent key means editing this set."""

RESULT_FILES = ("log.jsonl", "metrics.json", "compare.json", "scale.json", "prompt.json", "answers/*.jsonl")
"""Patterns of the files in a run directory that hold results, in the order in which they are hashed."""

MODEL = "final/model.safetensors"
"""The weights, in a run directory or in the run directories inside it."""

SKIPPED = {"matmul_rate": lambda *args, **options: 1e11}
"""Measurements of the machine, which take seconds each and only yield time-dependent numbers, and their replacements."""

COMPUTE = {"device": "cpu", "precision": "fp32", "threads": 2}
MODEL_SIZES = ["model.hidden_size=32", "model.intermediate_size=64", "model.num_hidden_layers=2"]
PRETRAINING = [
    *["batch.size=8", "batch.sequence_length=32", "log_every=1"],
    *["evaluation.every=5", "evaluation.num_examples=32", "evaluation.num_cloze_examples=20", "checkpoints.every=5"],
]
FINETUNING = ["log_every=2", "evaluation.every=5", "task.stride=8"]
STEPS = 10


class InterruptAfter:
    """Progress display that presses Ctrl-C after some optimizer steps and shows nothing."""

    def __init__(self, steps: int) -> None:
        self._left = steps

    def start(self, what: str, *, total: float | None = None, unit: str = "") -> None: ...

    def say(self, line: str) -> None: ...

    def finish(self) -> None: ...

    def advance(self, amount: float, note: str = "") -> None:
        self._left -= amount
        if amount and self._left == 0:
            signal.raise_signal(signal.SIGINT)


def skip_measurements() -> None:
    """Replace measurements of the machine wherever they are imported; one that is gone only costs time."""
    stemformer.pretrain, stemformer.finetune  # noqa: B018  # imports the modules
    for module in [module for name, module in sys.modules.items() if name.startswith("stemformer")]:
        for name in SKIPPED.keys() & vars(module).keys():
            setattr(module, name, SKIPPED[name])


def train_tokenizer(files: Sequence[Path], out: Path, **options: Any) -> Any:
    return stemformer.train_tokenizer([str(f) for f in files], out=str(out), documents="line", **options)


def prepare(files: Sequence[Path], tokenizer: Path, out: Path) -> Any:
    return stemformer.prepare(
        [str(f) for f in files], tokenizer=str(tokenizer), out=str(out), held_out=0.1, documents="line", num_workers=1
    )


def pretrain(recipe: str, data: Path, out: Path, settings: Sequence[str] = (), **options: Any) -> Any:
    sizes = [] if "init" in options else MODEL_SIZES
    settings = [*sizes, *PRETRAINING, *settings]
    options = {"steps": STEPS, "compile": False, **COMPUTE, **options}
    return stemformer.pretrain(recipe, data=str(data), out=str(out), settings=settings, **options)


def resume_pretraining(data: Path, out: Path) -> Any:
    return stemformer.pretrain(data=str(data), out=str(out), resume=True)


def finetune(task: str, model: Path, file: str, out: Path, settings: Sequence[str] = (), **options: Any) -> Any:
    return stemformer.finetune(
        task,
        model=str(model),
        train=[str(labelled() / "train" / file)],
        dev=[str(labelled() / "dev" / file)],
        out=str(out),
        steps=STEPS,
        batch_size=8,
        learning_rate=3e-3,
        compile=False,
        settings=[*FINETUNING, *settings],
        **COMPUTE,
        **options,
    )


def predict(model: Path, inputs: Sequence[Any]) -> list[Any]:
    return stemformer.load(str(model), **COMPUTE).predict(inputs)


def evaluate(model: Path, file: str) -> Any:
    return stemformer.evaluate([str(labelled() / "test" / file)], model=str(model), **COMPUTE)


def embed(model: Path, texts: Sequence[str]) -> Any:
    return stemformer.load(str(model), **COMPUTE).embed(texts)


def fill(model: Path, texts: Sequence[str], **options: Any) -> Any:
    return stemformer.fill(texts, model=str(model), **COMPUTE, **options)


def generate(model: Path, prompts: Sequence[str], **decoding: Any) -> tuple[list[str], Any]:
    """Return the completions as text, and the full results."""
    results = stemformer.generate(prompts, model=str(model), max_new_tokens=12, **COMPUTE, **decoding)
    return [result["text"] for result in results], results


def prompt(tasks: Sequence[str], model: Path, out: Path) -> Any:
    return stemformer.fewshot(
        tasks, model=[str(model)], out=str(out), num_shots=(0, 2), num_questions=20, calibrate=True, **COMPUTE
    )


def synthetic(out: Path) -> Any:
    return stemformer.make_synthetic(out=str(out), num_documents=20)


def compare(task: str, model: Path, file: str, out: Path) -> Any:
    return stemformer.compare(
        task,
        model=str(model),
        train=[str(labelled() / "train" / file)],
        dev=[str(labelled() / "dev" / file)],
        out=str(out),
        sizes=(0.5, 1),
        num_seeds=1,
        steps=4,
        batch_size=8,
        learning_rate=3e-3,
        compile=False,
        **COMPUTE,
    )


def scale(recipe: str, data: Path, out: Path) -> Any:
    settings = [
        "batch.size=8",
        "batch.sequence_length=32",
        "evaluation.num_examples=32",
        "evaluation.num_cloze_examples=0",
    ]
    return stemformer.scaling_laws(
        recipe, data=str(data), out=str(out), sizes=["1x32", "1x64", "2x64"], steps=4, settings=settings, **COMPUTE
    )


# ------------------------------------------------------------------------------------------------------------ Hashing


def metric_values(record: Any) -> list[str]:
    """Return the distinct numbers of a nested record, sorted, without keys and those that depend on time or memory.

    Distinct, so that a number may be repeated under a second key, or no longer be.
    """
    return sorted(set(_numbers(record)))


def _numbers(value: Any) -> Iterator[str]:
    if dataclasses.is_dataclass(value):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not TIME_DEPENDENT & set(re.split(r"[^a-z]+", str(key).lower())):
                yield from _numbers(inner)
    elif isinstance(value, np.ndarray):
        yield from _numbers(value.tolist())
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _numbers(inner)
    elif isinstance(value, int | float | np.number) and not isinstance(value, bool):
        yield repr(float(value))


def texts_in(value: Any) -> list[str]:
    """Return all strings of a nested record, without keys, sorted."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return sorted(text for inner in value for text in texts_in(inner))
    return [value] if isinstance(value, str) else []


def digest(parts: Iterable[bytes]) -> str:
    """Return the first 16 digits of the SHA-256 sum of byte strings, with the length of each before it."""
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "big") + part)
    return total.hexdigest()[:16]


def hash_weights(file: Path) -> str:
    """Hash the tensors of a safetensors file, sorted by name."""
    parts: list[bytes] = []
    for name, tensor in sorted(load_file(file).items()):
        parts += [name.encode(), str(tensor.dtype).encode(), str(tensor.shape).encode(), tensor.tobytes()]
    return digest(parts)


def records_of_run(out: Path) -> list[Any]:
    """Return the lines of the log and the result files of a run directory."""
    files = [file for pattern in RESULT_FILES for file in sorted(out.glob(pattern))]
    if not files:
        raise FileNotFoundError(f"'{out}' holds none of {RESULT_FILES}. Edit RESULT_FILES if they were renamed.")
    texts = [(file.suffix, file.read_text("utf-8")) for file in files]
    lines = [line for suffix, text in texts for line in (text.splitlines() if suffix == ".jsonl" else [text])]
    return [json.loads(line) for line in lines]


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """What is hashed of one run.

    Attributes:
        weights: Hash of the weights or written files; "-" if there are none.
        records: Numbers of each record, from `metric_values`, and texts.
    """

    weights: str
    records: list[list[str]]

    @property
    def metrics(self) -> str:
        return digest(json.dumps(record).encode() for record in self.records)


def fingerprint(result: Any, out: Path | None = None, *, weights: str | None = None, texts: Any = ()) -> Fingerprint:
    """Return the fingerprint of a returned value, of the run directory `out`, and of texts."""
    if weights is None:
        models = sorted(hash_weights(file) for file in out.rglob(MODEL)) if out is not None else []
        weights = models[0] if len(models) == 1 else digest(map(str.encode, models)) if models else "-"
    records = [metric_values(record) for record in (records_of_run(out) if out is not None else [])]
    return Fingerprint(weights, [*records, metric_values(result), *([list(texts)] if texts else [])])


# --------------------------------------------------------------------------------------------------------------- Data

PAIRS = [("old", "king"), ("green", "river"), ("small", "child"), ("wise", "teacher"), ("quiet", "garden")]
NOUNS = [noun for _, noun in PAIRS]
VERBS = ["sees", "follows", "remembers", "paints", "forgets"]
LOCATIONS = ["under the bridge", "behind the house", "before the winter", "near the forest"]
EXTRA = ["Ein süßer Käse, naïve and unaffordable.", "床前明月光,疑是地上霜。舉頭望明月,低頭思故鄉。"]
FOLDER = Path(tempfile.mkdtemp(prefix="yardstick-"))


def make_lines(seed: int, number: int) -> list[str]:
    """Return documents of one to four sentences in which the adjective determines the noun."""
    rng = random.Random(seed)

    def sentence() -> str:
        (a, b), (c, d) = rng.choice(PAIRS), rng.choice(PAIRS)
        return f"The {a} {b} {rng.choice(VERBS)} the {c} {d} {rng.choice(LOCATIONS)}."

    return [" ".join(sentence() for _ in range(rng.randint(1, 4))) for _ in range(number)]


def write(file: Path, lines: Sequence[str]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


@cache
def corpus() -> Path:
    return write(FOLDER / "corpus.txt", [*make_lines(0, 200), *EXTRA * 3])


@cache
def tokenizer(kind: str) -> tuple[Path, Any]:
    options = {"wordpiece": {"vocab_size": 160, "lowercase": True}, "bpe": {"vocab_size": 320}}[kind]
    return FOLDER / kind, train_tokenizer([corpus()], FOLDER / kind, kind=kind, **options)


@cache
def data(kind: str) -> tuple[Path, Any]:
    out = FOLDER / f"data_{kind}"
    return out, prepare([corpus()], tokenizer(kind)[0], out)


@cache
def labelled() -> Path:
    """Folder with train/, dev/ and test/, each with a labelled file for every task."""
    folder = FOLDER / "labelled"
    for seed, (split, number) in enumerate({"train": 40, "dev": 15, "test": 10}.items(), start=1):
        write_labelled(folder / split, make_lines(seed, number))
    return folder


def write_labelled(folder: Path, lines: Sequence[str]) -> None:
    labels = [[noun for noun in NOUNS if noun in line.split()] for line in lines]
    rows = list(zip(lines, labels, strict=True))
    write(folder / "class.csv", ["text,label", *(f'"{t}",{"good" if "king" in found else "bad"}' for t, found in rows)])
    write(folder / "labels.jsonl", [json.dumps({"text": t, "labels": found}) for t, found in rows])
    write(folder / "score.tsv", ["sentence\tscore", *(f"{t}\t{t.count('the') / 2 + 0.25}" for t in lines)])
    pairs = [
        {"premise": a, "hypothesis": b, "label": int(("king" in found) == ("king" in next_found))}
        for (a, found), (b, next_found) in zip(rows, [*rows[1:], rows[0]], strict=True)
    ]
    write(folder / "pairs.jsonl", [json.dumps(row) for row in pairs])
    tags = [[f"{word}\t{'B-NOUN' if word in NOUNS else 'O'}" for word in line.split()] for line in lines]
    write(folder / "tags.conll", [row for sentence in tags for row in [*sentence, ""]])
    paragraphs = []
    for i, line in enumerate(lines):
        word = line.split()[2]
        answers = [] if i % 4 == 3 else [{"text": word, "answer_start": line.index(word)}]
        question = {"id": str(i), "question": "Who sees the king?", "answers": answers, "is_impossible": not answers}
        paragraphs.append({"context": line, "qas": [question]})
    write(folder / "squad.json", [json.dumps({"version": "v2.0", "data": [{"title": "t", "paragraphs": paragraphs}]})])
    choices = [("the king", "the river") if i % 3 else ("the river", "the king") for i in range(len(lines))]
    write(
        folder / "choices.jsonl",
        [
            json.dumps({"prompt": line, "choice1": a, "choice2": b, "label": "AB"[(a, b).index("the king")]})
            for line, (a, b) in zip(lines, choices, strict=True)
        ],
    )


# --------------------------------------------------------------------------------------------------------------- Runs

PRETRAINED: dict[str, tuple[str, str, list[str]]] = {
    "masked_words": ("bert_tiny", "wordpiece", []),
    "masked_whole_words": ("bert_tiny", "wordpiece", ["objective.unit=word"]),
    "masked_spans": ("bert_tiny", "wordpiece", ["objective.unit=span"]),
    "masked_with_next_sentence": ("bert_tiny", "wordpiece", ["objective.sentences=next"]),
    "masked_with_sentence_order": ("bert_tiny", "wordpiece", ["objective.sentences=order"]),
    "causal_apart": ("gpt_tiny", "bpe", ["optimizer.learning_rate=1e-2"]),
    "causal_stream": ("gpt_tiny", "bpe", ["objective.documents=stream", "model.hidden_dropout_prob=0.1"]),
    "causal_backward": ("gpt_tiny", "bpe", ["objective.direction=backward"]),
    "optimizer_adamw": (
        *("bert_tiny", "wordpiece"),
        ["optimizer.kind=adamw", "optimizer.learning_rate=2e-2", "optimizer.weight_decay=0.1", "schedule.kind=cosine"],
    ),
    "optimizer_muon": (
        *("bert_tiny", "wordpiece"),
        ["optimizer.kind=muon", "optimizer.learning_rate=2e-2", "schedule.kind=wsd"],
    ),
    "accumulation": ("bert_tiny", "wordpiece", ["batch.micro_size=2", "model.hidden_dropout_prob=0.1"]),
    "phases": ("bert_tiny", "wordpiece", ["phases=[{start_ratio=0.5, size=4, sequence_length=48}]"]),
    "dropout": ("bert_tiny", "wordpiece", ["model.hidden_dropout_prob=0.1"]),
}
"""Name -> recipe, kind of tokenizer, settings."""

FINETUNED: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "classify": ("classify", "masked_with_next_sentence", "class.csv", {}),
    "classify_multi_label": ("classify", "masked_with_next_sentence", "labels.jsonl", {"kind": "labels"}),
    "regression": ("classify", "masked_with_next_sentence", "score.tsv", {"kind": "score"}),
    "pair": ("pair", "masked_with_next_sentence", "pairs.jsonl", {}),
    "tag": ("tag", "masked_words", "tags.conll", {}),
    "qa": ("qa", "masked_words", "squad.json", {"max_length": 24}),
    "choice": ("choice", "masked_words", "choices.jsonl", {}),
    "classify_gpt": ("classify", "causal_apart", "class.csv", {}),
    "tag_gpt": ("tag", "causal_apart", "tags.conll", {}),
    "classify_early_stopping": (
        *("classify", "masked_words", "class.csv"),
        {"settings": ["layer_decay=0.9", "evaluation.patience=1", "evaluation.every=2", "task.balance=true"]},
    ),
}
"""Name -> task, name of the pre-trained run, file, options of `finetune`."""


@cache
def pretrained(name: str) -> tuple[Path, Any]:
    recipe, kind, settings = PRETRAINED[name]
    steps = 30 if name == "causal_apart" else STEPS  # long enough to generate more than one word
    return FOLDER / name, pretrain(recipe, data(kind)[0], FOLDER / name, settings, steps=steps)


def run_pretraining(name: str) -> Fingerprint:
    out, result = pretrained(name)
    return fingerprint(result, out)


def run_finetuning(name: str) -> Fingerprint:
    task, base, file, options = FINETUNED[name]
    out = FOLDER / f"finetuned_{name}"
    result = finetune(task, pretrained(base)[0], file, out, **options)
    lines = make_lines(9, 6)
    inputs: list[Any] = {
        "pair": list(itertools.pairwise(lines)),
        "qa": [("Who sees the king?", line) for line in lines],
        "choice": [(line, ("the king", "the river")) for line in lines],
    }.get(task, lines)
    return fingerprint([result, predict(out, inputs), evaluate(out, file)], out)


def run_resume(name: str) -> Fingerprint:
    """Interrupt the run "dropout", resume it, and require the result of the uninterrupted run."""
    recipe, kind, settings = PRETRAINED["dropout"]
    out = FOLDER / name
    try:
        pretrain(recipe, data(kind)[0], out, settings, progress=InterruptAfter(4))
    except KeyboardInterrupt:
        found = fingerprint(resume_pretraining(data(kind)[0], out), out)
    else:
        raise AssertionError("The run to resume was not interrupted.")
    expected = run_pretraining("dropout")
    if (found.weights, found.metrics) != (expected.weights, expected.metrics):
        raise AssertionError(f"The resumed run differs from the uninterrupted one: {found} instead of {expected}")
    return found


def run_new_vocabulary(name: str) -> Fingerprint:
    """Extend the vocabulary of a model and continue pre-training it with its lowest layer frozen."""
    model, out = pretrained("masked_words")[0], FOLDER / name
    text = write(FOLDER / f"{name}.txt", [line.replace("king", "emperor") for line in make_lines(7, 150)])
    vocabulary = train_tokenizer([text], FOLDER / f"tokenizer_{name}", init=str(model), vocab_size=200)
    prepared = prepare([text], FOLDER / f"tokenizer_{name}", FOLDER / f"data_{name}")
    result = pretrain("bert_tiny", FOLDER / f"data_{name}", out, ["frozen_layers=1"], init=str(model))
    return fingerprint([vocabulary, prepared, result], out)


def run_tokenizer(name: str) -> Fingerprint:
    folder, result = tokenizer(name.removeprefix("train_tokenizer_"))
    content = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    return fingerprint(result, weights=digest([json.dumps(content, sort_keys=True).encode()]))


def run_prepare(name: str) -> Fingerprint:
    folder, result = data(name.removeprefix("prepare_"))
    files = [f for f in folder.rglob("*") if f.is_file() and "tokenizer" not in f.parts and f.suffix != ".json"]
    return fingerprint(result, weights=digest(sorted(f.read_bytes() for f in files)))


def run_synthetic(name: str) -> Fingerprint:
    out = FOLDER / "synthetic.jsonl"
    result = synthetic(out)
    texts = [text for line in out.read_text("utf-8").splitlines() for text in texts_in(json.loads(line))]
    return fingerprint({k: v for k, v in result.items() if k != "bytes"}, texts=texts)  # keys count as bytes


def run_fill(name: str) -> Fingerprint:
    model = pretrained("masked_words")[0]
    texts = ["The old [MASK] sees the river.", "The [MASK] teacher [MASK] the child near the forest."]
    results = [
        fill(model, texts, top_k=4),
        fill(model, texts[:1], candidates=["king", "garden"]),
        stemformer.score(make_lines(8, 3), model=str(model), **COMPUTE),
    ]
    return fingerprint(results, texts=texts_in(results))


def run_embed(name: str) -> Fingerprint:
    return fingerprint([embed(pretrained(base)[0], make_lines(8, 4)) for base in ("masked_words", "causal_apart")])


DECODING: dict[str, dict[str, Any]] = {
    "generate_greedy": {"temperature": 0},
    "generate_sampling": {"temperature": 0.9, "top_k": 40, "top_p": 0.95, "seed": 3},
    "generate_min_p": {"min_p": 0.05, "repetition_penalty": 1.2, "stop": [" the"], "seed": 4},
    "generate_beams": {"num_beams": 3, "length_penalty": 0.8},
}


def run_generate(name: str) -> Fingerprint:
    prompts = ["The old king", "", "The quiet garden sees"]
    texts, results = generate(pretrained("causal_apart")[0], prompts, **DECODING[name])
    return fingerprint(results, texts=texts)


def run_prompt(name: str) -> Fingerprint:
    base = {"prompt_gpt": "causal_apart", "prompt_bert": "masked_words"}[name]
    tasks = ["synthetic:label_by_class", *(["synthetic:copy"] if name == "prompt_gpt" else [])]
    return fingerprint(prompt(tasks, pretrained(base)[0], FOLDER / name), FOLDER / name)


def run_compare(name: str) -> Fingerprint:
    out = FOLDER / name
    return fingerprint(compare("classify", pretrained("masked_words")[0], "class.csv", out), out)


def run_scale(name: str) -> Fingerprint:
    return fingerprint(scale("gpt_tiny", data("bpe")[0], FOLDER / name), FOLDER / name)


RUNS: dict[str, Callable[[str], Fingerprint]] = {
    **dict.fromkeys(["train_tokenizer_wordpiece", "train_tokenizer_bpe"], run_tokenizer),
    **dict.fromkeys(["prepare_wordpiece", "prepare_bpe"], run_prepare),
    "synthetic": run_synthetic,
    **dict.fromkeys(PRETRAINED, run_pretraining),
    "resume": run_resume,
    "new_vocabulary": run_new_vocabulary,
    **dict.fromkeys(FINETUNED, run_finetuning),
    "fill": run_fill,
    "embed": run_embed,
    **dict.fromkeys(DECODING, run_generate),
    **dict.fromkeys(["prompt_gpt", "prompt_bert"], run_prompt),
    "compare": run_compare,
    "scale": run_scale,
}
"""Name of a line -> function that returns its fingerprint. A run that others need is made when first needed."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=RUNS, metavar="NAME", help="run only these lines")
    parser.add_argument("--out", type=Path, help="write the lines to a file too")
    parser.add_argument("--compare", type=Path, help="exit with status 1 if lines differ from those in a file")
    parser.add_argument("--values", type=Path, help="write the hashed numbers of each line into a directory")
    options = parser.parse_args()
    expected = options.compare.read_text("utf-8").splitlines() if options.compare else None
    warnings.simplefilter("ignore")
    skip_measurements()
    print(f"Package: {stemformer.__file__}", file=sys.stderr)

    lines = {}
    for name in options.only or RUNS:
        started = time.perf_counter()
        found = RUNS[name](name)
        lines[name] = f"{name:<28}weights {found.weights:<18}metrics {found.metrics}"
        print(lines[name], flush=True)
        print(f"{name}: {time.perf_counter() - started:.1f} s", file=sys.stderr)
        if options.values:
            write(options.values / f"{name}.txt", [" ".join(record) for record in found.records])
    if options.out:
        write(options.out, list(lines.values()))
    if expected is None:
        return 0

    before = {line.split()[0]: line for line in expected if line.split()}
    names = options.only or list(dict.fromkeys([*before, *lines]))
    different = [name for name in names if before.get(name) != lines.get(name)]
    for name in different:
        print(f"- {before.get(name, f'{name} is missing')}\n+ {lines.get(name, f'{name} is missing')}")
    print(f"{len(different)} of {len(names)} lines differ from {options.compare}")
    return 1 if different else 0


if __name__ == "__main__":
    try:
        status = main()
    finally:
        shutil.rmtree(FOLDER, ignore_errors=True)
    sys.exit(status)
