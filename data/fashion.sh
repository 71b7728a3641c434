#!/bin/sh
# Prints a folder with Fashion-MNIST's four files, unzipped from where Debian's dataset-fashion-mnist puts them; exit status 1
# without that package.     sh data/fashion.sh
from=/usr/share/datasets/fashion-mnist to=$(dirname "$0")/fashion-mnist
ls $from/*-ubyte.gz >/dev/null 2>&1 || { echo "no Fashion-MNIST here: apt install dataset-fashion-mnist" >&2; exit 1; }
mkdir -p "$to" || exit 1
for f in "$from"/*-ubyte.gz; do
    name=$to/$(basename "$f" .gz)
    [ -s "$name" ] || { gunzip -c "$f" >"$name.part" && mv "$name.part" "$name"; } || exit 1
done
echo "$to"
