#!/bin/bash
# A killed agent costs no connection. The agent of the sender, of the receiver and of both is killed
# with -9 and started again: the same TCP sockets go on, an idle one too; a one-way UDP flow is heard
# again within 3 s of the start; and a container that ended meanwhile leaves nothing.
#
#   restart.sh [ROUNDS]
#
#   c1 --- n2 ===underlay=== n3 --- c2        network blue; n1 is the manager
. "$(dirname "$0")/lib.sh"

rounds=${1:-2}
cluster 3
oc 1 network create blue --subnet 10.9.0.0/24 --subnet fd09::/64 >"$WORK/create.out"
container 2 c1 blue
container 3 c2 blue
b=$(address c2 4)
pid_of() { cat "$WORK/n$1/pid"; }
for n in 2 3; do end "$(pgrep -f "$WORK/n$n/state")"; start "$n"; echo "$PID" >"$WORK/n$n/pid"; done

talk c1 c2
serve c2 "$WORK/sink.out" python3 "$TOOLS/net.py" udp-count "$b" 5003 "$WORK/heard"
serve c1 "$WORK/idle.out" python3 "$TOOLS/net.py" tcp-talk "$b" 5001 1000 "$WORK/idle" "$WORK/wake"
background c1 "$WORK/flow.out" python3 "$TOOLS/net.py" udp-flow "$b" 5003 0.005

# restarted NODE...: killed together, started again together
restarted() {
    local n
    for n in "$@"; do kill -KILL "$(pid_of "$n")"; done
    for n in "$@"; do wait_until 5 gone "$(pid_of "$n")"; done
    for n in "$@"; do start "$n"; echo "$PID" >"$WORK/n$n/pid"; done
}
worst=0
for round in $(seq "$rounds"); do
    for nodes in "2" "3" "2 3"; do
        # shellcheck disable=SC2086 # one word a node
        restarted $nodes
        start_ms=$(date +%s%3N)
        heard=$(count "$WORK/heard") said=$(count "$WORK/said")
        wait_until 10 more_than "$WORK/heard" "$heard"
        took=$(($(date +%s%3N) - start_ms))
        [ $took -le 3000 ] || die "round $round: UDP was heard again only $took ms after the start of $nodes"
        [ $took -le $worst ] || worst=$took
        wait_until 10 more_than "$WORK/said" "$said"
        if [ "$nodes" = 2 ]; then
            # a second kill straight after the first
            restarted 2
            said=$(count "$WORK/said")
            wait_until 10 more_than "$WORK/said" "$said"
        fi
    done
done
idle=$(count "$WORK/idle")
touch "$WORK/wake"
wait_until 10 more_than "$WORK/idle" "$idle"
say "$rounds rounds: the busy connection made $(count "$WORK/said") exchanges, the idle one goes on; UDP heard again after at most $worst ms"

# The kernel holds a namespace while a connection of it that nobody owns any more says good-bye; so
# these end while there is an agent to carry that.
for pid in $(ip netns pids "$(full c1)"); do kill -KILL "$pid"; wait_until 5 gone "$pid"; done
closed() { [ -z "$(in_ns c1 ss -Htn state all exclude time-wait)" ]; }
wait_until 10 closed

# An interface keeps its name, MTU and addresses, and nobody but root of the host takes it meanwhile.
kill -KILL "$(pid_of 2)"
wait_until 5 gone "$(pid_of 2)"
assert_eq "$(address c1 4)" 10.9.0.2 "the address of c1 without its agent"
refused 1 "Operation not permitted" in_ns c1 python3 "$TOOLS/net.py" take-tun eth0 1000
refused 1 "Operation not permitted" in_ns c1 setpriv --bounding-set=-all --inh-caps=-all python3 "$TOOLS/net.py" take-tun eth0

# A device in the node that goes with the container's namespace shows when that is really gone.
witness() { ip_in "$1" link add w0 type veth peer name w1 netns "$(full "$2")"; }
no_witness() { ! ip_in "$1" link show w0; }
none_of() { [ "$(oc 1 endpoint ls --all --json | json "sum(e['name'] == '$1' for e in d)")" = 0 ]; }
# ended CONTAINER: its processes and its name
ended() {
    local pid
    for pid in $(ip netns pids "$(full "$1")"); do kill -KILL "$pid"; wait_until 5 gone "$pid"; done
    ip netns delete "$(full "$1")"
}

# The container of a dead agent ends: nothing of it is left when the agent is back.
witness n2 c1
ended c1
start 2
echo "$PID" >"$WORK/n2/pid"
wait_until 2 no_witness n2
wait_until 5 none_of c1

# A container that ends under an agent that took its interface over is gone within 2 s.
witness n3 c2
ended c2
wait_until 2 no_witness n3
wait_until 5 none_of c2
say "containers that ended are gone from the node and the cluster"
