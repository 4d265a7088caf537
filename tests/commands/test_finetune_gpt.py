"""A GPT on labelled data: runs that learn and resume, folders that predict alike here and in transformers, and what is refused."""

import json
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from interrupts import StopAt
from safetensors.torch import load_file

import stemformer
from stemformer.data.labelled.question_answering import read_questions
from stemformer.data.labelled.table import read_table
from stemformer.data.labelled.text_classification import TextExample
from stemformer.data.labelled.token_classification import TaggedSentence, join_tokens, read_tagged
from stemformer.data.tokenization.tokenizer import load_tokenizer
from stemformer.errors import CheckpointError
from stemformer.huggingface.load import load_model_and_tokenizer
from stemformer.huggingface.save import save_model
from stemformer.models.gpt import GptConfig
from stemformer.models.llama import LlamaConfig
from stemformer.models.model import make_model
from stemformer.tasks.sequence_classification import SequenceClassification
from stemformer.tasks.task import TaskConfig
from stemformer.tasks.token_classification import TokenClassification

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.usefixtures("no_timing")

TASKS = {
    "class": ("classify", "reviews.csv"),
    "pair": ("pair", "pairs.jsonl"),
    "tag": ("tag", "tags.conll"),
    "qa": ("qa", "squad.json"),
    "choice": ("choice", "choices.jsonl"),
}


@pytest.fixture(scope="module")
def gpts(tiny, tmp_path_factory):
    """Folders of random GPTs of two layers by the kind of their tokenizer; not to be changed."""
    root = tmp_path_factory.mktemp("gpts")
    stemformer.train_tokenizer(
        [str(tiny / "text.txt")], out=str(root / "tok"), kind="bpe", vocab_size=300, documents="line"
    )
    for kind, folder in (("bpe", root / "tok"), ("wordpiece", tiny / "tok"), ("llama", root / "tok")):
        tokenizer = load_tokenizer(folder)
        config = (partial(LlamaConfig, num_key_value_heads=2) if kind == "llama" else GptConfig)(
            vocab_size=tokenizer.vocab_size,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=64,
            initializer_range=0.1,
            eos_token_id=tokenizer.sep_token_id if kind == "wordpiece" else 0,
        )
        save_model(
            make_model(config, ["causal_lm"], generator=torch.Generator().manual_seed(0)), root / kind, tokenizer
        )
    return root


@pytest.fixture(scope="module")
def finetuned(gpts, labelled, no_timing, tmp_path_factory):
    """A function from a tokenizer's kind and a key of `TASKS` to a run folder; not to be changed."""
    from functools import cache

    @cache
    def make(vocabulary, kind, steps=8):
        out = tmp_path_factory.mktemp("finetuned") / "run"
        result = run(gpts / vocabulary, labelled, kind, out, steps=steps)
        (out / "result.json").write_text(json.dumps(result))
        return out

    return make


def run(model, labelled, kind, out, **options):
    task, name = TASKS[kind]
    files = {split: [str(labelled / split / name)] for split in ("train", "dev")}
    settings = ["log_every=1", "evaluation.every=4", "task.stride=8"]
    usual = {"steps": 8, "batch_size": 8, "learning_rate": 3e-3, "precision": "fp32", "settings": settings}
    return stemformer.finetune(task, model=str(model), out=str(out), **(files | usual | options))


VOCABULARIES = pytest.mark.parametrize("vocabulary", ["bpe", "wordpiece"])
MODELS = pytest.mark.parametrize("vocabulary", ["bpe", "wordpiece", "llama"])


def class_prefix(kind):
    return "Llama" if kind == "llama" else "GPT2"


# What a model reads


