"""lm-evaluation-harness gives the same metrics with our adapter, with its Hugging Face model, and without it."""

import json

import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="needs the extra eval")

from lm_eval.api.instance import Instance
from tokenizers import Tokenizer as Backend
from tokenizers import models

import stemformer
from stemformer.data.tokenization.tokenizer import Tokenizer
from stemformer.errors import ConfigError
from stemformer.evaluation.few_shot.lm_eval_adapter import HarnessModel
from stemformer.generation.decoding import DecodingConfig
from stemformer.huggingface.save import save_model

pytestmark = pytest.mark.filterwarnings("ignore")  # from the harness and datasets

WORDS = ["old", "wise", "small", "green", "quiet"]


@pytest.fixture(scope="module")
def folder(small_gpt, bpe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("harness")
    save_model(small_gpt, folder / "model", bpe)
    rows = [
        {
            "text": f"The {WORDS[i % 5]} king sees the {WORDS[i * 3 % 5]}",
            "a": "river",
            "b": "quiet garden near",
            "label": i % 2,
        }
        for i in range(24)
    ]
    (folder / "mood.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "mood_local",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "mood.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": ["river", "quiet garden near"],
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    generate = {
        **{
            key: value
            for key, value in task.items()
            if not key.startswith("doc_to_ch") and key not in ("task", "metric_list")
        },
        "task": "continue_local",
        "output_type": "generate_until",
        "doc_to_target": "a",
        "generation_kwargs": {"until": [" the"], "max_gen_toks": 12, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    }
    rolling = {
        **{key: value for key, value in task.items() if not key.startswith("doc_to_") and key != "metric_list"},
        "task": "likely_local",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "byte_perplexity"}],
    }
    (folder / "tasks").mkdir()
    for settings in (task, generate, rolling):
        (folder / "tasks" / f"{settings['task']}.yaml").write_text(json.dumps(settings))  # JSON is YAML
    return folder


def evaluated(folder, model, task, shots):
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
    result = lm_eval.simple_evaluate(
        model=model, tasks=[task], num_fewshot=shots, task_manager=manager, log_samples=True, bootstrap_iters=0
    )
    return result["results"][task], [sample["resps"] for sample in result["samples"][task]]


@pytest.fixture(scope="module")
def theirs(folder):
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder / "model"), device="cpu", dtype="float32", batch_size=4)


@pytest.mark.parametrize("shots", [0, 1])
def test_multiple_choice_equals_the_harness(folder, theirs, shots):
    ours, mine = evaluated(folder, HarnessModel(str(folder / "model"), device="cpu"), "mood_local", shots)
    reference, their = evaluated(folder, theirs, "mood_local", shots)
    assert (ours["acc,none"], ours["acc_norm,none"]) == (reference["acc,none"], reference["acc_norm,none"])
    numbers = [np.array([[answer[0][0] for answer in sample] for sample in samples]) for samples in (mine, their)]
    np.testing.assert_allclose(*numbers, rtol=1e-5)  # float32, other summation order


def test_our_evaluation_gives_the_same_metrics(folder):
    settings = 'template = "{text} {answer}"\nlabel = "label"\n[answers]\n"0" = "river"\n"1" = "quiet garden near"\n'
    (folder / "mood.toml").write_text(settings)
    result = stemformer.fewshot(
        [f"{folder / 'mood.toml'}={folder / 'mood.jsonl'}"], model=[str(folder / "model")], num_shots=[0]
    )
    adapter = HarnessModel(str(folder / "model"), device="cpu", add_bos_token=True)
    harness, _ = evaluated(folder, adapter, "mood_local", 0)
    row = result["results"][0]
    assert row["acc"] == pytest.approx(harness["acc,none"]) and row["acc_norm"] == pytest.approx(
        harness["acc_norm,none"]
    )


def test_generated_texts_equal_those_of_the_harness(folder, theirs):
    _, mine = evaluated(folder, HarnessModel(str(folder / "model"), device="cpu"), "continue_local", 0)
    _, their = evaluated(folder, theirs, "continue_local", 0)
    assert mine == their


@pytest.mark.parametrize(
    "settings",
    [
        {"max_new_tokens": 5, "until": []},
        {"max_tokens": 7, "until": [" the", "x"]},
        {"max_gen_toks": 6, "until": [], "repetition_penalty": 1.5},
        {"max_gen_toks": 6, "until": " the", "do_sample": False, "temperature": 0.9},
        {"max_gen_toks": 6, "until": [], "num_beams": 3},
    ],
)
def test_generation_settings_equal_those_of_the_harness(folder, theirs, settings):
    requests = [
        Instance("generate_until", {}, (f"The {word} king sees" + " the river" * i, settings), 0)
        for i, word in enumerate(WORDS)
    ]
    expected = theirs.generate_until(requests, disable_tqdm=True)
    assert HarnessModel(str(folder / "model"), device="cpu").generate_until(requests, disable_tqdm=True) == expected


def test_sampling_and_unsupported_generation_settings(folder):
    model = HarnessModel(str(folder / "model"), device="cpu", max_gen_toks=8)
    assert model._decoding({"until": ["", "x"]})[1] == ("x",)
    assert model._decoding({"temperature": 0.7})[0].temperature == 0.7
    assert model._decoding({"temperature": 0.7, "do_sample": False})[0].temperature == 0
    assert model._decoding({"do_sample": True, "top_p": 0.5})[0] == DecodingConfig(
        max_new_tokens=8, top_k=50, top_p=0.5
    )
    with pytest.raises(ConfigError, match="Beam search does not sample"):
        model._decoding({"do_sample": True, "temperature": 1.0, "num_beams": 2})
    with pytest.raises(ConfigError, match="Generation setting 'top_n' is not supported"):
        model._decoding({"top_n": 3})
    with pytest.raises(ConfigError, match="max_new_tokens is 0"):
        model._decoding({"max_gen_toks": 0})
    with pytest.raises(ConfigError, match=r"4096 new tokens; the model reads at most \d+"):
        model._decoding({"max_gen_toks": 4096})


def test_rolling_log_likelihoods_equal_the_harness(folder, theirs):
    ours, _ = evaluated(folder, HarnessModel(str(folder / "model"), device="cpu"), "likely_local", 0)
    reference, _ = evaluated(folder, theirs, "likely_local", 0)
    assert ours["byte_perplexity,none"] == pytest.approx(reference["byte_perplexity,none"], rel=1e-5)


@pytest.mark.parametrize("method", ["loglikelihood", "generate_until"])
def test_text_that_the_vocabulary_cannot_write_is_warned_of(folder, method):
    model = HarnessModel(str(folder / "model"))
    model.tokenizer = Tokenizer(Backend(models.BPE({"a": 0, "b": 1}, [])))
    arguments = ("aя", "жb") if method == "loglikelihood" else ("abяя", {"until": ["b"], "max_gen_toks": 2})
    with pytest.warns(UserWarning, match="50% of the characters are left out, such as '[яж]'"):
        getattr(model, method)([Instance(method, {}, arguments, 0)])
