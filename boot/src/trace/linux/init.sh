#!/busybox sh
# The first process of the guest: it has the functions of /probes record themselves, loads
# the driver, and answers datagrams (/echo) and one page: what was recorded.
busybox() { /busybox "$@"; }
die() { echo "kickpath: $1"; busybox poweroff -f; }

busybox mkdir -p /proc /sys /dev /run
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
busybox mount -t devtmpfs dev /dev
busybox mount -t tracefs tracefs /sys/kernel/tracing || die "this kernel has no tracefs"
cd /sys/kernel/tracing || die "this kernel has no tracefs"

record() {
    echo x86-tsc >trace_clock || die "this kernel has no trace clock x86-tsc"
    echo 16384 >buffer_size_kb
    while read -r probe; do
        echo "$probe" >>kprobe_events || echo "missing $probe" >>/run/about
    done </probes
    for event in $EVENTS; do
        echo 1 >"events/$event/enable" || echo "missing $event" >>/run/about
    done
    echo stacktrace >events/kickpath/virtqueue_notify/trigger
} 2>/dev/null

. /settings
for module in /modules/*.ko; do
    case $module in
    *-virtio_pci.ko) record ;;
    esac
    busybox insmod "$module" || die "cannot load $module"
done
busybox ip link set lo up
for interface in /sys/class/net/*; do
    interface=${interface##*/}
    [ "$interface" = lo ] && continue
    busybox ip addr add "$ADDRESS" dev "$interface"
    busybox ip link set "$interface" up
    busybox ip route add default via "$GATEWAY"
    /echo &
    # Only then somebody answers.
    until busybox grep -q ':0007 ' /proc/net/udp; do busybox usleep 1000; done
    busybox httpd -h /www
    echo "kickpath: up ipv4=$ADDRESS"
    # The first process never ends.
    exec /busybox sleep 2147483647
done
die "the driver found no network device"
