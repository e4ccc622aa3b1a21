# First process of a cluster's namespaces. When it ends, the kernel ends every other process in them and drops
# their mounts and network. Arguments: file for this process's number on the machine, host name.
set -e
# /proc still is the machine's.
read -r pid rest < /proc/self/stat
mount --make-rshared /
mount -t proc proc /proc
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/netns /run/lock
# As systemd does on a node.
mount -t bpf bpf /sys/fs/bpf
hostname "$2"
ip link set lo up
echo 1 > /proc/sys/net/ipv4/ip_forward
echo "$pid" > "$1.new"
mv "$1.new" "$1"
# `wait` also takes in the orphans of other programs.
while :; do
    sleep 100000 &
    wait $! || true
done
