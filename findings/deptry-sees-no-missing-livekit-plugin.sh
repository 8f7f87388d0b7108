#!/usr/bin/env bash
# One expects: deptry reports a plugin that is imported and not declared (DEP001, DEP003), and one that is declared
#   and not used (DEP002), as it does for any other package.
# What happens: it knows an import by its first name only, and all of LiveKit's packages share the name `livekit`. As
#   soon as one of them is declared and used, every other counts as declared and as used: "Success! No dependency
#   issues found.", exit code 0. For other packages in the same project it reports both.
# Why it matters: a plugin that was put into the environment by `uv pip install` or another package works on the
#   developer's machine, and CI's dependency check is green; in the image, made from the declared dependencies, the
#   worker ends with ModuleNotFoundError. And a plugin that nobody uses any more is never found.
# Versions: deptry 0.25.1, livekit-agents, livekit-plugins-openai and livekit-plugins-deepgram 1.8.9.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if ! command -v uv >/dev/null; then
  python3 -m venv "$work/uv" && "$work/uv/bin/pip" install -q --disable-pip-version-check uv==0.13.9
  PATH="$work/uv/bin:$PATH"
fi
uv venv -q --python '>=3.11' "$work/venv"
# everything is installed, so that deptry asks the packages themselves which modules they have
uv pip install -q --python "$work/venv/bin/python" deptry==0.25.1 livekit-agents==1.8.9 \
  livekit-plugins-openai==1.8.9 livekit-plugins-deepgram==1.8.9 tabulate==0.9.0 sortedcontainers==2.4.0
"$work/venv/bin/deptry" --version
uv pip list -q --python "$work/venv/bin/python" | grep -E '^(livekit-(agents|plugins)|tabulate|sorted)'

check() { # what is declared, what is imported: deptry's findings are printed and left in $said
  rm -rf "$work/project" && mkdir "$work/project"
  printf '[project]\nname = "x"\nversion = "0"\nrequires-python = ">=3.11"\ndependencies = [%s]\n' "$1" > "$work/project/pyproject.toml"
  printf '%b' "$2" > "$work/project/main.py"
  code=0
  said=$(cd "$work/project" && "$work/venv/bin/deptry" --no-ansi . 2>&1) || code=$?
  printf -- '--- declared: %s; imported: %b' "$1" "${2//\\n/; }"
  printf '\n%s\nexit code %s\n' "$(grep -E 'DEP|Success' <<< "$said")" "$code"
}
fail() { echo "CHANGED: $1"; exit 1; }

check '"livekit-agents", "sortedcontainers"' 'from livekit.agents import Agent\nimport tabulate\n'
grep -q "DEP00[13] 'tabulate'" <<< "$said" || fail "deptry misses an ordinary package that is not declared"
grep -q "DEP002 'sortedcontainers'" <<< "$said" || fail "deptry misses an ordinary package that is not used"

check '"livekit-agents"' 'from livekit.agents import Agent\nfrom livekit.plugins import openai\nimport livekit.plugins.deepgram\n'
[ "$code" = 0 ] || fail "deptry reports a LiveKit plugin that is not declared"

check '"livekit-agents", "livekit-plugins-openai", "livekit-plugins-deepgram"' 'from livekit.agents import Agent\n'
[ "$code" = 0 ] || fail "deptry reports a LiveKit plugin that is not used"

# the same program where only what is declared is installed
uv venv -q --python '>=3.11' "$work/image"
uv pip install -q --python "$work/image/bin/python" livekit-agents==1.8.9
code=0
error=$("$work/image/bin/python" -c 'from livekit.plugins import openai' 2>&1) || code=$?
echo "--- in an environment of the declared dependencies: $(tail -1 <<< "$error")"
[ "$code" != 0 ] || fail "livekit-agents brings the plugin"
echo "as described: neither the missing plugin nor the unused one is found"
