# The CSI driver for NFS, against the server of this machine: its own tests, and csi-sanity. No mount.nfs is used.
mkdir -p /run/csi
. ./nfs_server.sh

# Each of the driver's tests is a check.
export BERTH_CSI_NFS=/usr/local/bin/berth-csi-nfs BERTH_TEST_NFS_SERVER=127.0.0.1 BERTH_TEST_NFS_EXPORT=$export_dir RUST_BACKTRACE=0
driver_tests=$(driver-tests --list 2>/dev/null | sed -n 's/: test$//p')
check 'the driver has tests' [ -n "$driver_tests" ]
for name in $driver_tests; do
  check "${name//::/ }" driver-tests --exact "$name"
done

csi_sanity() {
  local failed
  berth-csi-nfs --endpoint unix:///run/csi/csi.sock --node-id node --parameter server=127.0.0.1 --parameter share=$export_dir 2>/run/csi/log &
  local driver=$!
  within 30 test -S /run/csi/csi.sock
  csi-sanity --csi.endpoint unix:///run/csi/csi.sock --csi.mountdir /run/csi/mounts --csi.stagingdir /run/csi/staging \
    --ginkgo.no-color --ginkgo.silence-skips > /run/csi/sanity.out 2>&1
  failed=$?
  kill $driver && wait $driver || { echo "the driver ended with $?"; failed=1; }
  grep -aE 'Passed|\[FAIL\]' /run/csi/sanity.out
  [ $failed = 0 ] || { tail -5 /run/csi/sanity.out; tail -3 /run/csi/log; return 1; }
}
check 'csi-sanity passes' csi_sanity
check 'at least 60 specs passed' grep -qE -- '-- (6[0-9]|[7-9][0-9]) Passed' /run/csi/sanity.out
check 'no mount of NFS is left' empty "$(grep -E ' nfs4? ' /proc/mounts)"
check 'nothing is left on the share' empty "$(find $export_dir -mindepth 1 -not -path '*/.berth-csi-nfs*')"
