"""Shared by all tests: shapes checked at run time, two threads, small texts, models and labelled files."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

# Before the package is imported: the hook rewrites modules as they load. Compile tests run in a subprocess without it.
if not os.environ.get("STEMFORMER_NO_TYPECHECK"):
    from jaxtyping import install_import_hook

    # As for mypy, an int is a float too (the numeric tower of PEP 484).
    install_import_hook("stemformer", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

os.environ["OMP_NUM_THREADS"] = "2"  # for the processes that tests start
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line does
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def two_threads():
    """Use two threads everywhere: sums depend on the number of threads."""
    import torch

    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Directory of large real data sets next to the checkout; without it, tests that use it are skipped."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no large data sets at {folder}")
    return folder


def _make_text(seed: int = 0, num_documents: int = 200) -> str:
    """Make documents of a few sentences with a learnable grammar: each adjective belongs to a noun."""
    rng = np.random.default_rng(seed)
    pairs = [("old", "king"), ("green", "river"), ("small", "child"), ("wise", "teacher"), ("quiet", "garden")]
    verbs = ["sees", "follows", "remembers", "paints", "forgets"]
    locations = ["under the bridge", "behind the house", "before the winter", "near the forest"]

    def sentence() -> str:
        (a, b), (c, d) = (pairs[i] for i in rng.integers(len(pairs), size=2))
        return f"The {a} {b} {rng.choice(verbs)} the {c} {d} {rng.choice(locations)}."

    return "\n".join(" ".join(sentence() for _ in range(rng.integers(1, 5))) for _ in range(num_documents)) + "\n"


@pytest.fixture(scope="session")
def make_text() -> Callable[..., str]:
    """Function of a seed and a number of documents that returns a small text, one document a line."""
    return _make_text


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with text.txt, tok/ and data/ made of it; not to be changed."""
    import stemformer

    root = tmp_path_factory.mktemp("tiny")
    (root / "text.txt").write_text(_make_text())
    text, tok, data = (str(root / name) for name in ("text.txt", "tok", "data"))
    stemformer.train_tokenizer([text], out=tok, vocab_size=300, documents="line")
    stemformer.prepare([text], tokenizer=tok, out=data, held_out=0.1, documents="line", num_workers=1)
    return root


@pytest.fixture(scope="session")
def no_timing():
    """Neither measures the machine at the start of a run nor draws a report at its end: both take seconds, and have tests of their own."""
    from stemformer.commands import finetune as finetuning
    from stemformer.commands import pretrain as pretraining

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining, "matmul_rate", lambda *args: 1e11)
        patch.setattr(pretraining, "write_report", lambda folder: None)
        patch.setattr(finetuning, "matmul_rate", lambda *args, **options: 1e11)
        yield


