"""Separate processes for code that must not run in the tests' process.

A fork server imports LiveKit's SDK once, so that each of them starts in milliseconds, not seconds.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from agent.settings import load_settings

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["agent.entrypoint", "agent.cli.chat", "pytest"])


@contextmanager
def process(
    target: Callable[..., object],
    *arguments: object,
    terminal: str | None = None,
    output: Path | None = None,
) -> Iterator[ForkServerProcess]:
    """`target` in a process with this one's environment; killed on exit.

    It runs at a terminal with this name, or writes all output to a file.
    """
    given = dict(os.environ), os.getcwd(), terminal, output or os.devnull, target, arguments
    made = FORKS.Process(target=_run, args=given)
    made.start()
    try:
        yield made
    finally:
        made.kill()
        made.join()


def _run(
    environment: dict[str, str],
    folder: str,
    terminal: str | None,
    output: str | Path,
    target: Callable[..., object],
    arguments: tuple[object, ...],
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    load_settings.cache_clear()
    if terminal is not None:
        os.login_tty(os.open(terminal, os.O_RDWR))
    else:
        file = os.open(output, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, 1)
        os.dup2(file, 2)
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(number, mode, closefd=False) for number, mode in enumerate("rww")
    )
    code = 0
    try:
        target(*arguments)
    except SystemExit as ended:
        code = int(ended.code or 0)
    # end like an interpreter, not like a process of multiprocessing
    ctypes.pythonapi.Py_Exit(code)
