#!/usr/bin/env bash
# One expects: a configured file that is not there is as good as an empty one, as it is with core.excludesFile,
#   core.attributesFile and mailmap.file; and diff.orderFile, if at all, concerns `git diff`.
# What happens: with diff.orderFile naming a missing file, `git status`, `diff`, `show`, `log -p` and `commit -a` end with
#   exit code 128, "failed to read orderfile"; the commit is not made. `git add`, `git log` and `git diff-index --cached`
#   work.
# Why it matters: a relative name is looked up in each repository's own work tree, so `git config --global
#   diff.orderFile .gitorder` breaks `git status` in every repository that has no such file, and for every tool that
#   asks it whether a work tree is clean. So does checking out a commit from before the file was there.
# Versions: git 2.39.5 (of the system).
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work" XDG_CONFIG_HOME="$work/config" GIT_CONFIG_NOSYSTEM=1 GIT_EDITOR=true
unset GIT_DIR GIT_WORK_TREE GIT_CONFIG_GLOBAL
git --version
git config --global user.name "A Name"
git config --global user.email name@example.com

changed() { echo "CHANGED: $1"; exit 1; }

# what a command exits with in a new repository with one commit and one changed file
tried() {
  rm -rf "$work/project" && mkdir "$work/project" && cd "$work/project"
  local setting=$1
  shift
  git init -q . && echo one > app.txt && git add . && git commit -qm one && echo two >> app.txt
  if [ "$setting" != none ]; then git config --global "$setting" .not-there; fi
  code=0
  said=$(git "$@" 2>&1 </dev/null) || code=$?
  if [ "$setting" != none ]; then git config --global --unset "$setting"; fi
  echo "$setting: git $* exits with $code${said:+, $(grep -m1 -i fatal <<< "$said" || echo "and does its work")}"
}

for setting in none core.excludesFile core.attributesFile mailmap.file; do
  tried "$setting" status --porcelain
  [ "$code" = 0 ] || changed "a missing $setting is an error, too"
done
for command in "status --porcelain" "diff" "diff --quiet" "show" "log -1 -p" "commit -a -m two"; do
  # shellcheck disable=SC2086
  tried diff.orderFile $command
  [[ $code == 128 && $said == *"failed to read orderfile"* ]] || changed "git $command exits with $code"
  [ "$(git rev-list --count HEAD)" = 1 ] || changed "git $command makes a commit"
done
for command in "add ." "log -1" "diff-index --quiet --cached HEAD"; do
  # shellcheck disable=SC2086
  tried diff.orderFile $command
  [ "$code" = 0 ] || changed "git $command exits with $code, too"
done
echo "as described: a missing diff.orderFile breaks git status"
