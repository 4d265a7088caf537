"""A tokenizer for letters, a few words and Chinese characters, and a tiny model over its vocabulary."""

import string

import pytest
import torch

from stemformer.data.tokenization.tokenizer import load_tokenizer
from stemformer.models.bert import BertConfig
from stemformer.models.model import make_model

WORDS = [
    "the",
    "old",
    "king",
    "sees",
    "a",
    "green",
    "river",
    "quiet",
    "garden",
    "who",
    "where",
    "play",
    "##ing",
    "cafe",
]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """Lower-cased WordPiece tokenizer that can spell any text in Latin letters."""
    letters = [c for c in string.ascii_lowercase + string.digits if c not in WORDS]
    pieces = [f"##{c}" for c in string.ascii_lowercase + string.digits]
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *WORDS,
        *letters,
        *pieces,
        *".,!?'-()",
        "你",
        "好",
        "世",
        "界",
    ]
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    return load_tokenizer(folder)


@pytest.fixture(scope="session")
def model_for(tokenizer):
    """Return a function from a task to a tiny random model with its head, in evaluation mode."""

    def make(task, seed=0):
        config = BertConfig(
            vocab_size=tokenizer.vocab_size,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=64,
            initializer_range=0.3,
        )
        generator = torch.Generator().manual_seed(seed)
        return make_model(config, task.heads, num_labels=task.num_labels, generator=generator).eval()

    return make
