#!/bin/bash
# A container's way out is its first network that is not internal; --default-route changes it, and a
# way out that the container had before is left alone otherwise.
#
#   c1, c2 --- n1        networks inside (internal), blue, red
. "$(dirname "$0")/lib.sh"

cluster 1
oc 1 network create inside --internal --subnet 10.7.0.0/24 >"$WORK/create.out"
oc 1 network create blue --subnet 10.8.0.0/24 --subnet fd08::/64 >"$WORK/create.out"
oc 1 network create red --subnet 10.9.0.0/24 --subnet fd09::/64 >"$WORK/create.out"
way_out() { ip_in "$1" "-$2" -o route show default | sed 's/.*dev \([^ ]*\).*/\1/' | paste -sd' '; }

netns c1
here=netns:$(full c1)
oc 1 attach "$here" --network inside --name c1-inside >"$WORK/attach.out"
assert_eq "$(way_out c1 4)" "" "the way out by an internal network"
oc 1 attach "$here" --network blue --name c1-blue >"$WORK/attach.out"
assert_eq "$(way_out c1 4) $(way_out c1 6)" "eth1 eth1" "the way out by the first other network"
oc 1 attach "$here" --network red --name c1-red >"$WORK/attach.out"
assert_eq "$(way_out c1 4) $(way_out c1 6)" "eth1 eth1" "the way out after one more"
oc 1 detach c1-red >"$WORK/detach.out"
oc 1 attach "$here" --network red --name c1-red --default-route >"$WORK/attach.out"
assert_eq "$(way_out c1 4) $(way_out c1 6)" "eth2 eth2" "the way out with --default-route"

netns c2
ip_in c2 link add own type veth peer name other
ip_in c2 addr add 10.1.1.1/24 dev own
ip_in c2 link set own up
ip_in c2 route add default via 10.1.1.2 dev own
oc 1 attach "netns:$(full c2)" --network blue --name c2 >"$WORK/attach.out"
assert_eq "$(way_out c2 4)" "own" "a way out that was there"
