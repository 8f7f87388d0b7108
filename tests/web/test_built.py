"""The page that is rendered is what its sources build, and needs nobody else."""

from __future__ import annotations

import gzip
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from agent.web.app import PAGE
from tests.support.npm import WEB, require_packages

MOST_BYTES = 250_000
BUILT = {"talk.js", "LICENSES.txt"}
FILES = {"index.html", "talk.css", *BUILT}


@pytest.fixture(scope="module")
def modules() -> Path:
    """The packages of the page."""
    return require_packages()


def test_the_page_is_what_its_sources_build(modules: Path, tmp_path: Path) -> None:
    node = shutil.which("node")
    assert node is not None

    subprocess.run([node, "build.mjs", str(tmp_path)], cwd=WEB, check=True, capture_output=True)

    built = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert built == {name: (PAGE / name).read_bytes() for name in BUILT}, "`make page`"


def test_its_sources_have_the_types_that_they_say(modules: Path) -> None:
    done = subprocess.run([modules / ".bin" / "tsc"], cwd=WEB, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout


def test_it_is_light() -> None:
    sent = [gzip.compress((PAGE / name).read_bytes(), 9) for name in FILES - {"LICENSES.txt"}]

    assert sum(map(len, sent)) <= MOST_BYTES


def test_it_loads_nothing_from_elsewhere_and_has_no_script_or_style_inline() -> None:
    assert {file.name for file in PAGE.iterdir()} == FILES
    html = (PAGE / "index.html").read_text(encoding="utf-8")

    assert re.findall(r'(?:src|href|action)="([^"]*)"', html) == ["talk.css", "talk.js"]
    assert not re.search(r"<style|\bstyle=|\bon\w+=|<script(?![^>]* src=)", html)
    assert "url(" not in (PAGE / "talk.css").read_text(encoding="utf-8")


def test_the_licenses_of_what_it_is_made_of_are_beside_it() -> None:
    licenses = (PAGE / "LICENSES.txt").read_text(encoding="utf-8")

    for name in ("livekit-client 2.23.0 (Apache-2.0)", "Apache License", "Permission is hereby"):
        assert name in licenses


def test_the_lock_names_no_registry_and_pins_every_package() -> None:
    lock = (WEB / "package-lock.json").read_text(encoding="utf-8")

    assert '"resolved"' not in lock
    # of all packages but the page itself
    assert lock.count('"integrity": "sha512-') == lock.count('"node_modules/')
