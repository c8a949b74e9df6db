#!/bin/bash
# Services: their tasks spread over the nodes, on a network, with addresses; scaled, global, updated, rolled
# back; and what becomes of them when their node is lost or comes back, and when the agent does.
#
#   n1 (manager) === n2 === n3
. "$(dirname "$0")/lib.sh"

cluster 3
oc 1 network create blue --subnet 10.9.0.0/24 >"$WORK/create.out"

# running SERVICE: the nodes of its tasks that run, in order
running() { oc 1 service ps "$1" --json | json '" ".join(sorted(t["node"] for t in d if t["current"] == "running" and t["desired"] == "running"))'; }
is_running() { [ "$(running "$1")" = "$2" ]; }
replicas() { oc 1 service ls --json | json '[(s["running"], s["wanted"]) for s in d if s["name"] == "'"$1"'"][0]'; }

oc 1 service create --name web --replicas 3 --network blue -- sleep 1000 >"$WORK/web.out" 2>"$WORK/web.err"
assert_match "$(cat "$WORK/web.out")" '^[0-9a-z]{25}$' "what create prints"
assert_match "$(tail -n 1 "$WORK/web.err")" '^3 of 3 tasks run$' "what create says"
assert_eq "$(running web)" "n1 n2 n3" "where the tasks run"
assert_eq "$(replicas web)" "(3, 3)" "what ls says"
addresses=$(oc 1 service ps web --json | json '" ".join(t["addresses"]["blue"][0] for t in d)')
assert_eq "$(wc -w <<<"$addresses")" 3 "addresses of the tasks"
container 1 c1 blue
for addr in $addresses; do ping_from c1 "$addr"; done
say "three tasks on three nodes answer at $addresses"

oc 1 service scale web=5 >"$WORK/scale.out" 2>"$WORK/scale.err"
assert_eq "$(running web | wc -w)" 5 "tasks after scaling up"
oc 1 service scale web=2 >"$WORK/scale.out" 2>"$WORK/scale.err"
assert_eq "$(running web | wc -w)" 2 "tasks after scaling down"
assert_eq "$(oc 1 endpoint ls --network blue --all --json | json 'len(d)')" 3 "endpoints: two tasks and a container"

oc 1 service create --name agent --mode global -- sleep 1000 >"$WORK/agent.out" 2>"$WORK/agent.err"
assert_eq "$(running agent)" "n1 n2 n3" "where the global one runs"
oc 1 node update n2 --availability drain >"$WORK/drain.out"
wait_until 5 is_running agent "n1 n3"
oc 1 node update n2 --availability active >"$WORK/drain.out"
wait_until 5 is_running agent "n1 n2 n3"
say "a global service leaves a drained node, and comes back"

# A definition that is wrong is refused whole, and one that does not run says why.
refused 1 "create service A_: the name A_ is no label of DNS; .*; 1000000 replicas are too many; the cluster takes 262144 tasks" \
    oc 1 service create --name A_ --replicas 1000000 -- true
refused 1 "create service web: the name web is taken by service [0-9a-z]*; choose another" oc 1 service create --name web -- true
status=0
oc 1 service create --name bad --restart-condition none -- no-such-program >"$WORK/bad.out" 2>"$WORK/bad.err" || status=$?
assert_eq "$status" 1 "exit code of a service that does not come to run"
assert_match "$(tail -n 1 "$WORK/bad.err")" "^overlayctl: create service bad: a task command no-such-program is not found on this node; the service stays: see 'overlayctl service ps bad'\$" "what create says"
oc 1 service rm bad >"$WORK/rm.out"

# An agent that is killed leaves its tasks as they are, and the next one finds them.
before=$(oc 1 task ls --json | json 'sorted((t["id"], t["current"]) for t in d if t["desired"] == "running")')
kill -KILL "$(cat "$WORK/n3/pid")"
wait_until 5 gone "$(cat "$WORK/n3/pid")"
start 3
wait_until 10 connected 3
same() { [ "$(oc 1 task ls --json | json 'sorted((t["id"], t["current"]) for t in d if t["desired"] == "running")')" = "$before" ]; }
wait_until 5 same
say "an agent that was killed left its tasks running"

# A node that is lost: its tasks run elsewhere.
oc 1 service scale web=6 >"$WORK/scale.out" 2>"$WORK/scale.err"
lost=$(running web | tr ' ' '\n' | grep -c n3)
[ "$lost" = 2 ] || die "n3 has $lost tasks of web"
kill -KILL "$(cat "$WORK/n3/pid")"
for folder in "$WORK"/n3/state/tasks/*; do pkill -KILL -f "overlayd task run $folder\$"; done
begun=$(date +%s%3N)
elsewhere() { [ "$(running web | tr ' ' '\n' | grep -cv n3)" = 6 ]; }
wait_until 18 elsewhere
say "tasks of a node that was lost run elsewhere after $(($(date +%s%3N) - begun)) ms"

# It comes back, with nothing of what was superseded.
start 3
ready() { [ "$(oc 1 node ls --json | json '[n["status"] for n in d if n["name"] == "n3"][0]')" = ready ]; }
wait_until 10 ready
wait_until 5 is_running agent "n1 n2 n3"
assert_eq "$(oc 1 task ls --json | json 'len([t for t in d if t["node"] == "n3" and t["current"] == "running" and t["name"] != "agent"])')" 0 "tasks of web on n3"

# An update whose version fails goes back by itself.
oc 1 service update web --update-failure-action rollback --update-parallelism 0 >"$WORK/update.out" 2>"$WORK/update.err"
status=0
oc 1 service update web -- sh -c 'exit 3' >"$WORK/update.out" 2>"$WORK/update.err" || status=$?
assert_eq "$status" 1 "exit code of an update that fails"
six() { [ "$(running web | wc -w)" = 6 ]; }
wait_until 10 six
assert_eq "$(oc 1 service inspect web --json | json 'd["spec"]["task"]["command"][0], d["update"]["state"]')" "('sleep', 'rollback_completed')" "the service after it"
say "an update that failed was rolled back"

oc 1 service rm web agent >"$WORK/rm.out"
none() { [ "$(oc 1 task ls --json)" = "[]" ]; }
wait_until 10 none
assert_eq "$(oc 1 endpoint ls --network blue --all --json | json '[e["name"] for e in d]')" "['c1']" "endpoints that are left"
empty() { [ -z "$(ls "$WORK/n$1/state/tasks" 2>/dev/null)" ]; }
for n in 1 2 3; do wait_until 5 empty $n; done
say "nothing is left of services that were removed"
