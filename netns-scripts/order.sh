#!/bin/bash
# Flows keep their order: a million datagrams of 256 flows of one container, four workers on both nodes,
# and at least four source ports on the underlay.
#
#   c1 --- n1 ===underlay=== n2 --- c2        --workers 4 on both nodes
. "$(dirname "$0")/lib.sh"

tool numbered
numbered=$TOOL
cluster 2 ipv4 --workers 4
oc 1 network create blue >"$WORK/create.out"
container 1 c1 blue
container 2 c2 blue
addr=$(address c2 4)
ping_from c1 "$addr"

# The receiver finds what is out of order.
serve c2 "$WORK/planted.out" "$numbered" receive "$addr" 5003
in_ns c2 python3 - "$addr" <<'P'
import socket, struct, sys
flows = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
for flow, number in [(0, 0), (1, 2), (0, 3), (0, 1), (1, 4)]:
    flows[flow].sendto(struct.pack("=Q", number).ljust(1200), (sys.argv[1], 5003))
P
end "$PID"
assert_eq "$(field planted reordered)" 1 "what was planted out of order"

# flows NAME RATE SECONDS
flows() {
    serve c2 "$WORK/$1.out" "$numbered" receive "$addr" 5003
    in_ns c1 "$numbered" send "$addr" 5003 "$2" "$3" 256 >"$WORK/$1-sent.out"
    end "$PID"
    say "$1: $(cat "$WORK/$1-sent.out"); $(tail -n 1 "$WORK/$1.out")"
    assert_eq "$(field "$1" flows)" 256 "flows"
    assert_eq "$(field "$1" duplicates)" 0 "duplicates"
    assert_eq "$(field "$1" reordered)" 0 "reordered"
}

capture n1 u0 "$WORK/u0.pcap" 64
capture=$PID
flows few 5000 2
end_capture "$capture" "$WORK/u0.pcap"
ports=$(python3 "$TOOLS/net.py" pcap-ports "$WORK/u0.pcap" 192.0.2.1)
[ "$ports" -ge 4 ] || die "only $ports source ports on the underlay"
say "$ports source ports on the underlay"

flows evenly 60000 18
flows flood 0 5
# Of what is lost nobody can tell the order.
arrived=$(($(field evenly received) + $(field flood received)))
[ $arrived -ge 1000000 ] || die "only $arrived datagrams arrived"
