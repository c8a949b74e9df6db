#!/bin/bash
# Two networks with the same subnet and the same addresses never see each other's packets.
#
#   r1 10.9.0.11 --- n1 ===underlay=== n2 --- r2 10.9.0.12      network red   10.9.0.0/24
#   b1 10.9.0.11 --- n1                n2 --- b2 10.9.0.12      network blue  10.9.0.0/24
#                                      n2 --- b3 10.9.0.13      (blue only)
. "$(dirname "$0")/lib.sh"

cluster 2
for network in red blue; do
    oc 1 network create $network --subnet 10.9.0.0/24 >"$WORK/create.out"
    container 1 ${network:0:1}1 $network --ip 10.9.0.11
    container 2 ${network:0:1}2 $network --ip 10.9.0.12
done
container 2 b3 blue --ip 10.9.0.13

# exclusive FROM TO OTHERS: what FROM says to TO is heard by TO, and by none of the others
exclusive() {
    local from=$1 to=$2 mark="only-$1-to-$2-of-its-own-network" name
    shift 2
    local -A pid=()
    for name in "$to" "$@"; do
        capture "$name" eth0 "$WORK/$name.pcap"
        pid[$name]=$PID
    done
    serve "$to" "$WORK/echo.out" python3 "$TOOLS/net.py" udp-echo 10.9.0.12 5002
    local server=$PID
    net "$from" mark 10.9.0.12 5002 "$mark"
    end "$server"
    for name in "${!pid[@]}"; do end_capture "${pid[$name]}" "$WORK/$name.pcap"; done
    [ "$(net "$to" pcap-find "$WORK/$to.pcap" "$mark")" -ge 4 ] || die "$to did not hear $from"
    for name in "$@"; do
        assert_eq "$(net "$name" pcap-find "$WORK/$name.pcap" "$mark")" 0 "packets of $from and $to seen by $name"
    done
    say "$from and $to are heard by nobody else"
}

exclusive r1 r2 b1 b2 b3
exclusive b1 b2 r1 r2 b3
ping_from b1 10.9.0.13
in_ns r1 ping -n -c 1 -W 3 10.9.0.13 >"$WORK/ping.out" && die "r1 reaches an address of blue"
assert_match "$(cat "$WORK/ping.out")" "Unreachable" "an address that only blue has"
