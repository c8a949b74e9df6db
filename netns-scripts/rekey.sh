#!/bin/bash
# At least 10^5 numbered datagrams at half of what the path carries, over at least 20 renewals of the
# keys: no gap, no duplicate.
#
#   c1 --- n1 ===underlay=== n2 --- c2        --rekey-interval 1s on both nodes
. "$(dirname "$0")/lib.sh"

tool numbered
cluster 2 ipv4 --rekey-interval 1s
oc 1 network create blue >"$WORK/create.out"
container 1 c1 blue
container 2 c2 blue
addr=$(address c2 4)
ping_from c1 "$addr"

# half of what arrives of a flood, the least of three
rate=1000000000
for _ in 1 2 3; do
    serve c2 "$WORK/flood.out" "$TOOL" receive "$addr" 5003
    in_ns c1 "$TOOL" send "$addr" 5003 0 1 >"$WORK/flooded.out"
    end "$PID"
    half=$(($(field flood per_second) / 2))
    [ $half -ge $rate ] || rate=$half
done
[ "$rate" -gt 0 ] || die "nothing of the flood arrived: $(cat "$WORK/flood.out")"
# The numbers of a minute must fit the receiver's map.
[ "$rate" -le 1000000 ] || rate=1000000
seconds=$((100000 / rate + 26))
say "sending $rate datagrams/s for up to $seconds s"

renewals=0 before=0
serve c2 "$WORK/receive.out" "$TOOL" receive "$addr" 5004
receiver=$PID
background c1 "$WORK/send.out" "$TOOL" send "$addr" 5004 "$rate" "$seconds"
sender=$PID
until gone "$sender"; do
    age=$(oc 1 peers --json | json 'int(1000 * (d[0]["key_age_s"] or 0))')
    [ "$age" -ge "$before" ] || renewals=$((renewals + 1))
    before=$age
done
kill "$receiver"
wait_until 20 gone "$receiver"
say "$(cat "$WORK/send.out"); $(cat "$WORK/receive.out"); $renewals renewals"

[ $renewals -ge 20 ] || die "only $renewals renewals were seen"
[ "$(field send sent)" -ge 100000 ] || die "only $(field send sent) datagrams were sent"
lost=$(($(field send sent) - $(field receive received) + $(field receive duplicates) - $(field receive overflow)))
assert_eq "$lost" 0 "datagrams lost on the way (n1: $(ip_in c1 -s link show eth0 | tr -s ' \n' ' '))"
assert_eq "$(field receive duplicates)" 0 "duplicates"
