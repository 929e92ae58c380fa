"""The text that proxy models are trained on: bytes of documents, about a tenth of them held out."""

import codecs
import hashlib
import json
import os
import platform
import sysconfig
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import count
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from ..search_space.document import InputError, nearest

# Files that are read in a folder; a file given by its own path may have any suffix.
TEXT_SUFFIXES = frozenset(
    [
        ".txt",
        ".md",
        ".rst",
        ".tex",
        ".html",
        ".xml",
        ".csv",
        ".json",
        ".yaml",
        ".toml",
        ".py",
        ".pyi",
        ".c",
        ".h",
        ".cc",
        ".cpp",
        ".hpp",
        ".cu",
        ".rs",
        ".go",
        ".java",
        ".js",
        ".ts",
        ".rb",
        ".jl",
        ".sh",
        ".sql",
    ]
)
SUFFIXES = TEXT_SUFFIXES | {".jsonl", ".bin"}
SKIPPED_FOLDERS = frozenset(  # of the standard library
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
)
CAP_BYTES = 8 << 20  # far more than a short training run reads
HELD_OUT_FRACTION = 0.1
MIN_DOCUMENTS = 20  # a document above 1 / MIN_DOCUMENTS of the corpus is cut, so it can be split


@dataclass(frozen=True, kw_only=True, eq=False)
class Corpus:
    """Training and held-out bytes, uint8, with no document in common.

    `sha256` is the hash of the bytes; file names do not enter it.
    """

    name: str
    sha256: str
    train: np.ndarray
    held_out: np.ndarray

    @property
    def num_bytes(self) -> int:
        """Bytes of both parts."""
        return len(self.train) + len(self.held_out)

    def require(self, context: int) -> None:
        """Raise InputError unless both parts are longer than `context` bytes."""
        for part, held in (("training", self.train), ("held-out", self.held_out)):
            if len(held) <= context:
                raise InputError(
                    f"{self.name}: the {part} part must be longer than the context, got "
                    f"{len(held)} of {self.num_bytes} different bytes, context={context}; "
                    "give more text or a shorter context"
                )


def load_corpus(path: str | None) -> Corpus:
    """Read a corpus: a file, a folder, or (None) the sources of Python's standard library.

    - `.jsonl`: one document per line, its `text` field.
    - `.bin`: UTF-8 text, or token ids in little-endian uint16; the ids must be bytes (below 256),
      since a proxy model reads bytes.
    - any other file: one document, its bytes unchanged.
    - a folder: its files with a suffix of `SUFFIXES` at any depth, in order of their relative
      paths, without following links.

    Above `CAP_BYTES`, every n-th document is read. A document that occurs twice counts once.
    Documents are held out in order of their hash until `HELD_OUT_FRACTION` of the bytes is.
    Raises InputError.
    """
    if path is None:
        root = Path(sysconfig.get_paths()["stdlib"])
        name, files = (
            f"python {platform.python_version()} library",
            _walk(root, {".py"}, SKIPPED_FOLDERS),
        )
    else:
        name, files = path, _files(Path(path))
    total = sum(file.stat().st_size for file in files)
    every = max(1, ceil(total / CAP_BYTES))
    longest = max(2, min(total, CAP_BYTES) // MIN_DOCUMENTS // 2 * 2)
    documents = {
        hashlib.sha256(document).digest(): document
        for document in _documents(files, longest, every)
        if document
    }
    if not documents:
        raise InputError(f"{name}: has no text")

    wanted = HELD_OUT_FRACTION * sum(map(len, documents.values()))
    train, held_out = bytearray(), bytearray()
    for _, document in sorted(documents.items()):
        (held_out if len(held_out) < wanted else train).extend(document)
    return Corpus(
        name=name,
        sha256=hashlib.sha256(train + held_out).hexdigest(),
        train=np.frombuffer(bytes(train), np.uint8),
        held_out=np.frombuffer(bytes(held_out), np.uint8),
    )


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.exists():
        near = nearest(path.name, (p.name for p in path.parent.glob("*")))
        raise InputError(f"{path}: no such file or folder{near}")
    if not path.is_dir():
        raise InputError(f"{path}: must be a file or a folder")
    files = _walk(path, SUFFIXES)
    if not files:
        raise InputError(
            f"{path}: has no file to read (links are not followed); "
            f"known suffixes: {' '.join(sorted(SUFFIXES))}"
        )
    return files


def _walk(
    root: Path, suffixes: AbstractSet[str], without: AbstractSet[str] = frozenset()
) -> list[Path]:
    def raise_input_error(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be read: {error.strerror}") from None

    found: list[Path] = []
    for folder, folders, names in os.walk(root, onerror=raise_input_error):
        folders[:] = [name for name in folders if name not in without]
        here = (Path(folder, name) for name in names if Path(name).suffix.lower() in suffixes)
        found += (file for file in here if file.is_file() and not file.is_symlink())
    return sorted(found, key=lambda file: file.relative_to(root).as_posix())


def _documents(files: list[Path], longest: int, every: int) -> Iterator[bytes]:
    """Every n-th document of the files, cut into chunks of at most `longest` bytes."""
    index = count()
    for file in files:
        try:
            with file.open("rb") as handle:
                if file.suffix.lower() == ".jsonl":
                    for line_number, line in enumerate(handle, 1):
                        if line.strip() and next(index) % every == 0:
                            text = _text_of(line, f"{file}:{line_number}")
                            yield from (text[i : i + longest] for i in range(0, len(text), longest))
                    continue
                binary = file.suffix.lower() == ".bin"
                ids = binary and _holds_token_ids(handle.read(longest), file)
                read = _as_token_ids if ids else _as_text
                for start in range(0, file.stat().st_size, longest):
                    if next(index) % every == 0:
                        handle.seek(start)
                        yield read(handle.read(longest), file)
        except OSError as error:
            raise InputError(f"{file}: cannot be read: {error.strerror}") from None


def _text_of(line: bytes, where: str) -> bytes:
    try:
        record: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: must be a JSON object in UTF-8: {error}") from None
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise InputError(f"{where}: must be an object with a text field that is a string")
    return text.encode(errors="replace")


def _as_text(chunk: bytes, file: Path) -> bytes:
    if b"\0" in chunk:
        raise InputError(f"{file}: must be text, has a zero byte")
    return chunk


def _holds_token_ids(head: bytes, file: Path) -> bool:
    """Whether a `.bin` has uint16 ids below 256 (every high byte is zero) rather than text."""
    if not any(head[1::2]):
        return True
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        raise _too_large(head, file) from None
    return False


def _as_token_ids(chunk: bytes, file: Path) -> bytes:
    if any(chunk[1::2]):
        raise _too_large(chunk, file)
    return chunk[::2]


def _too_large(chunk: bytes, file: Path) -> InputError:
    ids = np.frombuffer(chunk[: len(chunk) // 2 * 2], "<u2")
    return InputError(
        f"{file}: must be UTF-8 text or token ids that are bytes, below 256, got id {ids.max()}; "
        "a proxy model reads bytes: give the text itself"
    )
