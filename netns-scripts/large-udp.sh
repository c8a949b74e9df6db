#!/bin/bash
# UDP datagrams from 1 byte to 60 KB (IP fragments inside) come back unchanged, asked from both sides.
#
#   c1 --- n1 ===underlay=== n2 --- c2        network blue: 10.9.0.0/24, fd09::/64
. "$(dirname "$0")/lib.sh"

SIZES="1 2 31 500 1200 1371 1372 1373 1400 1408 1409 1472 1473 2000 4096 9000 16384 30001 60000"

cluster 2
oc 1 network create blue --subnet 10.9.0.0/24 --subnet fd09::/64 >"$WORK/create.out"
container 1 c1 blue
container 2 c2 blue
for family in 4 6; do
    for pair in "c1 c2" "c2 c1"; do
        read -r from to <<<"$pair"
        addr=$(address "$to" $family)
        serve "$to" "$WORK/echo.out" python3 "$TOOLS/net.py" udp-echo "$addr" 5002
        # shellcheck disable=SC2086 # one word a size
        net "$from" udp-check "$addr" 5002 $SIZES || die "UDP from $from to $addr"
        net "$from" udp-train "$addr" 5002 1200 50 || die "a train of datagrams from $from to $addr"
        end "$PID"
        say "datagrams of $SIZES bytes from $from to $addr and back"
    done
done
