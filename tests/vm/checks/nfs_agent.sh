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
version_of() { awk -v at="$(at "$1")" '$2 == at {print}' /proc/mounts | grep -oE '[ ,]vers=[0-9.]+' | tr -d ' ,'; }
describes() { berth describe pod "$1" | grep -qiE "$2" || { berth describe pod "$1" | tail -12; return 1; }; }
# in_pod <pod>: the volume as the pod's own mount has it.
in_pod() { echo "/proc/$(head -1 "$(cgroup "$1")/cgroup.procs")/root/v"; }
threads() { ls "/proc/$(main_pid berth)/task" | wc -l; }

cp nfs_agent.yaml $manifests/
pod own "$own" "$waits"
pod three "$(claim version-3)" "$waits"
# Its process has something unwritten when the server is away, and cannot end before that is stored.
pod other "$(claim other-mount)" 'exec 3>>/v/open; while :; do echo more >&3; sleep 0.2; done'
check 'pods with NFS volumes get Ready' within 150 ready own three other
check "a pod's own volume is of version 4.2" equal "$(version_of own)" vers=4.2
check 'a claim by version 3' equal "$(version_of three)" vers=3
check 'no mount.nfs was used' not pgrep -f mount.nfs
berth exec own -- sh -c 'echo from-own > /v/file; sync'
check 'what one writes the others read' within 20 sh -c '[ "$(berth exec three -- cat /v/file)" = from-own ] && [ "$(berth exec other -- cat /v/file)" = from-own ]'
check 'it is on the server' equal "$(cat $export_dir/share/file)" from-own

# Locks between two mounts: by flock(2) and by fcntl(2), on the pods' own mounts; the image has no program for either.
own_v=$(in_pod own) other_v=$(in_pod other) three_v=$(in_pod three)
check "the pods' mounts are reached" equal "$(cat "$own_v/file" "$other_v/file" "$three_v/file" | sort -u)" from-own
check 'the two mounts are two file systems' not equal "$(stat -c %d "$(at own)")" "$(stat -c %d "$(at other)")"
# lock <kind> <file> <seconds>: takes the lock and holds it; 1 where another has it, 9 where it cannot be asked for.
cat > /run/lock.pl <<'END'
use Fcntl qw(:DEFAULT :flock);
my ($kind, $path, $seconds) = @ARGV;
open(my $f, "+>>", $path) or exit 9;
my $whole = pack("s s x4 q q i x4", F_WRLCK, 0, 0, 0, 0);
my $got = $kind eq "flock" ? flock($f, LOCK_EX | LOCK_NB) : fcntl($f, F_SETLK, $whole);
exit($!{EAGAIN} || $!{EACCES} ? 1 : 9) unless $got;
$| = 1;
print "held\n";
sleep $seconds;
END
is_taken() { perl /run/lock.pl "$1" "$2" 0; [ $? = 1 ]; }
# The server sees one client here. It would delegate a file to that client for both mounts, which then lock it by themselves.
sysctl -q fs.leases-enable=0
for way in "flock 4.2 $other_v" "fcntl 4.2 $other_v" "flock 3 $three_v" "fcntl 3 $three_v"; do
  read -r kind version there <<<"$way"
  name="$kind with version $version"
  touch "$own_v/$kind-$version"
  perl /run/lock.pl $kind "$own_v/$kind-$version" 600 > /run/lock.held &
  holder=$!
  check "$name: one pod takes the lock" within 20 grep -q held /run/lock.held
  check "$name: the other mount sees the lock" is_taken $kind "$there/$kind-$version"
  kill $holder
  check "$name: the lock is free after its holder" within 60 perl /run/lock.pl $kind "$there/$kind-$version" 0
done
sysctl -q fs.leases-enable=1

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
pod doomed "${own/share/driven}" "$waits"
during=$(for n in 1 2 3 4 5; do start_of "during-$n"; echo; done | tr '\n' ' ' | sed 's/ *$//' | tr -s ' ' | median)
echo "median start: $before s before, $during s while the server is away"
check 'away: other pods start as fast as before' awk "BEGIN {exit !($during > 0 && $during <= $before * 1.5 + 1)}"
check 'away: the agent answers at once' timeout 5 berth pods
check 'away: a pod whose process cannot end says so' within 60 describes other 'FailedKillPod.*has not ended'
why='FailedMount.*cannot mount 127.0.0.1:/srv/nfs/driven: the server does not answer'
check 'away: a pod that starts says why it waits' within 60 describes late "$why"
within 60 describes doomed "$why"
rm $manifests/doomed.yaml
check 'away: a pod that waits can end' within 60 sh -c '! berth pods 2>/dev/null | grep -q " doomed "'
check 'away: the writer is not restarted' equal "$(berth pods -o json writer | grep -o '"restartCount": *[0-9]*' | grep -o '[0-9]*$')" 0
until [ $((SECONDS - begun)) -ge $away ]; do sleep 1; done
echo "threads: $threads_before before, $(threads) after $((SECONDS - begun)) s without the server; mounts of NFS: $(grep -cE ' nfs4? ' /proc/mounts)"
berth pods
check 'away: no thread more than what is stuck' test "$(threads)" -le $((threads_before + 4))
check 'away: the agent answers at once at the end' timeout 5 berth pods
# What the kernel still has to store keeps no agent from ending.
restarted() { timeout 60 systemctl restart berth && within 60 timeout 5 berth pods own; }
check 'away: the agent can be restarted' restarted
check 'away: another pod starts after that' start_of after
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
