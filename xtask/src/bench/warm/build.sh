# Work like a build's in a lease, in programs that come and go, files that are written and read, memory that is touched: $1 is how many units of it, or
# `for SECONDS`. Prints `units N` and `build MICROSECONDS`.
set -eu
cd "$(mktemp -d /tmp/bench-warm.XXXXXX)"
trap 'rm -rf "$PWD"' EXIT
units=0 begun=$(date +%s%N)
unit() {
    for file in a b c d e f g h; do
        seq 1 4000 >$file.txt
        sort -R $file.txt | sort -n | sha256sum >$file.sum
        gzip -c $file.txt >$file.gz
    done
    python3 -c '
parts = {}
for number in range(60000):
    parts.setdefault(number % 997, []).append(str(number) * 4)
compile("\n".join("def f%d(a, b):\n    return [a + b * %d, a - b]" % (number, number) for number in range(400)), "f", "exec")
'
    rm -f ./*.txt ./*.sum ./*.gz
    units=$((units + 1))
}
if [ "$1" = for ]; then
    until [ $(($(date +%s%N) - begun)) -ge $(($2 * 1000000000)) ]; do unit; done
else
    while [ $units -lt "$1" ]; do unit; done
fi
echo "units $units"
echo "build $((($(date +%s%N) - begun) / 1000))"
