#!/bin/bash
# 200 MB arrive with the same SHA-256 over IPv4 and IPv6, whatever offload is switched off.
#
#   bulk.sh [default|noffl] [OFFLOADS]     the underlay's offloads; overlayd's --offload
#
#   c1 --- n1 ===underlay=== n2 --- c2     network blue: 10.9.0.0/24, fd09::/64
[ "${1:-default}" = default ] || export OFFLOADS=off
. "$(dirname "$0")/lib.sh"

cluster 2 ipv4 --offload "${2:-tun-vnet=on}"
oc 1 network create blue --subnet 10.9.0.0/24 --subnet fd09::/64 >"$WORK/create.out"
container 1 c1 blue
container 2 c2 blue
for family in 4 6; do
    start=$(date +%s%N)
    transfer c1 c2 "$(address c2 $family)" 200000000
    say "200 MB over IPv$family, underlay ${1:-default}, ${2:-all offloads}: $((($(date +%s%N) - start) / 1000000)) ms"
done
