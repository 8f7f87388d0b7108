#!/usr/bin/env bash
# One expects: on a Python that livekit-agents does not allow (its metadata says `>=3.10,<3.15`), an install is refused.
# What happens: pip goes back through the releases to the last one whose metadata had no upper bound, and installs
#   1.2.18, exit code 0, without a word. uv ignores upper bounds (its notes on the resolver say so) and takes the
#   newest, 1.8.9, which says that it does not run there. Only pip with an exact pin refuses.
# Why it matters: an image whose base was moved on to the newest Python gets another livekit-agents by each of the two,
#   neither of them tested there, and both builds are green.
# Versions: livekit-agents 1.8.9, pip 23.2.1, uv 0.13.9. No Python 3.15 is needed: both are asked for it.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env" && "$work/env/bin/pip" install -q --disable-pip-version-check uv==0.13.9
PATH="$work/env/bin:$PATH"
pip --version | cut -d' ' -f1,2
uv --version
fail() { echo "CHANGED: $1"; exit 1; }

pip_gets() { # what pip would install on Python 3.15
  rm -rf "$work/got"
  timeout 120 "$work/env/bin/pip" download -q --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.15 -d "$work/got" "$1" \
    2> "$work/said" && ls "$work/got" | cut -d- -f2
}
uv_gets() { # what uv would install on Python 3.15
  uv pip compile -q --no-header --no-annotate --no-deps --python-version 3.15 - <<< "$1" 2> "$work/said"
}

timeout 120 "$work/env/bin/pip" download -q --disable-pip-version-check --no-deps -d "$work/wheel" livekit-agents==1.8.9
needs=$(python3 - "$work"/wheel/*.whl <<'PY'
import sys
import zipfile

wheel = zipfile.ZipFile(sys.argv[1])
metadata = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
print(next(line for line in wheel.read(metadata).decode().splitlines() if line.startswith("Requires-Python")))
PY
)
echo "livekit-agents 1.8.9 says: $needs"
grep -q '<3.15' <<< "$needs" || fail "1.8.9 allows it"

if pip_gets livekit-agents==1.8.9 > /dev/null; then fail "pip takes the exact pin"; fi
echo "pip, livekit-agents==1.8.9, on Python 3.15: refused"
old=$(pip_gets 'livekit-agents<=1.8.9') || fail "pip refuses a range"
echo "pip, livekit-agents<=1.8.9, on Python 3.15: takes $old, and says '$(cat "$work/said")'"
[ "$old" = 1.2.18 ] || fail "pip takes $old"
new=$(uv_gets 'livekit-agents<=1.8.9') || fail "uv refuses: $(cat "$work/said")"
echo "uv, livekit-agents<=1.8.9, on Python 3.15: takes $new, and says '$(cat "$work/said")'"
[ "$new" = livekit-agents==1.8.9 ] || fail "uv takes $new"
echo "as described: neither refuses, and they differ"
