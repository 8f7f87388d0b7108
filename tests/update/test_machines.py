"""`agent update` on random machines: nothing of an owner's is lost, and a stop leaves no trace.

Random settings of git, repositories and edits. The small template makes many examples cheap.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from agent_update.__main__ import main
from tests.support.templates import WORK_TREE, make_template, released
from tests.update.machines import (
    LAYOUTS,
    UNSUPPORTED,
    Edit,
    Place,
    Setup,
    Snapshot,
    commit,
    edits,
    git,
    setups,
    snapshot,
    spoil,
)
from tests.update.small import make_project, make_source
from tests.update.test_updater import Ended

ANY = settings(
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    print_blob=True,
)
UV = """\
#!/bin/sh
[ "$1" = lock ] || exit 0
while [ ! -e uv.lock ] && [ "$PWD" != / ]; do cd ..; done
[ ! -e uv.lock ] || echo 'locked anew' >> uv.lock
"""
ARGUMENTS = (), ("--preview",), ("--to", "v1.1.0"), ("-d", "description=It calls.")
# both change these: which one it becomes is decided, and checked by itself
RAISED = b"livekit-agents", b"actions/checkout@"


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A rendered project of each version."""
    folder = tmp_path_factory.mktemp("versions")
    source = make_source(folder / "source")
    return {name: make_project(source, folder / name, name) for name in ("v1.0.0", "v1.1.0")}


@contextmanager
def updated(
    project: Path,
    layout: str,
    spoiled: str,
    setup: Setup,
    made: list[Edit],
    arguments: tuple[str, ...],
) -> Iterator[tuple[Place, bool, Snapshot, Ended, Path]]:
    """Inside, the update has run; whether nothing was uncommitted, and what was there before."""
    with tempfile.TemporaryDirectory() as folder:
        world, copies = Path(folder).resolve() / "world", Path(folder).resolve() / "copies"
        for one in (world, copies):
            one.mkdir()
        (world.parent / "uv").write_text(UV)
        (world.parent / "uv").chmod(0o755)
        copied = shutil.copytree(project, world / "desk", symlinks=True)
        place = LAYOUTS[layout](copied, world)
        for edit in made:
            edit.make(place.home)
        commit(place.home)
        if spoiled:
            spoil(place, spoiled)
        (world / "set").mkdir()
        environment = {"UV": str(world.parent / "uv"), "TMPDIR": str(copies)}
        with (
            setup.of(place.top, world / "set"),
            mock.patch.dict(os.environ, environment),
            mock.patch("tempfile.tempdir", str(copies)),
        ):
            if not spoiled:
                check_out_anew(place)
            looked = ("status", "--porcelain", "--untracked-files=all", "--", ".")
            clean = not git(place.home, "-c", f"core.hooksPath={os.devnull}", *looked)
            before = snapshot(world)
            ended = update(place.home, *arguments)
            assert [*copies.iterdir()] == []
            yield place, clean, before, ended, world


def update(home: Path, *arguments: str) -> Ended:
    """Run the updater; what it shows of a file may be no text."""
    out, err = io.StringIO(), io.StringIO()
    with chdir(home), redirect_stdout(out), redirect_stderr(err):
        code = main(arguments)
    return Ended(code, out.getvalue(), err.getvalue())


def check_out_anew(place: Place) -> None:
    """Have git write the project's files as it is set to."""
    for name in git(place.home, "ls-files", "-z").split("\0")[:-1]:
        if (place.home / name).is_symlink() or (place.home / name).is_file():
            (place.home / name).unlink()
    hooks = f"core.hooksPath={os.devnull}"
    git(place.home, "-c", hooks, "-c", "core.fsmonitor=false", "checkout", "--quiet", "--", ".")


def assert_nothing_lost(
    versions: dict[str, Path],
    layout: str,
    spoiled: str,
    setup: Setup,
    made: list[Edit],
    arguments: tuple[str, ...],
) -> None:
    """Update on this machine; what the owner has is there afterwards, or all is as it was."""
    old, new = versions.values()
    with updated(old, layout, spoiled, setup, made, arguments) as found:
        place, clean, before, ended, world = found
        note(f"{ended}")
        after = snapshot(world)
        touched = {name for name in {*before, *after} if before.get(name) != after.get(name)}
        if spoiled or not clean:
            assert ended.code == 2, ended
        elif all(edit.fits for edit in made):
            assert ended.code == 0, ended
        if ended.code or "--preview" in arguments:
            assert touched == set(), ended
            assert ended.err.count("agent: ") == (1 if ended.code else 0), ended
            return
        top = place.home.relative_to(world).as_posix()
        mine = {f"{top}/{name}" for name in named(versions)}
        if layout == "in_a_workspace":
            mine.add(f"{place.top.relative_to(world)}/uv.lock")
        others = {
            name
            for name in touched - mine
            if not (name.endswith("index") and "Staged already" in ended.out)
            and not (name == f"{top}/docs" and name not in before)
        }
        assert others == set(), "what is no part of the update was changed"
        for name in named(versions):
            base, theirs = (read(folder / name) for folder in versions.values())
            ours, now = (state.get(f"{top}/{name}") for state in (before, after))
            if name not in (".copier-answers.yml", ".template.toml"):
                assert_merged(name, base, theirs, ours, now)
        if all(edit.fits for edit in made):
            brought = after[f"{top}/.template.toml"][1].replace(b"\r\n", b"\n")
            assert brought == read(new / ".template.toml"), "it has not come"


