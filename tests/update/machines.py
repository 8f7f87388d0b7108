"""Random machines: how git is set up, how a repository is laid out, and what its owner has written.

Each is made with git's defaults, and only then gets its settings, so that it can be made at all.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from hypothesis import strategies as st

from tests.support.templates import MARK
from tests.update.small import SHARED

Snapshot = dict[str, tuple[int, bytes]]
OWN = ".github/workflows/ci.yml", "Dockerfile", "pyproject.toml", "src/agent/settings.py"
ANSWERS = ".copier-answers.yml"
UNSUPPORTED = "sparse", "hidden", "half merged", "not committed"


def git(folder: Path, *arguments: str) -> str:
    """Run git in a folder; a look changes nothing."""
    command = ["git", "--no-optional-locks", *arguments]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return os.fsdecode(done.stdout).strip("\n")


def commit(folder: Path) -> None:
    """Commit all that is there, ignored files too."""
    git(folder, "add", "--all", "--force")
    git(folder, "commit", "--quiet", "--allow-empty", "--message=work")


def snapshot(folder: Path) -> Snapshot:
    """All that is below a folder, byte for byte, but for git's objects, which have no name."""
    found: Snapshot = {}
    for path in folder.rglob("*"):
        name, mode = path.relative_to(folder).as_posix(), path.lstat().st_mode
        if "objects" in path.parts:
            continue
        if stat.S_ISLNK(mode):
            found[name] = mode, os.fsencode(path.readlink())
        else:
            found[name] = mode, path.read_bytes() if stat.S_ISREG(mode) else b""
    return found


# ---------------------------------------------------------------------- how git is set up

SETTINGS: list[tuple[str, list[str]]] = [
    ("apply.ignoreWhitespace", ["change"]),
    ("apply.whitespace", ["fix", "error", "error-all"]),
    ("color.ui", ["always"]),
    ("column.ui", ["always"]),
    ("commit.gpgSign", ["true"]),
    ("core.abbrev", ["4"]),
    ("core.attributesFile", ["{attributes}"]),
    ("core.autocrlf", ["true", "input"]),
    ("core.bigFileThreshold", ["1"]),
    ("core.commentChar", ["R"]),
    ("core.eol", ["crlf", "lf"]),
    ("core.excludesFile", ["{excludes}"]),
    ("core.fileMode", ["false"]),
    ("core.fsmonitor", ["{hooks}/no-monitor"]),
    ("core.hooksPath", ["{hooks}"]),
    ("core.ignoreCase", ["true"]),
    ("core.pager", ["false"]),
    ("core.quotePath", ["false"]),
    ("core.safecrlf", ["true", "warn"]),
    ("core.splitIndex", ["true"]),
    ("core.symlinks", ["false"]),
    ("core.untrackedCache", ["true"]),
    ("core.whitespace", ["trailing-space,tab-in-indent", "cr-at-eol"]),
    ("diff.algorithm", ["patience", "histogram"]),
    ("diff.context", ["0"]),
    ("diff.external", ["false"]),
    ("diff.ignoreSubmodules", ["all"]),
    ("diff.interHunkContext", ["50"]),
    ("diff.mnemonicPrefix", ["true"]),
    ("diff.noprefix", ["true"]),
    ("diff.orderFile", ["{hooks}/info/exclude"]),
    ("diff.relative", ["true"]),
    ("diff.renames", ["copies", "false"]),
    ("diff.suppressBlankEmpty", ["true"]),
    ("feature.manyFiles", ["true"]),
    ("gc.auto", ["1"]),
    ("i18n.commitEncoding", ["latin1"]),
    ("index.version", ["4"]),
    ("init.templateDir", ["{hooks}"]),
    ("merge.conflictStyle", ["diff3", "zdiff3"]),
    ("rerere.autoUpdate", ["true"]),
    ("rerere.enabled", ["true"]),
    ("safe.bareRepository", ["explicit"]),
    ("status.branch", ["true"]),
    ("status.relativePaths", ["false"]),
    ("status.short", ["true"]),
    ("status.showUntrackedFiles", ["no"]),
    ("submodule.recurse", ["true"]),
    ("tag.gpgSign", ["true"]),
    ("user.useConfigOnly", ["true"]),
    ("worktree.guessRemote", ["true"]),
]
ATTRIBUTES = [
    "* -diff",
    "* binary",
    "* text=auto",
    "* text eol=crlf",
    "*.py -text",
    "* filter=broken ident",
    "Dockerfile merge=union",
    "*.toml -merge",
    "* whitespace=trailing-space",
    "*.md export-ignore",
]
EXCLUDES = ["Dockerfile", "*.md", "*", "src/", "*.rej", ".template.toml"]
PLACES = "global", "local", "environment", "git -c"


