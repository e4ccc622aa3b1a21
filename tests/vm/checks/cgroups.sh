# What the groups of pods are set to, against those of the real kubelet (tests/golden/v2/cgroup). Of each recording there
# are the manifest and lines `<container, or . for the pod> <file> <value>`.
# Left out are those with less than a tenth of a CPU: on an emulated processor runc does not get a container started with it.
berth image import $checkout/shapes.tar >/dev/null
shapes=
for recorded in cgroups/*.txt; do
  awk '$2 == "cpu.max" && $3 != "max" && $3 < 10000 {exit 1}' "$recorded" || continue
  shapes="$shapes $(basename "$recorded" .txt)"
done

# as_recorded <shape>: succeeds where its groups are set to the same.
as_recorded() {
  local ps pod= dir= last= container file rest id
  ps=$(berth ps "$1") || { echo "$ps"; return 1; }
  for id in $(grep -oE '\b[0-9a-f]{13}\b' <<<"$ps"); do
    dir=$(find /sys/fs/cgroup/kubepods -type d -name "$id*")
    [ -z "$dir" ] || pod=$(dirname "$dir")
  done
  [ -n "$pod" ] || { echo "$ps"; return 1; }
  while read -r container file rest; do
    # Each group is looked for once: its lines follow one another.
    if [ "$container" != "$last" ]; then
      id=$(grep -F "/$container " <<<"$ps" | grep -oE '\b[0-9a-f]{13}\b' | head -1)
      if [ "$container" = . ]; then dir=$pod; else dir=$(echo "$pod/${id:-none}"*); fi
      last=$container
    fi
    if [ "$file" = parent ]; then
      echo "$container parent $(dirname "${dir#/sys/fs/cgroup/}")"
    else
      echo "$container $file $(<"$dir/$file")"
    fi
  done <"cgroups/$1.txt" 2>&1 | diff "cgroups/$1.txt" -
}

# One after the other: together they request more than the node has.
ended() { ! berth pods -o name | grep "/$1$"; }
for shape in $shapes; do
  cp "cgroups/$shape.yaml" $manifests/
  check "groups of $shape" within 120 as_recorded "$shape"
  rm "$manifests/$shape.yaml"
  check "$shape ends" within 60 ended "$shape"
done
