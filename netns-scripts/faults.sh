#!/bin/bash
# What goes wrong on a node leaves nothing half done: SIGTERM or SIGKILL in the middle of attachments, a
# state folder emptied under a running agent, a namespace deleted under an endpoint, an address that
# nobody reaches.
#
#   e1 ... e6 --- n2 ===underlay=== n3 --- c3        network blue; n1 is the manager
. "$(dirname "$0")/lib.sh"

# As a shell gives them; the daemons take what the system permits.
ulimit -Sn 512
cluster 3
oc 1 network create blue --subnet 10.9.0.0/24 >"$WORK/create.out"
container 3 c3 blue
for n in 1 2 3 4 5 6; do netns e$n; done
agent=$(pgrep -f "$WORK/n2/state")
descriptors() { awk '/^Max open files/ { print ($4 == $5 && $4 > 512) }' "/proc/$1/limits"; }
assert_eq "$(descriptors "$agent")" 1 "the agent's limit of descriptors is the highest permitted"
# ended in the middle of six attachments: those that were answered stand, the others are wholly there or
# wholly gone
agree() {
    local n listed
    listed=$(oc 1 endpoint ls --all --json | json "' '.join(e['name'] for e in d)")
    for n in 1 2 3 4 5 6; do
        interface=$(ip_in e$n -o link show | grep -c ': eth0' || true)
        case " $listed " in *" e$n "*) endpoint=1 ;; *) endpoint=0 ;; esac
        [ "$interface" = "$endpoint" ] || return 1
        [ ! -e "$WORK/done.e$n" ] || [ "$interface" = 1 ] || return 1
    done
}
said=""
for signal in TERM KILL KILL; do
    rm -f "$WORK"/done.*
    for n in 1 2 3 4 5 6; do
        (oc 2 attach "netns:$(full e$n)" --network blue --name e$n >"$WORK/attach.$n" 2>&1 && touch "$WORK/done.e$n") &
    done
    # The first is there, the next are under way.
    until grep -q "attached endpoint" "$WORK/n2/log"; do :; done
    kill -$signal "$agent"
    wait_until 10 gone "$agent"
    start 2
    agent=$PID
    wait_until 20 connected 2
    wait_until 10 agree
    said="$said $(find "$WORK" -name 'done.*' | wc -l)"
    rm -f "$WORK"/done.*
    for n in 1 2 3 4 5 6; do oc 2 detach e$n >"$WORK/detach.out" 2>&1 || true; done
    wait_until 10 agree
done
say "attachments answered when SIGTERM, SIGKILL, SIGKILL came in their middle:$said of 6; all of them stand, none is half there"

oc 2 attach "netns:$(full e1)" --network blue --name e1 >"$WORK/attach.out"
ping_from e1 "$(address c3 4)"
# What is being written stands beside under another name for a moment.
kept() { find "$WORK/n2/state" -type f ! -name lock ! -name '*.new' -printf '%f\n' 2>/dev/null | sort; }
before=$(kept)
rm -rf "$WORK/n2/state"
ping_from e1 "$(address c3 4)"
mended() { [ "$(kept)" = "$before" ]; }
wait_until 20 mended
kill -KILL "$agent"
wait_until 10 gone "$agent"
start 2
agent=$PID
wait_until 20 connected 2
ping_from e1 "$(address c3 4)"
say "an emptied state folder is written again, and the node goes on after a kill"

has_not() { [ "$(oc 1 endpoint ls --all --json | json "sum(e['name'] == '$1' for e in d)")" = 0 ]; }
oc 2 attach "netns:$(full e2)" --network blue --name e2 >"$WORK/attach.out"
ip netns delete "$(full e2)"
sed -i "/-e2$/d" "$WORK/namespaces"
wait_until 5 has_not e2
say "a namespace deleted under its endpoint takes it along"

# A manager that hangs holds up nothing for long, and what was asked of it is not done by half.
manager=$(pgrep -f "$WORK/n1/state")
kill -STOP "$manager"
START=$SECONDS
refused 1 "the manager does not answer; see whether it runs" oc 2 attach "netns:$(full e3)" --network blue --name e3
[ $((SECONDS - START)) -le 14 ] || die "an attachment waited $((SECONDS - START)) s for a manager that hangs"
kill -CONT "$manager"
wait_until 40 connected 2
wait_until 10 has_not e3
assert_eq "$(ip_in e3 -o link show | grep -c ': eth0' || true)" 0 "interfaces of an attachment without an answer"
oc 2 attach "netns:$(full e3)" --network blue --name e3 >"$WORK/attach.out"
oc 2 detach e3 >"$WORK/detach.out"
say "a manager that hangs is told, and leaves nothing half done"

# n4 has an address that nobody reaches: the data port is shut.
netns n4
ip link add u0 netns "$(full n4)" mtu 1500 type veth peer name n4 netns "$(full net)" mtu 1500
ip_in net link set n4 master br0 up
ip_in n4 addr add 192.0.2.4/24 dev u0
ip_in n4 link set u0 up
in_ns n4 nft -f - <<<"table inet shut { chain in { type filter hook input priority 0; meta l4proto udp drop; }; }"
start 4
join 4 >"$WORK/join.out" 2>"$WORK/join.err"
assert_match "$(cat "$WORK/join.err")" "no other node reaches 192.0.2.4:7790; check --data-path-addr, and that firewalls let UDP port 7790 through" "what join says"
oc 4 leave >"$WORK/leave.out"
# A worker is no manager.
refused 1 "192.0.2.3:2377 is not reachable: .*check that a manager is there, not a worker" oc 4 join --token "$(oc 1 join-token worker -q)" 192.0.2.3:2377
in_ns n4 nft delete table inet shut
join 4 >"$WORK/join.out" 2>"$WORK/join.err"
assert_eq "$(cat "$WORK/join.err")" "" "what join says where all is well"
say "an address that nobody reaches is told at the join"