@dataclass(frozen=True)
class Setup:
    """Settings of git, and where they are written."""

    settings: tuple[tuple[str, str], ...]
    attributes: tuple[str, ...]
    excludes: tuple[str, ...]
    place: str
    hashes: str

    @contextmanager
    def of(self, top: Path, folder: Path) -> Iterator[None]:
        """Inside, git is set up like this; `folder` has what the settings name."""
        hooks = folder / "hooks"
        (hooks / "info").mkdir(parents=True)
        for name in ("pre-commit", "post-checkout", "post-index-change", "reference-transaction"):
            (hooks / name).write_text(f"#!/bin/sh\necho {name} >> '{folder}/ran'; exit 1\n")
            (hooks / name).chmod(0o755)
        (folder / "attributes").write_text("".join(f"{line}\n" for line in self.attributes))
        (folder / "excludes").write_text("".join(f"{line}\n" for line in self.excludes))
        shutil.copy(folder / "excludes", hooks / "info/exclude")
        shutil.copy(folder / "attributes", hooks / "info/attributes")
        names = {"hooks": hooks, "attributes": folder / "attributes"}
        pairs = [
            (name, value.format(excludes=folder / "excludes", **names))
            for name, value in self.settings
        ]
        environment = {"GIT_DEFAULT_HASH": self.hashes}
        if self.place in ("global", "local"):
            file = folder / "gitconfig"
            file.touch()
            where = ["--file", str(file)] if self.place == "global" else ["--local"]
            for name, value in pairs:
                git(top, "config", *where, name, value)
            if self.place == "global":
                environment["GIT_CONFIG_GLOBAL"] = str(file)
        elif self.place == "environment":
            environment["GIT_CONFIG_COUNT"] = str(len(pairs))
            for number, (name, value) in enumerate(pairs):
                environment[f"GIT_CONFIG_KEY_{number}"] = name
                environment[f"GIT_CONFIG_VALUE_{number}"] = value
        else:
            environment["GIT_CONFIG_PARAMETERS"] = " ".join(f"'{n}'='{v}'" for n, v in pairs)
        with mock.patch.dict(os.environ, environment):
            yield


def setups() -> st.SearchStrategy[Setup]:
    """Any settings, a few at once."""
    one = st.sampled_from(SETTINGS).flatmap(
        lambda known: st.tuples(st.just(known[0]), st.sampled_from(known[1]))
    )
    return st.builds(
        Setup,
        st.lists(one, max_size=8, unique_by=lambda pair: pair[0]).map(tuple),
        st.lists(st.sampled_from(ATTRIBUTES), max_size=3).map(tuple),
        st.lists(st.sampled_from(EXCLUDES), max_size=2).map(tuple),
        st.sampled_from(PLACES),
        st.sampled_from(["sha1", "sha1", "sha256"]),
    )


# ---------------------------------------------------------------------- how it is laid out


@dataclass(frozen=True)
class Place:
    """A project in its repository."""

    home: Path
    top: Path


def plain(made: Path, world: Path) -> Place:
    """A repository of its own, in a folder with a name that needs quoting."""
    home = world / "front desk ü"
    shutil.move(made, home)
    git(home, "init", "--quiet", "--initial-branch=main")
    commit(home)
    return Place(home, home)


def other_hash(made: Path, world: Path) -> Place:
    """A repository with the other hash."""
    with mock.patch.dict(os.environ, GIT_DEFAULT_HASH="sha256"):
        return plain(made, world)


