#!/busybox sh
# What was recorded, as a page: first what is known of the machine, a line each, then, behind an
# empty line, the trace. It is packed, to a tenth, to go in a few frames.
busybox() { /busybox "$@"; }
cd /sys/kernel/tracing || exit
echo 0 >tracing_on
device=/sys/bus/virtio/devices/virtio0
echo "Content-Type: application/gzip"
echo
{
    echo "release $(busybox uname -r)"
    busybox sed -n 's/^cpu MHz[^0-9]*/mhz /p' /proc/cpuinfo
    echo "features $(busybox cat $device/features)"
    echo "device $(busybox readlink -f $device)"
    busybox sed -n 's/^\([0-9a-f]*\) T iowrite16$/iowrite16 \1/p' /proc/kallsyms
    [ -e /run/about ] && busybox cat /run/about
    echo
    busybox cat trace
} | busybox gzip -c
