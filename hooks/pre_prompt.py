"""Turn this temporary copy of the repository into the tree that Cookiecutter expects.

Runs in the copy's root, before the first question. A copy of a branch becomes the newest release
first, as with Copier. Afterwards cookiecutter.json asks every question of copier.yml, and the
templates are in a folder whose name is rendered from the answers, which validates them (see
copier_yml.py).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from cookiecutter.utils import rmtree  # type: ignore[import-untyped]

sys.path.insert(0, "hooks")
from copier_yml import ASKED, COMMIT, CONFIG

# A unique name: another package may be called `hooks`.
MODULE = "livekit_agent_template_copier_yml"
# For tools that run no hooks: see its README.md.
DECOY = Path("{{cookiecutter.needs_its_hooks}}")
# A final or post release as PEP 440 has it: what Copier chooses from, except +local ones.
RELEASE = re.compile(
    r"v?(?:(\d+)!)?(\d+(?:\.\d+)*)(?:(?:[-_.]?(?:post|rev|r)[-_.]?|-)(?P<post>\d+))?",
    re.IGNORECASE | re.ASCII,
)


def git(*arguments: str) -> str | None:
    """What git prints here, None if git fails, is not installed, or this is not a repository."""
    if not Path(".git").exists() or not shutil.which("git"):
        return None
    # If a git hook runs this, its variables name another repository; configuration is kept.
    kept = [
        name for name in os.environ if not name.startswith("GIT_") or name.startswith("GIT_CONFIG")
    ]
    environ = {name: os.environ[name] for name in kept}
    done = subprocess.run(
        ["git", *arguments], env=environ, capture_output=True, text=True, check=False
    )
    return None if done.returncode else done.stdout.strip()


def described_commit() -> str | None:
    """The commit as Copier records it, None without a git repository or git."""
    return git("describe", "--tags", "--always") or None


def newest_release(tags: list[str]) -> str | None:
    """The tag that Copier would choose, None if no tag is a release."""
    ranked = []
    for tag in tags:
        if found := RELEASE.fullmatch(tag):
            # 1.0 and 1 are the same
            number = re.sub(r"(\.0+)+$", "", found[2]).split(".")
            ranked.append(
                (int(found[1] or 0), [int(part) for part in number], int(found["post"] or -1), tag)
            )
    return max(ranked, key=lambda entry: entry[:3])[-1] if ranked else None


def release_to_take() -> str | None:
    """The newest release if this is a copy of a branch; None if a tag or commit was checked out."""
    on_a_branch = git("symbolic-ref", "--quiet", "HEAD")
    return newest_release((git("tag", "--list") or "").split()) if on_a_branch else None


def become(release: str) -> None:
    """Replace this copy with that release, and print so."""
    # A clone, because a linked worktree shares its .git: a checkout would move the owner's HEAD.
    fresh = Path(".release")
    settings = ("-c", "protocol.file.allow=always", "-c", f"core.hooksPath={os.devnull}")
    git(*settings, "clone", "--quiet", "--no-checkout", ".", str(fresh))
    git(*settings, "-C", str(fresh), "checkout", "--quiet", "--detach", f"refs/tags/{release}")
    if not (fresh / "hooks" / "pre_prompt.py").is_file():
        sys.exit(
            f"The newest release is {release}, which git cannot check out here. Name a release:"
            f" `--checkout {release}`, or for a local folder `git checkout --detach {release}`."
        )
    for path in list(Path().iterdir()):
        if path != fresh:
            rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for path in list(fresh.iterdir()):
        path.rename(path.name)
    fresh.rmdir()
    print(
        f"This is {release}, the newest release. `--checkout VERSION` takes another one,"
        " `--checkout origin/BRANCH` the unreleased work of a branch; for a local folder, run"
        " `git checkout --detach VERSION` there.",
        file=sys.stderr,
        flush=True,
    )


def form() -> dict[str, Any]:
    """The questions for cookiecutter.json: a list is a choice, its default first."""
    fields: dict[str, Any] = {}
    prompts: dict[str, Any] = {}
    for name, spec in ASKED.items():
        choices = spec.get("choices", [])
        labels = (
            {value: label for label, value in choices.items()} if isinstance(choices, dict) else {}
        )
        values = sorted(labels or choices, key=lambda value: value != spec["default"])
        fields[name] = values or spec["default"]
        prompts[name] = {"__prompt__": spec["help"], **labels} if labels else spec["help"]
    return fields | {"__prompts__": prompts}


def reshape(root: Path) -> list[str]:
    """Give each file its name in the project; return those that are copied and not rendered."""
    for pattern in CONFIG["_exclude"]:
        if "{%" not in pattern:
            for path in list(
                root.glob(pattern[1:]) if pattern.startswith("/") else root.rglob(pattern)
            ):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    answers_file = root / "{{ _copier_conf.answers_file }}.jinja"
    answers_file.rename(root / ".copier-answers.yml.jinja")
    plain = []
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        if path.suffix == ".jinja":
            path.rename(path.with_suffix(""))
        else:
            plain.append(path.relative_to(root).as_posix())
    root.rename("{{accepted(cookiecutter).project_slug}}")
    return plain


def main() -> None:
    """Reshape the copy, or replace it with the newest release and run that release's hook."""
    if release := release_to_take():
        become(release)
        sys.exit(subprocess.call([sys.executable, "hooks/pre_prompt.py"]))
    commit = described_commit()
    if commit is None:
        print(
            "This is not a git repository: the project cannot be updated later.",
            file=sys.stderr,
            flush=True,
        )
    elif git("status", "--porcelain", "--", "template", "copier.yml"):
        print(f"This is {commit} with uncommitted changes.", file=sys.stderr, flush=True)
    config = form() | ({"_commit": commit} if commit else {})
    config["_copy_without_render"] = reshape(Path("template"))
    config["_extensions"] = [f"{MODULE}.copier_yml.CopierTemplate"]
    config["_jinja2_env_vars"] = {
        "line_statement_prefix": CONFIG["_envops"]["line_statement_prefix"]
    }
    shutil.rmtree(DECOY, ignore_errors=True)
    Path("cookiecutter.json").write_text(json.dumps(config), encoding="utf-8")
    Path(MODULE).mkdir()
    shutil.copy("hooks/copier_yml.py", MODULE)
    if commit:
        Path(MODULE, COMMIT).write_text(commit, encoding="utf-8")


if __name__ == "__main__":
    main()