def elsewhere(made: Path, world: Path) -> Place:
    """A project whose .git is a file that leads elsewhere."""
    git(made, "init", "--quiet", "--initial-branch=main", f"--separate-git-dir={world / 'gits'}")
    commit(made)
    return Place(made, made)


def linked(made: Path, world: Path) -> Place:
    """A linked work tree beside the first one."""
    main = plain(made, world)
    git(main.home, "worktree", "add", "--quiet", "-b", "other", str(world / "linked"))
    return Place(world / "linked", world / "linked")


def beside_one_that_is_away(made: Path, world: Path) -> Place:
    """A repository with a linked work tree that is on another disk for now."""
    main = plain(made, world)
    git(main.home, "worktree", "add", "--quiet", "--detach", str(world / "linked"))
    (world / "linked").rename(world / "away")
    return main


def of_a_bare_one(made: Path, world: Path) -> Place:
    """A work tree of a bare repository."""
    main = plain(made, world)
    git(world, "clone", "--quiet", "--bare", str(main.home), str(world / "bare.git"))
    git(world / "bare.git", "worktree", "add", "--quiet", str(world / "tree"), "main")
    return Place(world / "tree", world / "tree")


def with_submodule(made: Path, world: Path) -> Place:
    """A project with a submodule, in which its owner has work that is not committed."""
    library, project = plain_library(world), plain(made, world)
    allowed = ("-c", "protocol.file.allow=always", "submodule", "--quiet", "add")
    git(project.home, *allowed, str(library), "library")
    commit(project.home)
    return project


def as_submodule(made: Path, world: Path) -> Place:
    """A project that is a submodule of another repository."""
    inner, outer = plain(made, world), plain_library(world)
    allowed = ("-c", "protocol.file.allow=always", "submodule", "--quiet", "add")
    git(outer, *allowed, str(inner.home), "desk")
    commit(outer)
    return Place(outer / "desk", outer / "desk")


def plain_library(world: Path) -> Path:
    """Another repository."""
    library = world / "library"
    library.mkdir()
    git(library, "init", "--quiet", "--initial-branch=main")
    (library / "library.py").write_text("# this\n")
    commit(library)
    return library


def in_a_monorepo(made: Path, world: Path) -> Place:
    """A folder of a larger repository."""
    top = world / "mono"
    (top / "apps").mkdir(parents=True)
    shutil.move(made, top / "apps/desk")
    (top / "web").mkdir()
    (top / "web/Dockerfile").write_bytes(b"FROM node\r\n")
    (top / "web/logo.png").write_bytes(bytes(range(256)))
    (top / ".gitignore").write_text("*.log\nnews.md\n")
    git(top, "init", "--quiet", "--initial-branch=main")
    commit(top)
    (top / "web/Dockerfile").write_bytes(b"FROM node:22\r\n")  # no business of the project's
    (top / "web/new.txt").write_bytes(b"not committed\n")
    return Place(top / "apps/desk", top)


def in_a_workspace(made: Path, world: Path) -> Place:
    """A member of a workspace, whose lock lies above it."""
    place = in_a_monorepo(made, world)
    (place.top / "pyproject.toml").write_text('[tool.uv.workspace]\nmembers = ["apps/*"]\n')
    (place.top / "uv.lock").write_text("locked\n")
    git(place.top, "add", "pyproject.toml", "uv.lock")
    git(place.top, "commit", "--quiet", "--message=lock")
    return place


def shallow(made: Path, world: Path) -> Place:
    """A clone of the last commit only."""
    origin = plain(made, world)
    commit(origin.home)
    git(world, "clone", "--quiet", "--depth=1", f"file://{origin.home}", str(world / "shallow"))
    return Place(world / "shallow", world / "shallow")


def partial(made: Path, world: Path) -> Place:
    """A clone that fetches the contents of files when it needs them."""
    origin = plain(made, world)
    git(origin.home, "config", "uploadpack.allowFilter", "true")
    git(origin.home, "config", "uploadpack.allowAnySHA1InWant", "true")
    source = f"file://{origin.home}"
    git(world, "clone", "--quiet", "--filter=blob:none", source, str(world / "partial"))
    return Place(world / "partial", world / "partial")


