# shellcheck shell=bash
# What every script here builds on: namespaces on a shared underlay, daemons in them, containers,
# and one cleanup that takes all of it away however the script ends; what one left that was killed outright,
# the next one takes away.
#
#   ovt-PID-n1        ovt-PID-n2             nodes: u0 has 192.0.2.N/24 or 2001:db8::N/64
#      u0                u0
#   +--n1----------------n2--+
#   |          br0           |               ovt-PID-net: the underlay, MTU 1500
#   +------------------------+
#   ovt-PID-NAME                             containers
#
# OVERLAY_BIN is the folder of overlayd and overlayctl (default: target/release of this tree).
# OFFLOADS=off makes the underlay carry only real packets of at most 1500 bytes.
# Nothing is waited for by sleeping: wait_until looks at a state until a deadline.

set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
BIN=$(cd "${OVERLAY_BIN:-$HERE/../target/release}" && pwd)
TOOLS=$HERE/../tests/tools
SELF=$(basename "$0" .sh)
PREFIX=ovt-$$
WORK=$(mktemp -d "${TMPDIR:-/tmp}/$PREFIX.XXXXXX")
PATH=$PATH:/usr/sbin:/sbin

# --- what ends well, and what does not ---------------------------------------------------------

say() { echo "$SELF: $*"; }
die() { echo "$SELF: FAILED: $*" >&2; exit 1; }
assert_eq() { [ "$1" = "$2" ] || die "$3: expected '$2', got '$1'"; }
assert_match() { grep -Eq -- "$2" <<<"$1" || die "$3: '$1' does not match '$2'"; }

# wait_until SECONDS COMMAND...: until the command succeeds
wait_until() {
    local deadline=$((SECONDS + $1)); shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -le $deadline ] || die "did not become true: $*"
        sleep 0.05
    done
}

# A dead one that its parent has not seen is gone, but not while a thread of it still closes what it held.
gone() { ! kill -0 "$1" 2>/dev/null || ps -o stat= -p "$1" | grep -q '^Z[^l]*$'; }
recorded() { cat "$WORK/$1" 2>/dev/null || true; }

