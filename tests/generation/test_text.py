"""Text generation: streaming, stop strings, and the command."""

import io
import json

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers

import stemformer
from stemformer.cli.app import main
from stemformer.data.tokenization.tokenizer import Tokenizer, load_tokenizer
from stemformer.data.tokenization.trainers import train_wordpiece
from stemformer.errors import ConfigError, DataError
from stemformer.generation import text as texts
from stemformer.generation.decoding import Decoded, DecodingConfig
from stemformer.generation.text import generate_texts
from stemformer.huggingface.save import save_model
from stemformer.models.gpt import GptConfig
from stemformer.models.model import make_model


@pytest.fixture(scope="module")
def tokenizer(make_text):
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(make_text().splitlines(), trainer)
    return Tokenizer(backend)


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    config = GptConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=48,
        initializer_range=0.2,
        eos_token_id=tokenizer.token_to_id("<|endoftext|>"),
    )
    folder = tmp_path_factory.mktemp("gpt") / "model"
    save_model(make_model(config, ["causal_lm"], generator=torch.Generator().manual_seed(0)), folder, tokenizer)
    return folder


def stream(tokenizer, monkeypatch, text, *, stop=()):
    """Return the pieces that are streamed while the tokens of a text arrive, and the completion."""
    ids = tokenizer.encode(text).ids.tolist()

    def decode(model, prompts, config, *, on_token, first):
        decoded = Decoded()
        for token in ids:
            decoded.ids.append(token)
            if on_token(0, token):
                decoded.ended = "stop"
                break
        return [decoded]

    monkeypatch.setattr(texts, "decode", decode)
    pieces = []
    config = GptConfig(vocab_size=400, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    (found,) = generate_texts(
        ["x"],
        make_model(config, ["causal_lm"]),
        tokenizer,
        DecodingConfig(),
        stop=stop,
        on_text=lambda _, t: pieces.append(t),
    )
    return pieces, found


@pytest.mark.parametrize("text", ["The old king sees 北京 and 🙂🙃.", "Größe déjà-vu", "a\n\nb  c "])
def test_pieces_make_up_the_text_and_hold_no_half_character(tokenizer, monkeypatch, text):
    pieces, found = stream(tokenizer, monkeypatch, text)
    assert "".join(pieces) == found["text"] == text
    assert len(pieces) > 3 and not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize(
    ("stop", "expected"), [((" river", "zzz"), "The old king sees the"), (("he", "The"), "T"), (("zzz",), None)]
)
def test_text_ends_before_a_stop_string(tokenizer, monkeypatch, stop, expected):
    text = "The old king sees the river under the bridge"
    pieces, found = stream(tokenizer, monkeypatch, text, stop=stop)
    assert found["text"] == "".join(pieces) == (text if expected is None else expected if stop[-1] != "The" else "")
    assert found["ended"] == ("length" if expected is None else "stop")


@pytest.mark.parametrize("kind", ["bytes", "wordpiece"])
def test_streamed_text_equals_the_decoded_ids_while_decoding_few_tokens_at_a_time(tokenizer, monkeypatch, kind):
    if kind == "wordpiece":
        tokenizer = train_wordpiece(["do n't stop . it 's 北京 , isn't it ? to be or not to be"] * 3, vocab_size=60)
    ids = np.random.default_rng(0).integers(0, tokenizer.vocab_size, 400)  # bytes include many incomplete characters
    seen = []

    def decode(some):
        seen.append(len(some))
        return decode_ids(some)

    decode_ids = tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", decode)
    streamer = texts._TextStreamer(tokenizer, [])
    for number, token in enumerate(ids.tolist(), 1):
        streamer.add(token)
        assert streamer.text == decode_ids(ids[:number]).rstrip("\ufffd")
    assert sum(seen) < 10 * len(ids)
    streamer.finish()
    assert streamer.text == decode_ids(ids)


def test_same_seed_gives_same_text_and_greedy_ignores_it(folder):
    def texts_with(**options):
        return [
            x["text"] for x in stemformer.generate(["The old", "A"], model=str(folder), max_new_tokens=12, **options)
        ]

    assert texts_with(seed=1) == texts_with(seed=1) != texts_with(seed=2)
    assert texts_with(temperature=0, seed=1) == texts_with(temperature=0, seed=2)
    assert texts_with(num_beams=3) == texts_with(num_beams=3)


def test_empty_prompt_starts_a_document(folder):
    (found,) = stemformer.generate([""], model=str(folder), max_new_tokens=5, temperature=0)
    assert found["prompt"] == "" and found["num_tokens"] <= 5


def test_command_writes_text_or_json(folder, capsys):
    words = ["generate", "The old", "--model", str(folder), "--max-new-tokens", "8", "--seed", "3"]
    assert main(words) == 0
    plain = capsys.readouterr().out
    assert main([*words, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert plain == f"{found['prompt']}{found['text']}\n"
    assert found["log_probability"] < 0 and found["ended"] in ("eos", "length")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"prompts": []}, DataError, "No text to work on. Pass prompts"),
        ({"prompts": "one"}, DataError, "single text 'one'. Pass \\[text\\]"),
        ({"max_new_tokens": 100}, DataError, "more than the model's maximum length of 48"),
        ({"prompts": ["the river " * 40]}, DataError, "48: shorten it"),
        ({"stop": [""]}, ConfigError, "stop string is empty"),
        ({"stop": ["x"], "num_beams": 2}, ConfigError, "not supported with beam search"),
        ({"top_p": 2.0}, ConfigError, "top_p is 2.0"),
        ({"prompts": ["caf\udce9"]}, DataError, "Prompt 1 is not UTF-8"),
        ({"prompts": ["a", "the river " * 40]}, DataError, "prompt 2 of 2 has"),
        ({"seed": -1}, ConfigError, "seed is -1: expected a number from 0"),
        ({"threads": 100_000}, ConfigError, "--threads 100000: expected a number from 1 to 1024"),
        ({"threads": 0}, ConfigError, "--threads 0: expected a number from 1"),
    ],
)
def test_invalid_options_are_errors(folder, options, error, message):
    with pytest.raises(error, match=message):
        stemformer.generate(**{"prompts": ["a"], "model": str(folder), "max_new_tokens": 4, **options})


