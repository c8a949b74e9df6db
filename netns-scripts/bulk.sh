#!/bin/bash
# 200 MB, or what is given, arrive with the same SHA-256 over IPv4 and IPv6, whatever offload is switched off.
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
oc 1 network create blue --subnet 10.9.0.0/24 --subnet fd09::/64 >"$WORK/create.out"
container 1 c1 blue
container 2 c2 blue
for family in 4 6; do
    start=$(date +%s%N)
    transfer c1 c2 "$(address c2 $family)" "$bytes"
    say "$bytes bytes over IPv$family, underlay ${1:-default}, ${2:-all offloads}${3:+ to $3}: $((($(date +%s%N) - start) / 1000000)) ms"
done
