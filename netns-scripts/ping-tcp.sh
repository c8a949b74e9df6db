#!/bin/bash
# Containers on two nodes reach each other by ping and TCP, both ways, over IPv4 and IPv6 inside.
# The underlay's family is the first argument: ipv4 (default) or ipv6.
#
#   c1 --- n1 ===underlay=== n2 --- c2        network blue: 10.9.0.0/24, fd09::/64
. "$(dirname "$0")/lib.sh"

cluster 2 "${1:-ipv4}"
oc 1 network create blue --subnet 10.9.0.0/24 --subnet fd09::/64 >"$WORK/create.out"
container 1 c1 blue
container 2 c2 blue
for family in 4 6; do
    a=$(address c1 $family) b=$(address c2 $family)
    ping_from c1 "$b"
    ping_from c2 "$a"
    transfer c1 c2 "$b" 5000000
    transfer c2 c1 "$a" 5000000
    say "$a and $b reach each other by ping and TCP"
done

# The kernel gives the interface no address of its own, so nothing but containers' packets is sent.
assert_eq "$(ip_in c1 -6 -o addr show dev eth0 scope link)" "" "link-local addresses"
dropped() { oc 1 stats --json | json 'sum(d["drops"].values())'; }
assert_eq "$(dropped)" 0 "drops"
