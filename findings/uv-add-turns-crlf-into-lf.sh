#!/usr/bin/env bash
# One expects: `uv add`, `uv remove` and `uv version` change the lines that they are about, and leave the rest of
#   pyproject.toml as it is: comments, order and blanks are kept, and so are line ends.
# What happens: all line ends become LF. In a file with CRLF every line is changed; nothing is said.
# Why it matters: where CRLF is what the repository has (made on Windows, `-text` or `eol=crlf` aside), a one-line change
#   is a diff of the whole file: reviews, blame, and the next template update or merge, which conflicts in all of it.
# Versions: uv 0.13.9, git's version is printed.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/uv" && "$work/uv/bin/pip" install -q --disable-pip-version-check uv==0.13.9
PATH="$work/uv/bin:$PATH"
export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null
uv --version
git --version
fail() { echo "CHANGED: $1"; exit 1; }

mkdir "$work/project" && cd "$work/project"
printf '%s\r\n' '[project]' 'name = "x"' 'version = "0.1.0"' 'requires-python = ">=3.11"' 'dependencies = ["idna"]' '' \
  '[tool.other]' '# kept' 'a   =   1' > pyproject.toml
git init -q
git add -A
git -c user.name=owner -c user.email=owner@example.com commit -qm first
lines=$(grep -c $'\r$' pyproject.toml)

for change in "add --frozen sniffio" "remove --frozen idna" "version --frozen --bump minor"; do
  git checkout -q pyproject.toml
  # shellcheck disable=SC2086 # words of a command
  uv -q $change > "$work/said" 2>&1 || fail "uv $change failed: $(cat "$work/said")"
  left=$(grep -c $'\r$' pyproject.toml || true)
  read -r plus minus _ < <(git diff --numstat)
  real=$(git diff --ignore-space-at-eol --numstat | cut -f1,2 | tr '\t' '/')
  echo "uv $change: $left of $lines CRLF left, lines added/removed: $plus/$minus, without line ends: $real"
  grep -q 'a   =   1' pyproject.toml || fail "the blanks are not kept"
  [ "$left" = 0 ] || fail "uv $change keeps CRLF"
done
echo "as described: the blanks and the comment are kept, the line ends are not"
