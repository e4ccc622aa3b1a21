# Before the machine is shut down.
cp shutdown.yaml $manifests/
check "the pods get Ready" within 60 ready graceful deaf
check "a pod has begun" within 10 grep -q start /var/tmp/graceful/seen
systemctl restart berth
check "a restart of the agent ends no pod" equal "$(cat /var/tmp/graceful/seen)" start
sync
