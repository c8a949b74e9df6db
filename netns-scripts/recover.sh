#!/bin/bash
# A backup brings the cluster back when its manager's disk is lost: what was made after it and lives in a
# container is taken in again before any address is handed out, and traffic never stops. A forced new
# cluster keeps its data. Leaving takes everything away, and a node that left may join again.
#
#   c1, c3 --- n2 ===underlay=== n3 --- c2        network blue; n1 is the manager
. "$(dirname "$0")/lib.sh"

cluster 3
oc 1 network create blue --subnet 10.9.0.0/24 >"$WORK/create.out"
container 2 c1 blue
container 3 c2 blue
talk c1 c2
has() { [ "$(oc 1 endpoint ls --all --json | json "sum(e['name'] == '$1' for e in d)")" = 1 ]; }
has_not() { ! has "$1"; }

echo "correct horse" >"$WORK/passphrase"
oc 1 backup "$WORK/backup" --passphrase-file "$WORK/passphrase" >"$WORK/backup.out"
[ "$(stat -c %a "$WORK/backup")" = 600 ] || die "others may read the backup"
refused 1 "the file is there already" oc 1 backup "$WORK/backup"
refused 1 "this node is a worker; run this on the manager at 192.0.2.1:2377" oc 2 backup "$WORK/other"

# After the backup: c3 is made, c1's token is as it was, and the manager's disk is lost.
container 2 c3 blue
c3=$(address c3 4)
manager=$(pgrep -f "$WORK/n1/state")
kill -KILL "$manager"
wait_until 5 gone "$manager"
rm -rf "$WORK/n1/state"
moved
in_n1() { in_ns n1 "$BIN/overlayd" --state-dir "$WORK/n1/state" --socket "$WORK/other" --log error "$@"; }
refused 1 "is sealed; give its passphrase" in_n1 --restore "$WORK/backup"
echo wrong >"$WORK/wrong"
refused 1 "the passphrase does not open it" in_n1 --restore "$WORK/backup" --passphrase-file "$WORK/wrong"
head -c 100 "$WORK/backup" >"$WORK/cut"
refused 1 "does not open it, or it is cut" in_n1 --restore "$WORK/cut" --passphrase-file "$WORK/passphrase"
start 1 --restore "$WORK/backup" --passphrase-file "$WORK/passphrase"
manager=$PID
for n in 1 2 3; do wait_until 20 connected $n; done
container 3 c4 blue
wait_until 5 has c3
[ "$(address c4 4)" != "$c3" ] || die "an address was handed out twice"
moved
ping_from c4 "$c3"
end "$manager"
refused 1 "holds a member|is there already" in_n1 --restore "$WORK/backup" --passphrase-file "$WORK/passphrase"
start 1
manager=$PID
for n in 1 2 3; do wait_until 20 connected $n; done
say "restored: $c3, made after the backup, was taken in again; c4 got $(address c4 4)"

oc 1 init --force-new-cluster >"$WORK/force.out"
for n in 1 2 3; do wait_until 20 connected $n; done
for name in c1 c2 c3 c4; do has $name || die "$name is lost"; done
moved
refused 1 "this node is a worker" oc 2 init --force-new-cluster
say "a forced new cluster keeps its data"

refused 1 "node n1 is the only manager; end the cluster with 'overlayctl leave --force' there" oc 1 leave
oc 2 leave >"$WORK/leave.out"
assert_eq "$(ip_in c1 -o link show | grep -vc ' lo:')" 0 "interfaces of c1 after its node left"
wait_until 5 has_not c1
assert_eq "$(oc 1 node ls --json | json "sum(n['name'] == 'n2' for n in d)")" 0 "n2 among the nodes"
refused 1 "this node is not a member of a cluster; there is nothing to leave" oc 2 leave
join 2 >"$WORK/join.out"
oc 2 attach "netns:$(full c1)" --network blue --name c1 >"$WORK/attach.out"
ping_from c1 "$(address c2 4)"
# Where the manager is away a worker may still leave; it says what is to be done.
end "$manager"
oc 3 leave >"$WORK/leave.out" 2>"$WORK/leave.err"
assert_match "$(cat "$WORK/leave.err")" "run 'overlayctl node rm n3' on a manager" "what leave says"
start 1
wait_until 20 connected 1
oc 1 leave --force >"$WORK/leave.out"
[ ! -e "$WORK/n1/state/manager" ] || die "the manager's log is still there"
oc 1 init --name n1 >"$WORK/init.out"
say "nodes leave and come back"
