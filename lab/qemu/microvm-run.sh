#!/bin/bash
# A real guest, started as microvm.nix's runner for QEMU does: in the VM's
# folder, under the name microvm@<hostName>, console on standard output.
set -eu
[ -e {{.HostName}}.img ] || truncate -s {{.DiskMB}}M {{.HostName}}.img
rm -f {{.HostName}}.sock
exec -a microvm@{{.HostName}} /usr/bin/qemu-system-x86_64 \
	-name {{.HostName}} \
	-M {{.Machine}} -accel {{.Accel}} -cpu max -m {{.MemoryMB}}M -smp {{.VCPUs}} \
	-nodefaults -no-user-config -no-reboot -display none \
	-kernel {{.Kernel}} -initrd {{.Initramfs}} -append {{.CommandLine}} \
	-chardev stdio,id=stdio,signal=off -serial chardev:stdio \
	-qmp unix:{{.HostName}}.sock,server,nowait \
	-drive id=vda,if=none,format=raw,cache=none,file={{.HostName}}.img -device virtio-blk-pci,drive=vda
{{- range .Taps}} \
	-netdev tap,id={{.ID}},ifname={{.Name}},script=no,downscript=no -device virtio-net-pci,netdev={{.ID}},mac={{.MAC}},romfile=
{{- end}}
