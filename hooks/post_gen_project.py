"""Delete what copier.yml excludes for these answers, then print the next steps.

Cookiecutter fills in both.
"""

import contextlib
import json
import os
import shutil
import sys
from pathlib import Path

EXCLUDED = json.loads(r""" {{ excluded(cookiecutter) | tojson }} """)
NEXT_STEPS = json.loads(r""" {{ next_steps(cookiecutter) | tojson }} """)

for path in map(Path, EXCLUDED):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
# The project is complete: a terminal that cannot show a name, or is closed, must not lose it.
with contextlib.suppress(OSError):
    os.write(sys.stdout.fileno(), f"{NEXT_STEPS}\n".encode(sys.stdout.encoding, errors="replace"))
