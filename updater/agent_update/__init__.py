"""Brings a newer template to a project: tried in a copy, and only what fits and passes is kept."""

import sys

if sys.platform == "win32":
    # git's file modes and links, and signals, are others there; in the project's own words
    print(
        "agent: this does not run on Windows itself: install WSL (`wsl --install`), "
        "and clone and run the project in its terminal",
        file=sys.stderr,
    )
    sys.exit(2)
