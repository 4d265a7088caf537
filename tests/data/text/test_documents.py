"""Documents from every format, every bad input, and the counts of skipped items."""

import bz2
import errno
import gzip
import io
import json
import lzma
import os
import sys
import tarfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stemformer.data.text.documents import Document, read_documents, total_bytes
from stemformer.data.text.files import find_files, find_sources, split_suffixes
from stemformer.errors import ConfigError, DataError


def zstd(data: bytes) -> bytes:
    import zstandard

    return zstandard.compress(data)


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
    ".bz2": bz2.compress,
}
MANY = "".join(f"line {number} of some text\n" for number in range(40_000))


def texts(*inputs: Path, **options: object) -> list[str]:
    return [document.text for document in read_documents(list(inputs), **options)]  # type: ignore[arg-type]


def tar_of(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def parquet_of(columns: dict[str, list[object]], *, row_group_size: int = 2) -> bytes:
    import pyarrow
    from pyarrow import parquet

    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), buffer, row_group_size=row_group_size)
    return buffer.getvalue()


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


# finding


def test_find_files_lists_a_folder_sorted_and_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.txt", "a/.x", ".git/c", "a.txt"):
        write(tmp_path / name, "x")
    assert find_files([tmp_path]) == [tmp_path / name for name in ("a/z.txt", "a.txt", "b.txt")]


def test_find_files_expands_patterns(tmp_path: Path) -> None:
    for name in ("a/1.txt", "a/b/2.txt", "a/3.md"):
        write(tmp_path / name, "x")
    assert find_files([f"{tmp_path}/**/*.txt"]) == [tmp_path / "a/1.txt", tmp_path / "a/b/2.txt"]


def test_find_files_lists_a_file_once(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "x")
    assert find_files([path, tmp_path]) == [path]


def test_find_files_takes_a_name_with_brackets_literally(tmp_path: Path) -> None:
    path = write(tmp_path / "a[1].txt", "x")
    assert find_files([path]) == [path]


def test_find_files_survives_a_loop_of_links(tmp_path: Path) -> None:
    write(tmp_path / "a/1.txt", "x")
    (tmp_path / "a/loop").symlink_to(tmp_path)
    assert find_files([tmp_path]) == [tmp_path / "a/1.txt"]


def test_find_files_names_the_nearest_existing_name(tmp_path: Path) -> None:
    write(tmp_path / "books.txt", "x")
    write(tmp_path / "other.txt", "x")
    with pytest.raises(DataError, match=r"File or folder '.*boks\.txt' does not exist\. Did you mean '.*books\.txt'"):
        find_files([tmp_path / "boks.txt"])


def test_find_files_names_the_missing_folder(tmp_path: Path) -> None:
    write(tmp_path / "data/a.txt", "x")
    with pytest.raises(DataError, match=r"does not exist \(no '.*dta'\)\. Did you mean '.*/data'"):
        find_files([tmp_path / "dta" / "a.txt"])


def test_a_name_that_resembles_nothing_is_not_suggested(tmp_path: Path) -> None:
    write(tmp_path / "books.txt", "x")
    with pytest.raises(DataError, match=r"does not exist\. Check the path"):
        find_files([tmp_path / "qqq"])


def test_a_link_to_a_missing_file_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "a.txt").symlink_to("nowhere.txt")
    with pytest.raises(DataError, match=r"a\.txt' is a link to 'nowhere\.txt', which does not exist"):
        find_files([tmp_path / "a.txt"])


@pytest.mark.parametrize("pattern", ["", "*"])
def test_what_a_folder_or_pattern_holds_and_is_not_read_is_counted(tmp_path: Path, pattern: str) -> None:
    path, skipped = write(tmp_path / "in/a.txt", "x"), Counter[str]()
    (tmp_path / "in/gone.txt").symlink_to("nowhere.txt")
    (tmp_path / "in/itself").symlink_to("itself")
    os.mkfifo(tmp_path / "in/pipe")
    assert find_sources([tmp_path / "in" / pattern], skipped) == [str(path)]
    assert skipped == {"links to missing files": 2, "pipes, sockets and devices": 1}


def test_hidden_entries_and_repeated_folders_are_counted(tmp_path: Path) -> None:
    skipped: Counter[str] = Counter()
    for name in ("in/a.txt", "in/.b", "in/.git/c"):
        write(tmp_path / name, "x")
    (tmp_path / "in/loop").symlink_to(tmp_path / "in")
    assert texts(tmp_path / "in", skipped=skipped) == ["x"]
    assert skipped == {"hidden files": 1, "hidden folders": 1, "links to folders that are read already": 1}


