#!/usr/bin/env bash
# Runs every fault under a long load and writes what was promised and observed into docs/guarantees.md. Needs root.
#   --seed N     when faults happen, and where (default 1)      --case NAME  only this case, again for more
#   --events N   at least so many in each case (100000)         --list       names the cases and runs none
#   --rate N     so many in a second (5000)
# With --case the table is printed and the page stays as it is, unless --write docs/guarantees.md is given, too: then only
# the rows of these cases are replaced.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
command -v cargo >/dev/null || PATH=$HOME/.cargo/bin:$PATH
PATH=$PATH:/usr/sbin:/sbin
write=(--write docs/guarantees.md)
for argument in "$@"; do
  case $argument in --case* | --list | --help) write=() ;; esac
done
tests/install cc wasm-target redis kafka faults
exec cargo run --quiet --package synapse-tests --bin chaos -- "${write[@]}" "$@"
