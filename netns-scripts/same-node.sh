#!/bin/bash
# Containers on one node reach each other through it; nothing of that goes to the underlay.
#
#   c1 --- n1 --- c2        network blue: 10.9.0.0/24, fd09::/64
. "$(dirname "$0")/lib.sh"

cluster 1
capture n1 u0 "$WORK/underlay.pcap"
capture=$PID
oc 1 network create blue --subnet 10.9.0.0/24 --subnet fd09::/64 >"$WORK/create.out"
container 1 c1 blue
container 1 c2 blue
for family in 4 6; do
    a=$(address c1 $family) b=$(address c2 $family)
    ping_from c1 "$b"
    ping_from c2 "$a"
    transfer c1 c2 "$b" 20000000
    transfer c2 c1 "$a" 20000000
done
end_capture "$capture" "$WORK/underlay.pcap"
assert_eq "$(net c1 pcap-count "$WORK/underlay.pcap" 1500 192.0.2.1)" "0 0" "packets on the underlay"
