#!/busybox sh
# The first process of the Linux between: over the root directory of the machine
# outside, which nobody writes to, it lays a memory of its own, and runs what
# /job says there. What that leaves behind goes to the other share.
busybox() { /busybox "$@"; }
die() { echo "kickpath: $1"; busybox poweroff -f; }

busybox mkdir -p /proc /dev /outside /memory /new
busybox mount -t proc proc /proc
busybox mount -t devtmpfs dev /dev
for module in /modules/*.ko; do
    busybox insmod "$module" || die "cannot load $module"
done
share="trans=virtio,version=9p2000.L,msize=512000"
busybox mount -t 9p -o "$share,cache=loose,ro" root /outside || die "cannot mount the root outside"
busybox mount -t tmpfs tmpfs /memory
busybox mkdir /memory/written /memory/work
busybox mount -t overlay -o lowerdir=/outside,upperdir=/memory/written,workdir=/memory/work overlay /new ||
    die "cannot lay memory over the root outside"
busybox mount -t proc proc /new/proc
busybox mount -t sysfs sys /new/sys
busybox mount -t tracefs tracefs /new/sys/kernel/tracing
busybox mount -t debugfs debugfs /new/sys/kernel/debug
busybox mount -t devtmpfs dev /new/dev
busybox mkdir -p /new/dev/shm /new/dev/pts
busybox mount -t tmpfs tmpfs /new/dev/shm
busybox mount -t tmpfs tmpfs /new/run
busybox mkdir -p /new/run/lock /new/run/kickpath
busybox mount -t 9p -o "$share,cache=none" results /new/run/kickpath || die "cannot mount the results"
busybox ip link set lo up
busybox cp /job /new/run/job
busybox chroot /new /bin/sh /run/job >/new/run/kickpath/out 2>/new/run/kickpath/errors </dev/null
echo $? >/new/run/kickpath/status
busybox sync
busybox poweroff -f
