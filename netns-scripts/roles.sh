#!/bin/bash
# Nodes are promoted and demoted, 1 -> 3 -> 5 -> 7 -> 1 managers and as often as told, while one client writes
# all the time and two containers talk: nothing acknowledged is lost, and traffic never stops. Then what
# does not go as it should: a node that is down, an address that is taken, a manager that was demoted while
# it was away, the only one.
#
#   roles.sh [ROUNDS]
#
#   c1 --- n6 ===underlay=== n7 --- c2        network blue; n1 is a manager all the time
. "$(dirname "$0")/lib.sh"

rounds=${1:-1}
cluster 7
oc 1 network create blue --subnet 10.9.0.0/16 >"$WORK/create.out"
container 6 c1 blue
container 7 c2 blue
talk c1 c2
write_on 2 blue
writer=$PID

only_n1_decides() { all_decide 1 1 && [ "$(statuses 1)" = leader ]; }
for round in $(seq "$rounds"); do
    for pair in "2 3" "4 5" "6 7"; do
        read -r first second <<<"$pair"
        oc 1 node promote "n$first" "n$second" >"$WORK/promote.out"
        assert_eq "$(cat "$WORK/promote.out")" "Node n$first is a manager.
Node n$second is a manager." "what promote says"
        wait_until 10 all_decide 1 "$second"
        # They take commands at once, and know of the others.
        wait_until 10 oc "$second" node inspect self
        all_decide "$second" "$second" || die "n$second says: $(statuses "$second")"
        moved
    done
    for n in 7 6 5 4 3 2; do
        oc 1 node demote "n$n" >"$WORK/demote.out"
        assert_eq "$(cat "$WORK/demote.out")" "Node n$n is a worker." "what demote says"
        moved
    done
    wait_until 10 only_n1_decides
    for n in $(seq 2 7); do
        wait_until 10 test ! -e "$WORK/n$n/state/manager"
        refused 1 "this node is a worker; run this on the manager at 192.0.2.[1-7]:2377" oc "$n" node ls
    done
done
end_writer "$writer"
assert_eq "$(json 'd["lost"], d["twice"]' <<<"$WROTE")" "([], [])" "what the writer finds"
assert_eq "$(json 'd["failed"]' <<<"$WROTE")" 0 "commands that failed on the manager that stayed"
say "$rounds times 1 to 7 managers and back: $WROTE"

refused 1 "node n1 is the only manager; promote another node first" oc 1 node demote n1
refused 1 "there is no node 'n9'; 'overlayctl node ls' lists them" oc 1 node promote n9

# A node that is down is told when it comes back.
kill -KILL "$(cat "$WORK/n3/pid")"
wait_until 5 gone "$(cat "$WORK/n3/pid")"
oc 1 node promote n3 2>"$WORK/promote.err" >"$WORK/promote.out"
assert_match "$(cat "$WORK/promote.err")" "warning: node n3 does not decide as it should yet" "what promote says"
start 3
wait_until 15 all_decide 1 2

# Where something else has the address it says so, and tries again.
serve n4 "$WORK/taken.out" python3 -c 'import socket, time
taken = socket.create_server(("0.0.0.0", 2377)); print("ready", flush=True); time.sleep(600)'
taken=$PID
oc 1 node promote n4 2>"$WORK/promote.err" >"$WORK/promote.out"
assert_match "$(cat "$WORK/promote.err")" "warning: node n4 does not decide as it should yet" "what promote says"
wait_until 5 grep -q "this node's manager does not start.*Address already in use" "$WORK/n4/log"
end "$taken"
wait_until 20 all_decide 1 3

# The leader demotes itself, and another one leads.
leader=$(leads 1 | tr -d n)
oc "$leader" node demote self >"$WORK/demote.out"
left=$(echo 1 3 4 | tr -d "$leader"); read -r first second <<<"$left"
wait_until 10 all_decide "$first" 2
wait_until 10 all_decide "$second" 2
oc "$first" node promote "n$leader" >"$WORK/promote.out"
wait_until 10 all_decide "$first" 3
moved

# One that is demoted while it is away goes on as a worker.
leader=$(leads 1 | tr -d n)
away=$((leader == 3 ? 4 : 3))
kill -KILL "$(cat "$WORK/n$away/pid")"
wait_until 5 gone "$(cat "$WORK/n$away/pid")"
wait_until 10 is_status "$leader" "n$away" unreachable
oc "$leader" node demote "n$away" >"$WORK/demote.out"
wait_until 10 all_decide "$leader" 2
start "$away"
wait_until 10 test ! -e "$WORK/n$away/state/manager"
refused 1 "this node is a worker" oc "$away" node ls
kill -KILL "$(cat "$WORK/n$away/pid")"
wait_until 5 gone "$(cat "$WORK/n$away/pid")"
start "$away"
wait_until 10 connected "$away"
refused 1 "this node is a worker" oc "$away" node ls

# Of two, one that is down cannot be done without.
other=$(echo 1 3 4 | tr -d "$leader$away"); other=$(echo $other)
kill -KILL "$(cat "$WORK/n$other/pid")"
wait_until 5 gone "$(cat "$WORK/n$other/pid")"
refused 1 "no manager leads now" oc "$leader" node demote "n$other"
start "$other"
wait_until 15 all_decide "$leader" 2
oc 1 network create last >"$WORK/create.out"
all_decide "$leader" 2 || die "what was refused is done nevertheless"
moved
say "no pause of the traffic above $LONGEST_MS ms"
