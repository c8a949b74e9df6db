#!/bin/bash
# Three managers: the one that leads is killed with -9, and the others go on: commands work on every
# node that is left, containers never lose a packet, and it comes back as one of them. Then one leaves.
#
#   managers.sh [ROUNDS]
#
#   c1 --- n4 ===underlay=== n5 --- c2        network blue; n1, n2, n3 are managers
. "$(dirname "$0")/lib.sh"

rounds=${1:-3}
underlay 5
for n in 1 2 3 4 5; do start $n; done
oc 1 init --name n1 >"$WORK/init.out"
token=$(oc 1 join-token manager -q)
for n in 2 3; do
    oc $n join --token "$token" "$(manager)" --name n$n >"$WORK/join.out"
    assert_match "$(cat "$WORK/join.out")" "as a manager, named n$n\.$" "what join says"
done
for n in 4 5; do join $n >"$WORK/join.out"; done

decide_together() { all_decide "$1" 3; }
for n in 1 2 3; do wait_until 10 decide_together $n; done

oc 2 network create blue --subnet 10.9.0.0/24 >"$WORK/create.out"
container 4 c1 blue
container 5 c2 blue
talk c1 c2
for round in $(seq "$rounds"); do
    leader=$(leads 2 | tr -d n)
    other=$((leader % 3 + 1))
    moved
    kill -KILL "$(cat "$WORK/n$leader/pid")"
    wait_until 5 gone "$(cat "$WORK/n$leader/pid")"
    moved
    # A node that was at it goes to the next one; what is asked there is done.
    wait_until 10 oc $other network create "round$round"
    wait_until 10 oc 4 endpoint ls
    wait_until 10 is_status $other "n$leader" unreachable
    moved
    start "$leader"
    wait_until 10 decide_together "$leader"
    wait_until 10 oc "$leader" network inspect "round$round"
    moved
done
say "$rounds kills of the leader; no pause of the traffic above $LONGEST_MS ms"

# One that stands still for a while is no different: what is asked of the others is done while nobody
# has heard that it is away, and when it goes on it decides nothing that it has no say in any more.
leader=$(leads 2 | tr -d n)
other=$((leader % 3 + 1))
kill -STOP "$(cat "$WORK/n$leader/pid")"
wait_until 10 oc $other network create stopped
wait_until 10 is_status $other "n$leader" unreachable
kill -CONT "$(cat "$WORK/n$leader/pid")"
for n in 1 2 3; do wait_until 10 decide_together $n; done
oc "$leader" network rm stopped >"$WORK/rm.out"
moved

# A container that starts now is known to all, whoever leads.
for n in 1 2 3 4 5; do wait_until 10 connected $n; done
container 3 c3 blue
ping_from c1 "$(address c3 4)"
ping_from c3 "$(address c2 4)"

# Without two of three nothing is decided, and that is said; traffic goes on.
leader=$(leads 1 | tr -d n)
others=$(echo 1 2 3 | tr -d "$leader")
for n in $others; do
    kill -KILL "$(cat "$WORK/n$n/pid")"
    wait_until 5 gone "$(cat "$WORK/n$n/pid")"
done
refused 1 "(no manager leads now|is not reachable)" oc "$leader" network create alone
moved
for n in $others; do start "$n"; done
for n in 1 2 3; do wait_until 20 decide_together $n; done

# One leaves, then another; the last one does not.
leaving=$(leads 1 | tr -d n)
oc "$leaving" leave >"$WORK/leave.out"
left=$(echo 1 2 3 | tr -d "$leaving"); left=${left## }
read -r first second <<<"$left"
has_left() { [ "$(oc "$1" node ls --json | json 'len(d)')" = "$2" ]; }
wait_until 10 has_left "$first" 4
wait_until 10 oc "$second" network create two
oc "$second" leave >"$WORK/leave.out"
wait_until 10 has_left "$first" 3
wait_until 10 oc "$first" network create one
refused 1 "node n$first is the only manager; end the cluster with 'overlayctl leave --force' there" oc "$first" leave
say "a manager leaves while the others can decide without it"
