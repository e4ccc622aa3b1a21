# After a reboot.
check "a hook ran and SIGTERM was heard at the shutdown" equal "$(head -3 /var/tmp/graceful/seen | tr '\n' ' ')" "start hook term "
check "no mount failed to be unmounted" empty "$(journalctl -b -1 -o cat --no-pager | grep -i 'failed unmounting' | head -3)"
check "the agent comes up" agent_is_up
check "the pods are Ready again" within 150 ready client asker web-a web-b volumes host-network graceful deaf
check "restarts are counted on" sh -c 'berth pods client | awk "NR == 2 {exit !(\$5 == 1)}"'
check "hostIP" host_ip
check "the node's port" within 15 node_port
check "a name from the node" within 10 dig +tries=1 +time=3 +short @$cluster_dns web.default.svc.cluster.local
rm $manifests/*
check "all pods end" within 90 sh -c 'berth pods 2>&1 | grep -q "No pods"'
check "no cgroup of a pod is left" empty "$(find /sys/fs/cgroup/kubepods -mindepth 1 -type d -name 'pod*')"
check "no sandbox is left" empty "$(ls /run/berth/sandboxes /run/berth/sandbox-records 2>/dev/null | grep -v :)"