def test_masked_model_does_not_generate(tiny_bert):
    with pytest.raises(ConfigError, match="has no language-modeling head, so it cannot generate text"):
        stemformer.generate(["a"], model=str(tiny_bert))


@pytest.mark.parametrize("options", [{"temperature": 0}, {"seed": 3, "top_p": 0.9}, {"num_beams": 3}])
def test_texts_do_not_depend_on_the_batch_size(folder, options):
    prompts = ["The old", "A", "", "The river under the bridge", "king"]
    common = {"model": str(folder), "max_new_tokens": 10, **options}
    results, numbers = [], set()
    on_text = None if "num_beams" in options else lambda number, _: numbers.add(number)
    by_two = stemformer.generate(prompts, batch_size=2, on_result=results.append, on_text=on_text, **common)
    assert by_two == results
    assert on_text is None or numbers == {i for i, x in enumerate(by_two) if x["text"]}
    for one, other in zip(by_two, stemformer.generate(prompts, **common), strict=True):
        assert {**one, "log_probability": 0} == {**other, "log_probability": 0}
        assert one["log_probability"] == pytest.approx(other["log_probability"], rel=1e-4)


def test_overlong_prompt_is_an_error_before_any_text_is_generated(folder):
    results = []
    with pytest.raises(DataError, match="prompt 3 of 3"):
        stemformer.generate(
            ["a", "b", "word " * 100], model=str(folder), max_new_tokens=4, batch_size=1, on_result=results.append
        )
    assert not results


def test_each_line_of_standard_input_is_a_prompt_and_blank_ones_are_counted(folder, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"The old\n\nking\n")))
    options = ["--model", str(folder), "--max-new-tokens", "3", "--temperature", "0", "--batch-size", "2"]
    assert main(["generate", "-", *options]) == 0
    found = stemformer.generate(["The old", "king"], model=str(folder), max_new_tokens=3, temperature=0)
    printed = capsys.readouterr()
    assert printed.out == "\n\n".join(x["prompt"] + x["text"] for x in found) + "\n"
    assert "blank lines of standard input (skipped): 1\n" in printed.err


