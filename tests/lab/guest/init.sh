#!/bin/busybox sh
# shellcheck shell=dash
# A system of a few MiB: what a test wants of an installer, and of a guest with an agent and cloud-init.
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
while read -r module; do insmod "/modules/$module.ko"; done < /modules/order
words=" $(cat /proc/cmdline) "

case "$words" in
*" install "*)
    # The system that it installs is the guest that counts; what it was told lies behind that.
    until [ -b /dev/vda ]; do sleep 1; done
    gunzip -c /system.gz | dd of=/dev/vda bs=64k conv=fsync 2> /dev/null
    case "$words" in
    *LABEL=OEMDRV*)
        mkdir -p /medium
        until mount -t iso9660 -o ro /dev/sr0 /medium 2> /dev/null; do sleep 1; done
        (cat /proc/cmdline /medium/ks.cfg && cd /medium && find . -type f) | dd of=/dev/vda bs=4k seek=4096 conv=fsync 2> /dev/null
        ;;
    esac
    echo "installer: done"
    case "$words" in *" reboot "*) reboot -f ;; *) poweroff -f ;; esac
    ;;
esac

mkdir -p /run/cloud-init /seed /sbin
printf '#!/bin/sh\npoweroff -f\n' > /sbin/shutdown
chmod 755 /sbin/shutdown
if [ -d /sys/class/net/eth0 ]; then
    ip link set lo up
    ip link set eth0 up
    udhcpc -i eth0 -s /udhcpc.sh -q -n > /dev/null
    httpd -p 22
fi
for port in /sys/class/virtio-ports/*; do
    if [ "$(cat "$port/name")" = org.qemu.guest_agent.0 ]; then
        qemu-ga -m virtio-serial -p "/dev/${port##*/}" -t /run &
    fi
done
tries=0
until mount -t iso9660 -o ro /dev/sr0 /seed 2> /dev/null || [ $tries -eq 20 ]; do
    tries=$((tries + 1))
    sleep 1
done
if [ -f /seed/meta-data ]; then
    echo "seed: $(tr -d ' \n' < /seed/meta-data)"
    echo "seed: $(tr '\n' ' ' < /seed/user-data)"
    umount /seed
    echo '{"v1": {"datasource": "DataSourceNoCloud [seed=/dev/sr0]", "errors": []}}' > /run/cloud-init/result.json
fi
echo "system: up"
# A directory of the host may come at any time, and tells that it was seen from here.
mkdir -p /share
while :; do
    mount -t virtiofs share /share 2> /dev/null && uname -r > /share/seen && umount /share
    sleep 1
done
