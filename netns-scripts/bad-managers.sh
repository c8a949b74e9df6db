#!/bin/bash
# What goes wrong with one of several managers: its disk is full, its log is bent or gone, two have each
# other's folders, it was demoted while it was cut off and thinks that it leads, and many come at once.
# The others go on each time, it says what to do, and that helps.
#
#   n1, n2, n3 are managers; n4 to n7 come later
. "$(dirname "$0")/lib.sh"

underlay 7
disk=$WORK/n3/state
small_disk "$disk" 32m
for n in $(seq 7); do start "$n"; done
oc 1 init --name n1 >"$WORK/init.out"
token=$(oc 1 join-token manager -q)
for n in 2 3; do oc $n join --token "$token" 192.0.2.1:2377 --name n$n >"$WORK/join.out"; done
for n in 1 2 3; do wait_until 10 all_decide $n 3; done
kill_node() { kill -KILL "$(cat "$WORK/n$1/pid")"; wait_until 5 gone "$(cat "$WORK/n$1/pid")"; }
ended() { gone "$(cat "$WORK/n$1/pid")"; }
# does_not_start NODE PATTERN: overlayd ends with 1, and says what matches
does_not_start() {
    local status=0
    timeout 20 nsenter --net="/run/netns/$(full "n$1")" -- "$BIN/overlayd" --state-dir "$WORK/n$1/state" \
        --socket "$(socket "$1")" >"$WORK/n$1/log" 2>&1 || status=$?
    assert_eq "$status" 1 "exit code of overlayd on n$1"
    assert_match "$(tail -n 1 "$WORK/n$1/log")" "$2" "what overlayd on n$1 says"
    say "does not start, as it should be: $(tail -n 1 "$WORK/n$1/log")"
}

# A full disk.
dd if=/dev/zero of="$disk/filler" bs=4k status=none 2>"$WORK/dd.err" || true
for n in $(seq 400); do
    oc 1 network create "full$n" >"$WORK/create.out"
    grep -q "is stopped" "$WORK/n3/log" && break
done
assert_match "$(cat "$WORK/n3/log")" "the log $disk/manager/log.redb is stopped: .*; free space on that disk, then start overlayd again" "what n3 says of its full disk"
wait_until 10 connected 3
for other in 1 2; do oc 1 network create "while-full-$other" >"$WORK/create.out"; done
rm "$disk/filler"
kill_node 3
start 3
wait_until 10 all_decide 3 3
oc 3 network inspect while-full-2 >"$WORK/inspect.out"

# A bent bit, in many places: it is harmless or named, and the way that is named helps.
kill_node 3
python3 - "$disk/manager/log.redb" <<'END'
import sys
data = bytearray(open(sys.argv[1], "rb").read())
for at in range(4096, len(data), 512):
    data[at] ^= 1
open(sys.argv[1], "wb").write(data)
END
does_not_start 3 "the log $disk/manager/log.redb is damaged: .*; where other managers go on, demote this node there, remove $disk/manager and start overlayd; otherwise restore a backup with overlayd --restore"
wait_until 10 is_status 1 n3 unreachable
oc 1 node demote n3 >"$WORK/demote.out"
rm -r "$disk/manager"
start 3
wait_until 10 connected 3
refused 1 "this node is a worker" oc 3 node ls
oc 1 node promote n3 >"$WORK/promote.out"
wait_until 10 all_decide 3 3

# The log is gone, and nobody has demoted it: it does not decide, for it has forgotten what it said.
kill_node 3
rm -r "$disk/manager"
start 3
wait_until 5 grep -q "this node's manager has lost its log; demote it on another one, then promote it again" "$WORK/n3/log"
wait_until 10 connected 3
kill_node 3
start 3
wait_until 10 connected 3
test ! -e "$disk/manager" || die "a manager without its log came back as one"
oc 1 node demote n3 >"$WORK/demote.out"
wait_until 5 all_decide 1 2
oc 1 node promote n3 >"$WORK/promote.out"
wait_until 10 all_decide 3 3

# Two with each other's folders.
kill_node 2
kill_node 3
mv "$WORK/n2/state/manager" "$WORK/swap"
cp -r "$disk/manager" "$WORK/n2/state/manager"
rm -r "$disk/manager"
cp -r "$WORK/swap" "$disk/manager"
for n in 2 3; do does_not_start $n "is that of manager .*; put the state folders back as they were"; done
rm -r "$disk/manager"
cp -r "$WORK/n2/state/manager" "$disk/manager"
rm -r "$WORK/n2/state/manager"
mv "$WORK/swap" "$WORK/n2/state/manager"
for n in 2 3; do start $n; done
for n in 1 2 3; do wait_until 15 all_decide $n 3; done
say "a full disk, a bent log, a lost one and two that were swapped took nobody else with them"

# The one that leads is cut off and demoted meanwhile.
leader=$(leads 1 | tr -d n)
other=$((leader % 3 + 1))
ip_in net link set "n$leader" down
wait_until 10 is_status $other "n$leader" unreachable
oc $other node demote "n$leader" >"$WORK/demote.out"
wait_until 10 all_decide $other 2
refused 1 "(no manager leads now|is not reachable)" oc "$leader" network create thinks-it-leads
ip_in net link set "n$leader" up
wait_until 15 test ! -e "$WORK/n$leader/state/manager"
wait_until 10 connected "$leader"
refused 1 "this node is a worker" oc "$leader" node ls
refused 1 "there is no network 'thinks-it-leads'" oc $other network inspect thinks-it-leads

# Four come as managers at once.
token=$(oc $other join-token manager -q)
joins=()
for n in 4 5 6 7; do
    oc $n join --token "$token" "192.0.2.$other:2377" --name n$n >"$WORK/join$n.out" 2>&1 &
    joins+=($!)
done
for join in "${joins[@]}"; do wait "$join" || die "a join failed: $(cat "$WORK"/join?.out)"; done
for n in $other 4 5 6 7; do wait_until 20 all_decide $n 6; done
say "a leader that was demoted while it was cut off is a worker; four joined at once"
