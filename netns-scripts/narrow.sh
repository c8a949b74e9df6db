#!/bin/bash
# Where the underlay is narrower than IPv6 inside needs it, packets of up to 1280 bytes cross in
# pieces; TCP needs none of them.
#
#   narrow.sh ipv4|ipv6 MTU
#
#   c1 --- n1 ===underlay=== n2 --- c2        network blue: 10.9.0.0/24, fd09::/64
#   MTU 1280      MTU          MTU 1280
. "$(dirname "$0")/lib.sh"

underlay 2 "$1"
for n in 1 2; do ip_in "n$n" link set u0 mtu "$2"; done
for n in 1 2; do start "$n"; done
oc 1 init --name n1 >"$WORK/init.out"
join 2 >"$WORK/join.out"
oc 1 network create blue --subnet 10.9.0.0/24 --subnet fd09::/64 >"$WORK/create.out"
container 1 c1 blue
container 2 c2 blue
assert_eq "$(mtu c1)" 1280 "the MTU of c1"
b4=$(address c2 4) b6=$(address c2 6)

# ping's size is without the 28 or 48 bytes of headers
ping_from c1 -M "do" -s 1252 "$b4"
ping_from c1 -M "do" -s 1232 "$b6"
for to in "$b4" "$b6"; do
    serve c2 "$WORK/echo.out" python3 "$TOOLS/net.py" udp-echo "$to" 5002
    net c1 udp-check "$to" 5002 1 800 890 900 1000 1231 1232 1252 1253 5000 30000 || die "UDP to $to"
    net c1 udp-train "$to" 5002 1200 40 || die "a train of datagrams to $to"
    end "$PID"
    transfer c1 c2 "$to" 20000000
done

# What one node sent is what the other received: pieces are not counted, packets are, and none is lost.
counted() { oc "$1" peers --json | json 'd[0]["tx"], d[0]["rx"], sum(d[0]["drops"].values())'; }
agree() {
    python3 - "$(counted 1)" "$(counted 2)" <<'P'
import ast, sys
one, two = map(ast.literal_eval, sys.argv[1:])
sys.exit(not (one[0] == two[1] and two[0] == one[1] and one[2] == two[2] == 0))
P
}
wait_until 5 agree
say "underlay $1 of $2 bytes: n1 $(counted 1), n2 $(counted 2)"
