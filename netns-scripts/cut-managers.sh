#!/bin/bash
# Three managers, each with agents of its own. One that follows is cut off: it decides nothing, its agents
# go to another one and stay ready. Then the one that leads is cut off: the others go on, and it comes back
# as one of them. Traffic never stops.
#
#   c1 --- n4 ===underlay=== n5 --- c2        network blue; n1, n2, n3 are managers
. "$(dirname "$0")/lib.sh"

underlay 5
for n in 1 2 3 4 5; do start $n; done
oc 1 init --name n1 >"$WORK/init.out"
token=$(oc 1 join-token manager -q)
for n in 2 3; do oc $n join --token "$token" 192.0.2.1:2377 --name n$n >"$WORK/join.out"; done
for n in 1 2 3; do wait_until 10 all_decide $n 3; done
token=$(oc 1 join-token worker -q)
oc 4 join --token "$token" 192.0.2.2:2377 --name n4 >"$WORK/join.out"
oc 5 join --token "$token" 192.0.2.3:2377 --name n5 >"$WORK/join.out"

# to NODE: which manager it is connected to
to() { oc "$1" info --json | json 'd["manager"]["address"] if d["manager"]["connected"] else None'; }
is_to() { [ "$(to "$1")" = "192.0.2.$2:2377" ]; }
is_not_to() { [ "$(to "$1")" != None ] && ! is_to "$1" "$2"; }
standing() { oc "$1" node ls --json | json '[n["status"] for n in d if n["name"] == "'"$2"'"][0]'; }
is_standing() { [ "$(standing "$1" "$2")" = "$3" ]; }
assert_eq "$(to 4) $(to 5)" "192.0.2.2:2377 192.0.2.3:2377" "where the workers are connected"
oc 2 network create blue --subnet 10.9.0.0/24 >"$WORK/create.out"
container 4 c1 blue
container 5 c2 blue
talk c1 c2

# One that follows.
leader=$(leads 1 | tr -d n)
cut=$((leader == 2 ? 3 : 2))
worker=$((cut + 2))
ip_in net link set "n$cut" down
wait_until 8 is_not_to $worker $cut
moved
refused 1 "(no manager leads now|is not reachable)" oc $cut network create alone
wait_until 8 is_standing "$leader" "n$cut" down
assert_eq "$(standing "$leader" n$worker)" ready "the worker whose manager was cut off"
oc "$leader" network create without >"$WORK/create.out"
moved
ip_in net link set "n$cut" up
wait_until 10 all_decide $cut 3
oc $cut network inspect without >"$WORK/inspect.out"

# The one that leads, with all that is connected to it.
for n in 4 5; do wait_until 10 connected $n; done
leader=$(leads 1 | tr -d n)
other=$((leader % 3 + 1))
ip_in net link set "n$leader" down
moved
wait_until 5 oc $other network create "after-the-cut"
refused 1 "(no manager leads now|is not reachable)" oc "$leader" network create alone
oc "$leader" node ls --stale >"$WORK/stale.out"
for n in 4 5; do wait_until 8 is_not_to $n "$leader"; done
for n in 4 5; do assert_eq "$(standing $other n$n)" ready "n$n after the leader was cut off"; done
moved
ip_in net link set "n$leader" up
wait_until 10 all_decide "$leader" 3
oc "$leader" network inspect after-the-cut >"$WORK/inspect.out"
refused 1 "there is no network 'alone'" oc "$leader" network inspect alone
for n in 1 2 3 4 5; do wait_until 10 connected $n; done
ping_from c1 "$(address c2 4)"
moved
say "a follower and the leader were cut off; no pause of the traffic above $LONGEST_MS ms"
