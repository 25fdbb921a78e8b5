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
download() { apt-get -qq download chrony >apt.log 2>&1; }
download || {
	sudo=; [ "$(id -u)" = 0 ] || sudo=sudo
	$sudo apt-get -qq update && download || { cat apt.log >&2; echo "chrony could not be downloaded: is there a network?" >&2; exit 1; }
}
dpkg -x chrony_*.deb root
rm -rf "$cache/chrony"
mv root "$cache/chrony"
