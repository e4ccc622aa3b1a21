# NFS volumes under the node's own agent, with the real server: versions, locks, the CSI driver, and a server that is away
# for $NFS_AWAY seconds while pods run, end and start.
away=${NFS_AWAY:-60}
. ./nfs_server.sh
mkdir -p $export_dir/share $export_dir/driven
berth image import $checkout/busybox.tar >/dev/null

# pod <name> <volume> <script>: a manifest of a pod that has the volume at /v.
pod() {
  cat > $manifests/$1.yaml <<END
apiVersion: v1
kind: Pod
metadata: {name: $1}
spec:
  terminationGracePeriodSeconds: 1
  volumes: [{name: v, $2}]
  containers:
  - name: app
    image: busybox:1
    command:
    - sh
    - -c
    - |
      $3
    volumeMounts: [{name: v, mountPath: /v}]
END
}
own='nfs: {server: 127.0.0.1, path: /srv/nfs/share}'
claim() { echo "persistentVolumeClaim: {claimName: $1}"; }
waits='trap "exit 0" TERM; sleep infinity & wait'
uid_of() { berth pods -o json "$1" | grep -o '"uid": *"[^"]*"' | head -1 | cut -d'"' -f4; }
# at <pod>: where the node has mounted its volume.
at() { awk -v pod="/pods/$(uid_of "$1")/volumes/" 'index($2, pod) && $3 ~ /^nfs/ {print $2; exit}' /proc/mounts; }
version_of() { awk -v at="$(at "$1")" '$2 == at {print}' /proc/mounts | grep -o 'vers=[0-9.]*'; }
describes() { berth describe pod "$1" | grep -qiE "$2" || { berth describe pod "$1" | tail -12; return 1; }; }
threads() { ls "/proc/$(main_pid berth)/task" | wc -l; }

cp nfs_agent.yaml $manifests/
pod own "$own" "$waits"
pod three "$(claim version-3)" "$waits"
pod other "$(claim other-mount)" "$waits"
check 'pods with NFS volumes get Ready' within 150 ready own three other
check "a pod's own volume is of version 4.2" equal "$(version_of own)" vers=4.2
check 'a claim by version 3' equal "$(version_of three)" vers=3
check 'no mount.nfs was used' not pgrep -f mount.nfs
berth exec own -- sh -c 'echo from-own > /v/file; sync'
check 'what one writes the others read' within 20 sh -c '[ "$(berth exec three -- cat /v/file)" = from-own ] && [ "$(berth exec other -- cat /v/file)" = from-own ]'
check 'it is on the server' equal "$(cat $export_dir/share/file)" from-own

# Locks between two mounts: by flock(2) in the pods, by fcntl(2) on the node.
check 'the two mounts are two file systems' not equal "$(stat -c %d "$(at own)")" "$(stat -c %d "$(at other)")"
berth exec own -- sh -c 'nohup flock /v/lock sleep 600 >/dev/null 2>&1 & sleep 1'
check 'flock: the other mount sees the lock' within 20 not berth exec other -- flock -n /v/lock true
berth exec own -- killall sleep
check 'flock: the lock is free after its holder' within 60 sh -c 'berth exec other -- flock -n /v/lock true'
within 60 ready own
fcntl_lock='use Fcntl; open(my $f, "+>>", $ARGV[0]) or exit 9; exit 1 unless fcntl($f, F_SETLK, pack("s s l! l! i x4", F_WRLCK, 0, 0, 0, 0)); $| = 1; print "held\n"; sleep $ARGV[1]'
touch "$(at own)/fcntl"
perl -e "$fcntl_lock" "$(at own)/fcntl" 600 > /run/fcntl.held &
holder=$!
within 20 grep -q held /run/fcntl.held
check 'fcntl: the other mount sees the lock' not perl -e "$fcntl_lock" "$(at other)/fcntl" 0
kill $holder
check 'fcntl: the lock is free after its holder' within 60 perl -e "$fcntl_lock" "$(at other)/fcntl" 0

# The CSI driver, which registers itself.
mkdir -p /var/lib/kubelet/plugins/nfs.csi.berth.dev
systemd-run -q --unit csi-nfs berth-csi-nfs --mode node --node-id "$(hostname)" \
  --endpoint unix:///var/lib/kubelet/plugins/nfs.csi.berth.dev/driver@csi.sock \
  --register-in /var/lib/kubelet/plugins_registry \
  --kubelet-registration-path /var/lib/kubelet/plugins/nfs.csi.berth.dev/driver@csi.sock
