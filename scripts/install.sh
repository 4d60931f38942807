#!/bin/sh
{ # A shell runs a group only when it has all of it: of a download that was cut nothing runs.
# Installs crabbox @VERSION@ into a prefix, from a release's tarball whose digest SHA256SUMS names; --remove takes away what was installed.
# Nothing of what is there is touched before everything is fetched, whole and as the digest says.
set -eu
# The order of names is the same everywhere.
export LC_ALL=C

version='@VERSION@'
releases='@RELEASES@'
prefix=/usr/local
replace=no
remove=no

usage() {
    cat <<'END'
usage: install.sh [--prefix DIR] [--releases URL] [--version VERSION] [--replace] [--remove]

  --prefix DIR        below which bin and share lie (/usr/local)
  --releases URL      below which each version has a directory v<version> with its files; file:// works as well
  --version VERSION   which one
  --replace           put this version in the place of another one
  --remove            take away what this script installed there, and nothing else
END
}

fail() {
    echo "install.sh: $1" >&2
    exit "${2:-1}"
}

while [ $# -gt 0 ]; do
    case $1 in
        --prefix | --releases | --version)
            [ $# -ge 2 ] || { usage >&2; fail "$1 needs a value" 2; }
            case $1 in
                --prefix) prefix=$2 ;;
                --releases) releases=$2 ;;
                --version) version=$2 ;;
            esac
            shift
            ;;
        --replace) replace=yes ;;
        --remove) remove=yes ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; fail "what is $1?" 2 ;;
    esac
    shift
done

case $prefix in
    /*) ;;
    *) fail "--prefix $prefix is not an absolute path" 2 ;;
esac
# The names of all installed files, relative to the prefix, and the program's version in the first line.
record=$prefix/share/crabbox/installed

# Takes away the files of the list $1, and nothing else; directories only if they are empty then.
take_away() {
    while IFS= read -r file; do
        case /$file/ in
            */../* | *//*) fail "$record names $file, which is none of ours" ;;
        esac
        rm -f "$prefix/$file"
    done <"$1"
    sed 's|/[^/]*$||' "$1" | sort -ru | while IFS= read -r dir; do
        (cd "$prefix" && rmdir -p "$dir" 2>/dev/null) || true
    done
}

scratch=$(mktemp -d "${TMPDIR:-/tmp}/crabbox-install.XXXXXX")
half=
trap 'rm -rf "$scratch"; [ -z "$half" ] || rm -f "$half"' EXIT
trap 'exit 130' INT TERM
: >"$scratch/old"
[ ! -f "$record" ] || sed 1d "$record" | sort >"$scratch/old"

if [ "$remove" = yes ]; then
    [ -f "$record" ] || fail "nothing is on record in $record: this script installed nothing in $prefix"
    for entry in "${CRABBOX_REGISTRY_DIR:-/var/lib/crabbox/registry}"/leases/*.json; do
        [ ! -e "$entry" ] || fail "this host still has leases ($entry): give them back with crabbox stop, or crabbox cleanup, first"
    done
    take_away "$scratch/old"
    rm -f "$record"
    (cd "$prefix" && rmdir -p share/crabbox 2>/dev/null) || true
    echo "crabbox is removed from $prefix"
    exit 0
fi

[ -n "$releases" ] || fail "say where the releases are: --releases URL" 2
[ "$(uname -s)" = Linux ] || fail "crabbox runs on Linux, this is $(uname -s)"
machine=$(uname -m)
case $machine in
    x86_64) ;;
    *) fail "there is no crabbox for $machine, only for x86_64" ;;
esac

installed=
if [ -f "$record" ]; then
    installed=$(sed -n 1p "$record")
elif [ -e "$prefix/bin/crabbox" ]; then
    installed="a version that this script did not install"
fi
if [ -n "$installed" ] && [ "$installed" != "$version" ] && [ "$replace" = no ]; then
    fail "$prefix/bin/crabbox is $installed; --replace puts $version in its place, --prefix DIR installs beside it"
fi

fetch() {
    echo "fetching $1"
    if command -v curl >/dev/null 2>&1; then
        curl --fail --silent --show-error --location --output "$2" "$1" || fail "cannot fetch $1"
    elif command -v wget >/dev/null 2>&1; then
        wget --quiet --output-document="$2" "$1" || fail "cannot fetch $1"
    else
        fail "there is neither curl nor wget to fetch with"
    fi
}

name=crabbox-$version-$machine-linux
from=${releases%/}/v$version
fetch "$from/SHA256SUMS" "$scratch/SHA256SUMS"
fetch "$from/$name.tar.gz" "$scratch/$name.tar.gz"
wanted=$(sed -n "s/^\([0-9a-f]\{64\}\)  $name\.tar\.gz\$/\1/p" "$scratch/SHA256SUMS")
[ -n "$wanted" ] || fail "$from/SHA256SUMS names no $name.tar.gz"
found=$(sha256sum <"$scratch/$name.tar.gz" | cut -d ' ' -f 1)
[ "$found" = "$wanted" ] || fail "$name.tar.gz has the digest $found, SHA256SUMS says $wanted: fetch it again, and do not use it if that stays so"

tar -xzf "$scratch/$name.tar.gz" -C "$scratch" --no-same-owner
new=$scratch/$name
said=$("$new/bin/crabbox" --version) || fail "the new program does not run on this machine; nothing was installed"
[ "$said" = "$version" ] || fail "the new program says that it is $said, not $version; nothing was installed"
(cd "$new" && find bin share -type f | sort) >"$scratch/files"

mkdir -p "$prefix/share/crabbox" || fail "cannot write below $prefix; as root, or with --prefix DIR"
# On record before it is there: --remove takes away what an installation that fails half way has put there.
{ echo "$version"; cat "$scratch/old"; } >"$record.new"
mv -f "$record.new" "$record"
while IFS= read -r file; do
    mkdir -p "$prefix/${file%/*}" || fail "cannot make $prefix/${file%/*}; --remove takes away what is there by now"
    [ ! -d "$prefix/$file" ] || fail "$prefix/$file is a directory; --remove takes away what is there by now"
    [ ! -d "$prefix/$file.new" ] || fail "$prefix/$file.new is a directory; --remove takes away what is there by now"
    # Beside it and then in its place: whoever runs the old program goes on with it.
    half=$prefix/$file.new
    cp -p "$new/$file" "$half" || fail "cannot write $half; --remove takes away what is there by now"
    echo "$file" >>"$record"
    mv -f "$half" "$prefix/$file"
    half=
done <"$scratch/files"
# A program of another version may have had files that this one has not.
comm -23 "$scratch/old" "$scratch/files" >"$scratch/gone"
take_away "$scratch/gone"
{ echo "$version"; cat "$scratch/files"; } >"$record.new"
mv -f "$record.new" "$record"
echo "crabbox $version is in $prefix/bin; next: crabbox setup firecracker"
exit 0
}
