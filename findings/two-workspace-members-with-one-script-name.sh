#!/usr/bin/env bash
# One expects: `uv run --package a agent` runs the `agent` of member a; or uv refuses, or warns of, a workspace of
#   which two members have a console script of the same name.
# What happens: both are written to the same file of the one environment, and the member that happens to be installed
#   last has it. `--package` chooses what is installed, not which script is meant: for one of the two, the other's code
#   runs, exit code 0, nothing said. Which of them changes from one `uv sync` to the next. And when one member is
#   uninstalled, the script is gone for the other, too.
# Why it matters: agents made from the same template in one repository all have the script `agent`: the sales agent
#   answers the support line, or a developer's deployment works and CI's does not. `python -m` of a package is safe.
# Versions: uv 0.13.9.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/uv" && "$work/uv/bin/pip" install -q --disable-pip-version-check uv==0.13.9
PATH="$work/uv/bin:$PATH"
uv --version
fail() { echo "CHANGED: $1"; exit 1; }

mkdir -p "$work/project" && cd "$work/project"
cat > pyproject.toml <<'TOML'
[project]
name = "agents"
version = "0"
requires-python = ">=3.11"
dependencies = ["sales", "support"]

[tool.uv.sources]
sales = { workspace = true }
support = { workspace = true }

[tool.uv.workspace]
members = ["sales", "support"]
TOML
for member in sales support; do
  mkdir -p "$member/src/$member"
  cat > "$member/pyproject.toml" <<TOML
[project]
name = "$member"
version = "0"
requires-python = ">=3.11"

[project.scripts]
agent = "$member:main"

[build-system]
requires = ["uv_build==0.13.9"]
build-backend = "uv_build"
TOML
  printf 'def main():\n    print("%s")\n' "$member" > "$member/src/$member/__init__.py"
  printf 'from . import main\n\nmain()\n' > "$member/src/$member/__main__.py"
done

uv sync -q 2> "$work/said" || fail "uv refuses such a workspace"
echo "uv sync: exit code 0, it says: '$(cat "$work/said")'"
[ ! -s "$work/said" ] || fail "uv sync says something"
wrong=0
for member in sales support; do
  ran=$(uv run --package "$member" agent 2>> "$work/said") || fail "uv run --package $member refuses"
  echo "uv run --package $member agent: runs $ran; uv run --package $member python -m $member: runs $(uv run -q --package "$member" python -m "$member")"
  [ "$ran" = "$member" ] || wrong=$((wrong + 1))
done
! grep -qi warn "$work/said" || fail "uv run warns"
[ "$wrong" = 1 ] || fail "each member's script runs its own code"

# in its own folder as well
for member in sales support; do echo "in the folder $member, uv run agent: runs $(cd "$member" && uv run -q agent)"; done

# the script goes with whichever of the two is uninstalled first
uv pip uninstall -q support
[ ! -e .venv/bin/agent ] || fail "sales keeps its script when support is uninstalled"
uv pip list -q | grep -q '^sales ' || fail "sales is still installed"
echo "after uninstalling support: sales is installed, and .venv/bin/agent is gone"
echo "as described: one name, one file, and nothing says whose"
