#!/bin/bash
# A second daemon in one network namespace is refused the data port, naming the daemon that holds it,
# and that one goes on working. In a namespace of its own it would be welcome.
#
#   c1 --- n1: overlayd, and a second one with its own state folder and socket
. "$(dirname "$0")/lib.sh"

cluster 1
holder=$PID
oc 1 network create blue >"$WORK/create.out"
container 1 c1 blue
mkdir "$WORK/n2"
background n1 "$WORK/n2/log" "$BIN/overlayd" --state-dir "$WORK/n2/state" --socket "$(socket 2)"
wait_until 10 test -S "$(socket 2)"
refused 1 "7790.*$holder" oc 2 init --listen-addr 0.0.0.0:2378 --advertise-addr 192.0.2.1:2378
refused 1 'not a member' oc 2 node ls
oc 2 info >"$WORK/info.out"

same_socket() { in_ns n1 timeout 20 "$BIN/overlayd" --state-dir "$WORK/third" --socket "$(socket 1)"; }
refused 1 "$(socket 1)" same_socket
same_state() { in_ns n1 timeout 20 "$BIN/overlayd" --state-dir "$WORK/n1/state" --socket "$WORK/third.sock"; }
refused 1 "$holder" same_state
oc 1 info >"$WORK/info.out"
ping_from c1 "$(oc 1 --json network inspect blue | json '(d[0] if isinstance(d, list) else d)["gateways"][0]')"
