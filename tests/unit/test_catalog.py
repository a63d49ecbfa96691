"""Names to files: the project before the shipped, files and modules by path."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

from rlvr import catalog
from rlvr.errors import ConfigError


def put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def refusal(folder: catalog.Folder, name: str, project: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        catalog.find(folder, name, project=project)
    return str(caught.value)


def test_a_shipped_file_is_found_with_its_digest(tmp_path: Path) -> None:
    found = catalog.find("rewards", "template", project=tmp_path)
    assert found.path == catalog.shipped("rewards") / "template.py"
    assert found.digest == hashlib.sha256(found.path.read_bytes()).hexdigest()
    assert found.shadows is None and found.attr is None and found.module is None


def test_the_wheels_copy_is_used_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "__file__", str(tmp_path / "site/rlvr/catalog.py"))
    assert catalog.shipped("data") == tmp_path / "site/data"
    put(tmp_path / "site/rlvr/_catalogue/data/mine.py", "")
    assert catalog.shipped("data") == tmp_path / "site/rlvr/_catalogue/data"
    assert catalog.find("data", "mine", project=tmp_path).path.name == "mine.py"


def test_a_project_file_wins_and_says_what_it_hides(tmp_path: Path) -> None:
    own = put(tmp_path / "rewards/template.py", "X = 1\n")
    found = catalog.find("rewards", "template", project=tmp_path)
    assert found.path == own and found.shadows == catalog.shipped("rewards") / "template.py"
    assert catalog.find("rewards", "exact", project=tmp_path).shadows is None


def test_our_own_checkout_shadows_nothing() -> None:
    root = catalog.shipped("rewards").parent
    assert catalog.find("rewards", "template", project=root).shadows is None


def test_files_and_modules_by_path(tmp_path: Path) -> None:
    put(tmp_path / "lib/mine.py", "def verify(): return 5\n")
    assert catalog.load(catalog.find("rewards", "lib/mine.py:verify", project=tmp_path))() == 5
    assert catalog.load(catalog.find("rewards", "lib/mine.py", project=tmp_path)).verify() == 5
    found = catalog.find("rewards", "json.decoder:JSONDecoder", project=tmp_path)
    assert (found.module, found.attr, found.path.name) == ("json.decoder", "JSONDecoder", "decoder.py")
    assert catalog.load(found).__name__ == "JSONDecoder"


def test_loading_puts_no_plain_name_on_the_import_path(tmp_path: Path) -> None:
    put(tmp_path / "rewards/ours.py", "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\n")
    before = set(sys.modules)
    module = catalog.load(catalog.find("rewards", "ours", project=tmp_path))
    assert module.A(3).x == 3
    assert catalog.load(catalog.find("rewards", "ours", project=tmp_path)) is module
    new = {n for n in set(sys.modules) - before if "ours" in n or "rewards" in n}
    assert len(new) == 1 and new.pop().startswith("_rlvr_plugin_ours_")
    put(tmp_path / "rewards/ours.py", "A = 2\n")
    assert catalog.load(catalog.find("rewards", "ours", project=tmp_path)).A == 2


def test_unknown_names_list_what_exists(tmp_path: Path) -> None:
    put(tmp_path / "rewards/proofs.py", "")
    put(tmp_path / "rewards/_helper.py", "")
    message = refusal("rewards", "prof", tmp_path)
    assert message.startswith("unknown verifier 'prof', did you mean 'proofs'? known in rewards/: ")
    assert "_helper" not in message
    assert refusal("data", "zzz", tmp_path).startswith("unknown dataset 'zzz'; known in data/: ")
    assert refusal("rewards", "lib/none.py:f", tmp_path) == (
        f"verifier 'lib/none.py:f': no such file: {tmp_path / 'lib/none.py'}"
    )
    assert "python finds no module 'no.such'" in refusal("rewards", "no.such:f", tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [("def f(:\n", "SyntaxError"), ("import no_such_module\n", "ModuleNotFoundError"), ("1 / zero\n", "NameError")],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str, says: str) -> None:
    path = put(tmp_path / "bad.py", text)
    with pytest.raises(ConfigError, match=f"{path}: cannot be loaded: {says}"):
        catalog.load(catalog.find("rewards", "bad.py", project=tmp_path))
    assert not [n for n in sys.modules if n.startswith("_rlvr_plugin_bad_")]


def test_a_missing_object_is_named(tmp_path: Path) -> None:
    put(tmp_path / "lib.py", "def verify(): ...\n")
    with pytest.raises(ConfigError, match=r"lib.py: has no 'verfy', did you mean 'verify'\?"):
        catalog.load(catalog.find("rewards", "lib.py:verfy", project=tmp_path))