@pytest.fixture(scope="session")
def tiny_bert(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder of a random BERT of two layers, with the tokenizer of `tiny`; not to be changed."""
    import torch

    from stemformer.data.tokenization.tokenizer import load_tokenizer
    from stemformer.huggingface.save import save_model
    from stemformer.models.bert import BertConfig
    from stemformer.models.model import make_model

    tokenizer = load_tokenizer(tiny / "tok")
    config = BertConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.1,
    )
    folder = tmp_path_factory.mktemp("bert") / "model"
    save_model(make_model(config, ["masked_lm"], generator=torch.Generator().manual_seed(0)), folder, tokenizer)
    return folder


LABELLED = {
    "class": ("classify", "reviews.csv", {}),
    "labels": ("classify", "labels.jsonl", {"kind": "labels"}),
    "score": ("classify", "scores.tsv", {"kind": "score"}),
    "pair": ("pair", "pairs.jsonl", {}),
    "tag": ("tag", "tags.conll", {}),
    "qa": ("qa", "squad.json", {}),
    "choice": ("choice", "choices.jsonl", {}),
}
"""Kind of label -> task, file below `labelled`/train and /dev, and further arguments of `finetune`."""


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory with train/ and dev/, each with a labelled file for every kind of task; read-only."""
    root = tmp_path_factory.mktemp("labelled")
    for seed, (split, number) in enumerate((("train", 40), ("dev", 15))):
        (root / split).mkdir()
        _write_labelled(root / split, _make_text(seed, number).splitlines())
    return root


def _write_labelled(folder: Path, lines: list[str]) -> None:
    """Write a small file for each kind of task; the answers can be learned from the words."""
    nouns = ["king", "river", "child", "teacher", "garden"]

    def write(name: str, rows: list[str]) -> None:
        (folder / name).write_text("\n".join(rows) + "\n", encoding="utf-8")

    def has(line: str, word: str) -> bool:
        return word in line.split()

    write(
        "reviews.csv",
        ["id,review,sentiment"] + [f'{i},"{t}",{"good" if has(t, "king") else "bad"}' for i, t in enumerate(lines)],
    )
    labels = [[noun for noun in nouns if has(t, noun)] for t in lines]
    write("labels.jsonl", [json.dumps({"text": t, "labels": found}) for t, found in zip(lines, labels, strict=True)])
    write("scores.tsv", ["sentence\tscore"] + [f"{t}\t{t.count('the') / 2 + 0.25}" for t in lines])
    others = lines[1:] + lines[:1]
    same = [set(a) & set(b) != set() for a, b in zip(labels, labels[1:] + labels[:1], strict=True)]
    rows = [{"premise": a, "hypothesis": b, "label": int(c)} for a, b, c in zip(lines, others, same, strict=True)]
    write("pairs.jsonl", [json.dumps(row) for row in rows])
    tagged = []
    for line in lines:
        tags = [
            "B-NOUN" if word in nouns else "B-PLACE" if word in ("bridge.", "house.") else "O" for word in line.split()
        ]
        tagged += [f"{word}\t{tag}" for word, tag in zip(line.split(), tags, strict=True)] + [""]
    write("tags.conll", tagged)
    paragraphs = []
    for i, line in enumerate(lines):
        word = line.split()[2]
        answer = {"text": word, "answer_start": line.index(word)}
        qas = [{"id": str(i), "question": "Who sees the king?", "answers": [answer]}]
        paragraphs.append({"context": line, "qas": qas})
    write("squad.json", [json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": paragraphs}]})])
    rows = []
    for i, line in enumerate(lines):
        choices = ("the king", "the river") if i % 3 else ("the river", "the king")
        rows.append(
            {"prompt": line, "choice1": choices[0], "choice2": choices[1], "label": "AB"[choices.index("the king")]}
        )
    write("choices.jsonl", [json.dumps(row) for row in rows])


@pytest.fixture(scope="session")
def finetuned(
    no_timing, tiny_bert: Path, labelled: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Function of a key of `LABELLED` that returns a run directory of a few steps in fp32; read-only."""
    from functools import cache

    import stemformer

    @cache
    def make(kind: str) -> Path:
        task, name, options = LABELLED[kind]
        out = tmp_path_factory.mktemp("finetuned") / kind
        result = stemformer.finetune(
            task,
            model=str(tiny_bert),
            train=[str(labelled / "train" / name)],
            dev=[str(labelled / "dev" / name)],
            out=str(out),
            steps=12,
            batch_size=8,
            learning_rate=3e-3,
            precision="fp32",
            settings=["log_every=4", "evaluation.every=6", "task.stride=8"],
            **options,
        )
        (out / "result.json").write_text(json.dumps(result))
        return out

    return make


@pytest.fixture(scope="session")
def bpe(make_text):
    """A small byte-level BPE."""
    from stemformer.data.tokenization.trainers import train_byte_bpe

    return train_byte_bpe(make_text().splitlines(), vocab_size=400)


@pytest.fixture(scope="session")
def small_gpt(bpe):
    """A GPT with its head for that BPE, with random weights."""
    import torch

    from stemformer.data.tokenization.tokenizer import END_OF_TEXT
    from stemformer.models.gpt import GptConfig
    from stemformer.models.model import make_model

    config = GptConfig(
        vocab_size=bpe.vocab_size,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=96,
        initializer_range=0.3,
        eos_token_id=bpe.token_to_id(END_OF_TEXT),
    )
    return make_model(config, ["causal_lm"], generator=torch.Generator().manual_seed(1)).eval()


@pytest.fixture(scope="session")
def small_llama(bpe):
    """A Qwen3 with its head for that BPE, with random weights: rotated, normed and grouped heads, gated layers."""
    import torch

    from stemformer.data.tokenization.tokenizer import END_OF_TEXT
    from stemformer.models.llama import Qwen3Config
    from stemformer.models.model import make_model

    config = Qwen3Config(
        vocab_size=bpe.vocab_size,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=96,
        initializer_range=0.3,
        eos_token_id=bpe.token_to_id(END_OF_TEXT),
    )
    return make_model(config, ["causal_lm"], generator=torch.Generator().manual_seed(1)).eval()