cleanup() {
    local status=$? pid name tries=0
    trap '' INT TERM HUP
    set +e
    for pid in $(recorded pids); do kill "$pid" 2>/dev/null; done
    for pid in $(recorded pids); do
        until gone "$pid" || [ $((tries += 1)) -gt 100 ]; do sleep 0.05; done
        kill -KILL "$pid" 2>/dev/null
    done
    [ $status = 0 ] || tail -n 20 "$WORK"/n*/log "$WORK"/*.out 2>/dev/null
    take_away "$WORK"
    exit $status
}

# take_away FOLDER: what a script made whose folder it is, and what still runs in that
take_away() {
    local name pid
    # Tasks outlive their daemons, in namespaces of their own.
    for name in "$1"/n*/state/tasks/*; do pkill -KILL -f "overlayd task run $name\$"; done
    for name in $(cat "$1/namespaces" 2>/dev/null); do
        for pid in $(ip netns pids "$name" 2>/dev/null); do kill -KILL "$pid" 2>/dev/null; done
        ip netns delete "$name" 2>/dev/null
    done
    for name in $(cat "$1/disks" 2>/dev/null); do umount -l "$name"; done
    rm -rf "$1"
}

# sweep: takes away what scripts left that could not; one that lives holds its lock
sweep() {
    local folder
    for folder in "${TMPDIR:-/tmp}"/ovt-*.*; do
        if [ -e "$folder/lock" ] && flock -n "$folder/lock" true; then
            say "$folder is left of a script that was killed; it goes"
            (set +e; take_away "$folder")
        fi
    done
}

exec 9>"$WORK/lock.new"
flock 9
# Only one that is locked is there by that name.
mv "$WORK/lock.new" "$WORK/lock"
trap cleanup EXIT
trap 'exit 130' INT TERM HUP
sweep

# --- namespaces --------------------------------------------------------------------------------

full() { echo "$PREFIX-$1"; }
in_ns() { local name=$1; shift; nsenter --net="/run/netns/$(full "$name")" -- "$@"; }
ip_in() { local name=$1; shift; ip -n "$(full "$name")" "$@"; }

netns() {
    full "$1" >>"$WORK/namespaces"
    ip netns add "$(full "$1")"
    ip_in "$1" link set lo up
}

# without_offloads NAMESPACE DEVICE
without_offloads() {
    in_ns "$1" ethtool -K "$2" tso off gso off gro off tx-udp-segmentation off tx-gso-list off
}

# underlay NODES [ipv4|ipv6]: the nodes' namespaces, no daemon yet
underlay() {
    local n
    FAMILY=${2:-ipv4}
    netns net
    ip_in net link add br0 type bridge mcast_snooping 0
    ip_in net link set br0 mtu 1500 up
    for n in $(seq "$1"); do
        netns "n$n"
        ip link add u0 netns "$(full "n$n")" mtu 1500 type veth peer name "n$n" netns "$(full net)" mtu 1500
        if [ "${OFFLOADS:-on}" = off ]; then
            without_offloads "n$n" u0
            without_offloads net "n$n"
        fi
        ip_in net link set "n$n" master br0 up
        if [ "$FAMILY" = ipv6 ]; then
            ip_in "n$n" addr add "2001:db8::$n/64" dev u0 nodad
        else
            ip_in "n$n" addr add "192.0.2.$n/24" dev u0
        fi
        ip_in "n$n" link set u0 up
    done
}

# --- processes ---------------------------------------------------------------------------------

# background NAMESPACE OUTPUT COMMAND...: sets PID
background() {
    local name=$1 output=$2; shift 2
    setsid nsenter --net="/run/netns/$(full "$name")" -- "$@" >"$output" 2>&1 </dev/null 9>&- &
    PID=$!
    echo $PID >>"$WORK/pids"
}

# end PID: and wait for it, so that what it wrote is complete
end() { kill "$1" 2>/dev/null || true; wait_until 10 gone "$1"; }

# serve NAMESPACE OUTPUT COMMAND...: a background program that prints `ready` once it is
serve() {
    # The output of an earlier one says `ready` too.
    rm -f "$2"
    background "$@"
    wait_until 10 grep -q ready "$2"
}

# small_disk FOLDER SIZE: a file system of its own
small_disk() {
    mkdir -p "$1"
    mount -t tmpfs -o "size=$2" overlay-test "$1"
    echo "$1" >>"$WORK/disks"
}

# --- nodes and containers ----------------------------------------------------------------------

socket() { echo "$WORK/n$1/sock"; }
oc() { local n=$1; shift; "$BIN/overlayctl" --socket "$(socket "$n")" "$@"; }

# start N [FLAG...]: overlayd on node N; sets PID, and leaves it in n$N/pid
start() {
    local n=$1; shift
    mkdir -p "$WORK/n$n"
    background "n$n" "$WORK/n$n/log" "$BIN/overlayd" --state-dir "$WORK/n$n/state" --socket "$(socket "$n")" "$@"
    echo $PID >"$WORK/n$n/pid"
    wait_until 10 test -S "$(socket "$n")"
}

manager() { if [ "$FAMILY" = ipv6 ]; then echo "[2001:db8::1]:2377"; else echo "192.0.2.1:2377"; fi; }
join() { oc "$1" join --token "$(oc 1 join-token worker -q)" "$(manager)" --name "n$1"; }

# cluster NODES [ipv4|ipv6] [FLAG...]: underlay, daemons with these flags, init and joins
cluster() {
    local nodes=$1 family=${2:-ipv4} n
    shift; [ $# = 0 ] || shift
    underlay "$nodes" "$family"
    for n in $(seq "$nodes"); do start "$n" "$@"; done
    oc 1 init --name n1 >"$WORK/init.out"
    for n in $(seq 2 "$nodes"); do join "$n" >"$WORK/join.out"; done
}

connected() { [ "$(oc "$1" info --json | json 'd["manager"]["connected"]')" = True ]; }

# container NODE NAME NETWORK [FLAG...]: a namespace with an interface on the network
container() {
    local n=$1 name=$2 network=$3; shift 3
    netns "$name"
    oc "$n" attach "netns:$(full "$name")" --network "$network" --name "$name" "$@" >"$WORK/attach.out"
}

# address CONTAINER 4|6: its first address
address() { ip_in "$1" "-$2" -o addr show scope global | awk '{ sub("/.*", "", $4); print $4; exit }'; }
mtu() { ip_in "$1" -o link show eth0 | sed "s/.*mtu \([0-9]*\).*/\1/"; }
ping_from() { local name=$1; shift; in_ns "$name" ping -n -c 3 -i 0.2 -W 3 "$@" >"$WORK/ping.out" || die "ping $* from $name: $(cat "$WORK/ping.out")"; }

# json EXPRESSION: evaluates it over the JSON on stdin, called d
json() { python3 -c 'import json, sys; d = json.load(sys.stdin); print(eval(sys.argv[1]))' "$1"; }
net() { local name=$1; shift; in_ns "$name" python3 "$TOOLS/net.py" "$@"; }

# transfer FROM TO ADDRESS BYTES [MARKER]: over TCP, compared by SHA-256
transfer() {
    serve "$2" "$WORK/tcp.out" python3 "$TOOLS/net.py" tcp-serve "$3" 5001
    net "$1" tcp-send "$3" 5001 "$4" ${5:+"$5"} || die "TCP from $1 to $3"
    end "$PID"
}

# --- traffic that goes on ----------------------------------------------------------------------

# talk FROM TO: one small TCP exchange after the other until the script ends, counted in $WORK/said;
# sets PID
talk() {
    local addr
    addr=$(address "$2" 4)
    serve "$2" "$WORK/echo.out" python3 "$TOOLS/net.py" tcp-echo "$addr" 5001
    serve "$1" "$WORK/talk.out" python3 "$TOOLS/net.py" tcp-talk "$addr" 5001 0.01 "$WORK/said"
}

count() { cat "$1" 2>/dev/null || echo 0; }
more_than() { [ "$(count "$1")" -gt "$2" ]; }

LONGEST_MS=0
# moved: another exchange is made; LONGEST_MS is the longest that one took to come
moved() {
    local said start took
    said=$(count "$WORK/said") start=$(date +%s%3N)
    wait_until 5 more_than "$WORK/said" "$said"
    took=$(($(date +%s%3N) - start))
    [ $took -le $LONGEST_MS ] || LONGEST_MS=$took
}

# bulk FROM TO: iperf3 as fast as it goes until the script ends; sets PID
bulk() {
    local addr
    addr=$(address "$2" 4)
    background "$2" "$WORK/iperf3-server.out" iperf3 -s -B "$addr" --forceflush
    wait_until 10 grep -q "Server listening" "$WORK/iperf3-server.out"
    background "$1" "$WORK/iperf3.out" iperf3 -c "$addr" -C cubic -t 86400 -i 1 --forceflush
    wait_until 10 grep -q "bits/sec" "$WORK/iperf3.out"
}

# write_on NODE NETWORK: makes and removes networks on node 1, and endpoints of four namespaces on NODE,
# until end_writer; sets PID
write_on() {
    local name namespaces=()
    for name in e1 e2 e3 e4; do netns $name; namespaces+=("$(full $name)"); done
    serve "n$1" "$WORK/writer.out" python3 "$TOOLS/writer.py" "$BIN/overlayctl" "$(socket 1)" "$(socket "$1")" \
        "$2" "$WORK/stop" "${namespaces[@]}"
}

# end_writer PID: sets WROTE to what it says of all that was acknowledged
end_writer() {
    touch "$WORK/stop"
    wait_until 30 gone "$1"
    WROTE=$(tail -n 1 "$WORK/writer.out")
}

# field NAME WORD: the number after WORD in what a tool wrote to NAME.out
field() { sed -n "s/.*\b$2 \([0-9]*\).*/\1/p" "$WORK/$1.out"; }

# --- managers ----------------------------------------------------------------------------------

# statuses NODE: what `node ls` says there of each manager, by name
statuses() { oc "$1" node ls --json | json '" ".join(str(n["manager_status"]) for n in d if n["manager_status"])'; }
# leads NODE: the name of the leader, as NODE says
leads() { oc "$1" node ls --json | json '[n["name"] for n in d if n["manager_status"] == "leader"][0]'; }
# is_status NODE NAME STATUS: what NODE says of a manager; None of a worker
is_status() { [ "$(oc "$1" node ls --json | json '[n["manager_status"] for n in d if n["name"] == "'"$2"'"][0]')" = "$3" ]; }
# all_decide NODE COUNT: whether NODE says that so many managers decide, and no other is there
all_decide() {
    local others
    others=$(seq -s ' ' 2 "$2" | sed 's/[0-9]\+/reachable/g')
    [ "$(statuses "$1" | tr ' ' '\n' | sort | tr '\n' ' ' | sed 's/ $//')" = "$(echo leader $others)" ]
}

# --- captures ----------------------------------------------------------------------------------

# tool NAME: builds a C program of tests/tools and sets TOOL to it
tool() {
    TOOL=$WORK/$1
    [ -x "$TOOL" ] || cc -O2 -o "$TOOL" "$TOOLS/$1.c"
}

# capture NAMESPACE DEVICE FILE [BYTES]: sets PID; end it with end_capture
capture() {
    local name=$1 device=$2 file=$3; shift 3
    tool capture
    serve "$name" "$file.log" "$TOOL" "$device" "$file" "$@"
}

# end_capture PID FILE: and make sure that nothing escaped it
end_capture() {
    end "$1"
    grep -q "^captured [0-9]* dropped 0$" "$2.log" || die "the capture is not whole: $(cat "$2.log")"
}

# --- refusals ----------------------------------------------------------------------------------

# refused EXIT PATTERN COMMAND...: ends with EXIT (say `1|2` for either), prints nothing on stdout and
# says what matches PATTERN on stderr; one line where it is no wrong usage
refused() {
    local expected=$1 pattern=$2 status=0; shift 2
    "$@" >"$WORK/refused.out" 2>"$WORK/refused.err" || status=$?
    local said; said=$(cat "$WORK/refused.err")
    assert_match "$status" "^($expected)\$" "exit code of '$*' ($said)"
    assert_match "$said" "$pattern" "what '$*' says"
    assert_eq "$(cat "$WORK/refused.out")" "" "stdout of '$*'"
    [ $status = 2 ] || assert_eq "$(wc -l <"$WORK/refused.err")" 1 "lines of '$*' ($said)"
    say "refused, as it should be: $said"
}
