"""Files are valid JSON whatever they hold, and a directory that is replaced is never lost."""

import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from stemformer import io
from stemformer.io import append_jsonl, read_jsonl, restore_folder, to_json, write_folder, write_json, write_jsonl
from stemformer.training.log import RunLog

ODD = {"a": math.nan, "b": [math.inf, 1.5], "c": {"d": -math.inf}, "e": np.float32("nan"), "f": np.int64(3), "g": "NaN"}
PLAIN = {"a": None, "b": [None, 1.5], "c": {"d": None}, "e": None, "f": 3, "g": "NaN"}


def parse(text):
    """Parse JSON without NaN and infinity, which Python's parser accepts."""
    return json.loads(text, parse_constant=pytest.fail)


def test_values_without_a_number_are_null_in_each_kind_of_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, ODD)
    assert parse(path.read_text()) == PLAIN == parse(to_json(ODD))
    write_jsonl(path, [ODD, ODD])
    append_jsonl(path, ODD)
    assert [parse(line) for line in path.read_text().splitlines()] == [PLAIN] * 3 == read_jsonl(path)
    log = RunLog(tmp_path / "log.jsonl", after_step=0)
    log.write(kind="train", step=1, loss=math.nan)
    log.close()
    assert parse((tmp_path / "log.jsonl").read_text()) == {"kind": "train", "step": 1, "loss": None}


class Killed(BaseException):
    """As after a kill, nothing of the writing process runs any more."""


def write(target, text):
    write_folder(target, lambda folder: (folder / "a").write_text(text))


@pytest.mark.parametrize("can_swap", [True, False])
def test_killed_replacement_leaves_the_old_or_the_new_directory(tmp_path, monkeypatch, can_swap):
    target = tmp_path / "final"
    if not can_swap:
        monkeypatch.setattr(io, "_swap", lambda a, b: False)
    write(target, "0")
    steps = []
    # Kill before each change of a name or removal of a directory in turn, until a replacement succeeds.
    for number in range(1, 20):
        calls = []

        def interrupt(change, calls=calls, number=number):
            def checked(*args, **options):
                calls.append(change)
                if len(calls) == number:
                    raise Killed
                return change(*args, **options)

            return checked

        with monkeypatch.context() as patch:
            patch.setattr(io.shutil, "rmtree", interrupt(io.shutil.rmtree))
            patch.setattr(io.Path, "rename", interrupt(io.Path.rename))
            patch.setattr(io, "fsync", lambda path: None)
            if can_swap:
                patch.setattr(io, "_swap", interrupt(io._swap))
            try:
                write(target, str(number))
            except Killed:
                steps.append(target.exists())
            else:
                break
        if can_swap:
            assert target.is_dir()
        restore_folder(target)
        assert (target / "a").read_text() in (str(number - 1), str(number))
        write(target, str(number))
        assert [path.name for path in tmp_path.iterdir()] == ["final"]
    assert (target / "a").read_text() == str(number)
    assert len(steps) >= 3
    assert all(steps) == can_swap


@pytest.mark.parametrize("can_swap", [True, False])
def test_directory_behind_a_link_is_replaced_and_the_link_stays(tmp_path, monkeypatch, can_swap):
    if not can_swap:
        monkeypatch.setattr(io, "_swap", lambda a, b: False)
    real, link = tmp_path / "disk" / "real", tmp_path / "final"
    real.mkdir(parents=True)
    link.symlink_to(real)
    for text in "012":
        write(link, text)
        assert link.readlink() == real and (real / "a").read_text() == text
    assert [sorted(path.name for path in folder.iterdir()) for folder in (tmp_path, real.parent)] == [
        ["disk", "final"],
        ["real"],
    ]
    # After a kill between two renames.
    real.rename(real.with_name("real.old"))
    restore_folder(link)
    assert (link / "a").read_text() == "2"


@pytest.mark.parametrize("name", ["final", "final.tmp", "final.old"])
def test_files_and_links_in_the_way_of_a_directory_are_replaced(tmp_path, name):
    for make in (Path.touch, lambda path: path.symlink_to(tmp_path.parent / "absent")):
        make(tmp_path / name)
        # The second write finds what the first one left.
        for text in "01":
            if not (tmp_path / "final").is_symlink():
                write(tmp_path / "final", text)
                assert (tmp_path / "final" / "a").read_text() == text
        for path in tmp_path.iterdir():
            path.unlink() if path.is_symlink() else shutil.rmtree(path)


def test_directories_are_swapped_in_one_step_on_linux(tmp_path):
    if sys.platform != "linux":
        pytest.skip("only Linux has renameat2")
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if not io._swap(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system cannot swap names")
    assert (tmp_path / "a" / "b").exists() and (tmp_path / "b" / "a").exists()
    assert not io._swap(tmp_path / "a", tmp_path / "absent")
