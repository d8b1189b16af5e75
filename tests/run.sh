#!/usr/bin/env bash
# Installs what is missing and runs every test: units, contracts of the brokers, hostile guests, the real binary, and
# every fault in its short form. Some faults (networks, disks) need root. Arguments go to `cargo test`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
command -v cargo >/dev/null || PATH=$HOME/.cargo/bin:$PATH
PATH=$PATH:/usr/sbin:/sbin
tests/install cc wasm-target redis kafka faults
exec cargo test --workspace "$@"
