# The agent's processes as systemd and the kernel see them.
protected() {
  local pid score bad=
  for pid in $1; do
    score=$(cat "/proc/$pid/oom_score_adj") || continue
    [ "$score" = -999 ] || bad="$bad $pid($(tr '\0' ' ' <"/proc/$pid/cmdline" | cut -c1-60)):$score"
  done
  empty "$bad"
}
in_unit() { cat /sys/fs/cgroup/system.slice/berth.service/cgroup.procs; }
for unit in berth berth-logd berth-dns; do
  check "$unit is protected from the OOM killer" protected "$(main_pid $unit)"
  check "$unit may open many files" sh -c "awk '/Max open files/ {exit !(\$4 > 65536)}' /proc/$(main_pid $unit)/limits"
done
shims=$(pgrep -f 'containerd-shim-runc-v2 -namespace')
check "shims are protected from the OOM killer" protected "$shims"
check "the agent's group holds the agent alone" equal "$(in_unit)" "$(main_pid berth)"
check "priorities reach the journal" sh -c 'journalctl -u berth -p info -o cat --no-pager -n 1 | grep -q . &&
  ! journalctl -u berth -p err -o cat --no-pager | grep -E "INFO|WARN"'
check "no second time stamp in the journal" empty "$(journalctl -u berth -o cat --no-pager | grep -m 1 -E '^ *[0-9]{4}-[0-9]{2}-[0-9]{2}T')"
check "no warning for the normal course" empty "$(journalctl -u berth -p warning -o cat --no-pager | grep -vE 'oom|crash|never-ready' | head -3)"
