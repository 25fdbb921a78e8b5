#!/usr/bin/env bash
# Makes the evidence of these vectors anew, with a throwaway appliance: needed when a format changes. Run it with bullad and bulla in
# PATH, in this directory; then run `go test ./verify -run Vectors -update`, and read the
# difference.
set -euo pipefail
work=$(mktemp -d) appliance=
finish() {
  if [ -n "$appliance" ] && kill -INT "$appliance" 2>/dev/null; then wait "$appliance" || true; fi
  rm -rf "$work"
}
trap finish EXIT
start() {
  : >"$work/ready"
  bullad dev --dir "$work/dev" >"$work/ready" 2>>"$work/log" &
  appliance=$!
  for _ in $(seq 600); do
    grep -q '^ready' "$work/ready" && return
    sleep 0.1
  done
  cat "$work/log" >&2
  exit 1
}
stop() { kill -INT "$appliance" && wait "$appliance"; appliance=; }
export BULLA_SOCKET="$work/dev/sign.sock"

# Two boots: the second begins with a restart of daemon and TPM. An entry behind the last seal.
start
bulla append --type auth.login --actor alice --outcome success
printf 'one\ntwo\nthree\n' | bulla append --lines --type app.line --stream app --receipts "$work/receipts"
bulla seal now
stop
start
bulla append --type auth.logout --actor alice
bulla seal now
bulla append --type auth.login --actor bob --outcome failure
rm -rf sealed policy receipt.json
bulla export --out sealed
cp "$work/dev/auditor.policy" policy
cp "$(ls "$work"/receipts/*.json | sort | sed -n 2p)" receipt.json
stop
bulla verify sealed --policy policy --receipt receipt.json
