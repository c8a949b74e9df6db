#!/bin/bash
# A container that floods does not stop another's ping: both on one worker, a flood of 64-byte datagrams,
# then one of TCP as fast as it goes; of 1,000 pings to another peer 99 in 100 come back within 5 ms, or
# the time given; and no daemon holds more than 64 MiB.
#
#   fair.sh [P99_US]
#
#   flooder --+               +--- n2 --- peer
#             n1 ===underlay==+                      --workers 1 on all nodes
#   pinger  --+               +--- n3 --- other
. "$(dirname "$0")/lib.sh"

most=${1:-5000}

cluster 3 ipv4 --workers 1
oc 1 network create blue >"$WORK/create.out"
container 1 flooder blue
container 1 pinger blue
container 2 peer blue
container 3 other blue
addr=$(address peer 4) other=$(address other 4)
ping_from pinger "$other"

# p99 FILE: the 990th of 1,000 round trips, in microseconds; one that never came back is a second
p99() {
    python3 - "$1" <<'P'
import re, sys
times = [float(ms) for ms in re.findall(r"time=([0-9.]+) ms", open(sys.argv[1]).read())]
times = sorted(times + [1000.0] * (1000 - len(times)))
print(round(times[989] * 1000))
P
}

# pings NAME: beside it
pings() {
    local worst
    in_ns pinger ping -n -c 1000 -i 0.005 -W 1 "$other" >"$WORK/$1.out" || die "ping beside $1: $(tail -n 3 "$WORK/$1.out")"
    worst=$(p99 "$WORK/$1.out")
    say "beside $1: p99 $worst us; $(tail -n 1 "$WORK/$1.out")"
    [ "$worst" -le "$most" ] || die "beside $1: p99 of 1,000 pings is $worst us, at most $most"
}
sent() { ip_in flooder -j -s link show eth0 | json 'd[0]["stats64"]["tx"]["packets"]'; }
flooding() { [ "$(sent)" -gt "$1" ]; }
# beside NAME PID: what floods goes on, and is ended after the pings
beside() {
    wait_until 10 flooding $(($(sent) + 10000))
    pings "$1"
    kill -0 "$2" || die "the flood of $1 ended before the pings"
    end "$2"
}

pings nothing

cc -O2 -DSIZE=64 -o "$WORK/small" "$TOOLS/numbered.c"
serve peer "$WORK/receive.out" "$WORK/small" receive "$addr" 5003
background flooder "$WORK/small.out" "$WORK/small" send "$addr" 5003 0 600
beside "64-byte datagrams" "$PID"

serve peer "$WORK/serve.out" python3 "$TOOLS/net.py" tcp-serve "$addr" 5001
background flooder "$WORK/tcp.out" python3 "$TOOLS/net.py" tcp-send "$addr" 5001 1000000000000 flood
beside "TCP" "$PID"

# Nobody has held more of the floods than its buffers, which are there once.
for number in 1 2 3; do
    peak=$(awk '$1 == "VmHWM:" { print int($2 / 1024) }' "/proc/$(cat "$WORK/n$number/pid")/status")
    say "n$number held at most $peak MiB"
    [ "$peak" -le 64 ] || die "n$number held $peak MiB"
done