def test_a_folder_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "in/a.txt", "x")
    write(tmp_path / "in/closed/b.txt", "x")
    scandir = os.scandir

    def refuse(path: str) -> Iterator[os.DirEntry[str]]:
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"in/closed: Cannot be opened \(Permission denied\)"):
        find_files([tmp_path / "in"])


def test_a_pattern_does_not_pass_over_a_folder_without_permission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "in/a.txt", "x")
    write(tmp_path / "closed/b.txt", "x")
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("closed"))
    with pytest.raises(DataError, match=r"closed: Cannot be opened"):
        find_files([f"{tmp_path}/*/*.txt"])


def test_a_hub_data_set_that_is_named_twice_is_read_once() -> None:
    assert find_sources(["hub:a/b", "hub:a/b:test", "hub:a/b", "-", "-"]) == ["hub:a/b", "hub:a/b:test", "-"]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"one\n{two}\n", ["one", "{two}"]),
        (b"one\nstill\n\ntwo", ["one\nstill", "two"]),
        (b'{"text": "one"}\n{"text": "two"}\n', ["one", "two"]),
        (b'[\n{"text": "one"}]', ["one"]),
    ],
)
def test_standard_input_may_be_read_again(monkeypatch: pytest.MonkeyPatch, data: bytes, expected: list[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert total_bytes(["-"]) == len(data)
    assert texts(Path("-")) == texts(Path("-")) == expected


def test_a_pipe_may_be_read_again(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=("one\ntwo\n",))
    writer.start()
    assert texts(path) == texts(path) == ["one", "two"]
    writer.join()


@pytest.mark.parametrize("name", ["*.txt", "empty"])
def test_find_files_refuses_folders_and_patterns_without_files(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no file"):
        find_files([tmp_path / name])


def test_find_files_refuses_no_inwrite() -> None:
    with pytest.raises(DataError, match="No input"):
        find_files([])


def test_read_documents_reports_a_missing_file_at_the_call(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_documents([tmp_path / "a.txt"])


@pytest.mark.parametrize("option", [{"documents": "page"}, {"errors": "ignore"}])
def test_read_documents_refuses_unknown_options(tmp_path: Path, option: dict[str, str]) -> None:
    path = write(tmp_path / "a.txt", "x")
    with pytest.raises(ConfigError, match="expected one of"):
        read_documents([path], **option)  # type: ignore[arg-type]


def test_suffixes_are_split_whatever_their_case() -> None:
    assert split_suffixes("data/Part.JSONL.gz") == ("data/Part.JSONL", ".jsonl", ".gz")


# plain text


def test_lines_are_documents_of_a_named_file_without_blank_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "one\ntwo\n  \n")
    assert list(read_documents([path])) == [Document("one", f"{path}:1"), Document("two", f"{path}:2")]


def test_paragraphs_are_documents_of_a_named_file_with_blank_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "\none\n  two\n \n\nthree")
    assert list(read_documents([path])) == [Document("one\n  two", f"{path}:2"), Document("three", f"{path}:6")]


def test_a_file_is_a_document_in_a_folder(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "one\n\ntwo\n")
    assert list(read_documents([tmp_path])) == [Document("one\n\ntwo", str(path))]


@pytest.mark.parametrize(("documents", "expected"), [("line", 3), ("blank", 2), ("file", 1)])
def test_documents_option_overrides(tmp_path: Path, documents: str, expected: int) -> None:
    path = write(tmp_path / "a.txt", "one\ntwo\n\nthree\n")
    assert len(texts(path, documents=documents)) == len(texts(tmp_path, documents=documents)) == expected


def test_byte_order_mark_and_carriage_returns_are_removed(tmp_path: Path) -> None:
    assert texts(write(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\ntwo\r\n\r\nthree\r\n")) == ["one\ntwo", "three"]


@pytest.mark.parametrize("shift", range(4))
def test_characters_and_line_ends_survive_block_borders(tmp_path: Path, shift: int) -> None:
    body = "x" * shift + "中𝄞é\r\n" * 70_000  # 11 bytes each, over two borders of blocks
    assert texts(write(tmp_path / "a.txt", body), documents="file") == [body.replace("\r\n", "\n").strip("\n")]


def test_lines_survive_block_borders(tmp_path: Path) -> None:
    assert texts(write(tmp_path / "a.txt", MANY)) == MANY.splitlines()


@pytest.mark.parametrize("before", [0, 5, 262_143, 300_000])
def test_invalid_utf8_names_the_offset(tmp_path: Path, before: int) -> None:
    path = write(tmp_path / "a.txt", b"a" * before + b"\xe9t\xe9")
    with pytest.raises(
        DataError, match=rf"a\.txt: Not UTF-8: byte 0xe9 at offset {before}\..*iconv .*--errors replace"
    ):
        texts(path)


def test_invalid_utf8_names_the_member(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", tar_of({"ok.txt": b"ok", "sub/bad.txt": b"ab\xff"}))
    with pytest.raises(DataError, match=r"a\.tar:sub/bad\.txt: Not UTF-8: byte 0xff at offset 2"):
        texts(path)


def test_invalid_utf8_is_replaced_and_counted_on_request(tmp_path: Path) -> None:
    skipped: Counter[str] = Counter()
    body = b"caf\xe9 \xef\xbf\xbd " + "中".encode() + b" \xe4\xb8 \xff\xfe."
    assert texts(write(tmp_path / "a.txt", body), errors="replace", skipped=skipped) == ["caf� � 中 � ��."]
    assert skipped == {"invalid UTF-8 bytes replaced": 5}


def test_a_character_truncated_at_the_end_is_invalid(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at offset 3"):
        texts(write(tmp_path / "a.txt", b"abc\xe4\xb8"))


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"\x89PNG\r\n\x1a\n\0\0", "PNG"),
        (b"PK\x03\x04rest", "zip"),
        (b"%PDF-1.4", "PDF"),
        (b"text\0text", "NUL byte at offset 4"),
        ("text".encode("utf-16"), r"UTF-16.*iconv"),
        (gzip.compress(b"x", mtime=0), r"gzip.*Name it \.gz"),
        (tar_of({"a": b"x"}), "tar"),
    ],
)
def test_binary_files_are_refused_with_what_they_are(tmp_path: Path, data: bytes, what: str) -> None:
    with pytest.raises(DataError, match=what):
        texts(write(tmp_path / "a.docx", data))


def test_an_empty_file_is_refused_if_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.txt: The file is empty"):
        texts(write(tmp_path / "a.txt", b""))


def test_an_empty_file_is_counted_in_a_folder(tmp_path: Path) -> None:
    skipped: Counter[str] = Counter()
    write(tmp_path / "a.txt", b"")
    write(tmp_path / "b.txt", b" \n\n")
    assert texts(tmp_path, skipped=skipped) == []
    assert skipped == {"empty files": 1, "empty documents": 1}


# articles


def test_articles_are_documents_without_tags_and_titles(tmp_path: Path) -> None:
    body = (
        '<doc id="1" url="u" title="April">\nApril\n\nApril is a month.\nIt has 30 days.\n\n</doc>\n'
        '<doc id="2" url="u" title="Stub">\nStub\n\n\n</doc>\n'
        '<doc id="3" url="u" title="A &quot;B&quot;">\nA "B"\n\nBody <doc x\n</doc>\n'
        '<doc id="4" url="u" title="May">\nMay is another.\n</doc>\n'
    )
    path, skipped = write(tmp_path / "wiki_00", body), Counter[str]()
    expected = ["April is a month.\nIt has 30 days.", "Body <doc x", "May is another."]
    assert texts(path, skipped=skipped) == texts(tmp_path) == expected
    assert skipped == {"empty documents": 1}


def test_a_truncated_article_is_kept_and_counted(tmp_path: Path) -> None:
    skipped: Counter[str] = Counter()
    body = (
        '<doc id="1" title="A">\nbody one\n<doc id="2" title="B">\nbody two\n</doc>\nstray\n<doc id="3" title="C">\nend'
    )
    assert texts(write(tmp_path / "a", body), skipped=skipped) == ["body one", "body two", "end"]
    assert skipped == {"articles without </doc>": 2, "lines outside <doc>": 1}


# compression, archives, progress


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed_files_are_read_and_their_bytes_reported(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a.txt{suffix}", COMPRESS[suffix](MANY.encode()))
    reported: list[int] = []
    assert texts(path, on_bytes=reported.append) == MANY.splitlines()
    assert sum(reported) == total_bytes([path]) == path.stat().st_size


@pytest.mark.parametrize("suffix", COMPRESS)
def test_concatenated_compressed_files_are_read_as_one(tmp_path: Path, suffix: str) -> None:
    assert texts(write(tmp_path / f"a.txt{suffix}", COMPRESS[suffix](b"one\n") + COMPRESS[suffix](b"two\n"))) == [
        "one",
        "two",
    ]


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("damage", ["cut", "changed", "other"])
def test_damaged_compressed_files_raise(tmp_path: Path, suffix: str, damage: str) -> None:
    data = COMPRESS[suffix](MANY.encode())
    middle = len(data) // 2
    data = {"cut": data[:-9], "changed": data[:middle] + bytes(99) + data[middle + 99 :], "other": b"plain text"}[
        damage
    ]
    with pytest.raises(DataError, match=rf"a\.txt{suffix}: Truncated, corrupt or not {suffix}") as raised:
        texts(write(tmp_path / f"a.txt{suffix}", data))
    assert raised.value.exit_code == 3


@pytest.mark.parametrize("suffix", ["", *COMPRESS])
def test_archives_are_read_member_by_member(tmp_path: Path, suffix: str) -> None:
    data = tar_of(
        {
            "b/x.txt": b"one\n\ntwo",
            "a.jsonl": b'{"text": "three"}\n',
            "c.txt.gz": gzip.compress(b"four"),
            "d.parquet": parquet_of({"text": ["five"]}),
        }
    )
    path = write(tmp_path / f"a.tar{suffix}", COMPRESS.get(suffix, bytes)(data))
    reported: list[int] = []
    documents = list(read_documents([path], on_bytes=reported.append))
    assert [document.text for document in documents] == ["one\n\ntwo", "three", "four", "five"]
    assert [document.source for document in documents[:2]] == [f"{path}:b/x.txt", f"{path}:a.jsonl:1"]
    assert sum(reported) == path.stat().st_size


def test_tgz_is_an_archive(tmp_path: Path) -> None:
    assert texts(write(tmp_path / "a.tgz", gzip.compress(tar_of({"a": b"one"})))) == ["one"]


def test_archive_members_that_are_not_files_are_counted(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write(folder / "a.txt", "one")
    write(folder / "._a.txt", b"\0")
    write(folder / "empty.txt", b"")
    (folder / "link").symlink_to("a.txt")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(folder, ".")
    skipped: Counter[str] = Counter()
    assert texts(tmp_path / "a.tar", skipped=skipped) == ["one"]
    assert skipped == {"archive members that are not regular files": 2, "hidden files": 1, "empty files": 1}


@pytest.mark.parametrize("at", [100, 700, 1024, 1300, 2048, 2100])
def test_truncated_archives_raise(tmp_path: Path, at: int) -> None:
    data = tar_of({"a.txt": b"one" * 100, "b.txt": b"two" * 300})  # headers at 0 and 1024, ends at 3072
    with pytest.raises(DataError, match=r"a\.tar: Truncated, corrupt or not tar") as raised:
        texts(write(tmp_path / "a.tar", data[:at]))
    assert raised.value.exit_code == 3


def test_an_archive_with_a_damaged_header_raises(tmp_path: Path) -> None:
    data = bytearray(tar_of({"a.txt": b"one", "b.txt": b"two"}))
    data[1024 + 150] ^= 0xFF  # the checksum of the second header
    with pytest.raises(DataError, match="Truncated, corrupt or not tar"):
        texts(write(tmp_path / "a.tar", bytes(data)))


def test_several_inputs_are_read_in_order_and_their_bytes_add_up(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / "b.txt", "one"),
        write(tmp_path / "c.parquet", parquet_of({"text": ["two", "three", "four"], "id": [1, 2, 3]})),
        write(tmp_path / "a.jsonl.gz", gzip.compress(b'{"text": "five"}')),
        write(tmp_path / "d.parquet.gz", gzip.compress(parquet_of({"text": ["six"]}))),
    ]
    reported: list[int] = []
    assert texts(*paths, on_bytes=reported.append) == ["one", "two", "three", "four", "five", "six"]
    assert sum(reported) == total_bytes(paths) == sum(path.stat().st_size for path in paths)


def test_total_bytes_is_unknown_for_hub_data_sets(tmp_path: Path) -> None:
    assert total_bytes([write(tmp_path / "a.txt", "one"), "hub:owner/name"]) is None


def test_reading_stops_early_without_reading_the_rest(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", MANY * 4)
    reported: list[int] = []
    stream = read_documents([path], on_bytes=reported.append)
    assert next(stream).text == "line 0 of some text"
    assert sum(reported) < path.stat().st_size / 2


def test_documents_keep_json_strings_as_they_are(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", json.dumps({"text": "  one\r\n\ttwo "}))
    assert texts(path) == ["  one\n\ttwo "]