check 'the driver registers itself' within 60 sh -c 'berth status | grep -q nfs.csi.berth.dev'
pod first "$(claim by-driver)" "echo first > /v/first; $waits"
pod second "$(claim by-driver)" "echo second > /v/second; $waits"
check 'two pods have one volume of the driver' within 120 ready first second
both() { [ "$(berth exec first -- cat /v/second)" = second ] && [ "$(berth exec second -- cat /v/first)" = first ]; }
check 'each reads what the other has written' within 20 both
check 'it is in its directory on the server' equal "$(cat $export_dir/driven/first)" first
systemctl restart berth
check 'the agent comes up again, and the pods are Ready' within 240 ready own three other first second

# Without a volume, to compare.
start_of() {
  local begun=$EPOCHREALTIME
  sed "s/NAME/$1/" > $manifests/$1.yaml <<END
apiVersion: v1
kind: Pod
metadata: {name: NAME}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: app, image: busybox:1, command: [sleep, infinity]}]
END
  within 90 ready "$1" || return 1
  awk "BEGIN {printf \"%.1f\", $EPOCHREALTIME - $begun}"
}
median() { tr ' ' '\n' | sort -n | awk '{a[NR] = $1} END {print a[int((NR + 1) / 2)]}'; }
writes='n=0; while :; do n=$((n+1)); echo $n >> /v/lines; sleep 0.2; done'
pod writer "$own" "$writes"
check 'a writer gets Ready' within 90 ready writer
before=$(for n in 1 2 3 4 5; do start_of "before-$n"; echo; done | tr '\n' ' ' | sed 's/ *$//' | tr -s ' ' | median)
threads_before=$(threads)

server_away() {
  nft -f - <<'END'
table inet away {
  chain out { type filter hook output priority -300; tcp dport {2049, 20048} drop; }
  chain in { type filter hook input priority -300; tcp dport {2049, 20048} drop; }
}
END
}
server_away
begun=$SECONDS
rm $manifests/other.yaml $manifests/second.yaml
pod late "${own/share/driven}" "$waits"
during=$(for n in 1 2 3 4 5; do start_of "during-$n"; echo; done | tr '\n' ' ' | sed 's/ *$//' | tr -s ' ' | median)
echo "median start: $before s before, $during s while the server is away"
check 'away: other pods start as fast as before' awk "BEGIN {exit !($during > 0 && $during <= $before * 1.5 + 1)}"
check 'away: the agent answers at once' timeout 5 berth pods
check 'away: a pod that starts says why it waits' within 90 describes late 'nfs|volume'
check 'away: the writer is not restarted' equal "$(berth pods -o json writer | grep -o '"restartCount": *[0-9]*' | grep -o '[0-9]*$')" 0
until [ $((SECONDS - begun)) -ge $away ]; do sleep 1; done
echo "threads: $threads_before before, $(threads) after $((SECONDS - begun)) s without the server; mounts of NFS: $(grep -cE ' nfs4? ' /proc/mounts)"
berth pods
check 'away: no thread more than what is stuck' test "$(threads)" -le $((threads_before + 4))
check 'away: the agent answers at once at the end' timeout 5 berth pods
nft delete table inet away
back=$SECONDS
check 'back: what was deleted is gone' within 180 sh -c '! berth pods 2>/dev/null | grep -qE "(^| )(other|second) "'
check 'back: the pod that waited gets Ready' within 240 ready late
echo "cleaned and started $((SECONDS - back)) s after the server is back"
check 'back: the others run on' ready own three first writer
whole() { sync; awk '$1 != NR {print "line " NR " is " $1; exit 1} END {exit !(NR > 20)}' $export_dir/share/lines; }
check 'back: no line of the writer is lost' within 60 whole
check 'back: the writer writes on' within 60 sh -c "old=\$(wc -l < $export_dir/share/lines); sleep 3; [ \$(wc -l < $export_dir/share/lines) -gt \$old ]"
check 'back: the threads are gone' within 60 sh -c "[ \$(ls /proc/$(main_pid berth)/task | wc -l) -le $((threads_before + 1)) ]"
check 'no mount is left of pods that are gone' equal "$(grep -cE ' nfs4? ' /proc/mounts)" 5

# The end of the machine, with the server away.
sync
server_away
