#!/usr/bin/env bash
# A start from nothing: the committed tree, an empty home, an empty virtualenv and an empty package cache in a temporary folder.
# Finds what a developer's machine hides: a forgotten install step, a file that was never committed.
set -euo pipefail
top=$(git rev-parse --show-toplevel)
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
chmod 755 "$work" # Postgres runs as another user when this runs as root
git clone -q --no-hardlinks "$top" "$work/src"
mkdir "$work/home"
keep=()
for name in ${!PIP_@} ${!SSL_@} ${!HTTP@} ${!http@} ${!NO_PROXY@} REQUESTS_CA_BUNDLE CURL_CA_BUNDLE LANG; do
  [ -z "${!name:-}" ] || keep+=("$name=${!name}")
done
python=$(python3 -c 'import sys; print(sys.executable)')
cd "$work/src"
run() { env -i PATH="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" HOME="$work/home" "${keep[@]}" \
  PIP_CACHE_DIR="$work/cache" "$@"; }
run make PYTHON="$python" setup unit
run .venv/bin/duckmesh --help > /dev/null
run .venv/bin/duckmesh-operator --help > /dev/null
if grep -rnIE "https?://" ./*.lock ./*/requirements*.lock; then echo "a lock carries addresses" >&2; exit 1; fi
echo "fresh: ok"
