"""What all tests share: shapes checked at run time, two threads, and where large real data lies."""

import os
from pathlib import Path

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
