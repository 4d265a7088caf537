"""What all tests share: shapes checked at run time, two threads, and where large real data lies."""

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
    """Sums depend on the number of threads, so it is the same everywhere."""
    import torch

    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of large real data sets beside the checkout; a test that asks for it is skipped without it."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no large data sets at {folder}")
    return folder


def _make_text(seed: int = 0, num_documents: int = 200) -> str:
    """Documents of a few sentences with a grammar that can be learned: an adjective goes with its noun."""
    rng = np.random.default_rng(seed)
    pairs = [("old", "king"), ("green", "river"), ("small", "child"), ("wise", "teacher"), ("quiet", "garden")]
    verbs = ["sees", "follows", "remembers", "paints", "forgets"]
    places = ["under the bridge", "behind the house", "before the winter", "near the forest"]

    def sentence() -> str:
        (a, b), (c, d) = (pairs[i] for i in rng.integers(len(pairs), size=2))
        return f"The {a} {b} {rng.choice(verbs)} the {c} {d} {rng.choice(places)}."

    return "\n".join(" ".join(sentence() for _ in range(rng.integers(1, 5))) for _ in range(num_documents)) + "\n"


@pytest.fixture(scope="session")
def make_text() -> Callable[..., str]:
    """A function from a seed and a number of documents to a small text, a document a line."""
    return _make_text


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with text.txt, tok/ and data/ made of it; not to be changed."""
    from stemformer import api

    root = tmp_path_factory.mktemp("tiny")
    (root / "text.txt").write_text(_make_text())
    text, tok, data = (str(root / name) for name in ("text.txt", "tok", "data"))
    api.train_tokenizer([text], out=tok, vocab_size=300, documents="line")
    api.prepare([text], tokenizer=tok, out=data, held_out=0.1, documents="line", num_workers=1)
    return root


@pytest.fixture(scope="session")
def no_timing():
    """Neither measures the machine at the start of a run nor draws a report at its end: both take seconds, and have tests of their own."""
    from stemformer import pretraining

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining, "matmul_rate", lambda *args: 1e11)
        patch.setattr(pretraining, "write_report", lambda folder: None)
        yield
