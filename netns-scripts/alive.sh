#!/bin/bash
# A worker whose agent is killed, or whose link is cut, is down between 3 and 4 s after its last sign of
# life; a blip of 2 s of management, of data or of both takes nobody down; a removed node's packets are
# refused by all others at once.
#
#   alive.sh [ROUNDS]
#
#   c2 --- n2   n3 --- c3   n4      n1 is the manager
#           |    |          |        |
#           '====+==========+========'       network blue
. "$(dirname "$0")/lib.sh"

rounds=${1:-1}
cluster 4
oc 1 network create blue --subnet 10.9.0.0/24 >"$WORK/create.out"
container 2 c2 blue
container 3 c3 blue
status() { oc 1 node inspect "n$1" --json | json 'd["status"]'; }
is() { [ "$(status "$1")" = "$2" ]; }
downs() { grep -c "a node is down" "$WORK/n1/log" || true; }
# The manager's own measure, which is from the last sign of life that it had.
silent_ms() { grep "a node is down" "$WORK/n1/log" | tail -n 1 | sed 's/.*silent_ms=\([0-9]*\).*/\1/'; }
taken=""
# goes_down HOW: n2 was lost at START
goes_down() {
    local took silent
    wait_until 10 is 2 down
    took=$(($(date +%s%3N) - START)) silent=$(silent_ms)
    [ "$silent" -ge 3000 ] && [ "$silent" -le 4000 ] || die "$1: down $silent ms after the last sign of life"
    [ $took -le 4300 ] || die "$1: down only $took ms after it happened"
    taken="$taken $1:$silent/$took"
}
n2=$(pgrep -f "$WORK/n2/state")
wait_until 5 is 2 ready
for round in $(seq "$rounds"); do
    START=$(date +%s%3N)
    kill -KILL "$n2"
    goes_down "kill"
    start 2
    n2=$PID
    wait_until 10 is 2 ready

    START=$(date +%s%3N)
    ip_in net link set n2 down
    goes_down "cut"
    ip_in net link set n2 up
    wait_until 40 is 2 ready
done
say "silent ms at the manager / ms since it happened:$taken"

# drop N RULE...: on node N for two seconds
blip() {
    local n=$1; shift
    in_ns "n$n" nft -f - <<<"table inet blip { chain in { type filter hook input priority 0; $1 drop; }; chain out { type filter hook output priority 0; $1 drop; }; }"
    sleep 2
    in_ns "n$n" nft delete table inet blip
}
before=$(downs)
for round in $(seq "$rounds"); do
    blip 2 "meta l4proto tcp"
    blip 2 "meta l4proto udp"
    blip 2 "meta l4proto { tcp, udp }"
    # Its stream may have been given up; what counts is that it is never down meanwhile.
    connected() { [ "$(oc 2 info --json | json 'd["manager"]["connected"]')" = True ]; }
    wait_until 40 connected
done
assert_eq "$(downs)" "$before" "nodes down after blips"
is 2 ready || die "n2 is not ready"
say "$((3 * rounds)) blips of 2 s took nobody down"

# While the manager alone is cut off from it for long, others hear it: it stays ready.
in_ns n2 nft -f - <<<"table inet blip { chain out { type filter hook output priority 0; meta l4proto tcp drop; }; }"
lost() { [ "$(oc 1 node inspect n2 --json | json 'd["management_lost"]')" = True ]; }
wait_until 10 lost
is 2 ready || die "a node that others hear is down"
assert_match "$(oc 1 node inspect n2)" "management lost" "what inspect says"
in_ns n2 nft delete table inet blip
wait_until 40 connected
say "management lost is no death"

# A label and the availability are the operator's; a ready node is removed only by force.
oc 1 node update n2 --label-add disk=ssd --availability drain >"$WORK/update.out"
assert_eq "$(oc 1 node inspect n2 --json | json 'd["labels"]["disk"], d["availability"]')" "('ssd', 'drain')" "what was updated"
refused 1 "update node n2: node n2 has no label 'x'" oc 1 node update n2 --label-rm x
refused 1 "node n2 is ready; use 'overlayctl leave' there, or --force" oc 1 node rm n2
refused 1 "there is no node 'n9'" oc 1 node rm n9
ping_from c3 "$(address c2 4)"
background c2 "$WORK/flow.out" python3 "$TOOLS/net.py" udp-flow "$(address c3 4)" 5003 0.005
rx() { ip_in c3 -s -j link show eth0 | json 'd[0]["stats64"]["rx"]["packets"]'; }
flowing() { [ "$(rx)" -gt "$1" ]; }
wait_until 5 flowing "$(rx)"
START=$(date +%s%3N)
oc 1 node rm --force n2 >"$WORK/rm.out"
knows() { [ "$(oc 3 peers --json | json "sum(p['node'] == 'n2' for p in d)")" = 1 ]; }
knows_not() { ! knows; }
wait_until 2 knows_not
took=$(($(date +%s%3N) - START))
[ $took -le 1000 ] || die "n3 knew a removed node for $took ms"
delivered=$(rx)
refused_more() { [ "$(oc 3 stats --json | json 'd["drops"]["unknown_session"]')" -gt $(($1 + 20)) ]; }
wait_until 5 refused_more "$(oc 3 stats --json | json 'd["drops"]["unknown_session"]')"
assert_eq "$(rx)" "$delivered" "packets of a removed node that were delivered"
say "a removed node is refused after $took ms"
