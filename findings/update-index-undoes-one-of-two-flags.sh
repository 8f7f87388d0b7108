#!/usr/bin/env bash
# One expects: `git update-index --no-assume-unchanged --no-skip-worktree FILE` undoes both, and
#   `git update-index --assume-unchanged --skip-worktree FILE` sets both: other options of the command combine.
# What happens: of the two, only assume-unchanged is done, in any order of the options; the other is left as it was.
#   Exit code 0, nothing said. A second call with --no-skip-worktree alone does the other.
# Why it matters: that is the line that one copies to see hidden edits again, before an update or a commit. A file
#   that had both flags stays hidden: `git status` is clean, `git add -A` and `git commit -a` leave the edit out.
# Versions: git 2.39.5; the one on PATH is used.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null
git --version
fail() { echo "CHANGED: $1"; exit 1; }
# S or s: skip-worktree; small: assume-unchanged as well (h: only that); H: neither
flags() { git ls-files -v .env | cut -c1; }

git init -q "$work/project" && cd "$work/project"
echo "mode=dev" > .env
git add .env
git -c user.name=owner -c user.email=owner@example.com commit -qm first

for order in "assume-unchanged skip-worktree" "skip-worktree assume-unchanged"; do
  read -r one two <<< "$order"
  git update-index --assume-unchanged .env && git update-index --skip-worktree .env
  [ "$(flags)" = s ] || fail "two calls do not set both"
  echo "my own" > .env
  git update-index "--no-$one" "--no-$two" .env || fail "both options at once are refused"
  echo "--no-$one --no-$two: exit code 0, flag '$(flags)' (s before), git status says '$(git status --short)'"
  [ "$(flags)" = S ] || fail "one call undoes both"
  [ -z "$(git status --short)" ] || fail "the edit is seen"
  git update-index --no-skip-worktree .env
  echo "then --no-skip-worktree alone: flag '$(flags)', git status says '$(git status --short)'"
  [ "$(git status --short)" = " M .env" ] || fail "the edit is not seen after a second call"
  git checkout -q .env

  git update-index "--$one" "--$two" .env
  echo "--$one --$two: exit code 0, flag '$(flags)' (H before)"
  [ "$(flags)" = h ] || fail "one call sets both"
  git update-index --no-assume-unchanged .env
done
echo "as described: of the two only assume-unchanged is changed"
