"""The command line: `uv run agent --help`."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit: 0 done, 1 failed, 2 not begun, because something has to be put right.

    130 at Ctrl-C, from the first moment on. Takes the process's own arguments by default.
    """
    try:
        _run(arguments)
    except KeyboardInterrupt:
        sys.exit(130)


def _run(arguments: Sequence[str] | None) -> None:
    # here, because they take a while, and Ctrl-C may come meanwhile
    import warnings

    from agent.cli import build_app
    from agent.cli.terminal import report
    from agent.knowledge import KnowledgeUnavailable
    from agent.memory import MemoryUnavailable
    from agent.settings import SettingsError

    # agent.cli.checks.warn_connection says it, with a cure
    warnings.filterwarnings("ignore", message="The HMAC key is")
    try:
        build_app()(arguments if arguments is None else list(arguments))
    except (SettingsError, KnowledgeUnavailable, MemoryUnavailable) as error:
        for line in str(error).splitlines():
            report(f"agent: {line}")
        sys.exit(2)


if __name__ == "__main__":
    main()
