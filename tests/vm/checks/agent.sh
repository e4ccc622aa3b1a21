# The agent killed, restarted, stopped; what it runs on restarted beside it; a reset.
before=$(processes)
check "there are processes to look at" test "$(wc -l <<<"$before")" -ge 8
kill -KILL "$(main_pid berth)"
check "killed: the node's port answers at once" node_port
check "killed: another agent comes up" agent_is_up
check "killed: no process was restarted" equal "$(processes)" "$before"
check "killed: the node's port" node_port
check "killed: hostIP" host_ip
systemctl restart berth
check "restarted: the agent comes up" agent_is_up
check "restarted: no process was restarted" equal "$(processes)" "$before"
check "restarted: the node's port" node_port
check "restarted: hostIP" host_ip
systemctl restart berth-logd berth-dns
check "helpers restarted: output goes on" within 20 sh -c 'berth logs --since 3s asker | grep -q name'
check "helpers restarted: a name" within 20 by_name
systemctl stop berth
systemctl daemon-reload
systemctl restart systemd-networkd systemd-resolved containerd
check "stopped: no process was restarted" equal "$(processes)" "$before"
check "stopped: the node's port" within 10 node_port
check "stopped: a name" within 10 dig +tries=1 +time=3 +short @$cluster_dns web.default.svc.cluster.local
check "stopped: the pods are shown" sh -c 'berth pods 2>/dev/null | grep -q web-a'
systemctl stop berth-dns
check "reset" berth reset
check "reset: no programs" empty "$(bpftool net show | grep berth)"
check "reset: no address" empty "$(ip address show lo | grep $cluster_dns)"
check "reset: no rules" empty "$(nft list ruleset | grep -i berth)"
systemctl start berth
check "after a reset: the agent comes up" agent_is_up
check "after a reset: no process was restarted" equal "$(processes)" "$before"
check "after a reset: the node's port" within 15 node_port
check "after a reset: hostIP" host_ip
check "systemd finds no processes that were left over" empty \
  "$(journalctl -b -o cat --no-pager | grep -E 'left-over process|remains running after unit stopped' | grep -i berth | head -3)"