@VOCABULARIES
def test_each_text_starts_with_end_of_text_and_is_represented_by_its_last_token(gpts, vocabulary):
    _, tokenizer = load_model_and_tokenizer(gpts / vocabulary)
    records = [TextExample(texts, "a", {}, "here") for texts in (("The old king", "a river"), ("green", "The wise"))]
    examples = SequenceClassification(TaskConfig("pair"), ("a", "b")).encode(records, tokenizer, max_length=64).examples
    end = 0 if vocabulary == "bpe" else tokenizer.sep_token_id
    for record, example in zip(records, examples, strict=True):
        first, second = tokenizer.encode_ids(record.texts)
        assert example.input_ids.tolist() == [end, *first, end, *second]
        assert example.summary_positions.tolist() == [len(example.input_ids) - 1]


@VOCABULARIES
def test_word_is_scored_at_its_last_piece(gpts, vocabulary):
    _, tokenizer = load_model_and_tokenizer(gpts / vocabulary)
    words = ("The", "oldest", "kings", "seek", "(a)", "café", "🙂", "!")
    text, offsets = join_tokens(words)
    record = TaggedSentence(words, None, "here", text, offsets)
    (example,) = TokenClassification(TaskConfig("tag"), ("O", "B")).encode([record], tokenizer, max_length=64).examples
    ids = tokenizer.encode(text).ids
    assert len(ids) > len(words) + 4  # words of several pieces are among them
    ends = [len(tokenizer.encode(text[:end]).ids) for _, end in offsets]
    assert example.label_positions.tolist() == ends  # behind one token that begins the text
    assert example.input_ids.tolist() == [tokenizer.bos_token_id, *ids]


def test_text_that_is_cut_fills_the_room(gpts):
    _, tokenizer = load_model_and_tokenizer(gpts / "bpe")
    task = SequenceClassification(TaskConfig("classify", long_texts="cut"), ("a", "b"))
    text = "king river child teacher " * 9
    (example,) = task.encode([TextExample((text,), "a", {}, "here")], tokenizer, max_length=16).examples
    assert len(example.input_ids) == 16 and list(example.input_ids).count(tokenizer.bos_token_id) == 1


# What a run leaves


@pytest.mark.parametrize("kind", ["class", "tag"])
def test_tiny_set_is_learned(gpts, labelled, tmp_path, kind):
    data = [str(labelled / "train" / TASKS[kind][1])]
    result = run(
        gpts / "bpe",
        labelled,
        kind,
        tmp_path / "run",
        steps=80,
        train=data,
        dev=data,
        settings=["evaluation.every=1000"],
    )
    assert result["accuracy"] > 0.95


@VOCABULARIES
@pytest.mark.parametrize("kind", ["class", "pair", "tag", "qa"])
def test_metrics_equal_those_of_training(finetuned, labelled, vocabulary, kind):
    folder = finetuned(vocabulary, kind)
    found = stemformer.evaluate([str(labelled / "dev" / TASKS[kind][1])], model=str(folder), precision="fp32")
    result = json.loads((folder / "result.json").read_text())
    assert found[found["main_metric"]] == pytest.approx(result[found["main_metric"]], rel=1e-6)


@MODELS
@pytest.mark.parametrize("kind", ["class", "pair"])
def test_pipeline_of_transformers_gives_the_same_probabilities(finetuned, labelled, vocabulary, kind):
    folder = finetuned(vocabulary, kind)
    names = ["review"] if kind == "class" else ["premise", "hypothesis"]
    rows = read_table(str(labelled / "dev" / TASKS[kind][1])).rows
    texts = [tuple(" ".join(str(row[name]).split()[: 3 + i % 5]) for name in names) for i, row in enumerate(rows)]
    pipe = transformers.pipeline("text-classification", model=str(folder / "final"), top_k=None)
    assert type(pipe.model).__name__ == class_prefix(vocabulary) + "ForSequenceClassification"
    inputs = [t[0] if kind == "class" else {"text": t[0], "text_pair": t[1]} for t in texts]
    theirs = pipe(inputs, batch_size=4)  # of unequal lengths: the last token that is not padding is found
    loaded = stemformer.load(str(folder))
    ours = loaded.predict([t[0] if kind == "class" else t for t in texts])
    for mine, row in zip(ours, theirs, strict=True):
        expected = {entry["label"]: entry["score"] for entry in row}
        for label, probability in zip(loaded.task.labels, mine.probabilities, strict=True):
            assert probability == pytest.approx(expected[label], abs=1e-5)
    assert len({round(mine.score, 4) for mine in ours}) > 2


