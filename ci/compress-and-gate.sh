#!/usr/bin/env bash
# Compress a network for several targets, judge each run by its gates, and bundle what came out. Runs on any CI system.
#
#   ci/compress-and-gate.sh CONFIG.yaml OUT TARGET [TARGET…]
#
# CONFIG.yaml holds the options and the gates of the runs; see `fsrp-edge compress --config`. Every target is built, also
# after one has failed; the exit code is the worst one, or 130 and 143 after Ctrl-C and SIGTERM. OUT/TARGET holds the run
# with report.html and junit.xml, OUT/TARGET.zip the bundle to ship.
set -uo pipefail
[ $# -ge 3 ] || { echo "usage: $0 CONFIG.yaml OUT TARGET [TARGET…]" >&2; exit 2; }
config=$1 out=$2 worst=0 child=
shift 2

# A shell looks at signals only between commands, but for `wait`. In a process group of its own the command gets each of
# them once, from here, whether a terminal sent it or a CI system that knows nothing but this script.
set -m
run() { "$@" & child=$!; finish; }
# `wait` also returns where the command was stopped for a while, which is not its end.
finish() {
  local code
  while wait "$child"; code=$?; [ "$code" -gt 128 ] && kill -0 "$child" 2>/dev/null; do sleep 1 & wait "$!"; done
  return "$code"
}
end() { kill -"$1" -- "-$child"; kill -CONT -- "-$child"; finish; exit $((128 + $(kill -l "$1"))); } 2>/dev/null
for signal in HUP INT TERM; do trap "end $signal" "$signal"; done

for target in "$@"; do
  echo "== $target"
  rm -f "$out/$target.zip"  # of an earlier run: this one may have nothing to ship
  run fsrp-edge compress --config "$config" --target "$target" --out "$out/$target"
  code=$?
  [ "$code" -le "$worst" ] || worst=$code
  # Also after a failed gate, to be looked at. A run that ended before its report has nothing to bundle, and a report
  # that lies there after another exit code is an earlier run's.
  if [ "$code" -le 1 ] && [ -f "$out/$target/report.json" ]; then
    run fsrp-edge bundle "$out/$target" --out "$out/$target.zip" >/dev/null && echo "bundle: $out/$target.zip" || worst=3
  fi
done
exit "$worst"
