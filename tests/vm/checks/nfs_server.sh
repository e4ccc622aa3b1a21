# An NFS server on this machine, with versions 3 and 4, and no mount.nfs. Sourced by the checks of NFS.
export_dir=/srv/nfs

server_is_up() { rpcinfo -t 127.0.0.1 nfs 4 >/dev/null && rpcinfo -t 127.0.0.1 mountd 3 >/dev/null; }

mkdir -p $export_dir
echo "$export_dir *(rw,no_root_squash,no_subtree_check,insecure,async)" > /etc/exports
modprobe nfs nfsd
check 'an NFS server starts' systemctl start nfs-server
check 'it answers' within 60 server_is_up
mv /sbin/mount.nfs /sbin/mount.nfs.away 2>/dev/null
mv /usr/sbin/mount.nfs /usr/sbin/mount.nfs.away 2>/dev/null
