#!/bin/bash
# The host itself on a network: it reaches containers and they reach it, its way out stays its own, and
# it stays on the network when its agent is killed and started again.
#
#   host of n1, u0 --- n1 ===underlay=== n2 --- c2        network blue: 10.9.0.0/24, fd09::/64
. "$(dirname "$0")/lib.sh"

cluster 2
oc 1 network create blue --subnet 10.9.0.0/24 --subnet fd09::/64 >"$WORK/create.out"
container 2 c2 blue
oc 1 attach host --network blue --name host1 --ifname ovl-blue >"$WORK/attach.out"
refused 1 "the target is on network blue already, as endpoint host1" oc 1 attach host --network blue
h4=$(ip_in n1 -4 -o addr show ovl-blue | awk '{ sub("/.*", "", $4); print $4 }')
for family in 4 6; do ping_from n1 "$(address c2 $family)"; done
ping_from c2 "$h4"
assert_eq "$(ip_in n1 route show default)" "" "the host's way out"
transfer c2 n1 "$h4" 20000000

agent=$(pgrep -f "$WORK/n1/state")
kill -KILL "$agent"
wait_until 5 gone "$agent"
start 1
wait_until 10 connected 1
ping_from n1 "$(address c2 4)"
oc 1 detach host1 >"$WORK/detach.out"
assert_eq "$(ip_in n1 -o link show | grep -c ovl-blue || true)" 0 "the interface after detach"
say "the host $h4 is on the network, and off it again"
