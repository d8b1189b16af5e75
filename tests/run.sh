#!/usr/bin/env bash
# Installs what is missing and runs every test: units, contracts of the brokers, hostile guests, the real binary.
# Arguments go to `cargo test`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
command -v cargo >/dev/null || PATH=$HOME/.cargo/bin:$PATH
tests/install cc wasm-target redis kafka
exec cargo test --workspace "$@"