def years(labelled, folder):
    """Return options for training on scores far from zero."""
    lines = (labelled / "train" / "scores.tsv").read_text().splitlines()[1:]
    rows = [(text, 2000 + 30 * float(score)) for text, score in (line.split("\t") for line in lines)]
    (folder / "years.tsv").write_text("text\tyear\n" + "".join(f"{text}\t{year}\n" for text, year in rows))
    files = {split: [str(folder / "years.tsv")] for split in ("train", "dev")}
    return {**files, "label_column": "year", "settings": ["task.kind=score"]}


def test_transformers_gives_the_same_score_far_from_zero(gpts, labelled, tmp_path):
    files = years(labelled, tmp_path)
    result = run(gpts / "bpe", labelled, "class", tmp_path / "run", **files)
    # A model that began at 0 would be about 2000 off.
    assert result["mean_absolute_error"] < 2 * result["baseline"]["mean_absolute_error"]
    folder = str(tmp_path / "run" / "final")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    lines = (labelled / "train" / "scores.tsv").read_text().splitlines()[1:6]
    texts = [" ".join(line.split()[:5]) for line in lines]
    for text, mine in zip(texts, stemformer.load(folder).predict(texts), strict=True):
        with torch.inference_mode():
            theirs = model(**tokenizer(text, return_tensors="pt")).logits.item()
        assert mine.score == pytest.approx(theirs, abs=1e-2)  # float32 rounds 2000 to 1e-4


@MODELS
def test_pipeline_of_transformers_gives_the_same_tags(finetuned, labelled, vocabulary):
    folder = finetuned(vocabulary, "tag")
    sentences = read_tagged(str(labelled / "dev" / "tags.conll"), counts=Counter())
    pipe = transformers.pipeline("token-classification", model=str(folder / "final"), ignore_labels=[])
    assert type(pipe.model).__name__ == class_prefix(vocabulary) + "ForTokenClassification"
    seen = set()
    for record, mine in zip(sentences, stemformer.load(str(folder)).predict([s.text for s in sentences]), strict=True):
        if len(record.words) > 20:
            continue
        pieces = [entry for entry in pipe(record.text) if entry["end"] > entry["start"]]
        for (begin, end), tag, probability in zip(record.offsets, mine.tags, mine.probabilities, strict=True):
            last = [entry for entry in pieces if entry["start"] < end and entry["end"] > begin][-1]
            assert (tag, probability) == (last["entity"], pytest.approx(last["score"], abs=1e-5))
            seen.add(tag)
    assert len(seen) > 1


def test_answers_have_no_space_before_them(finetuned, labelled):
    folder = finetuned("bpe", "qa")
    questions = read_questions(str(labelled / "dev" / "squad.json"), counts=Counter())
    found = stemformer.load(str(folder)).predict([(q.question, q.context) for q in questions])
    for question, answer in zip(questions, found, strict=True):
        assert answer.text == answer.text.strip() == question.context[answer.begin : answer.end]


def test_saved_tokenizer_puts_the_end_of_text_before_a_text(gpts, finetuned):
    texts = ["The old king", "a river 🙂"]
    plain = transformers.AutoTokenizer.from_pretrained(gpts / "bpe")(texts)["input_ids"]
    tuned = transformers.AutoTokenizer.from_pretrained(finetuned("bpe", "class") / "final")(texts)["input_ids"]
    assert plain == tuned == [[0, *ids.tolist()] for ids in load_tokenizer(gpts / "bpe").encode_ids(texts)]