def detached(made: Path, world: Path) -> Place:
    """A detached HEAD, packed refs, a stash and a tag."""
    place = plain(made, world)
    git(place.home, "tag", "mine")
    (place.home / "README.txt").write_text("work\n")
    git(place.home, "stash", "--quiet", "--include-untracked")
    git(place.home, "gc", "--quiet")
    git(place.home, "checkout", "--quiet", "--detach")
    return place


LAYOUTS: dict[str, Callable[[Path, Path], Place]] = {
    made.__name__: made
    for made in (
        *(plain, other_hash, elsewhere, linked, beside_one_that_is_away, of_a_bare_one),
        *(with_submodule, as_submodule, in_a_monorepo, in_a_workspace, shallow, partial, detached),
    )
}


def spoil(place: Place, how: str) -> None:
    """Make it a repository in which no update begins."""
    if how == "sparse":
        git(place.top, "sparse-checkout", "set", "--no-cone", "/*", "!*.yml")
    elif how == "hidden":
        git(place.home, "update-index", "--assume-unchanged", ANSWERS)
        append(place.home / ANSWERS, b"# hidden\n")
    elif how == "half merged":
        head = Path(git(place.home, "rev-parse", "--git-path", "MERGE_HEAD"))
        (place.home / head).write_text(git(place.home, "rev-parse", "HEAD") + "\n")
    else:
        append(place.home / ANSWERS, b"# not committed\n")


def append(path: Path, text: bytes) -> None:
    """Write at the end of a file."""
    path.write_bytes((path.read_bytes() if path.exists() else b"") + text)


# ---------------------------------------------------------------------- what its owner has written

ODD = "\t\r\x0b\x0c\x1c\x85\u2028\u200b\ufeffäß語🎙\\\"'$`%{}<>=# "
TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=126) | st.sampled_from(ODD))
LINES = st.lists(TEXT.map(lambda text: f"# mine {text}"), min_size=1, max_size=3)
ENDS = st.sampled_from([b"\n", b"\n", b"\r\n"])


@dataclass(frozen=True)
class Edit:
    """One edit; whether it fits whatever the template does."""

    name: str
    make: Callable[[Path], None]
    fits: bool = True

    def __repr__(self) -> str:
        return self.name


def below(name: str, lines: list[str], end: bytes) -> Edit:
    """Lines below the mark of a shared file."""

    def make(home: Path) -> None:
        text = (home / name).read_bytes() if (home / name).is_file() else b""
        start = text.rfind(MARK.encode())
        if start >= 0:
            at = text.find(b"\n", start) + 1 or len(text)
            new = b"".join(b"    " + line.encode() + end for line in lines)
            (home / name).write_bytes(text[:at] + new + text[at:])

    return Edit(f"below({name!r}, {lines!r}, {end!r})", make)


def anywhere(name: str, place: float, cut: int, lines: list[str], end: bytes) -> Edit:
    """Lines cut and put in anywhere: this may be a conflict."""

    def make(home: Path) -> None:
        if (home / name).is_file():
            old = (home / name).read_bytes().splitlines(keepends=True)
            at = round(place * len(old))
            new = [line.encode() + end for line in lines]
            (home / name).write_bytes(b"".join([*old[:at], *new, *old[at + cut :]]))

    said = f"anywhere({name!r}, {place!r}, {cut!r}, {lines!r}, {end!r})"
    return Edit(said, make, fits=False)


def replaced(name: str, before: str, after: str) -> Edit:
    """What `uv add`, `uv version` and the bots do."""

    def make(home: Path) -> None:
        if (home / name).is_file():
            text = (home / name).read_bytes()
            (home / name).write_bytes(text.replace(before.encode(), after.encode(), 1))

    return Edit(f"replaced({name!r}, {before!r}, {after!r})", make)


