#!/bin/bash
# A manager whose disk is full takes no command and says so; what it acknowledged stays, traffic goes on,
# and with room again it is started and goes on where it was.
#
#   c1 --- n2 ===underlay=== n3 --- c2        network blue; n1 is the manager, its disk a small one
. "$(dirname "$0")/lib.sh"

disk=$WORK/n1/state
small_disk "$disk" 16m
cluster 3
oc 1 network create blue --subnet 10.9.0.0/24 >"$WORK/create.out"
container 2 c1 blue
container 3 c2 blue
talk c1 c2
manager=$(pgrep -f "$disk")

fill() { dd if=/dev/zero of="$disk/filler" bs=4k status=none 2>"$WORK/dd.err" || true; }
fill
acknowledged=""
for n in $(seq 2000); do
    if ! oc 1 network create "full$n" >"$WORK/create.out" 2>"$WORK/create.err"; then break; fi
    acknowledged="$acknowledged full$n"
done
assert_eq "$(df --output=avail "$disk" | tail -n 1 | tr -d ' ')" 0 "what is left of the disk"
refused 1 "create network more: the log $disk/manager/log.redb is stopped: .*; free space on that disk, then start overlayd again" \
    oc 1 network create more
moved
names() { oc 1 network ls --json | json "' '.join(n['name'] for n in d)"; }
all_there() {
    local name there
    there=$(names)
    for name in blue $acknowledged; do [[ " $there " == *" $name "* ]] || die "$name is lost $1"; done
}
all_there "while the disk is full"
end "$manager"
moved

rm "$disk/filler"
start 1
for n in 1 2 3; do wait_until 20 connected $n; done
all_there "after the restart"
oc 1 network create more >"$WORK/create.out"
container 3 c3 more
moved
say "$(wc -w <<<"$acknowledged") commands were taken until the disk was full; all of them are there, and it goes on"
