#!/bin/bash
# The manager is killed with -9 and started again under a writer: nothing that was acknowledged is lost,
# no address is held twice, and traffic between containers never stops, nor while there is no manager.
#
#   manager-restart.sh [ROUNDS]
#
#   c1 --- n2 ===underlay=== n3 --- c2        network blue; n1 is the manager
. "$(dirname "$0")/lib.sh"

rounds=${1:-3}
cluster 3
oc 1 network create blue --subnet 10.9.0.0/24 >"$WORK/create.out"
container 2 c1 blue
container 3 c2 blue
talk c1 c2
write_on 2 blue
writer=$PID
manager=$(pgrep -f "$WORK/n1/state")
for round in $(seq "$rounds"); do
    moved
    kill -KILL "$manager"
    wait_until 5 gone "$manager"
    moved
    start 1
    manager=$PID
    moved
    for n in 1 2 3; do wait_until 10 connected $n; done
done
end_writer "$writer"
assert_match "$WROTE" '"lost": \[\], "twice": \[\]' "what the writer found"
say "$rounds kills of the manager: $WROTE; no pause of the traffic above $LONGEST_MS ms"

# A new container gets an address that nobody has, after all of this.
container 3 last blue
ping_from c1 "$(address last 4)"

# Two daemons with one state folder, and a damaged log: one sentence each.
refused 1 "state folder .* is in use by overlayd, process $manager" in_ns n1 "$BIN/overlayd" --state-dir "$WORK/n1/state" --socket "$WORK/other"
end "$manager"
log=$(find "$WORK/n1/state" -name log.redb)
[ "$(stat -c %a "$log")" = 600 ] || die "others may read the log"
cp "$log" "$WORK/log.redb"
truncate -s 5000 "$log"
refused 1 "log.redb.*restore a backup" in_ns n1 "$BIN/overlayd" --state-dir "$WORK/n1/state" --socket "$WORK/other" --log error
cp "$WORK/log.redb" "$log"
start 1
wait_until 10 connected 3
oc 1 network inspect blue >"$WORK/inspect.out"
say "a damaged log is named, and the whole one opens again"
