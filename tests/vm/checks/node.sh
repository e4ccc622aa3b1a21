# The node after its installation.
check "cgroup version 2 only" equal "$(stat -fc %T /sys/fs/cgroup)" cgroup2fs
within 60 node_ip >/dev/null
check "the agent answers when its unit is started" sh -c 'berth version | grep -q "^agent *[0-9]"'
check "the node gets well" within 60 berth status
for unit in berth berth-logd berth-dns; do
  check "unit $unit runs" equal "$(systemctl is-active $unit)" active
done
check "unit berth says that it is ready" equal "$(systemctl show -p Type --value berth)" notify
check "no warning at start" empty "$(journalctl -u berth -u berth-logd -u berth-dns -o cat --no-pager | grep -E 'WARN|ERROR')"
check "every controller is handed on to pods" equal \
  "$(tr ' ' '\n' </sys/fs/cgroup/kubepods/cgroup.controllers | grep -cE '^(cpu|cpuset|memory|pids|io)$')" 5
