# First process of a lab node: gives the node its own name, files and devices, then waits for ever.
#
# It starts inside the node's network namespace and inside fresh mount, PID and UTS namespaces. Killing
# it ends everything on the node at once, which is what cutting a machine's power does. The files below
# the node's folder are its disk: they outlive it.
#
# usage: sh boot.sh evergate-lab-node --lab NAME --node NODE --dir DIR
set -eu
node=$5
dir=$7
disk=$dir/nodes/$node

hostname "$node"

# The machine's named namespaces are mounts. Kept here, they would live on after `ip netns delete`
# outside, this lab's and others' alike. The folder they are in is one, too, and takes them all with it at once; one by
# one takes minutes where there are thousands.
while umount --lazy /run/netns 2>/dev/null; do :; done
! grep -q ' /run/netns/' /proc/self/mountinfo || umount --recursive --lazy /run/netns 2>/dev/null || :
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/netns /run/lock /run/disk /run/lab

# /sys/class/net shows the network namespace it was mounted in.
mount -t sysfs sysfs /sys

# Own /etc/neutron and /var/lib/evergate, without touching the machine's /etc and /var/lib: an overlay
# in memory holds the mount points. The lab's folder may itself be below one of the two, hence /run/disk.
mkdir -p "$disk/etc/neutron" "$disk/var/lib/evergate"
mount --bind "$disk" /run/disk
mount --bind "$dir" /run/lab
for tree in /etc /var/lib; do
    layer=/run/overlay$tree
    mkdir -p "$layer/upper" "$layer/work"
    mount -t overlay -o "lowerdir=$tree,upperdir=$layer/upper,workdir=$layer/work" overlay "$tree"
done
mount --bind /run/lab "$dir"
mkdir -p /etc/neutron /var/lib/evergate
mount --bind /run/disk/etc/neutron /etc/neutron
mount --bind /run/disk/var/lib/evergate /var/lib/evergate
cp "$dir/hosts" /etc/hosts
echo "$node" > /etc/hostname

ip -batch "$disk/network.ip"
while IFS='=' read -r key value; do
    # Some settings come with a kernel module that not every machine has loaded.
    [ ! -e "/proc/sys/net/$key" ] || echo "$value" > "/proc/sys/net/$key"
done < "$disk/sysctl"

: > /run/booted
# A first process must collect the orphans that end in its care; the shell's `wait` does.
while :; do
    sleep infinity &
    wait
done
