#!/bin/sh
# tinyshakespeare.sh - finds or fetches TinyShakespeare, verifies it, and prints its path (only that).
#
#   looks at $TINYSHAKESPEARE, data/tinyshakespeare.txt, ../shared/data/tinyshakespeare.txt (from the
#   root of the repository), then downloads to data/tinyshakespeare.txt. Exit 1: none is to be had.
set -u
unset CDPATH
url=https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt
bytes=1115394
sha256=86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed

root=$(cd "$(dirname "$0")/.." && pwd -P) || exit 1
if [ "$root" = "$(pwd -P)" ]; then root=; else root=$root/; fi # paths from the root stay short

say() { echo "tinyshakespeare.sh: $*" >&2; }

hash_of() {
    if command -v sha256sum >/dev/null 2>&1; then sha256sum <"$1"
    elif command -v shasum >/dev/null 2>&1; then shasum -a 256 <"$1"
    elif command -v openssl >/dev/null 2>&1; then openssl dgst -sha256 -r <"$1"
    else
        say "no sha256sum, shasum or openssl: checked the size of $1 only"
        echo "$sha256"
    fi | cut -d ' ' -f 1
}

verify() {
    if ! [ -f "$1" ] || ! [ -r "$1" ]; then say "$1: not a readable file"; return 1; fi
    size=$(wc -c <"$1" | tr -d ' ')
    if [ "$size" != "$bytes" ]; then say "$1: has $size bytes, expected $bytes"; return 1; fi
    found=$(hash_of "$1")
    if [ "$found" != "$sha256" ]; then say "$1: its SHA-256 is $found, expected $sha256"; return 1; fi
}

fetch() { # URL FILE: 5 s to connect, 30 s in all
    if command -v curl >/dev/null 2>&1; then
        curl -fsSL --connect-timeout 5 --max-time 30 -o "$2" "$1" 2>/dev/null
    elif command -v timeout >/dev/null 2>&1; then
        timeout 30 wget -q -T 5 -t 1 -O "$2" "$1" 2>/dev/null
    else
        wget -q -T 5 -t 1 -O "$2" "$1" 2>/dev/null
    fi
}

if [ -n "${TINYSHAKESPEARE:-}" ]; then # named by the user: this one or none
    verify "$TINYSHAKESPEARE" || exit 1
    echo "$TINYSHAKESPEARE"
    exit 0
fi
for path in "${root}data/tinyshakespeare.txt" "${root}../shared/data/tinyshakespeare.txt"; do
    if [ -e "$path" ] && verify "$path"; then
        echo "$path"
        exit 0
    fi
done

path=${root}data/tinyshakespeare.txt
temporary=$path.$$.tmp
trap 'rm -f "$temporary"' EXIT
trap 'exit 1' HUP INT TERM
if ! fetch "$url" "$temporary"; then
    say "no copy found and no download possible; put the text at data/tinyshakespeare.txt or set TINYSHAKESPEARE"
    exit 1
fi
verify "$temporary" && mv -f "$temporary" "$path" || exit 1
echo "$path"
