"""The repository: packages are listed, and the README is true."""

import re
import tomllib
from pathlib import Path

from archfront.search_space.check import check_space
from archfront.search_space.document import parse_document

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_every_package_on_the_disk_is_listed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = [
        path.parent.relative_to(ROOT)
        for path in ROOT.glob("**/__init__.py")
        if not any(part.startswith(".") or part == "build" for part in path.relative_to(ROOT).parts)
    ]
    on_disk = {".".join(("archfront", *folder.parts)) for folder in folders}
    assert on_disk == set(listed)


def test_the_space_in_the_readme_is_one() -> None:
    text = re.search(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert text is not None
    assert check_space(parse_document(text[1], source="README.md")).name == "mine"


def test_the_tree_in_the_readme_names_what_is_there() -> None:
    tree = README[README.index("## Layout") :]
    missing: list[str] = []
    room = ""
    for line in tree.splitlines():
        if line and not line.startswith(" "):
            room = line.split("/")[0]
        names = re.findall(r"[\w.-]+\.(?:py|yaml)\b", line)
        missing += [f"{room}/{name}" for name in names if not any((ROOT / room).rglob(name))]
    assert missing == []


def test_the_files_that_the_architecture_page_names_exist() -> None:
    page = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
    named = set(re.findall(r"(?:[a-z_]+/)+[A-Za-z_*]+\.(?:py|yaml)", page))
    assert named, "the page names files"
    missing = [name for name in named if "NAME" not in name and not [*ROOT.glob(name)]]
    assert missing == []
