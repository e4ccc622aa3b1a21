# What the checks have in common. Sourced by bash in the VM, as root, in the directory of the checks.
# Every check prints one line: PASS <name>, or FAIL <name>, a tab and why.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
checkout=/root/berth
manifests=/etc/berth/manifests
cluster_dns=10.96.0.10

# check <name> <command…>: passes where the command succeeds.
check() {
  local name=$1 said
  shift
  if said=$("$@" 2>&1); then echo "PASS $name"; else printf 'FAIL %s\t%s\n' "$name" "$(tail -c 1500 <<<"$said" | tr '\n' ' ')"; fi
}

# within <seconds> <command…>: succeeds as soon as the command does; else fails with what it said last.
within() {
  local until=$((SECONDS + $1)) said
  shift
  until said=$("$@" 2>&1); do
    if [ $SECONDS -ge $until ]; then echo "still: $said"; return 1; fi
    sleep 0.5
  done
}

equal() { [ "$1" = "$2" ] || { echo "expected \"$2\", got \"$1\""; return 1; }; }
not() { ! "$@"; }
empty() { [ -z "$1" ] || { echo "$1"; return 1; }; }

# udev renames the device while the machine boots, so that its name is asked for each time.
device() { basename "$(ls -d /sys/class/net/e*/device | head -1 | xargs dirname)"; }
node_ip() { ip -4 -o address show dev "$(device)" scope global | awk '{sub("/.*", "", $4); print $4; exit}'; }
pod_ip() { berth pods -o json "$1" | grep -o '"podIP": *"[^"]*"' | head -1 | cut -d'"' -f4; }
main_pid() { systemctl show -p MainPID --value "$1"; }

# ready <pod…>: all of its containers are.
ready() {
  local pod
  for pod in "$@"; do
    berth pods "$pod" | awk 'NR == 2 {split($3, n, "/"); exit !(n[1] == n[2] && $4 == "Running")}' ||
      { berth pods "$pod"; return 1; }
  done
}

# cgroup <pod>: the directory of its first container.
cgroup() {
  local id
  id=$(berth ps -o wide "$1" | grep -oE '[0-9a-f]{13,64}' | head -1)
  find /sys/fs/cgroup/kubepods -type d -name "$id*" | head -1
}
cgroup_file() { cat "$(cgroup "$1")/$2"; }

# Every process of the pods, with its start time.
processes() {
  local pid
  for pid in $(find /sys/fs/cgroup/kubepods -name cgroup.procs -exec cat {} +); do
    case $(cat "/proc/$pid/comm" 2>/dev/null) in
    httpd | berth-pause | pause) echo "$pid $(awk '{print $22}' "/proc/$pid/stat")" ;;
    esac
  done | sort
}

# ask_by_name <pod>: the pod asks a Service by its name. In two steps, as in the demo: nslookup asks for one family alone.
ask_by_name() {
  berth exec "$1" -- sh -c 'timeout 5 wget -q -O - "http://$(nslookup -type=a web.default.svc.cluster.local |
    awk "/^Address/ {a = \$2} END {print a}"):80/live/prepared.txt"'
}

# by_name: the same from the client; where it gets no answer, what it sees is told.
by_name() {
  ask_by_name client && return
  berth exec client -- cat /etc/resolv.conf
  berth exec client -- timeout 5 nslookup web.default.svc.cluster.local
  berth trace default/client $cluster_dns:53 --udp
  return 1
}
node_port() { curl -sS -m 5 "http://$(node_ip):30080/live/prepared.txt" | grep prepared; }
services_answered() { journalctl -u berth -o cat --no-pager _PID="$(main_pid berth)" | grep -q 'Services are answered'; }
# The programs are loaded anew after a reset and a boot, which an emulated processor takes long for.
agent_is_up() { within 240 services_answered && within 30 berth exec client -- true; }
host_ip() { equal "$(berth pods -o json client | grep -o '"hostIP": *"[^"]*"' | head -1 | cut -d'"' -f4)" "$(node_ip)"; }

# A network beside the node, to ask from: namespace `outside`, whose way out is the node.
outside() {
  ip netns list | grep -q outside && return
  ip netns add outside
  ip link add outside type veth peer name lan netns outside
  ip address add 192.168.77.1/24 dev outside
  ip link set outside up
  ip -n outside address add 192.168.77.2/24 dev lan
  ip -n outside link set lan up
  ip -n outside route add default via 192.168.77.1
}
