#!/bin/sh
# Unpacks Debian's chrony into the user's cache, for tests. It is never installed: an installed chrony disciplines the machine's clock.
set -eu
cache=${XDG_CACHE_HOME:-$HOME/.cache}/bulla-test
[ ! -x "$cache/chrony/usr/sbin/chronyd" ] || exit 0
mkdir -p "$cache"
work=$(mktemp -d "$cache/.chrony-XXXXXX")
trap 'rm -rf "$work"' EXIT
chmod 755 "$work" # apt downloads as its own user where it can
cd "$work"
apt-get -qq download chrony 2>apt.log || { cat apt.log >&2; echo "chrony could not be downloaded: run apt-get update first" >&2; exit 1; }
dpkg -x chrony_*.deb root
rm -rf "$cache/chrony"
mv root "$cache/chrony"
