#!/busybox sh
# The first process of the guest: it loads the driver, with its functions recorded where /record
# says how, starts the programs in /services, and serves the pages in /www.
busybox() { /busybox "$@"; }
die() { echo "kickpath: $1"; busybox poweroff -f; }

busybox mkdir -p /proc /sys /dev /run
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
busybox mount -t devtmpfs dev /dev

record() { :; }
. /settings
[ -e /record ] && . /record
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
    for service in /services/*; do
        "$service" &
    done
    busybox httpd -h /www
    # Only then somebody answers.
    for port in $PORTS; do
        until busybox grep -q ":$port " /proc/net/udp /proc/net/tcp; do busybox usleep 1000; done
    done
    echo "kickpath: Linux $(busybox uname -r)"
    echo "kickpath: up ipv4=$ADDRESS"
    # The first process never ends.
    exec /busybox sleep 2147483647
done
die "the driver found no network device"
