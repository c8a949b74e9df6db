#!/bin/bash
# A script that is killed outright takes nothing away, and the next one does: its namespaces, what runs in
# them, its folder. One that lives is left alone.
. "$(dirname "$0")/lib.sh"

# victim: starts another script; sets PID, and FOLDER when its nodes run
victim() {
    setsid "$HERE/ping-tcp.sh" >"$WORK/victim.out" 2>&1 9>&- &
    PID=$!
    echo $PID >>"$WORK/pids"
    running() { FOLDER=$(echo "${TMPDIR:-/tmp}/ovt-$PID."*) && [ -S "$FOLDER/n2/sock" ]; }
    wait_until 20 running
    FOLDER=$(echo "${TMPDIR:-/tmp}/ovt-$PID."*)
}
named() { ip netns list | grep -c "^ovt-$PID-" || true; }

victim
sweep >"$WORK/sweep.out"
assert_eq "$(grep -c "$FOLDER" "$WORK/sweep.out" || true)" 0 "what is swept of a script that lives"
[ "$(named)" -ge 3 ] || die "a script that lives has lost its namespaces"
daemon=$(cat "$FOLDER/n2/pid")
kill -KILL "$PID"
wait_until 5 gone "$PID"
[ "$(named)" -ge 3 ] || die "nothing is left to be swept"
# What it had just called may not have ended yet.
swept() { sweep >"$WORK/sweep.out"; [ ! -e "$FOLDER" ]; }
wait_until 20 swept
assert_eq "$(cat "$WORK/sweep.out")" "$SELF: $FOLDER is left of a script that was killed; it goes" "what sweep says"
assert_eq "$(named)" 0 "namespaces after the sweep"
wait_until 5 gone "$daemon"
say "what a killed script left was taken away"
