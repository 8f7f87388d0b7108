"""Turn this throw-away copy of the repository into the tree that Cookiecutter expects.

Runs in the copy's root, before the first question. A copy of a branch becomes the newest release first, as with Copier.
Afterwards every question of copier.yml is one of cookiecutter.json, and the templates lie in a folder named by the
answers, which are checked in the course (see copier_yml.py).
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

MODULE = "livekit_agent_template_copier_yml"  # a name of its own: `hooks` could be anybody's
DECOY = Path("{{cookiecutter.needs_its_hooks}}")  # for tools that run no hook: see its README.md
# A final or post release as PEP 440 has it: what Copier chooses from, but for +local ones.
RELEASE = re.compile(
    r"v?(?:(\d+)!)?(\d+(?:\.\d+)*)(?:(?:[-_.]?(?:post|rev|r)[-_.]?|-)(?P<post>\d+))?",
    re.IGNORECASE | re.ASCII,
)


def git(*arguments: str) -> str | None:
    """What git prints here, None if this is no git repository, there is no git, or git says no."""
    if not Path(".git").exists() or not shutil.which("git"):
        return None
    # A git hook that runs us names its own repository; what is configured stays.
    kept = [
        name for name in os.environ if not name.startswith("GIT_") or name.startswith("GIT_CONFIG")
    ]
    environ = {name: os.environ[name] for name in kept}
    done = subprocess.run(
        ["git", *arguments], env=environ, capture_output=True, text=True, check=False
    )
    return None if done.returncode else done.stdout.strip()


def described_commit() -> str | None:
    """The commit as Copier records it, None where there is no git repository or no git."""
    return git("describe", "--tags", "--always") or None


def newest_release(tags: list[str]) -> str | None:
    """The tag that Copier would take, None if no tag is a release."""
    ranked = []
    for tag in tags:
        if found := RELEASE.fullmatch(tag):
            number = re.sub(r"(\.0+)+$", "", found[2]).split(".")  # 1.0 and 1 are the same
            ranked.append(
                (int(found[1] or 0), [int(part) for part in number], int(found["post"] or -1), tag)
            )
    return max(ranked, key=lambda entry: entry[:3])[-1] if ranked else None


def release_to_take() -> str | None:
    """The release that this copy of a branch should be; None if it is one, or a commit that was asked for."""
    on_a_branch = git("symbolic-ref", "--quiet", "HEAD")
    return newest_release((git("tag", "--list") or "").split()) if on_a_branch else None


def become(release: str) -> None:
    """Put that release in the place of this copy, and say so."""
    # A clone, because the .git of a linked work tree is the owner's own: a checkout would move their HEAD.
    fresh = Path(".release")
    ours = (
        "-c",
        "protocol.file.allow=always",
        "-c",
        f"core.hooksPath={os.devnull}",
    )  # it is a copy of a copy
    git(*ours, "clone", "--quiet", "--no-checkout", ".", str(fresh))
    git(*ours, "-C", str(fresh), "checkout", "--quiet", "--detach", f"refs/tags/{release}")
    if not (fresh / "hooks" / "pre_prompt.py").is_file():
        sys.exit(
            f"The newest release is {release}, which git cannot check out here. Name the one to take: "
            f"`--checkout {release}`, or for a folder of this machine `git checkout --detach {release}` there."
        )
    for path in list(Path().iterdir()):
        if path != fresh:
            rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for path in list(fresh.iterdir()):
        path.rename(path.name)
    fresh.rmdir()
    print(
        f"This is {release}, the newest release. `--checkout VERSION` takes another, `--checkout origin/BRANCH` what "
        "is not released yet; for a folder of this machine, `git checkout --detach VERSION` there.",
        file=sys.stderr,
        flush=True,
    )


def form() -> dict[str, Any]:
    """The questions, as cookiecutter.json has them: a list is a choice, its default first."""
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
    """Name each file as the project has it; return those to copy as they are."""
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
    """Reshape the copy, or let the release that it becomes do so with its own hook."""
    if release := release_to_take():
        become(release)
        sys.exit(subprocess.call([sys.executable, "hooks/pre_prompt.py"]))
    commit = described_commit()
    if commit is None:
        print(
            "This is no git repository: the project cannot be updated later.",
            file=sys.stderr,
            flush=True,
        )
    elif git("status", "--porcelain", "--", "template", "copier.yml"):
        print(f"This is {commit} with changes that are not committed.", file=sys.stderr, flush=True)
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
