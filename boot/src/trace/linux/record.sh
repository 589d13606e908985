# Sourced by the guest's first process: how the functions of /probes are made to record
# themselves.
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
