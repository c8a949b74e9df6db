#!/bin/bash
# Docker containers as endpoints. One that is stopped, killed or restarted keeps its endpoints in the
# cluster, and has its interfaces, addresses and way out again when it runs, whether or not its agent
# and Docker were there meanwhile; one that is removed leaves nothing.
#
#   c1 --- n1 ===underlay=== n2 --- web          networks blue (eth0) and red (eth1)
#                             `---- c2           blue; dockerd runs in n2, without a network of its own
. "$(dirname "$0")/lib.sh"

if [ -n "${OVERLAY_XTASK_USERNS:-}" ]; then
    say "dockerd needs the real root, which this user namespace has not; run it as root"
    exit 0
fi

ENGINE=$WORK/docker
GROUP=$PREFIX-docker
docker() { command docker -H "unix://$ENGINE/sock" "$@"; }

# Containers first: what they hold of the work folder is not removed under them.
end_docker() {
    local status=$? pid mount tries=0
    trap '' INT TERM HUP
    set +e
    docker ps -aq | xargs -r docker -H "unix://$ENGINE/sock" rm -f >"$WORK/rm.out" 2>&1
    for pid in "$(recorded docker/pid)" "$(recorded docker/exec/containerd/containerd.pid)"; do
        [ -n "$pid" ] || continue
        kill "$pid"
        until gone "$pid" || [ $((tries += 1)) -gt 400 ]; do sleep 0.05; done
        kill -KILL "$pid"
    done 2>/dev/null
    awk -v work="$WORK/" 'index($2, work) == 1 { print $2 }' /proc/mounts | sort -r | while read -r mount; do umount "$mount"; done
    find /sys/fs/cgroup -depth -type d -path "*/$GROUP*" -exec rmdir {} + 2>/dev/null
    # what cleanup finds as the status
    (exit $status)
    cleanup
}
trap end_docker EXIT

start_docker() {
    background n2 "$WORK/dockerd.out" dockerd --data-root "$ENGINE/data" --exec-root "$ENGINE/exec" --pidfile "$ENGINE/pid" \
        -H "unix://$ENGINE/sock" --cgroup-parent "/$GROUP" --bridge none --iptables=false
    wait_until 60 docker version
}
# box NAME [FLAG...]: a container that sleeps, without a network of Docker unless flags say so, and ends at once when told
box() { local name=$1; shift; docker run -d --stop-signal KILL --name "$name" "${@:---net=none}" box:1 sleep 100000 >"$WORK/run.out"; }
# in_box NAME COMMAND...: in its network
in_box() { local name=$1; shift; nsenter --net="/proc/$(docker inspect -f '{{.State.Pid}}' "$name")/ns/net" -- "$@"; }
interfaces() { in_box "$1" ip -o addr show scope global | awk '{ print $2, $4 }' | sort; }
way_out() { in_box "$1" ip route show default; in_box "$1" ip -6 route show default; }
answers() { in_ns c1 ping -n -c 1 -W 0.05 "$1"; }
# endpoints EXPRESSION: over the cluster's endpoints, called d
endpoints() { oc 1 endpoint ls --all --json | json "$1"; }
without_interface() { [ "$(oc 2 endpoint ls --json | json "[e['interface'] for e in d if e['name'].startswith('$1')]")" = "[None, None]" ]; }
none_of() { [ "$(endpoints "sum(e['name'].startswith('$1') for e in d)")" = 0 ]; }
agent() { pgrep -f "$WORK/n2/state"; }
kill_agent() { local pid; pid=$(agent); kill -KILL "$pid"; wait_until 5 gone "$pid"; }
start_agent() { start 2 --docker-socket "$ENGINE/sock"; }

# back WHAT: web has all that it had, and is reached; sets took, in ms from now
back() {
    local since address; since=$(date +%s%3N)
    for address in $targets; do wait_until 10 answers "$address"; done
    took=$(($(date +%s%3N) - since))
    assert_eq "$(interfaces web)" "$had" "interfaces of web after $1"
    assert_eq "$(way_out web)" "$out" "the way out of web after $1"
    assert_eq "$(endpoints "sorted((e['name'], e['addresses']) for e in d)")" "$all" "endpoints after $1"
    say "after $1: reached on both networks $took ms later"
}

mkdir "$ENGINE"
cluster 2 ipv4 --docker-socket "$ENGINE/sock"
oc 1 network create blue --subnet 10.9.0.0/24 --subnet fd09::/64 >"$WORK/create.out"
oc 1 network create red --subnet 10.10.0.0/24 >"$WORK/create.out"
container 1 c1 blue
oc 1 attach "netns:$(full c1)" --network red --name c1-red >"$WORK/attach.out"
container 2 c2 blue
attach() { oc 2 attach "$@"; }
refused 1 "docker is not reachable at $ENGINE/sock: .*; start it, or name its socket with --docker-socket" attach container:web --network blue

start_docker
mkdir -p "$WORK/root/bin"
cp "$(command -v busybox)" "$WORK/root/bin/busybox"
ln -s busybox "$WORK/root/bin/sleep"
# one that is not static brings what it needs
(ldd "$WORK/root/bin/busybox" 2>/dev/null || true) | { grep -o '/[^ ]*' || true; } | while read -r library; do
    mkdir -p "$WORK/root$(dirname "$library")"
    cp -L "$library" "$WORK/root$library"