def test_batch_size_zero_is_an_error(folder):
    with pytest.raises(ConfigError, match="batch_size is 0"):
        stemformer.generate(["a"], model=str(folder), batch_size=0)


def test_window_slides_on_request(folder):
    (found,) = stemformer.generate(["a"], model=str(folder), max_new_tokens=100, sliding_window=True, seed=4)
    assert found["num_tokens"] == 100 or found["ended"] == "eos"


# Byte-level BPE from GPT-2's vocab.json and merges.txt


@pytest.fixture(scope="module")
def files(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bpe")
    model = json.loads(tokenizer._backend.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return folder


SCRIPTS = [
    "The old king's river,  two spaces\n",
    "北京是中国的首都。",
    "Größe déjà-vu 🙂🏳️‍🌈",
    "مرحبا שלום नमस्ते",
    "a\x00b\ufeff \u200d",
    "I'll don't WE'VE 123,456",
]


def test_vocab_and_merges_give_the_ids_of_the_tokenizer(tokenizer, files):
    again = load_tokenizer(files)
    assert (again.kind, again.vocab_size) == ("bpe", tokenizer.vocab_size)
    for text in SCRIPTS:
        assert again.encode(text).ids.tolist() == tokenizer.encode(text).ids.tolist()
        assert again.decode(again.encode(text).ids) == text


def test_files_that_do_not_belong_together_are_errors(files, tmp_path):
    from stemformer.errors import TokenizerError

    (tmp_path / "vocab.json").write_text((files / "vocab.json").read_text())
    with pytest.raises(TokenizerError, match=r"needs merges\.txt in the same folder"):
        load_tokenizer(tmp_path)
    (tmp_path / "merges.txt").write_text("no pair here\n")
    with pytest.raises(TokenizerError, match="'no pair here' is not a pair"):
        load_tokenizer(tmp_path)
    (tmp_path / "merges.txt").write_text("qqq zzz\n")
    with pytest.raises(TokenizerError, match="belong to different tokenizers"):
        load_tokenizer(tmp_path)


@pytest.mark.data
def test_ids_of_gpt2_equal_those_of_transformers(shared_data, tmp_path):
    import lzma

    transformers = pytest.importorskip("transformers")
    for name, source in (("vocab.json", "gpt2_encoder.json.xz"), ("merges.txt", "gpt2_vocab.bpe.xz")):
        (tmp_path / name).write_bytes(lzma.decompress((shared_data / "vocabs" / source).read_bytes()))
    ours, theirs = load_tokenizer(tmp_path), transformers.GPT2Tokenizer.from_pretrained(tmp_path)
    lines = list(SCRIPTS)
    for file in sorted((shared_data / "xnli").rglob("*.xz"))[:40]:
        lines += lzma.decompress(file.read_bytes()).decode().split("\n")[:150]
    assert len(lines) > 2000
    different = [line for line in lines if ours.encode(line).ids.tolist() != theirs(line)["input_ids"]]
    assert different == []
    assert all(ours.decode(ours.encode(line).ids) == line for line in lines)


def test_unknown_option_is_named_in_the_error(folder):
    with pytest.raises(TypeError, match=r"no option 'top_n'. Did you mean 'top_k'\?"):
        stemformer.generate(["a"], model=str(folder), top_n=3)


def test_typed_lines_are_prompts(folder, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    lines = iter(["The old", "far too long " * 50, "A"])

    def typed(question):
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", typed)
    assert main(["generate", "--model", str(folder), "--max-new-tokens", "5", "--temperature", "0"]) == 0
    output, errors = capsys.readouterr()
    assert "shorten it" in errors
    expected = [
        x["text"] for x in stemformer.generate(["The old", "A"], model=str(folder), max_new_tokens=5, temperature=0)
    ]
    assert output == "".join(text + "\n" for text in expected)


def test_prompt_is_printed_with_its_completion_and_not_before_an_error(folder, capsys):
    command = ["generate", "The old", "--model", str(folder), "--max-new-tokens", "5", "--temperature"]
    assert main([*command, "0"]) == 0
    [result] = stemformer.generate(["The old"], model=str(folder), max_new_tokens=5, temperature=0)
    assert capsys.readouterr().out == f"The old{result['text']}\n"
    assert main([*command, "-1"]) == 2
    assert capsys.readouterr().out == ""
