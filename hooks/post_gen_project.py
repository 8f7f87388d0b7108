"""Delete what copier.yml excludes for these answers, then say what to type next; Cookiecutter fills in both."""

import json
import shutil
from pathlib import Path

EXCLUDED = json.loads(r""" {{ excluded(cookiecutter) | tojson }} """)
NEXT_STEPS = json.loads(r""" {{ next_steps(cookiecutter) | tojson }} """)

for path in map(Path, EXCLUDED):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
print(NEXT_STEPS)
