#!/bin/bash
# A 32-byte mark in every TCP, UDP and ICMP payload is never seen on the underlay, from before the
# daemons start until they have ended; nor is the join token. The same check finds every mark on a
# plain kernel VXLAN beside: it can fail.
#
#   c1 --- n1 ===underlay=== n2 --- c2        sealed
#   k1 --- n1                n2 --- k2        vxlan0 in n1 and n2, moved into k1 and k2
. "$(dirname "$0")/lib.sh"

tcp_mark=overlay-mark-in-every-tcp-bytes1
dgram_mark=overlay-mark-in-udp-and-in-icmp2

# speak FROM TO ADDRESS: TCP, UDP and ICMP payloads made of the marks
speak() {
    transfer "$1" "$2" "$3" 3000000 $tcp_mark
    serve "$2" "$WORK/echo.out" python3 "$TOOLS/net.py" udp-echo "$3" 5002
    net "$1" mark "$3" 5002 $dgram_mark
    end "$PID"
}
found() { net n1 pcap-find "$WORK/$1.pcap" "$2"; }

underlay 2
capture n1 u0 "$WORK/control.pcap"
capture=$PID
for n in 1 2; do
    netns k$n
    ip_in n$n link add vxlan0 type vxlan id 42 dstport 4789 local 192.0.2.$n remote 192.0.2.$((3 - n)) dev u0
    ip_in n$n link set vxlan0 netns "$(full k$n)"
    ip_in k$n addr add 10.8.0.$n/24 dev vxlan0
    ip_in k$n link set vxlan0 up
done
speak k1 k2 10.8.0.2
end_capture "$capture" "$WORK/control.pcap"
[ "$(found control $tcp_mark)" -gt 10 ] || die "the check does not see TCP in clear"
[ "$(found control $dgram_mark)" -ge 4 ] || die "the check does not see UDP and ICMP in clear"

capture n1 u0 "$WORK/sealed.pcap"
capture=$PID
start 1
daemons=$PID
start 2
daemons="$daemons $PID"
oc 1 init --name n1 >"$WORK/init.out"
token=$(oc 1 join-token worker -q)
join 2 >"$WORK/join.out"
oc 1 network create blue >"$WORK/create.out"
container 1 c1 blue
container 2 c2 blue
speak c1 c2 "$(address c2 4)"
speak c2 c1 "$(address c1 4)"
for pid in $daemons; do end "$pid"; done
end_capture "$capture" "$WORK/sealed.pcap"
[ "$(stat -c %s "$WORK/sealed.pcap")" -gt 6000000 ] || die "the capture misses the traffic"
for mark in $tcp_mark $dgram_mark "${token##*-}"; do
    assert_eq "$(found sealed "$mark")" 0 "packets in clear with $mark"
done
