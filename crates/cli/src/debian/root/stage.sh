# Makes a root of packages on the empty disk /dev/vda, as root of a VM that sees the host's files and has no network.
#
# What is in PACKAGES: the .deb files, 'essential' with the names of those that come first, 'sources.list'. The argument is
# whom the guest asks for names. Steps are lines that begin with '==> '; the rest is the packages' own talk.
set -eu
exec 2>&1

packages=/run/umbra-packages
root=/mnt

echo '==> formatting'
# Nothing is lost if this is cut short: half a root is thrown away.
mkfs.ext4 -q -L root -J size=32 -E lazy_journal_init=1,lazy_itable_init=1 /dev/vda
mkdir -p $root
mount -t ext4 -o noatime,nobarrier /dev/vda $root

echo '==> unpacking'
# Programs and libraries are below /usr only; packages still have some of them outside of it.
for directory in bin sbin lib lib64; do
    mkdir -p $root/usr/$directory
    ln -s usr/$directory $root/$directory
done
while read -r deb; do
    dpkg-deb --fsys-tarfile "$packages/$deb" | tar -xpf - --keep-directory-symlink -C $root
done <$packages/essential

echo '==> installing'
mkdir -p $root/umbra $root/run/lock $root/usr/sbin
for directory in proc sys dev; do
    mount --rbind /$directory $root/$directory
done
mount --bind $packages $root/umbra
# No service is started in here.
printf '#!/bin/sh\nexit 101\n' >$root/usr/sbin/policy-rc.d
chmod +x $root/usr/sbin/policy-rc.d
echo '# Whoever boots this system mounts its root.' >$root/etc/fstab
inside() {
    env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 \
        DEBIAN_FRONTEND=noninteractive DEBCONF_NONINTERACTIVE_SEEN=true chroot $root "$@" </dev/null
}
# The order among packages that are all there is dpkg's to find; what is unpacked already needs no other first.
inside sh -c 'dpkg --force-depends --force-unsafe-io --force-confold --install /umbra/*.deb'
# Whatever was waiting for something; and nothing may be left.
inside dpkg --force-unsafe-io --force-confold --configure --pending
[ -z "$(inside dpkg --audit)" ]

echo '==> setting up'
# The name is whatever the first process has set; the machine's number and its key are each VM's own.
rm -f $root/usr/sbin/policy-rc.d $root/etc/hostname $root/etc/ssh/ssh_host_*
: >$root/etc/machine-id
printf '127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n' >$root/etc/hosts
rm -f $root/etc/resolv.conf
echo "nameserver $1" >$root/etc/resolv.conf
rm -f $root/etc/apt/sources.list.d/*
cp $packages/sources.list $root/etc/apt/sources.list

mkdir -p $root/etc/systemd/network $root/etc/ssh/sshd_config.d \
    $root/etc/systemd/system/serial-getty@ttyS0.service.d
cat >$root/etc/systemd/network/80-ethernet.network <<END
[Match]
Type=ether

[Network]
DHCP=yes
END
# Nobody has a password. Who sits at the console owns the machine.
cat >$root/etc/systemd/system/serial-getty@ttyS0.service.d/owner.conf <<END
[Service]
ExecStart=
ExecStart=-/sbin/agetty --autologin root --noclear --keep-baud 115200,57600,38400,9600 - \$TERM
END
cat >$root/etc/ssh/sshd_config.d/umbra.conf <<END
HostKey /etc/ssh/ssh_host_ed25519_key
AuthorizedKeysFile .ssh/authorized_keys /run/umbra/authorized_keys
END
cat >$root/etc/systemd/system/ssh-host-key.service <<END
[Unit]
Description=Key of this machine for ssh
ConditionPathExists=!/etc/ssh/ssh_host_ed25519_key
Before=ssh.service

[Service]
Type=oneshot
ExecStart=/usr/bin/ssh-keygen -q -t ed25519 -N "" -f /etc/ssh/ssh_host_ed25519_key

[Install]
WantedBy=ssh.service
END
inside systemctl --quiet enable systemd-networkd.service ssh-host-key.service
# Nothing waits for the network, and nothing is upgraded behind its user's back.
inside systemctl --quiet mask systemd-networkd-wait-online.service apt-daily.timer apt-daily-upgrade.timer \
    e2scrub_all.timer e2scrub_reap.service

echo '==> finishing'
umount $root/umbra
rmdir $root/umbra
find $root/var/log -type f -exec truncate -s 0 {} +
umount -R $root/proc $root/sys $root/dev
umount $root
