#!/bin/bash
# Certificates of a minute, a rotated token, a node that goes and a rotated root cost nothing: the same
# TCP connection goes on, no command fails, and a node that was off past its certificate's end comes
# back by itself.
#
#   trust.sh [iperf3]                         with a connection as fast as it goes beside the others
#
#   c1 --- n2 ===underlay=== n3 --- c2        network blue; n1 is the manager, n4 is off for a while
. "$(dirname "$0")/lib.sh"

underlay 5
for n in 1 2 3 4 5; do start "$n"; echo "$PID" >"$WORK/n$n/pid"; done
refused 2 "use 1m to 90d" oc 1 init --name n1 --cert-expiry 30s
refused 2 "use 500ms to 1m" oc 1 init --name n1 --heartbeat 100ms
oc 1 init --name n1 --cert-expiry 1m >"$WORK/init.out" 2>"$WORK/init.err"
assert_match "$(cat "$WORK/init.err")" "^overlayctl: warning: nodes renew their certificates every 1m" "what init says"
for n in 2 3 4; do join "$n" >"$WORK/join.out"; done
oc 1 network create blue --subnet 10.9.0.0/24 >"$WORK/create.out"
container 2 c1 blue
container 3 c2 blue
talk c1 c2
talking=$PID
streaming=
if [ "${1:-}" = iperf3 ]; then
    bulk c1 c2
    streaming=$PID
fi
write_on 2 blue
writer=$PID
# certificate N: what the node has on disk
certificate() { sha256sum <"$WORK/n$1/state/node.pem"; }
differs() { [ "$(certificate "$1")" != "$2" ]; }
renewals() { grep -c "certificate renewed" "$WORK/n$1/log" || true; }
renewed_more() { [ "$(renewals "$1")" -gt "$2" ]; }
# roots N: how many roots the node trusts; a certificate stands before them
roots() { echo $(($(grep -c "BEGIN CERTIFICATE" "$WORK/n$1/state/node.pem") - 1)); }
trusts() { [ "$(roots "$1")" = "$2" ]; }
disconnects() { grep -c "agent disconnected" "$WORK/n1/log" || true; }

# n4 is killed, and comes back when the certificate that it has is over.
kill -KILL "$(cat "$WORK/n4/pid")"
wait_until 5 gone "$(cat "$WORK/n4/pid")"
four=$(certificate 4)
over=$(($(date +%s) + 61))
is() { [ "$(oc 1 node inspect "n$1" --json | json 'd["status"]')" = "$2" ]; }
wait_until 10 is 4 down
before=$(disconnects)

# A token is rotated: the one before joins nobody, and nobody is put out.
old=$(oc 1 join-token worker -q)
oc 1 join-token worker --rotate -q >"$WORK/token.out"
refused 1 "the token was rotated" oc 5 join --token "$old" "$(manager)" --name n5
moved

# The root is rotated: every node has a certificate under the new one when the call returns.
start_ms=$(date +%s%3N)
oc 1 ca rotate --json >"$WORK/rotate.out" 2>"$WORK/rotate.err"
took=$(($(date +%s%3N) - start_ms))
assert_eq "$(json 'd["lagging"]' <"$WORK/rotate.out")" "[]" "nodes that lag"
assert_eq "$(cat "$WORK/rotate.err")" "" "what ca rotate warns of"
for n in 1 2 3; do wait_until 10 trusts $n 1; done
moved
refused 1 "the token is not of the cluster" oc 5 join --token "$(cat "$WORK/token.out")" "$(manager)" --name n5
join 5 >"$WORK/join.out"
say "the root was rotated under a writer in $took ms"

# A node goes: the keys of all pairs change, and the connection goes on over them.
oc 5 leave >"$WORK/leave.out"
dropped() { grep -q "the keys before hold no more" "$WORK/n1/log"; }
wait_until 20 dropped
moved

# Each node renews by itself before its minute is over.
for n in 1 2 3; do
    wait_until 60 renewed_more $n "$(renewals $n)"
done
moved

# n4's certificate is over, and of a root that nobody trusts any more.
past() { [ "$(date +%s)" -gt "$over" ]; }
wait_until 70 past
assert_eq "$(certificate 4)" "$four" "the certificate of a node that is off"
start 4
wait_until 10 connected 4
wait_until 10 differs 4 "$four"
wait_until 10 is 4 ready
container 4 late blue
ping_from late "$(address c2 4)"

assert_eq "$(disconnects)" "$((before + 1))" "streams that ended, beside that of the node that left"
gone "$talking" && die "the connection between containers broke: $(cat "$WORK/talk.out")"
if [ -n "$streaming" ]; then
    gone "$streaming" && die "iperf3 ended: $(tail -n 5 "$WORK/iperf3.out")"
    seconds=$(grep -c "bits/sec" "$WORK/iperf3.out")
    idle=$(grep -c " 0.00 bits/sec" "$WORK/iperf3.out" || true)
    assert_eq "$idle" 0 "seconds in which iperf3 got nothing through"
    say "one iperf3 connection moved bytes in each of $seconds seconds; the last: $(tail -n 1 "$WORK/iperf3.out")"
fi
end_writer "$writer"
assert_match "$WROTE" '"failed": 0, "lost": \[\], "twice": \[\]' "what the writer found"

# The manager starts again, with every certificate that it had over or not.
end "$(cat "$WORK/n1/pid")"
start 1
for n in 1 2 3 4; do wait_until 40 connected $n; done
moved
say "a connection made $(count "$WORK/said") exchanges meanwhile; the writer: $WROTE"
