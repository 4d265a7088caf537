"""Who may write into a folder: one process at a time, and what is left of commands that were refused."""

import fcntl
import os

import pytest

import stemformer
from stemformer.errors import ConfigError
from stemformer.output_dir import clear_dir, exclusive_output_dir, prepare_output_dir


@exclusive_output_dir
def write(*, out, fails=False):
    if fails:
        raise ConfigError("no")
    with open(f"{out}/metrics", "w") as file:
        file.write("1")


def test_folder_that_another_holds_is_refused_and_free_afterwards(tmp_path):
    held = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)  # a lock belongs to who opened it, so this is as another process
    with pytest.raises(ConfigError, match="another process"):
        write(out=str(tmp_path))
    assert not any(tmp_path.iterdir())
    os.close(held)
    write(out=str(tmp_path))
    write(out=str(tmp_path))
    assert (tmp_path / "metrics").read_text() == "1"


@pytest.mark.parametrize(
    "name",
    [
        "pretrain",
        "finetune",
        "compare",
        "benchmark_glue",
        "benchmark_squad",
        "scaling_laws",
        "ablate",
        "fewshot",
        "prepare",
        "quickstart",
    ],
)
def test_commands_that_write_a_folder_refuse_one_that_another_holds(tmp_path, name):
    held = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(ConfigError, match="another process"):
        getattr(stemformer, name)(out=str(tmp_path))  # before anything else is looked at
    os.close(held)


def test_folder_is_still_held_when_what_it_holds_was_replaced(tmp_path):
    @exclusive_output_dir
    def replace(*, out):
        clear_dir(prepare_output_dir(out, overwrite=True))
        with pytest.raises(ConfigError, match="another process"):
            write(out=out)

    (tmp_path / "config.toml").touch()
    replace(out=str(tmp_path))


def test_ranks_behind_the_first_do_not_ask(tmp_path, monkeypatch):
    @exclusive_output_dir
    def twice(*, out, rank):
        monkeypatch.setenv("RANK", str(rank + 1))
        if rank == 0:
            twice(out=out, rank=1)

    monkeypatch.setenv("RANK", "0")
    twice(out=str(tmp_path), rank=0)


def test_refused_command_leaves_no_folder(tmp_path):
    with pytest.raises(ConfigError, match="no"):
        write(out=str(tmp_path / "new" / "run"), fails=True)
    assert not any(tmp_path.iterdir())
    write(out=str(tmp_path / "new" / "run"))
    assert (tmp_path / "new" / "run" / "metrics").is_file()


def test_resume_and_overwrite_exclude_each_other(tmp_path):
    with pytest.raises(ConfigError, match="Pass one of them"):
        prepare_output_dir(str(tmp_path), overwrite=True, resume=True)


def test_file_is_no_folder_to_resume_in(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(ConfigError, match="is a file"):
        prepare_output_dir(str(tmp_path / "run"), overwrite=False, resume=True)
