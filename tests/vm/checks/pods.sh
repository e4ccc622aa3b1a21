# The examples, and limits, out of memory, volumes and probes on cgroup version 2.
berth image import $checkout/busybox.tar >/dev/null
cp $checkout/deploy/examples/*.yaml pods.yaml $manifests/
check "the examples get Ready" within 150 ready client asker web-a web-b
check "the other pods get Ready" within 60 ready volumes host-network exec-probe default-dns
check "a pod that never gets ready says why" within 30 sh -c 'berth describe pod never-ready | grep -q "readiness probe: cat"'
check "a pod in back-off" within 60 sh -c 'berth pods crash | grep -q CrashLoopBackOff'
check "exec readiness probe under seccomp RuntimeDefault" within 30 ready seccomp-probe
check "out of memory: the process" within 60 sh -c 'berth pods oom | grep -q OOMKilled'
check "out of memory: the whole container" within 60 sh -c 'berth pods oom-child | grep -q OOMKilled'
check "cpu.max" equal "$(cgroup_file client cpu.max)" "20000 100000"
check "memory.max" equal "$(cgroup_file client memory.max)" 16777216
check "memory.oom.group" equal "$(cgroup_file client memory.oom.group)" 1
check "memory of all pods together" equal "$(cat /sys/fs/cgroup/kubepods/memory.max)" \
  "$(awk '/^MemTotal/ {printf "%.0f", $2 * 1024}' /proc/meminfo)"
check "cpu.weight of all pods together" equal "$(cat /sys/fs/cgroup/kubepods/cpu.weight)" 79
check "cpu.weight of best-effort pods" equal "$(cat /sys/fs/cgroup/kubepods/besteffort/cpu.weight)" 1
check "swap is off with a memory limit" equal "$(cgroup_file client memory.swap.max)" 0
check "swap is off without a memory limit" equal "$(cgroup_file host-network memory.swap.max)" 0
check "emptyDir in memory has its size" sh -c 'berth exec volumes -- mount | grep -q "/memory type tmpfs.*size=8192k"'
check "volumes hold what was written" equal "$(berth exec volumes -- cat /memory/f /disk/f /host/f | tr -d '\n')" mdh
check "hostPath is the host's" equal "$(cat /var/tmp/of-a-pod/f)" h
check "no resolver stub of the host's in a pod" not berth exec default-dns -- grep -q 127.0.0.53 /etc/resolv.conf
check "status tells of no other problem" empty \
  "$(berth status | sed -n '/^Problems/,/^ *$/p' | grep -vE '^Problems|crash|never-ready|oom|^ *$')"
