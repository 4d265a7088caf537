"""On a GPU: the numbers of the CPU from text to text, runs that resume, and layers that are compiled."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from interrupts import StopAt
from safetensors.torch import load_file

import stemformer
from stemformer.evaluation.few_shot.scoring import ScoringRequest, score_answers
from stemformer.generation.decoding import DecodingConfig, beam_search, decode
from stemformer.io import read_jsonl
from stemformer.models.gpt import GptConfig
from stemformer.models.model import make_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.usefixtures("no_timing"),
]

RECIPES = {"bert": "bert_tiny", "gpt": "gpt_tiny"}
SETTINGS = [
    "model.hidden_size=32",
    "model.intermediate_size=64",
    "model.hidden_dropout_prob=0.0",
    "batch.size=8",
    "batch.sequence_length=32",
    "log_every=1",
    "evaluation.num_examples=32",
    "evaluation.every=5",
    "checkpoints.every=4",
]

# Ten steps of an optimizer let the rounding of float32, and of bfloat16, grow.
FP32_RUN, BF16_RUN = 1e-3, 2e-2


@pytest.fixture(scope="module")
def data(tiny, tmp_path_factory):
    """Prepared folders of one text, for a BERT and for a GPT; not to be changed."""
    root = tmp_path_factory.mktemp("cuda")
    text = str(tiny / "text.txt")
    stemformer.train_tokenizer([text], out=str(root / "tok"), kind="bpe", vocab_size=320, documents="line")
    stemformer.prepare(
        [text], tokenizer=str(root / "tok"), out=str(root / "data"), held_out=0.1, documents="line", num_workers=1
    )
    return {"bert": str(tiny / "data"), "gpt": str(root / "data")}


@pytest.fixture(scope="module")
def gpt():
    config = GptConfig(
        vocab_size=61,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=40,
        initializer_range=0.3,
        eos_token_id=7,
    )
    return make_model(config, ["causal_lm"], generator=torch.Generator().manual_seed(0)).eval()


def run(data, kind, out, *, settings=(), **options):
    usual = {
        "recipe": RECIPES[kind],
        "settings": [*SETTINGS, *settings],
        "steps": 10,
        "compile": False,
        "precision": "fp32",
    }
    return stemformer.pretrain(data=data[kind], out=str(out), **({} if options.get("resume") else usual) | options)


@pytest.mark.parametrize("kind", RECIPES)
def test_runs_learn_what_those_on_the_cpu_learn(data, kind, tmp_path):
    here, there = (run(data, kind, tmp_path / device, device=device) for device in ("cpu", "cuda"))
    name = next(name for name in here if name.startswith("held_out") and name.endswith("loss"))
    assert there[name] < there["before"][name]
    assert there[name] == pytest.approx(here[name], rel=FP32_RUN)
    half = run(data, kind, tmp_path / "half", device="cuda", precision="bf16")
    assert half[name] == pytest.approx(here[name], rel=BF16_RUN)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", RECIPES)
def test_ten_steps_are_four_and_six(data, kind, precision, tmp_path):
    options = {"device": "cuda", "precision": precision, "settings": ["model.hidden_dropout_prob=0.1"]}
    run(data, kind, tmp_path / "full", **options)
    with pytest.raises(KeyboardInterrupt):
        run(data, kind, tmp_path / "parts", progress=StopAt(4), **options)
    run(data, kind, tmp_path / "parts", resume=True)
    a, b = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("full", "parts"))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


COMPILED = """
import json, signal, sys
import stemformer
from stemformer.progress import Silent

class StopAt(Silent):
    left = 4
    def advance(self, amount, note=""):
        self.left -= amount
        if amount and self.left == 0:
            signal.raise_signal(signal.SIGINT)

options = json.loads(sys.argv[1])
result = stemformer.pretrain(**options, out=sys.argv[2] + "/full")
try:
    stemformer.pretrain(**options, out=sys.argv[2] + "/parts", progress=StopAt())
except KeyboardInterrupt:
    stemformer.pretrain(data=options["data"], out=sys.argv[2] + "/parts", resume=True)