@pytest.mark.parametrize("kind", ["class", "tag"])
def test_interrupted_run_equals_uninterrupted_run_bit_for_bit(gpts, finetuned, labelled, tmp_path, kind):
    with pytest.raises(KeyboardInterrupt):
        run(gpts / "bpe", labelled, kind, tmp_path / "parts", progress=StopAt(5))
    run(gpts / "bpe", labelled, kind, tmp_path / "parts", resume=True)
    a, b = (load_file(f / "final" / "model.safetensors") for f in (finetuned("bpe", kind), tmp_path / "parts"))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_head_of_other_labels_is_initialized_on_the_same_body(finetuned, labelled, tmp_path):
    lines = (labelled / "train" / "reviews.csv").read_text().replace("good", "fine")
    (tmp_path / "other.csv").write_text(lines)
    data = [str(tmp_path / "other.csv")]
    result = run(finetuned("bpe", "class"), labelled, "class", tmp_path / "run", steps=1, train=data, dev=data)
    assert stemformer.load(result["model"]).task.labels == ("bad", "fine")


def test_texts_become_vectors_by_the_state_of_their_last_token(gpts):
    loaded = stemformer.load(str(gpts / "bpe"))
    texts = ["The old king", "The old king sees", "river"]
    found = loaded.embed(texts, pooling="cls", normalize=False)
    for text, vector in zip(texts, found, strict=True):
        ids = torch.tensor([0, *loaded.tokenizer.encode_ids([text])[0]])
        positions = torch.arange(len(ids))
        with torch.inference_mode():
            states = loaded.model.body(
                ids, positions, positions * 0, torch.tensor([0, len(ids)], dtype=torch.int32), len(ids)
            )
        assert np.allclose(vector, states[-1], atol=1e-5)


# What is refused or result


def test_choice_is_refused(gpts, labelled, tmp_path):
    with pytest.raises(CheckpointError, match="is a gpt2, which has no head choice"):
        run(gpts / "bpe", labelled, "choice", tmp_path / "run")


def test_token_that_begins_a_text_must_be_in_the_vocabulary(gpts, labelled, tmp_path):
    for file in (gpts / "bpe").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"eos_token_id": 50256}))
    with pytest.raises(CheckpointError, match=r"eos_token_id is 50,256 .*, but there are 300 ids"):
        run(tmp_path, labelled, "class", tmp_path / "run")


def test_model_that_transformers_trained_predicts_with_a_warning(gpts, tmp_path):
    config = transformers.AutoConfig.from_pretrained(gpts / "bpe", id2label={0: "no", 1: "yes"}, pad_token_id=0)
    torch.manual_seed(0)
    theirs = transformers.GPT2ForSequenceClassification(config).eval()
    theirs.save_pretrained(tmp_path)
    load_tokenizer(gpts / "bpe").save(tmp_path)
    with pytest.warns(UserWarning, match=r"fine-tuned elsewhere.*preceded by <\|endoftext\|>"):
        loaded = stemformer.load(str(tmp_path))
    (found,) = loaded.predict(["The old king"])
    ids = torch.tensor([[0, *loaded.tokenizer.encode_ids(["The old king"])[0]]])
    with torch.inference_mode():
        expected = theirs(ids).logits.softmax(-1)[0].tolist()
    assert found.probabilities == pytest.approx(expected, abs=1e-5)


def test_llama_learns_scores_that_transformers_gives_too(gpts, labelled, tmp_path):
    with pytest.warns(UserWarning, match="head of a llama has no bias and starts at 0"):
        result = run(gpts / "llama", labelled, "class", tmp_path / "run", **years(labelled, tmp_path), steps=4)
    assert "mean_absolute_error" in result
    folder, texts = str(tmp_path / "run" / "final"), ["The old king", "a river"]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for text, mine in zip(texts, stemformer.load(folder).predict(texts), strict=True):
        with torch.inference_mode():
            theirs = model(**tokenizer(text, return_tensors="pt")).logits.item()
        assert mine.score == pytest.approx(theirs, rel=1e-4)
