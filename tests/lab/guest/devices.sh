#!/bin/busybox sh
# shellcheck shell=dash
# What a guest does with the devices that it was given: it reads from the drive, sends with the card, and writes what came
# of both onto the drive's second sector, where the outer machine sees it.
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
while read -r module; do insmod "/modules/$module.ko"; done < /modules/order

until drive=/dev/$(cd /sys/block && ls -d nvme*) && [ -b "$drive" ]; do sleep 1; done
until [ -d /sys/class/net/eth0 ]; do sleep 1; done
ip link set eth0 up
ip address add 192.0.2.1/24 dev eth0
until [ "$(cat /sys/class/net/eth0/statistics/tx_packets)" -gt 0 ]; do ping -c 1 -W 1 192.0.2.2 > /dev/null; done
read=$(dd if="$drive" bs=512 count=1 2> /dev/null | md5sum)
echo "read ${read%% *} sent by $(cat /sys/class/net/eth0/address)" |
    dd of="$drive" bs=512 seek=1 conv=sync,fsync 2> /dev/null
while :; do sleep 3600; done