def added(name: str, content: bytes, mode: int) -> Edit:
    """A file of the owner's."""

    def make(home: Path) -> None:
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes(content)
        (home / name).chmod(mode)

    return Edit(f"added({name!r}, {content!r}, {mode:o})", make)


def with_windows_ends(name: str) -> Edit:
    """A file committed with Windows line ends."""

    def make(home: Path) -> None:
        if (home / name).is_file():
            text = (home / name).read_bytes()
            (home / name).write_bytes(re.sub(rb"\r?\n", b"\r\n", text))

    return Edit(f"with_windows_ends({name!r})", make)


def without_last_end(name: str) -> Edit:
    """A file whose last line does not end."""

    def make(home: Path) -> None:
        if (home / name).is_file():
            (home / name).write_bytes((home / name).read_bytes().rstrip(b"\r\n"))

    return Edit(f"without_last_end({name!r})", make, fits=False)


def removed(name: str) -> Edit:
    """A file of the template's that its owner deletes."""
    return Edit(f"removed({name!r})", lambda home: (home / name).unlink(missing_ok=True), False)


def executable(name: str) -> Edit:
    """Another mode."""

    def make(home: Path) -> None:
        if (home / name).is_file():
            (home / name).chmod(0o755)

    return Edit(f"executable({name!r})", make, fits=False)


def elsewhere_by_link(name: str) -> Edit:
    """A file that has become a link to one of the owner's."""

    def make(home: Path) -> None:
        if (home / name).is_file() and not (home / name).is_symlink():
            shutil.move(home / name, home / "mine")
            (home / name).symlink_to(os.path.relpath(home / "mine", (home / name).parent))

    return Edit(f"elsewhere_by_link({name!r})", make, fits=False)


def ignored(pattern: str) -> Edit:
    """A line of the owner's .gitignore."""
    return Edit(f"ignored({pattern!r})", lambda home: append(home / ".gitignore", pattern.encode()))


MINE = st.sampled_from(
    ["notes.txt", "knowledge/Öffnungszeiten.md", "a b/ü 語.bin", "src/agent/tools/mine.py", "-x"]
)


def edits() -> st.SearchStrategy[list[Edit]]:
    """What an owner may do, and what an update may have to stop at."""
    raised = [
        ("pyproject.toml", '"livekit-agents>=', '"livekit-agents[openai]>='),
        ("pyproject.toml", '"rich>=14"', '"rich>=15"'),
        ("pyproject.toml", '"0.1.0"', '"0.2.0"'),
        (".github/workflows/ci.yml", "3d3c # v7.0.1", "5f5e # v8.0.0"),
        (".github/workflows/ci.yml", "3d3c # v7.0.1", "9a9a # v7.1.0"),
        ("Dockerfile", "3.11-slim", "3.13-slim"),
        ("pyproject.toml", f"    # {MARK}\n", f'    # {MARK}\n    "httpx>=0.28",\n'),
    ]
    share, any_of = st.floats(0, 1), st.sampled_from(OWN)
    fitting = st.one_of(
        st.builds(below, st.sampled_from(SHARED), LINES, ENDS),
        st.sampled_from([replaced(*one) for one in raised]),
        st.builds(added, MINE, st.binary(max_size=60), st.sampled_from([0o644, 0o755])),
        st.builds(with_windows_ends, any_of),
        st.builds(ignored, st.sampled_from(["news.md\n", "docs/\n", "*\n", "*.rej\n"])),
    )
    other = st.one_of(
        st.builds(anywhere, any_of, share, st.integers(0, 2), LINES | st.just([]), ENDS),
        st.builds(without_last_end, any_of),
        st.builds(removed, st.sampled_from([*OWN, "src/agent/old.py"])),
        st.builds(executable, any_of),
        st.builds(elsewhere_by_link, any_of),
        st.builds(anywhere, st.just("src/agent/old.py"), share, st.just(0), LINES, ENDS),
        st.builds(added, st.just("docs/news.md"), st.binary(max_size=60), st.just(0o644)).map(
            lambda edit: Edit(edit.name, edit.make, fits=False)
        ),
    )
    return st.lists(fitting, min_size=1, max_size=5) | st.lists(fitting | other, max_size=6)
