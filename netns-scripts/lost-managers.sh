#!/bin/bash
# Two of three managers are lost with their disks: the third goes on alone, in a new epoch, with all that
# was decided; containers never notice, and other managers can join it.
#
#   c1 --- n4 ===underlay=== n5 --- c2        network blue; n1, n2, n3 are managers
. "$(dirname "$0")/lib.sh"

underlay 5
for n in 1 2 3 4 5; do start $n; done
oc 1 init --name n1 >"$WORK/init.out"
for n in 2 3; do oc $n join --token "$(oc 1 join-token manager -q)" "$(manager)" --name n$n >"$WORK/join.out"; done
for n in 4 5; do join $n >"$WORK/join.out"; done
deciding() { [ "$(oc "$1" node ls --json | json 'sorted(n["manager_status"] for n in d if n["manager_status"])')" = "$2" ]; }
wait_until 10 deciding 3 "['leader', 'reachable', 'reachable']"
oc 3 network create blue --subnet 10.9.0.0/24 >"$WORK/create.out"
container 4 c1 blue
container 5 c2 blue
talk c1 c2
refused 1 "2 other manager\(s\) decide with this one; use 'overlayctl leave' there" oc 3 init --force-new-cluster

for n in 1 2; do
    kill -KILL "$(cat "$WORK/n$n/pid")"
    wait_until 5 gone "$(cat "$WORK/n$n/pid")"
    rm -r "$WORK/n$n/state" "$WORK/n$n/sock"
done
moved
refused 1 "(no manager leads now|is not reachable)" oc 3 network create red
moved
oc 3 init --force-new-cluster >"$WORK/force.out"
assert_eq "$(oc 3 node ls --json | json 'sorted(n["name"] for n in d)')" "['n3', 'n4', 'n5']" "who is left"
for n in 3 4 5; do wait_until 40 connected $n; done
moved
oc 3 network inspect blue >"$WORK/inspect.out"
oc 3 network create red >"$WORK/create.out"
container 5 c3 blue
ping_from c1 "$(address c3 4)"
ping_from c2 "$(address c1 4)"
say "the last manager goes on alone; no pause of the traffic above $LONGEST_MS ms"

# A host that lost everything joins as a new one, and decides again.
manager() { echo "192.0.2.3:2377"; }
start 1
oc 1 join --token "$(oc 3 join-token manager -q)" "$(manager)" --name n1 >"$WORK/join.out"
wait_until 10 deciding 1 "['leader', 'reachable']"
oc 1 network create green >"$WORK/create.out"
say "another manager joins it"
