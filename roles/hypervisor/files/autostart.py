# From the role phyllome.virt.hypervisor.
"""Start the guests of this host that have a place in an order (autostart.order of phyllome_vm), one after the other.

Whether a guest has one is in its definition, so this needs no list that could be out of date. A guest on its way to
another host is not started, nor a clone that is not complete: whoever began that brings it to its end.
"""

import itertools
import sys
import time

import libvirt
from lxml import etree

GUEST = "metadata/{https://phyllome.org/xmlns/virt/guest/1}guest"
ORIGIN = "{https://phyllome.org/xmlns/virt/guest/1}origin"
MIGRATION = "metadata/{https://phyllome.org/xmlns/virt/migration/1}migration"


def read(text):
    """Order, delay in seconds and an obstacle of a guest's definition; None for a guest that has no order."""
    root = etree.fromstring(text, etree.XMLParser(resolve_entities=False, no_network=True))
    marker = root.find(GUEST)
    if marker is None or marker.get("autostart-order") is None:
        return None
    mark, origin = root.find(MIGRATION), marker.find(ORIGIN)
    obstacle = ""
    if mark is not None and mark.get("phase") != "done":
        obstacle = "it is on its way to another host: finish the move with vm_migrate"
    elif origin is not None and origin.get("done") != "yes":
        obstacle = "it is a clone that is not complete: run the playbook that made it again"
    return int(marker.get("autostart-order")), int(marker.get("autostart-delay", "0")), obstacle


def main():
    """Start them; the exit status says whether one could not be started that should."""
    libvirt.registerErrorHandler(lambda context, error: None, None)
    connection = libvirt.open("qemu:///system")
    waiting, status, pause = [], 0, 0
    for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_PERSISTENT):
        try:
            found = read(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
        except libvirt.libvirtError as exc:  # it may have been removed, and the others are to start all the same
            print(f"guest {domain.name()} cannot be looked at: {exc}", file=sys.stderr, flush=True)
            status = 1
            continue
        if found is not None:
            waiting.append((found[0], domain.name(), found[1], found[2], domain))
    waiting.sort(key=lambda each: each[:2])
    for order, guests in itertools.groupby(waiting, key=lambda each: each[0]):
        time.sleep(pause)
        pause = 0
        for dummy, name, delay, obstacle, domain in guests:
            try:
                if domain.isActive():
                    continue
                if not obstacle:
                    domain.create()
            except libvirt.libvirtError as exc:
                obstacle, status = str(exc), 1
            if obstacle:
                print(f"guest {name} (order {order}) is not started: {obstacle}", file=sys.stderr, flush=True)
                continue
            print(f"guest {name} (order {order}) is started", flush=True)
            pause = max(pause, delay)
    return status


if __name__ == "__main__":
    sys.exit(main())
