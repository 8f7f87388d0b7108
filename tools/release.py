"""Add this checkout's template to releases/history.bundle as a released version.

    python tools/release.py VERSION

A released version never changes, so updates to it are tried first (tools/gate.py). The bundle
depends only on the tree, the version and the date in CHANGELOG.md, so anybody can make it again.
The person who releases commits it, and tools/tags.py tags that commit.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.version import InvalidVersion, Version

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.templates import Template
from tools.gate import gate
from tools.history import (
    BRANCH,
    ROOT,
    WORK_TREE,
    Trouble,
    bundle_of,
    commit,
    git,
    open_releases,
    releases,
    stray_tags,
    template_files,
)


def released_on(version: str, root: Path) -> str:
    """The date of the version's section in CHANGELOG.md; raises Trouble if that is empty."""
    changelog = root / "CHANGELOG.md"
    text = changelog.read_text(encoding="utf-8") if changelog.exists() else ""
    heading = rf"^## \[?{re.escape(version)}\]? - (\d{{4}}-\d\d-\d\d)$"
    section = re.search(heading + r"\n(.*?)(?=^## |^\[|\Z)", text, re.MULTILINE | re.DOTALL)
    if not section or not section[2].strip():
        raise Trouble(
            f"CHANGELOG.md says nothing about {version}: write a section"
            f" `## [{version}] - YYYY-MM-DD`"
        )
    return section[1]


def release(version: str, root: Path = ROOT) -> str:
    """Add the version to the bundle and return its tag; raises Trouble, and changes nothing."""
    try:
        number = Version(version)
    except InvalidVersion as error:
        raise Trouble(f"{version!r} is not a version: write one such as 0.2.0") from error
    if str(number) != version or number >= Version(WORK_TREE):
        raise Trouble(
            f"{version!r} cannot be released: write a version such as 0.2.0, without v, below"
            f" {WORK_TREE}"
        )
    date = released_on(version, root)
    if changes := git(root, "status", "--porcelain"):
        raise Trouble(
            f"there is uncommitted work, such as {changes.splitlines()[0][3:]}: commit it first"
        )
    if strays := stray_tags(releases(root)):
        raise Trouble("\n".join(strays))
    owners = [
        sys.executable,
        str(Path(__file__).with_name("ownership.py")),
        "--check",
        "--root",
        str(root),
    ]
    if subprocess.run(owners, check=False, stderr=subprocess.DEVNULL).returncode:
        raise Trouble(
            "template/.template.toml.jinja is not up to date: run `make ownership` and commit it"
        )

    with tempfile.TemporaryDirectory() as folder:
        history = Path(folder)
        open_releases(history, root)
        if tags := releases(history):
            newest = max(map(Version, tags))
            if number <= newest:
                raise Trouble(
                    f"{version} is not newer than {newest}, and a released version never changes"
                )
        commit(history, root, template_files(root, untracked=False), f"v{version}", date)
        if broken := gate(Template(history), version):
            raise Trouble(
                "updates to it would break what owners were promised:\n"
                + "\n".join(f"  {b}" for b in broken)
            )
        bundle = bundle_of(root).resolve()
        bundle.parent.mkdir(exist_ok=True)
        git(
            history,
            "-c",
            "pack.threads=1",
            "bundle",
            "create",
            "--quiet",
            str(bundle),
            BRANCH,
            "--tags",
        )
    return f"v{version}"


def main() -> int:
    """Release; return the exit status."""
    parser = argparse.ArgumentParser(
        description="Add this checkout's template to releases/history.bundle."
    )
    parser.add_argument("version", metavar="VERSION", help="such as 0.2.0")
    try:
        tag = release(parser.parse_args().version.removeprefix("v"))
    except Trouble as trouble:
        print(f"release: {trouble}", file=sys.stderr)
        return 1
    print(
        f"Released. Next: git add releases && git commit -m 'Release {tag}', and push:"
        " CI tags that commit of main"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
