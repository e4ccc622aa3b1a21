# Services by their names, from pods, from the node and from a network beside it.
within 60 services_answered
check "hostIP is the node's address" host_ip
check "a name from a pod" within 20 by_name
check "a name from a pod on the host's network" within 10 berth exec host-network -- nslookup -type=a web.default.svc.cluster.local
check "a name from the node, UDP" within 10 dig +tries=1 +time=3 +short @$cluster_dns web.default.svc.cluster.local
check "a name from the node, TCP" within 10 dig +tcp +tries=1 +time=3 +short @$cluster_dns web.default.svc.cluster.local
check "the node's port at its address" within 10 node_port
check "the node's port at the loopback address" sh -c 'curl -sS -m 5 http://127.0.0.1:30080/live/prepared.txt | grep prepared'
outside
check "the node's port from another network" within 15 sh -c \
  "ip netns exec outside curl -sS -m 5 http://$(node_ip):30080/live/prepared.txt | grep prepared"
check "the loopback device bears no hooks" empty "$(bpftool net show | grep '^lo(')"
check "tables and Services fit together" berth services --check
