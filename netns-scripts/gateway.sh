#!/bin/bash
# The gateway of a network answers ping; it says at once that nobody has an address, and that a
# packet is too big for the path; TCP's MSS is clamped to the path.
#
#   c1 --- n1 ===underlay=== n2 --- c2        n1 has MTU 1500, n2 only 1400:
#   MTU 1436   1500       1400                the path carries 1400 - 64 = 1336 bytes inside
. "$(dirname "$0")/lib.sh"

underlay 2
ip_in n2 link set u0 mtu 1400
start 1
start 2
oc 1 init --name n1 >"$WORK/init.out"
join 2 >"$WORK/join.out"
oc 1 network create blue --subnet 10.9.0.0/24 --subnet fd09::/64 --gateway 10.9.0.1 --gateway fd09::1 --mtu 1436 >"$WORK/create.out"
container 1 c1 blue
container 2 c2 blue
assert_eq "$(mtu c1)" 1436 "the MTU of c1"

for gateway in 10.9.0.1 fd09::1; do
    ping_from c1 $gateway
    ping_from c2 $gateway
done

for nobody in 10.9.0.200 fd09::200; do
    start=$(date +%s%N)
    in_ns c1 ping -n -c 1 -W 10 $nobody >"$WORK/ping.out" && die "$nobody answers"
    took_ms=$((($(date +%s%N) - start) / 1000000))
    assert_match "$(cat "$WORK/ping.out")" "nreachable" "ping of $nobody"
    [ $took_ms -lt 1000 ] || die "$nobody was unreachable only after $took_ms ms"
    say "$nobody: unreachable after $took_ms ms"
done

# 1336 bytes pass, 1337 do not; ping's size is without the 28 or 48 bytes of headers
b4=$(address c2 4) b6=$(address c2 6)
ping_from c1 -M "do" -s 1308 "$b4"
ping_from c1 -M "do" -s 1288 "$b6"
in_ns c1 ping -n -c 1 -W 3 -M "do" -s 1309 "$b4" >"$WORK/ping.out" 2>&1 && die "1337 bytes pass over IPv4"
assert_match "$(cat "$WORK/ping.out")" "mtu ?= ?1336" "too big over IPv4"
in_ns c1 ping -n -c 1 -W 3 -M "do" -s 1289 "$b6" >"$WORK/ping.out" 2>&1 && die "1337 bytes pass over IPv6"
assert_match "$(cat "$WORK/ping.out")" "mtu ?[=:] ?1336" "too big over IPv6"

# What the path taught c1 must not be what keeps its TCP small.
in_ns c1 ip route flush cache
in_ns c1 ip -6 route flush cache
capture c2 eth0 "$WORK/syn.pcap" 128
capture=$PID
transfer c1 c2 "$b4" 5000000
transfer c1 c2 "$b6" 5000000
end_capture "$capture" "$WORK/syn.pcap"
# What c1 sent was clamped on its way to c2.
for source in "$(address c1 4)" "$(address c1 6)"; do
    segments=$(net c2 pcap-mss "$WORK/syn.pcap" "$source")
    say "MSS that $source asks for, seen at c2: $segments"
    assert_match "$segments" "^(1296|1276)$" "the clamped MSS"
done