def named(versions: dict[str, Path]) -> set[str]:
    """The files of both versions."""
    return {
        path.relative_to(folder).as_posix()
        for folder in versions.values()
        for path in folder.rglob("*")
        if path.is_file()
    }


def read(path: Path) -> bytes:
    """What a version has there."""
    return path.read_bytes() if path.is_file() else b""


def assert_merged(
    name: str,
    base: bytes,
    theirs: bytes,
    ours: tuple[int, bytes] | None,
    now: tuple[int, bytes] | None,
) -> None:
    """Every line that the owner has, byte for byte and in order; none that they have cut."""
    if ours is None:
        assert now is None or not base, f"{name} came back"
        return
    if now is None:
        assert not theirs, f"{name} is gone"
        assert ours[1].replace(b"\r\n", b"\n") == base, f"{name} is gone, with a change"
        return
    assert now[0] == ours[0], f"{name} has another mode"
    if ours[1].replace(b"\r\n", b"\n") == base and b"It calls." not in now[1]:
        # the template's files follow, and what comes with first copies only stays
        assert now[1].replace(b"\r\n", b"\n") in (theirs, base, ours[1]), name
    old, new = ours[1].split(b"\n"), now[1].split(b"\n")
    lines = {"base": base, "theirs": theirs, "ours": ours[1], "now": now[1]}
    count = {
        side: Counter(line.removesuffix(b"\r") for line in text.split(b"\n"))
        for side, text in lines.items()
    }
    by_template = count["base"] - count["theirs"]
    kept = [
        line
        for line in old
        if line.removesuffix(b"\r") not in by_template
        and not any(about in line for about in RAISED)
        and b"description = " not in line
    ]
    same = iter(theirs.split(b"\n"))
    if not all(line in same for line in base.split(b"\n") if line not in by_template):
        # the template has moved lines of its own
        kept = [line for line in kept if line.removesuffix(b"\r") not in count["base"]]
    rest = iter(new)
    for line in kept:
        assert line in rest, f"{name}: lost {line!r}"
    for line, cut in (count["base"] - count["ours"]).items():
        came = max(0, count["theirs"][line] - count["base"][line])
        assert count["now"][line] <= count["ours"][line] + came, (name, line, cut)
    for part in (b"livekit-agents[openai]", b"# v8.0.0"):
        assert part not in ours[1] or part in now[1], (name, part)
    if 0 < ours[1].count(b"\n") == ours[1].count(b"\r\n"):
        assert now[1].count(b"\n") == now[1].count(b"\r\n"), f"{name} has two kinds of line ends"


MACHINES: list[st.SearchStrategy[object]] = [
    st.sampled_from(sorted(LAYOUTS)),
    st.sampled_from(["", "", "", "", *UNSUPPORTED]),
    setups(),
    edits(),
    st.sampled_from(ARGUMENTS),
]


@given(*MACHINES)
@settings(ANY, max_examples=6, derandomize=True)
def test_on_any_machine_nothing_of_the_owners_is_lost(
    versions: dict[str, Path],
    layout: str,
    spoiled: str,
    setup: Setup,
    made: list[Edit],
    arguments: tuple[str, ...],
) -> None:
    assert_nothing_lost(versions, layout, spoiled, setup, made, arguments)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@given(*MACHINES)
@settings(ANY, max_examples=300)
def test_on_every_machine_nothing_of_the_owners_is_lost(
    versions: dict[str, Path],
    layout: str,
    spoiled: str,
    setup: Setup,
    made: list[Edit],
    arguments: tuple[str, ...],
) -> None:
    assert_nothing_lost(versions, layout, spoiled, setup, made, arguments)


@pytest.fixture(scope="module")
def real_versions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A project of the newest release of this template, and one of the work tree."""
    folder = tmp_path_factory.mktemp("real")
    template = make_template(folder / "livekit-agent-template")
    both = released()[-1], WORK_TREE
    return {name: template.copy(folder / name, name).path for name in both}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@given(*MACHINES[:-1])
@settings(ANY, max_examples=10)
def test_with_the_template_itself_nothing_of_the_owners_is_lost(
    real_versions: dict[str, Path],
    layout: str,
    spoiled: str,
    setup: Setup,
    made: list[Edit],
) -> None:
    assert_nothing_lost(real_versions, layout, spoiled, setup, made, ())
