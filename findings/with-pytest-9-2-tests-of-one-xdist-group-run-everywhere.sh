#!/usr/bin/env bash
# One expects: `pytest -n 2 --dist loadgroup` runs tests of one `xdist_group` in one process; that is what the option is for.
# What happens: with pytest 9.2, whose test ids are no longer what pytest-xdist 3.8 writes the group into, the groups are
#   ignored without a word: exit code 0, no warning, tests of one group in several processes. With pytest 9.1.1 they hold.
#   And, with either, a group that a conftest.py adds in `pytest_collection_modifyitems` is ignored, too, unless that hook
#   has `tryfirst=True`: pytest-xdist reads the groups in a hook of the same name, which is called before.
# Why it matters: groups keep what is expensive (a rendered project, a worker with its models) in one process, or two tests
#   that share a port apart. The first of us to notice saw a speech model loaded four times; minutes, and no failure.
# Known upstream: pytest-dev/pytest-xdist issue 1386 (the ids; not the order of the hooks).
# Versions: pytest 9.2.0 and 9.1.1, pytest-xdist 3.8.0.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if ! command -v uv >/dev/null; then
  python3 -m venv "$work/uv" && "$work/uv/bin/pip" install -q --disable-pip-version-check uv==0.13.9
  PATH="$work/uv/bin:$PATH"
fi

cat > "$work/test_marked.py" <<'PY'
import os

import pytest

pytestmark = pytest.mark.xdist_group("marked in the file")


@pytest.mark.parametrize("n", range(12))
def test_process(n, record_property):
    record_property("process", os.environ["PYTEST_XDIST_WORKER"])
PY
sed 's/^pytestmark.*//' "$work/test_marked.py" > "$work/test_added.py"
cat > "$work/conftest.py" <<'PY'
import os

import pytest


@pytest.hookimpl(tryfirst="FIRST" in os.environ)
def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.stem == "test_added":
            item.add_marker(pytest.mark.xdist_group("added by the conftest"))
PY

processes() {  # PYTEST FILE: in how many processes the 12 tests of a group ran
  uv venv -q --clear --python '>=3.11' "$work/venv"
  uv pip install -q --python "$work/venv/bin/python" "pytest==$1" pytest-xdist==3.8.0
  (cd "$work" && timeout 60 venv/bin/python -m pytest -q -p no:cacheprovider -n 2 --dist loadgroup --junitxml=out.xml "$2" >out.txt) || { cat "$work/out.txt"; exit 1; }
  grep -o 'name="process" value="gw[0-9]*"' "$work/out.xml" | sort -u | wc -l
}

check() {  # WHAT SEEN EXPECTED
  echo "$1: tests of one group ran in $2 process(es)"
  [ "$2" = "$3" ] || { echo "CHANGED: expected $3"; exit 1; }
}

check "pytest 9.1.1, group marked in the file" "$(processes 9.1.1 test_marked.py)" 1
check "pytest 9.2.0, group marked in the file" "$(processes 9.2.0 test_marked.py)" 2
check "pytest 9.1.1, group added by a conftest" "$(processes 9.1.1 test_added.py)" 2
check "pytest 9.1.1, group added by a conftest with tryfirst" "$(FIRST=1 processes 9.1.1 test_added.py)" 1
echo "as described: pytest 9.2 and pytest-xdist 3.8 ignore groups, and so does an ordinary conftest hook"