done
tar -C "$WORK/root" -c . | docker import - box:1 >"$WORK/import.out"
box web
docker create --net none --name idle box:1 sleep 1 >"$WORK/run.out"
box bare --net host
box guest --net container:bare

refused 1 "there is no container nobody" attach container:nobody --network blue
refused 1 "container idle is not running" attach container:idle --network blue
refused 1 "container bare .* use 'attach host'" attach container:bare --network blue
refused 1 "container .* shares the network of the host; use 'attach host'" attach container:guest --network blue
refused 1 "'../version' is no name of a container" attach container:../version --network blue
refused 2 "no such kind of target" attach container: --network blue
refused 1 "green" attach container:web --network green
assert_eq "$(oc 2 endpoint ls --json | json 'len(d)')" 1 "endpoints after refusals"
assert_eq "$(interfaces web)" "" "interfaces after refusals"

attach container:web --network blue --name web-blue >"$WORK/attach.out"
# by the start of its id, and the later one takes the way out
attach "container:$(docker inspect -f '{{.Id}}' web | cut -c1-12)" --network red --name web-red --default-route >"$WORK/attach.out"
refused 1 "the target is on network red already, as endpoint web-red" attach container:web --network red
had=$(interfaces web)
out=$(way_out web)
all=$(endpoints "sorted((e['name'], e['addresses']) for e in d)")
assert_match "$had" "^eth0 10\.9\.0\." "interfaces of web"
assert_match "$had" "^eth1 10\.10\.0\." "interfaces of web"
assert_match "$out" "default dev eth1" "the way out of web"
targets=$(awk '{ sub("/.*", "", $2); print $2 }' <<<"$had")
back "attach"
in_box web ping -n -c 1 -W 3 "$(address c1 4)" >"$WORK/ping.out" || die "web does not reach c1"

for round in 1 2 3; do
    docker restart web >"$WORK/restart.out"
    back "docker restart, round $round"
    [ $took -le 3000 ] || die "it took $took ms"
done

# Stopped it is still an endpoint. Its neighbours are told that nobody is there; its node counts the rest.
docker kill web >"$WORK/kill.out"
wait_until 5 without_interface web
assert_eq "$(endpoints "sorted((e['name'], e['addresses']) for e in d)")" "$all" "endpoints of a stopped container"
refused 1 "container web is not running" attach container:web --network blue
said=$(in_ns c2 ping -n -c 1 -W 2 "${targets%%$'\n'*}" || true)
assert_match "$said" "Destination Host Unreachable" "what a neighbour of a stopped container hears"
dropped() { oc 2 stats --json | json 'd["drops"]["no_endpoint"]'; }
before=$(dropped)
! answers "${targets%%$'\n'*}" >"$WORK/ping.out" || die "a stopped container answers"
[ "$(dropped)" -gt "$before" ] || die "what came for a stopped container is not counted"
docker start web >"$WORK/start.out"
back "docker kill and start"

# Its agent away: the container goes on, is restarted, is stopped.
device() { in_box web ip -o link show eth0 | cut -d: -f1; }
index=$(device)
kill_agent
start_agent
back "a killed agent"
assert_eq "$(device)" "$index" "the number of an interface that was taken over"
kill_agent
docker restart web >"$WORK/restart.out"
start_agent
back "a restart without an agent"
kill_agent
docker kill web >"$WORK/kill.out"
start_agent
wait_until 5 without_interface web
docker start web >"$WORK/start.out"
back "an end without an agent, and a start"

# Docker away: it stops its containers, and they start when it is back.
end "$(recorded docker/pid)"
wait_until 5 without_interface web
start_docker
docker start web >"$WORK/start.out"
back "a new dockerd"

# Detached it stays off, stopped or not.
box db
attach container:db --network blue --name db >"$WORK/attach.out"
docker kill db >"$WORK/kill.out"
refused 1 "no such endpoint|nobody" oc 2 detach nobody
oc 2 detach db >"$WORK/detach.out"
docker start db >"$WORK/start.out"
docker restart web >"$WORK/restart.out"
back "a restart beside another container"
assert_eq "$(interfaces db)" "" "interfaces of a container that was detached while it was stopped"
attach container:db --network blue --name db >"$WORK/attach.out"
oc 2 detach db >"$WORK/detach.out"
assert_eq "$(interfaces db)" "" "interfaces of a container that was detached"

# Removed: by a running agent, while stopped, and without an agent.
attach container:db --network blue --name db >"$WORK/attach.out"
docker kill db >"$WORK/kill.out"
docker rm db >"$WORK/rm.out"
wait_until 2 none_of db
kill_agent
docker rm -f web >"$WORK/rm.out"
start_agent
wait_until 5 none_of web
box web
attach container:web --network blue --name web >"$WORK/attach.out"
docker rm -f web >"$WORK/rm.out"
wait_until 2 none_of web
say "containers that were removed are gone from the cluster"
