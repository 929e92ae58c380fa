"""Corpora from every kind of source, and the files that are rejected."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from archfront.profilers.corpus import CAP_BYTES, Corpus, load_corpus
from archfront.search_space.document import InputError


def sentences(count: int, start: int = 0) -> str:
    return "".join(f"Sentence {number} stands alone. " for number in range(start, start + count))


def folder_of(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def all_bytes(corpus: Corpus) -> list[int]:
    return sorted([*corpus.train.tolist(), *corpus.held_out.tolist()])


def test_the_default_is_the_standard_library_and_the_same_every_time():
    first, second = load_corpus(None), load_corpus(None)
    assert first.sha256 == second.sha256
    assert np.array_equal(first.held_out, second.held_out)
    assert CAP_BYTES / 4 < first.num_bytes < 1.25 * CAP_BYTES
    assert b"import " in first.held_out.tobytes()


def test_a_text_file_loses_nothing_and_holds_a_tenth_out(tmp_path: Path):
    text = sentences(2000)
    (tmp_path / "tale.txt").write_text(text)
    corpus = load_corpus(str(tmp_path / "tale.txt"))
    assert all_bytes(corpus) == sorted(text.encode())
    assert 0.09 < len(corpus.held_out) / corpus.num_bytes < 0.16


def test_whole_documents_are_held_out_and_none_is_in_both_parts(tmp_path: Path):
    files = {f"{name}.md": f"<{name}>" + sentences(20, 100 * name) for name in range(60)}
    corpus = load_corpus(str(folder_of(tmp_path, files)))
    train, held_out = corpus.train.tobytes().decode(), corpus.held_out.tobytes().decode()
    parts = [(text in train, text in held_out) for text in files.values()]
    assert set(parts) == {(True, False), (False, True)}


def test_a_document_that_occurs_twice_counts_once(tmp_path: Path):
    files = {f"{name}.txt": sentences(20, 100 * name) for name in range(30)}
    once = load_corpus(str(folder_of(tmp_path / "once", files)))
    copies = {f"copy/{name}": text for name, text in files.items()}
    twice = load_corpus(str(folder_of(tmp_path / "twice", files | copies)))
    assert once.sha256 == twice.sha256


def test_the_hash_follows_the_content_and_not_the_names(tmp_path: Path):
    text = sentences(500)
    paths = [tmp_path / name for name in ("a.txt", "b.txt", "c.txt")]
    for path, content in zip(paths, (text, text, text + "!"), strict=True):
        path.write_text(content)
    a, b, c = (load_corpus(str(path)).sha256 for path in paths)
    assert a == b != c


def test_a_folder_is_read_at_any_depth_but_only_its_text_files(tmp_path: Path):
    files = {"a.txt": "A" * 300, "deep/er/b.py": "B" * 300, "c.JSONL": '{"text": "C"}'}
    folder_of(tmp_path, {**files, "weights.safetensors": b"\0\1", "image.png": "P"})
    assert set(all_bytes(load_corpus(str(tmp_path)))) == set(b"ABC")


def test_links_in_a_folder_are_not_followed(tmp_path: Path):
    folder_of(tmp_path, {"secret/key.txt": "S" * 99, "given/a.txt": sentences(40)})
    os.symlink(tmp_path / "secret", tmp_path / "given/folder")
    os.symlink(tmp_path / "secret/key.txt", tmp_path / "given/file.txt")
    corpus = load_corpus(str(tmp_path / "given"))
    assert ord("S") not in set(all_bytes(corpus)) - set(sentences(40).encode())
    assert corpus.num_bytes == len(sentences(40))


def test_a_large_source_is_read_evenly_and_in_part(tmp_path: Path):
    with (tmp_path / "large.txt").open("w") as file:
        for part in range(40):
            file.write(sentences(CAP_BYTES // 250, part * CAP_BYTES))
    corpus = load_corpus(str(tmp_path / "large.txt"))
    assert CAP_BYTES / 4 < corpus.num_bytes <= CAP_BYTES


def test_jsonl_has_one_document_per_line(tmp_path: Path):
    path = tmp_path / "tales.jsonl"
    texts = [f"Tale {number}: grüße " * 20 for number in range(50)]
    path.write_text("\n".join(json.dumps({"text": text, "id": 1}) for text in texts) + "\n\n")
    assert all_bytes(load_corpus(str(path))) == sorted("".join(texts).encode())


@pytest.mark.parametrize(
    "line", [b"{", b"[1]", b'"text"', b'{"body": "x"}', b'{"text": 3}', b'{"text": "\xff"}']
)
def test_the_error_of_a_bad_jsonl_line_names_it(tmp_path: Path, line: bytes):
    path = tmp_path / "tales.jsonl"
    path.write_bytes(b'{"text": "good"}\n\n' + line + b"\n")
    with pytest.raises(InputError, match=r"tales\.jsonl:3: must be "):
        load_corpus(str(path))


def test_a_bin_file_has_text_or_token_ids_that_are_bytes(tmp_path: Path):
    text = (sentences(500) + "grüße").encode()
    (tmp_path / "text.bin").write_bytes(text)
    (tmp_path / "ids.bin").write_bytes(np.frombuffer(text, np.uint8).astype("<u2").tobytes())
    for name in ("text.bin", "ids.bin"):
        assert all_bytes(load_corpus(str(tmp_path / name))) == sorted(text)


@pytest.mark.parametrize("place", [0, -1])
def test_token_ids_that_are_no_bytes_are_rejected(tmp_path: Path, place: int):
    ids = np.frombuffer(sentences(500).encode(), np.uint8).astype("<u2")
    ids[place] = 50256
    (tmp_path / "tokens.bin").write_bytes(ids.tobytes())
    with pytest.raises(InputError, match=r"below 256, got id 50256; .* give the text itself"):
        load_corpus(str(tmp_path / "tokens.bin"))


def test_a_source_that_cannot_be_read_is_rejected_with_its_reason(tmp_path: Path):
    folder_of(tmp_path, {"tale.txt": "", "zip.txt": b"PK\0\1", "none/readme.pdf": "x"})
    os.mkfifo(tmp_path / "pipe")
    for name, message in {
        "tales.txt": "no such file or folder; did you mean 'tale.txt'",
        "tale.txt": "has no text",
        "zip.txt": "has a zero byte",
        "none": "has no file to read",
        "pipe": "must be a file or a folder",
    }.items():
        with pytest.raises(InputError, match=message):
            load_corpus(str(tmp_path / name))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_without_permission_is_rejected(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("x")
    (tmp_path / "mine.txt").chmod(0)
    with pytest.raises(InputError, match="cannot be read: Permission denied"):
        load_corpus(str(tmp_path))


def test_both_parts_of_a_corpus_must_be_longer_than_the_context(tmp_path: Path):
    (tmp_path / "tale.txt").write_text(sentences(10))
    corpus = load_corpus(str(tmp_path / "tale.txt"))
    corpus.require(len(corpus.held_out) - 1)
    message = (
        f"longer than the context, got {len(corpus.held_out)} of .* context={len(corpus.held_out)}"
    )
    with pytest.raises(InputError, match=message):
        corpus.require(len(corpus.held_out))
