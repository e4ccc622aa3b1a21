# The reference plugins `bridge` with masquerade and `portmap`, as stock configurations have them.
cat >/etc/cni/net.d/05-bridge.conflist <<'END'
{ "cniVersion": "1.0.0", "name": "bridged",
  "plugins": [
    { "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "promiscMode": true,
      "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.88.0.0/16" }]], "routes": [{ "dst": "0.0.0.0/0" }] } },
    { "type": "portmap", "capabilities": { "portMappings": true } } ] }
END
cp cni.yaml $manifests/
check "bridge: pods get Ready" within 90 ready bridged bridged-client
check "bridge: the address is the plugin's" sh -c "berth pods -o json bridged | grep -q '\"podIP\": *\"10.88.'"
check "bridge: from pod to pod" within 10 berth exec bridged-client -- timeout 5 wget -q -O - "http://$(pod_ip bridged):8080/"
check "bridge: a Service's name" within 10 ask_by_name bridged-client
check "bridge: the host's port at its address" within 10 curl -sS -m 5 "http://$(node_ip):18080/"
outside
check "bridge: the host's port from another network" within 10 \
  ip netns exec outside curl -sS -m 5 "http://192.168.77.1:18080/"
check "bridge: to another network by masquerade" sh -c "nft list ruleset | grep -q '10.88.'"
rm $manifests/cni.yaml
check "bridge: the pods end" within 60 sh -c '! berth pods -o name | grep -q bridged'
check "bridge: nothing of its rules is left" empty "$(iptables-save | grep -E '18080|10\.88\.')"
rm /etc/cni/net.d/05-bridge.conflist
