#!/bin/bash
# A second daemon in one network namespace is refused, naming the one that is there, and that one
# goes on working. In a namespace of its own it would be welcome.
#
#   c1 --- n1: overlayd, and a second one with its own state folder and socket
. "$(dirname "$0")/lib.sh"

cluster 1
holder=$PID
oc 1 network create blue >"$WORK/create.out"
container 1 c1 blue
mkdir "$WORK/second"
second() { in_ns n1 timeout 20 "$BIN/overlayd" --state-dir "$WORK/second/state" --socket "$WORK/second/sock"; }
refused 1 "$holder" second
[ ! -e "$WORK/second/sock" ] || die "the second daemon left its socket"
same_socket() { in_ns n1 timeout 20 "$BIN/overlayd" --state-dir "$WORK/second/state" --socket "$(socket 1)"; }
refused 1 "$holder|$(socket 1)" same_socket
oc 1 info >"$WORK/info.out"
ping_from c1 "$(oc 1 --json network inspect blue | json '(d[0] if isinstance(d, list) else d)["gateways"][0]')"
