"""Languages of an encoder-decoder: from options and columns, both ways in one model, and a published mBART-50."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import stemformer
from stemformer.data.labelled.sequence_pairs import SourceTarget
from stemformer.data.tokenization.tokenizer import load_tokenizer
from stemformer.errors import CheckpointError, ConfigError, DataError, TokenizerError
from stemformer.progress import Silent
from stemformer.tasks.seq2seq import find_languages
from stemformer.tasks.task import TaskConfig

transformers = pytest.importorskip("transformers")

WORDS = ["ape", "bee", "cat", "dog"]
COLUMNS = {"source_language_column": "from", "target_language_column": "to"}
TRAINING = {"model": "bart_tiny", "precision": "fp32", "device": "cpu"}

pytestmark = pytest.mark.usefixtures("no_timing")


def write_rows(path: Path, rows) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


def bilingual(number: int, seed: int):
    """Yield rows whose target language decides: `en` is the words as they are, `ba` backwards."""
    rng = random.Random(seed)
    for _ in range(number):
        words = rng.choices(WORDS, k=rng.randint(2, 3))
        for code, target in (("en", words), ("ba", words[::-1])):
            yield {"source": " ".join(words), "target": " ".join(target), "from": "en", "to": code}


@pytest.fixture(scope="module")
def both_ways(tmp_path_factory):
    """A small BART that was trained from scratch to copy or reverse, by the language of the target."""
    folder = tmp_path_factory.mktemp("languages")
    files = [write_rows(folder / f"{name}.jsonl", bilingual(n, n)) for name, n in (("train", 200), ("dev", 20))]
    settings = ["task.vocab_size=300", "task.num_beams=1", "evaluation.every=1000"]
    result = stemformer.finetune(
        "seq2seq",
        **TRAINING,
        train=[files[0]],
        dev=[files[1]],
        out=str(folder / "run"),
        epochs=8,
        batch_size=16,
        settings=settings,
        **COLUMNS,
    )
    return folder, result


def test_the_target_language_decides_what_is_written(both_ways):
    folder, result = both_ways
    assert result["exact_match"] > 0.9
    assert list(load_tokenizer(result["model"]).language_ids) == ["ba", "en"]
    for code, expected in (("en", "ape bee cat"), ("ba", "cat bee ape"), ("__ba__", "cat bee ape")):
        options = {"source_language": "en", "target_language": code}
        (found,) = stemformer.rewrite(["ape bee cat"], model=result["model"], **options)
        assert found["rewritten"] == expected
    model = stemformer.load(result["model"])
    assert model.with_languages("en", "ba").predict(["ape bee"])[0].text == "bee ape"
    assert model.with_languages("en", "en").predict(["ape bee"])[0].text == "ape bee"
    # Columns are those of the training, or others, or there is one language for all.
    dev = [str(folder / "dev.jsonl")]
    assert stemformer.evaluate(dev, model=model)["exact_match"] == result["exact_match"]
    rows = stemformer.predict(dev, model=model, target_language="en")["predictions"]
    assert sum(row["prediction"] == row["source"] for row in rows) > 0.9 * len(rows)
    renamed = [{"source": "ape bee", "from": "en", "lang": code} for code in ("en", "ba")]
    file = write_rows(folder / "renamed.jsonl", renamed)
    rows = stemformer.predict([file], model=model, target_language_column="lang")["predictions"]
    assert [row["prediction"] for row in rows] == ["ape bee", "bee ape"]


def test_a_missing_or_unknown_language_is_an_error(both_ways, tmp_path):
    _, result = both_ways
    model = stemformer.load(result["model"])
    with pytest.raises(ConfigError, match=r"needs the source language\. Pass --source-language: one of ba, en"):
        stemformer.rewrite(["ape"], model=model)
    with pytest.raises(TokenizerError, match=r"no language 'fr'\. Expected one of ba, en"):
        stemformer.rewrite(["ape"], model=model, source_language="en", target_language="fr")
    with pytest.raises(DataError, match="The source language is missing, which the model was trained with"):
        model.predict(["ape"])
    row = {"source": "ape", "target": "ape", "from": "en", "to": "en"}
    cases = [
        ([{"source": "ape", "to": "en"}], r"No column 'from'.*--source-language-column, or pass --source-language"),
        ([{**row, "to": "fr"}], r"in\.jsonl:1: The tokenizer has no language 'fr'\. Expected one of ba, en"),
        ([row, {**row, "to": " "}], r"in\.jsonl:2: Column 'to' is empty, expected a language, such as en"),
    ]
    for rows, message in cases:
        with pytest.raises(DataError, match=message):
            stemformer.predict([write_rows(tmp_path / "in.jsonl", rows)], model=model)
    with pytest.raises(ConfigError, match="--target-language and --target-language-column are both there"):
        stemformer.predict(["in.jsonl"], model=model, target_language="en", target_language_column="to")


@pytest.fixture(scope="module")
def one_way(both_ways):
    """A BART of one pair of languages, hardly trained."""
    folder, result = both_ways
    options = {**TRAINING, "model": result["model"], "train": [str(folder / "dev.jsonl")], "steps": 1}
    settings = ["task.num_beams=1", "task.num_written=2", "optimizer.learning_rate=1e-9"]
    languages = {"source_language": "en", "target_language": "ba"}
    return stemformer.finetune("seq2seq", out=str(folder / "one"), **options, **languages, settings=settings)["model"]


def test_languages_of_the_training_are_the_default_here_and_in_transformers(one_way):
    texts = ["ape bee cat", "dog dog"]
    found = [row["rewritten"] for row in stemformer.rewrite(texts, model=one_way)]
    assert found == ["cat bee ape", "dog dog"]
    tokenizer = load_tokenizer(one_way)
    settings = json.loads(Path(one_way, "generation_config.json").read_text())
    assert settings["forced_bos_token_id"] == tokenizer.language_ids["ba"]
    assert settings["decoder_start_token_id"] == tokenizer.sep_token_id
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(one_way).eval()
    encode = transformers.AutoTokenizer.from_pretrained(one_way)
    for text, expected in zip(texts, found, strict=True):
        ids = encode(text, return_tensors="pt").input_ids
        assert ids[0, [0, -1]].tolist() == [tokenizer.language_ids["en"], tokenizer.sep_token_id]
        (written,) = theirs.generate(ids)
        assert written[1] == tokenizer.language_ids["ba"]
        assert encode.decode(written, skip_special_tokens=True).strip() == expected
    # Another language of the same model.
    (copied,) = stemformer.rewrite(["ape bee"], model=one_way, target_language="en")
    assert copied["rewritten"] == "ape bee"


def test_a_model_is_saved_with_its_changed_languages_and_long_sources(one_way, tmp_path):
    model = stemformer.load(one_way).with_languages("ba", "en").with_long_sources("split")
    model.save(tmp_path / "saved")
    saved = stemformer.load(str(tmp_path / "saved"))
    assert saved.task.metadata() == {**model.task.metadata(), "max_length": model.model.max_length}
    assert (saved.task.config.source_language, saved.task.config.target_language) == ("ba", "en")
    assert saved.task.long_sources == "split"
    settings = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert settings["forced_bos_token_id"] == saved.tokenizer.language_ids["en"]
    ids = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")("ape").input_ids
    assert ids[0] == saved.tokenizer.language_ids["ba"]


@pytest.mark.parametrize("columns", [{}, COLUMNS])
def test_training_again_removes_the_language_that_transformers_reads(both_ways, one_way, tmp_path, columns):
    train = [str(both_ways[0] / "dev.jsonl")]
    settings = ["task.num_beams=1", "task.num_written=2"]
    options = {**TRAINING, "model": one_way, "train": train, "steps": 1, "settings": settings}
    again = stemformer.finetune("seq2seq", out=str(tmp_path / "again"), **options, **columns)["model"]
    assert "forced_bos_token_id" not in json.loads(Path(again, "generation_config.json").read_text())
    encode = transformers.AutoTokenizer.from_pretrained(again)
    ids = encode("ape").input_ids
    assert (ids[0], ids[-1]) == (encode.bos_token_id, encode.eos_token_id)


def test_a_model_without_languages_takes_none(tmp_path):
    train = [write_rows(tmp_path / "train.jsonl", bilingual(10, 0))]
    options = {**TRAINING, "train": train, "steps": 1, "settings": ["task.vocab_size=300", "task.num_beams=1"]}
    plain = stemformer.finetune("seq2seq", out=str(tmp_path / "plain"), **options)["model"]
    with pytest.raises(ConfigError, match=r"was fine-tuned without a target language\. Remove --target-language"):
        stemformer.rewrite(["ape"], model=plain, target_language="en")
    with pytest.raises(
        TokenizerError, match=r"has no tokens of languages\. Train one .*: train-tokenizer .*--languages"
    ):
        again = {**options, "model": plain, "settings": [], "out": str(tmp_path / "again")}
        stemformer.finetune("seq2seq", **again, target_language="en")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"task": "classify", "target_language": "en"}, ConfigError, "apply to seq2seq, not to classify"),
        ({"target_language": "en", "target_language_column": "to"}, ConfigError, "Pass one of them"),
        ({"target_language_column": "lang"}, DataError, "No column 'lang'"),
        ({"target_language_column": "target", "label_column": "target"}, DataError, "of a text and of a language"),
        ({"target_language": "1"}, TokenizerError, "Language '1' is no code"),
    ],
)
def test_bad_options_are_refused(tmp_path, options, error, message):
    train = [write_rows(tmp_path / "train.jsonl", bilingual(10, 0))]
    with pytest.raises(error, match=message):
        stemformer.finetune(**{"task": "seq2seq", **TRAINING, "train": train, "out": str(tmp_path / "run"), **options})


def test_spellings_of_a_language_are_one_and_a_wrong_code_names_its_row_and_column():
    config = TaskConfig("seq2seq", target_language="__FR__", source_language_column="from")
    pairs = [SourceTarget("a", ("b",), f"in.jsonl:{i + 1}", (code, None)) for i, code in enumerate(["EN", "en", "fr"])]
    assert find_languages(config, pairs) == ["en", "fr"]
    pairs[1] = replace(pairs[1], languages=("English", None))
    with pytest.raises(DataError, match=r"in\.jsonl:2: Column 'from': Language 'English' is no code"):
        find_languages(config, pairs)


LETTERS = "abcdefghij"


@pytest.fixture(scope="module")
def mbart50(tmp_path_factory):
    """A folder like that of a published mBART-50, with random weights."""
    folder = tmp_path_factory.mktemp("mbart50")
    vocab = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    vocab += [("\u2581", -2.0), *((letter, -3.0) for letter in LETTERS)]
    codes = transformers.models.mbart50.tokenization_mbart50.FAIRSEQ_LANGUAGE_CODES
    vocab += [(code, 0.0) for code in (*codes, "<mask>")]
    config = transformers.MBartConfig(
        vocab_size=len(vocab),
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=64,
        init_std=0.5,
        decoder_start_token_id=2,
        forced_eos_token_id=None,
    )
    torch.manual_seed(0)
    model = transformers.MBartForConditionalGeneration(config).eval()
    with torch.no_grad():
        for layer in model.model.decoder.layers:
            layer.encoder_attn.out_proj.weight.mul_(4)
        # Texts of several lengths, without special tokens in them.
        model.final_logits_bias[0, [0, 1, 3, *range(15, len(vocab))]] = -1e4
        model.final_logits_bias[0, 2] = 2.0
    model.save_pretrained(folder)
    tokenizer = transformers.MBart50Tokenizer(vocab=vocab, src_lang="en_XX")
    tokenizer.save_pretrained(folder)
    return folder, model, tokenizer


def test_a_published_mbart_50_writes_as_in_transformers(mbart50):
    folder, model, tokenizer = mbart50
    rng = random.Random(1)
    texts = [" ".join("".join(rng.choices(LETTERS, k=3)) for _ in range(rng.randint(1, 4))) for _ in range(12)]
    written = {}
    for source, target, num_beams, penalty in (("en", "fr_XX", 1, 1.0), ("fr", "zh", 4, 2.0), ("en", "en", 4, 0.5)):
        codes = {"en": "en_XX", "fr": "fr_XX", "zh": "zh_CN"}
        tokenizer.src_lang = codes.get(source, source)
        how = {"num_beams": num_beams, "length_penalty": penalty}
        expected = []
        for text in texts:
            first = tokenizer.convert_tokens_to_ids(codes.get(target, target))
            ids = tokenizer(text, return_tensors="pt").input_ids
            (found,) = model.generate(ids, forced_bos_token_id=first, max_new_tokens=13, **how)
            expected.append(tokenizer.decode(found, skip_special_tokens=True).strip())
        options = {"source_language": source, "target_language": target, "max_new_tokens": 12}
        rows = stemformer.rewrite(texts, model=str(folder), **options, **how)
        assert [row["rewritten"] for row in rows] == expected
        written[source, target] = expected
    assert len({tuple(texts) for texts in written.values()}) == 3
    assert len({len(text) for text in expected}) > 2


def test_a_published_mbart_needs_languages_before_the_text(mbart50, tmp_path):
    folder, model, _ = mbart50
    with pytest.raises(CheckpointError, match="Pass source_language and target_language to `rewrite`, or fine-tune"):
        stemformer.load(str(folder)).with_languages("en", "fr")
    with pytest.raises(ConfigError, match=r"needs the source language.*: one of ar_AR, .* fr_XX, .* zh_CN"):
        stemformer.rewrite(["abc"], model=str(folder))
    with pytest.raises(TokenizerError, match=r"no language 'zh_TW' \(did you mean 'zh_CN'\?\)\. Expected one of ar_AR"):
        stemformer.rewrite(["abc"], model=str(folder), source_language="en", target_language="zh_TW")
    model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "MBartTokenizer"}')
    # A copy keeps that, here and by transformers.
    stemformer.load(str(tmp_path)).save(tmp_path / "copy")
    transformers.AutoTokenizer.from_pretrained(tmp_path / "copy").save_pretrained(tmp_path / "theirs")
    assert load_tokenizer(tmp_path / "theirs").has_final_language
    for path in (tmp_path, tmp_path / "copy"):
        for options in ({}, {"source_language": "en", "target_language": "fr"}):
            with pytest.raises(TokenizerError, match="mBART-cc25, with the language after each text, which is not"):
                stemformer.rewrite(["abc"], model=str(path), **options)
    # Fine-tuning gives no advice that fails.
    train = [write_rows(tmp_path / "train.jsonl", [{"source": a, "target": a} for a in LETTERS])]
    said, progress = [], Silent()
    progress.say = said.append
    how = {**TRAINING, "model": str(tmp_path), "train": train, "steps": 1, "settings": ["task.num_written=1"]}
    stemformer.finetune("seq2seq", out=str(tmp_path / "run"), progress=progress, **how)
    (note,) = (line for line in said if "with the language" in line)
    assert "after each text: this is not supported" in note and "--source-language" not in note


def test_a_published_mbart_50_is_fine_tuned(mbart50, tmp_path):
    train = [
        write_rows(tmp_path / "train.jsonl", [{"source": f"{a} {b}", "target": b} for a in LETTERS for b in LETTERS])
    ]
    options = {**TRAINING, "model": str(mbart50[0]), "train": train, "steps": 1, "settings": ["task.num_written=1"]}
    found = stemformer.finetune(
        "seq2seq", out=str(tmp_path / "run"), **options, source_language="en", target_language="fr"
    )
    tokenizer = load_tokenizer(found["model"])
    assert tokenizer.kind == "unigram" and len(tokenizer.language_ids) == 52
    assert stemformer.rewrite(["a b"], model=found["model"])[0]["text"] == "a b"
    settings = json.loads(Path(found["model"], "generation_config.json").read_text())
    assert settings["forced_bos_token_id"] == tokenizer.language_ids["fr_XX"]
    said, progress = [], Silent()
    progress.say = said.append
    stemformer.finetune("seq2seq", out=str(tmp_path / "without"), progress=progress, **options)
    assert any(line.endswith("pass --source-language and --target-language, or columns of them") for line in said)
