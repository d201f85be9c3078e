#!/bin/sh
# In place of ssh: HOST COMMAND… runs the command on a host that is a network namespace of this machine, with a host
# name and shared memory of its own. The namespace is named after the address.
host=$1
shift
exec ip netns exec "sy-$host" unshare --uts --mount sh -c "hostname node-${host##*.}; mount -t tmpfs none /dev/shm; $*"
