#!/bin/bash
# 200 MB, or what is given, arrive with the same SHA-256 over IPv4 and IPv6, and so do datagrams and trains of
# them, whatever offload is switched off.
#
#   bulk.sh [default|noffl] [OFFLOADS [OTHER [BYTES]]]     the underlay's offloads; --offload of n1, of n2
#
#   c1 --- n1 ===underlay=== n2 --- c2     network blue: 10.9.0.0/24, fd09::/64
[ "${1:-default}" = default ] || export OFFLOADS=off
. "$(dirname "$0")/lib.sh"

own=${2:-tun-vnet=on} other=${3:-${2:-tun-vnet=on}} bytes=${4:-200000000}
underlay 2 ipv4
start 1 --offload "$own"
start 2 --offload "$other"
oc 1 init --name n1 >"$WORK/init.out"
join 2 >"$WORK/join.out"

# uses N LIST: node N does as the list says, and found none of its offloads broken
uses() {
    local info item
    info=$(oc "$1" info --json)
    assert_eq "$(json 'd["offload_broken"]' <<<"$info")" "[]" "broken offloads of n$1"
    for item in ${2//,/ }; do
        assert_match ",$(json 'd["offload"]' <<<"$info")," ",$item," "offloads of n$1"
    done
}
uses 1 "$own"
uses 2 "$other"

oc 1 network create blue --subnet 10.9.0.0/24 --subnet fd09::/64 >"$WORK/create.out"
container 1 c1 blue
container 2 c2 blue
for family in 4 6; do
    start=$(date +%s%N)
    addr=$(address c2 $family)
    transfer c1 c2 "$addr" "$bytes"
    say "$bytes bytes over IPv$family, underlay ${1:-default}, ${2:-all offloads}${3:+ to $3}: $((($(date +%s%N) - start) / 1000000)) ms"
    serve c2 "$WORK/echo.out" python3 "$TOOLS/net.py" udp-echo "$addr" 5002
    net c1 udp-check "$addr" 5002 1 1200 9000 || die "UDP to $addr"
    net c1 udp-train "$addr" 5002 1200 50 || die "a train of datagrams to $addr"
    end "$PID"
done
