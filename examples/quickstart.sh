#!/usr/bin/env bash
# From a fresh clone to events flowing through plugins, and a plugin replaced while they flow. Needs no broker.
# Everything it makes lies in examples/quickstart/run; it ends with counts that it has checked.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/quickstart"
root=$(cd ../.. && pwd)
run=$PWD/run
say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
fail() { printf 'quickstart: %s\n' "$*" >&2; exit 1; }

say "1. What is needed"
if ! command -v cargo >/dev/null; then
  [[ -x $HOME/.cargo/bin/cargo ]] && PATH=$HOME/.cargo/bin:$PATH || fail "cargo is missing; install it by rustup, https://rustup.rs"
fi
"$root/tests/install" cc wasm-target
echo "cargo, a C compiler and the target for plugins are there."

say "2. Build the host (the first time takes some minutes)"
(cd "$root" && cargo build --release --bin synapse)
target=$(cd "$root" && cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
PATH=$target/release:$PATH
synapse --version

say "3. Build the plugins from their sources"
rm -rf "$run" && mkdir -p "$run"
export CARGO_TARGET_DIR=$target/plugins
synapse plugin build plugins/late-flights --out "$run/late_flights.wasm"
synapse plugin build plugins/delay-report --out "$run/delay_report.wasm"
synapse plugin build plugins/delay-report --out "$run/delay_report-2.wasm" --features v2
synapse plugin build "$root/plugins/router-table" --out "$run/router_table.wasm"
synapse plugin build "$root/plugins/filter-match" --out "$run/filter_match.wasm"
synapse plugin test plugins/late-flights "$run/late_flights.wasm"

say "4. Start the host"
port=${SYNAPSE_PORT:-8080}
while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done
export SYNAPSE_LISTEN=127.0.0.1:$port SYNAPSE_URL=http://127.0.0.1:$port
synapse check
synapse run >"$run/host.log" 2>&1 &
host=$!
trap 'kill $host 2>/dev/null || true' EXIT
# Asks until the host is ready; ends with it if it ends.
until synapse pipeline show delays --json 2>/dev/null | grep -q '"state":"running"'; do
  kill -0 $host 2>/dev/null || { cat "$run/host.log" >&2; fail "the host has ended"; }
  sleep 0.05
done
echo "It serves at $SYNAPSE_URL; its log is examples/quickstart/run/host.log."

say "5. Publish a month of flights, and replace the transform while they flow"
zcat flights-2013-01.ndjson.gz >"$run/flights.ndjson"
split -l 250 "$run/flights.ndjson" "$run/part-"
parts=("$run"/part-*)
swap_at=$((${#parts[@]} / 2))
new=$(sha256sum "$run/delay_report-2.wasm" | cut -d' ' -f1)
swapped() { synapse pipeline show delays --json | grep -q "$new"; }
for i in "${!parts[@]}"; do
  synapse publish flights "${parts[$i]}" --json >/dev/null
  if [[ $i == "$swap_at" ]]; then
    cp "$run/delay_report-2.wasm" "$run/delay_report.wasm"
    echo "After $(((i + 1) * 250)) flights version 2 of the transform was copied over version 1."
  elif [[ $i == $((swap_at + 20)) ]]; then
    # Some thousands flowed on meanwhile; by now the new version is compiled, or will be soon.
    until swapped; do sleep 0.05; done
    echo "Version 2 is at work; the other flights follow."
  fi
done
synapse publish model-events model-events.ndjson

say "6. What came out"
flights=$(wc -l <"$run/flights.ndjson")
# The expected counts, by other means than the plugins'.
late=$(sed -n 's/.*"dep_delay":\(-\{0,1\}[0-9]\{1,\}\).*/\1/p' "$run/flights.ndjson" | awk '$1 >= 15' | wc -l)
minor=$(sed -n 's/.*"dep_delay":\(-\{0,1\}[0-9]\{1,\}\).*/\1/p' "$run/flights.ndjson" | awk '$1 >= 15 && $1 < 60' | wc -l)
tail_to() { synapse tail "$1" --from earliest --limit "$2" --json >"$run/$1.ndjson"; }
tail_to delays.minor "$minor"
tail_to delays.major $((late - minor))
tail_to models-to-load 3
versions() { cat "$run/delays.minor.ndjson" "$run/delays.major.ndjson" | grep -c "\"reportversion\":\"$1\"" || true; }
severe=$(grep -c '"delayclass":"severe"' "$run/delays.major.ndjson" || true)
(($(versions 2) > 0 && severe > 0)) || fail "version 2 handled nothing"
tail_to delays.severe "$severe"
echo "A late flight, as version 1 reported it and as version 2 did:"
head -1 "$run/delays.major.ndjson"
tail -1 "$run/delays.severe.ndjson"
echo "Models that are good enough to load, from three encodings:"
synapse tail models-to-load --from earliest --limit 3
echo "Which plugins handled which flights:"
synapse pipeline history delays

say "7. The host drains and ends"
kill -TERM $host
wait $host || fail "the host did not end well; see examples/quickstart/run/host.log"
trap - EXIT

check() { # what, found, expected
  [[ $2 == "$3" ]] || fail "$1: $2, expected $3"
  printf '  %-54s %6s\n' "$1" "$2"
}
ids() { cat "$@" | sed 's/.*"id":"\([^"]*\)".*/\1/' | sort | uniq | wc -l; }
say "Summary (every count checked against the input)"
check "flights published" "$flights" 27004
check "late by 15 minutes and more (filter)" "$(cat "$run"/delays.m*.ndjson | wc -l)" "$late"
check "of them different flights: none lost, none repeated" "$(ids "$run"/delays.m*.ndjson)" "$late"
check "sent to delays.minor (router)" "$(wc -l <"$run/delays.minor.ndjson")" "$minor"
check "sent to delays.major" "$(wc -l <"$run/delays.major.ndjson")" $((late - minor))
check "reported by version 1 and by version 2 (transform)" $(($(versions 1) + $(versions 2))) "$late"
printf '  %-54s %6s\n' "  of them by version 1, before the swap" "$(versions 1)"
printf '  %-54s %6s\n' "  of them by version 2" "$(versions 2)"
check "models ready and good enough, of 4 in 4 encodings" "$(wc -l <"$run/models-to-load.ndjson")" 3
rm -f "$run"/part-*
