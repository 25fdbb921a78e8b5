#!/usr/bin/env bash
# The main job, end to end, on real input: a throwaway appliance with an HSM, a TPM and time sources of its own takes this machine's
# package log line by line, proves an entry, has the TPM seal the head, exports the evidence, verifies it, and finds one flipped byte.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/${BIN:-bin}:$PATH"

work=$(mktemp -d); appliance=
finish() {
  if [ -n "$appliance" ] && kill -INT "$appliance" 2>/dev/null; then wait "$appliance" || true; fi
  rm -rf "$work"
}
trap finish EXIT
export XDG_STATE_HOME="$work/state" # what verify remembers of the log
if [ -t 1 ]; then say() { printf '\n\033[1m%s\033[0m\n' "$*"; }; else say() { printf '\n%s\n' "$*"; }; fi
run() { printf '$ %s\n' "$*"; "$@"; }

say "1. A complete appliance: SoftHSM token, TPM with EK certificate, five time sources, one log"
bullad dev --dir "$work/dev" >"$work/ready" 2>"$work/log" &
appliance=$!
for _ in $(seq 600); do
  grep -q '^ready' "$work/ready" && break
  kill -0 "$appliance" 2>/dev/null || { cat "$work/log" >&2; exit 1; }
  sleep 0.1
done
cat "$work/ready"
export BULLA_SOCKET="$work/dev/sign.sock"

input=
for f in /var/log/dpkg.log /var/log/dpkg.log.1 /var/log/apt/history.log /var/log/syslog /var/log/messages; do
  if [ -s "$f" ] && [ -r "$f" ]; then input=$f; break; fi
done
[ -n "$input" ] || { echo "no readable log of this machine's was found" >&2; exit 1; }
head -n 20000 "$input" >"$work/input.log"
lines=$(grep -c . "$work/input.log")

say "2. $lines lines of $input go in, each a signed entry with a receipt"
run bulla append --lines --type dpkg.line --source "$(uname -n)" --receipts "$work/receipts" "$work/input.log" | tail -n 3
run bulla status

index=$(ls "$work/receipts" | sed -n 's/^\([0-9]*\)\.json$/\1/p' | sort -n | tail -n 1)
say "3. One entry and its proof, verifiable without the appliance"
run bulla get "$index"
run bulla proof "$index"

say "4. The TPM attests the log's head, now"
run bulla seal now

say "5. The evidence, exported, and checked by the auditor's policy"
run bulla export --out "$work/evidence"
run bulla verify "$work/evidence" --policy "$work/dev/auditor.policy" --receipt "$work/receipts/$index.json"

say "6. The same seal, checked by tools that have never heard of Bulla"
seal=$(ls "$work/evidence/seals" | sort -n | tail -n 1)
cd "$work/evidence/seals/$seal"
statement=$(sha256sum <statement.json | cut -c1-64)
run tpm2_checkquote -u ak.pem -m quote.attest -s quote.sig -g sha256 -q "$statement" | tail -n 1
run openssl dgst -sha256 -verify ak.pem -signature quote.der quote.attest
cd - >/dev/null

say "7. One byte of one stored entry is flipped in a copy"
cp -r "$work/evidence" "$work/tampered"
bundle=$(find "$work/tampered/tile/entries" -type f | sort | head -n 1)
victim=$(grep -abo '"data":{"line":"' "$bundle" | sed -n '5s/:.*//p')
offset=$((victim + 20))
byte=$(xxd -s "$offset" -l 1 -p "$bundle")
printf "$(printf '\\x%02x' $((0x$byte ^ 1)))" | dd of="$bundle" bs=1 seek="$offset" conv=notrunc status=none
code=0; run bulla verify "$work/tampered" --policy "$work/dev/auditor.policy" || code=$?
[ "$code" = 1 ] || { echo "expected exit 1 (tampered), got $code" >&2; exit 1; }

say "8. The appliance ends, and leaves nothing running"
kill -INT "$appliance"; wait "$appliance"; appliance=
if pgrep -f "$work" >/dev/null; then echo "something was left running:" >&2; pgrep -fa "$work" >&2; exit 1; fi
echo "Proved: $lines lines logged, signed, sealed, exported and verified; one flipped byte found and named."
