#!/usr/bin/env bash
# One expects: `git ls-remote URL` and `git config --global …` do not care in which folder they run: a full URL and the
#   user's own file need no repository. `git clone URL` works anywhere.
# What happens: if the folder, or one above it, has a `.git` file that points nowhere, both end with exit code 128 and
#   "not a git repository", which names neither the URL nor what was asked. `git clone` of the same URL works there.
# Why it matters: such a file is what a worktree or a submodule has, and what a container sees of it when only that
#   folder is mounted or copied. There a script that looks up the newest release of something by its full URL reports
#   that there is no repository, as if the remote were gone. From another folder it works.
# Versions: git 2.39.5; the one on PATH is used.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export GIT_CONFIG_GLOBAL="$work/gitconfig" GIT_CONFIG_SYSTEM=/dev/null
git --version
fail() { echo "CHANGED: $1"; exit 1; }
git config --global user.name owner
git config --global user.email owner@example.com

git init -q "$work/remote"
git -C "$work/remote" commit -q --allow-empty -m first
git -C "$work/remote" tag v1.0.0
url="file://$work/remote"

# a real worktree, of which a container is given the folder without the repository
git init -q "$work/repository"
git -C "$work/repository" commit -q --allow-empty -m first
git -C "$work/repository" worktree add -q "$work/worktree" 2>/dev/null
cp -r "$work/worktree" "$work/mounted"
rm -rf "$work/worktree" "$work/repository"
mkdir "$work/mounted/below" "$work/elsewhere"

tried() { # where, then the command: its exit code is left in $code, what it says in $said
  code=0
  said=$(cd "$work/$1" && "${@:2}" 2>&1) || code=$?
  echo "in $1: ${*:2}: exit code $code: $(tail -n 1 <<< "$said")" | sed "s#$work#…#g"
}

tried elsewhere git ls-remote --tags "$url"
[ "$code" = 0 ] || fail "the remote cannot be asked from an ordinary folder"
for folder in mounted mounted/below; do
  tried "$folder" git ls-remote --tags "$url"
  [ "$code" = 128 ] && grep -q "not a git repository" <<< "$said" || fail "git ls-remote of a URL works there"
  tried "$folder" git config --global user.name
  [ "$code" = 128 ] || fail "git config --global works there"
  tried "$folder" git clone -q "$url" copy
  [ "$code" = 0 ] || fail "git clone fails there, too"
done
echo "as described: what needs no repository fails because there is a broken one"
