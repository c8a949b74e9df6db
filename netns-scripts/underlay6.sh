#!/bin/bash
# The same as ping-tcp.sh where the nodes have only IPv6 addresses.
#
#   c1 --- n1 ===2001:db8::/64=== n2 --- c2
exec "$(dirname "$0")/ping-tcp.sh" ipv6