print(json.dumps(result))
"""


@pytest.mark.parametrize("kind", RECIPES)
def test_cuda_graphs_of_compiled_layers_learn_the_same_and_resume(data, kind, tmp_path):
    eager = run(data, kind, tmp_path / "eager", device="cuda", precision="bf16")
    settings = [*SETTINGS, "batch.micro_size=4"]
    options = {"data": data[kind], "recipe": RECIPES[kind], "settings": settings, "steps": 10, "device": "cuda"}
    command = [sys.executable, "-c", COMPILED, json.dumps({**options, "precision": "bf16"}), str(tmp_path)]
    environment = {**os.environ, "STEMFORMER_NO_TYPECHECK": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    name = next(name for name in eager if name.startswith("held_out") and name.endswith("loss"))
    assert result[name] == pytest.approx(eager[name], rel=BF16_RUN)
    a, b = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("full", "parts"))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "options", [{"temperature": 0}, {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.2}, {"num_beams": 3}]
)
def test_generated_texts_equal_those_of_the_cpu(gpt, options):
    config = DecodingConfig(max_new_tokens=25, **options)
    rng = np.random.default_rng(0)
    prompts = [torch.from_numpy(rng.integers(8, 61, n)) for n in (3, 12, 7, 1, 15)]

    def generate(model):
        if config.num_beams > 1:
            return beam_search(model, prompts, config)
        return decode(model, prompts, config)

    here, there = generate(gpt), generate(gpt.cuda())
    gpt.cpu()
    assert [text.ids for text in here] == [text.ids for text in there]
    for one, other in zip(here, there, strict=True):
        assert one.log_probability == pytest.approx(other.log_probability, rel=1e-4)


def test_sliding_window_equals_that_of_the_cpu(gpt):
    config = DecodingConfig(max_new_tokens=60, temperature=0, overflow="slide")
    prompts = [torch.tensor([9, 10, 11]), torch.tensor([20])]
    here = decode(gpt, prompts, config)
    there = decode(gpt.cuda(), prompts, config)
    gpt.cpu()
    assert [text.ids for text in here] == [text.ids for text in there]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
def test_answer_scores_equal_those_of_the_cpu(gpt, dtype, tolerance):
    rng = np.random.default_rng(1)
    beginning = rng.integers(8, 61, 9)
    questions = [
        ScoringRequest(np.append(beginning, rng.integers(8, 61, n)), tuple(rng.integers(8, 61, m) for m in (1, 4, 2)))
        for n in (1, 7, 3)
    ]
    here = score_answers(gpt, questions)
    with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
        there = score_answers(gpt.cuda(), questions)
    gpt.cpu()
    for one, other in zip(here, there, strict=True):
        expected = [score.log_probability for score in one]
        assert [score.log_probability for score in other] == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize(("task", "name"), [("classify", "reviews.csv"), ("tag", "tags.conll"), ("qa", "squad.json")])
def test_fine_tuning_learns_what_it_learns_on_the_cpu(tiny_bert, labelled, task, name, tmp_path):
    body = shutil.copytree(tiny_bert, tmp_path / "body")
    sizes = json.loads((body / "config.json").read_text())
    (body / "config.json").write_text(json.dumps({**sizes, "hidden_dropout_prob": 0.0}))  # each device draws its own
    files = {"train": [str(labelled / "train" / name)], "dev": [str(labelled / "dev" / name)]}
    options = {"steps": 12, "batch_size": 8, "learning_rate": 3e-3, "settings": ["log_every=1"], "compile": False}
    for device in ("cpu", "cuda"):
        out = str(tmp_path / device)
        stemformer.finetune(task, model=str(body), **files, out=out, **options, precision="fp32", device=device)
    here, there = (
        [
            value
            for line in read_jsonl(tmp_path / device / "log.jsonl")
            if line["kind"] == "train"
            for name, value in line.items()
            if name.endswith("loss")
        ]
        for device in ("cpu", "cuda")
    )
    assert len(here) == options["steps"] and there == pytest.approx(here, rel=1e-2)
