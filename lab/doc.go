// Package lab runs real hosts on this machine, for the tests and for the demo.
//
// A Lab holds hosts on one network of its own, and machines. A Host is Debian's systemd as
// PID 1 of fresh namespaces, over an overlay on one cached root file system:
// its own D-Bus, journal, boot id, machine id, processes, cgroup tree and
// network, about a second to start. The kernel, its clock and its uptime are the
// machine's. Fixtures put on a host what microvm.nix would: units, state
// directories, stores, taps, with stand-ins or real guests for VMMs.
//
//	l := lab.New(t)                      // fails t, naming what to type, without root or a tool
//	h, err := l.AddHost("h1")            // exists, off; files may be written already
//	err = h.Start(ctx)                   // up: systemd is running or degraded
//	err = h.InstallMicroVM(ctx, lab.MicroVMOptions{})
//	err = h.AddVM(ctx, lab.VM{Name: "web-1", HostName: "web-one"})
//	out, err := h.Exec(ctx, "systemctl", "start", "microvm@web-1")
//
// A Machine is a virtual machine instead: see below. A Node is either.
//
// What takes long is made once and kept in CacheDir under the digest of its
// recipe: the root file system from Debian's packages (about a minute, 410 MB),
// what guests boot from, the machines' disk and snapshot (a minute), and the
// helper hostinit. Setup makes all of it beforehand and installs what is missing.
// A day after its last use another recipe's is removed.
//
// # Fixtures
//
// InstallMicroVM, AddVM, AddVMs, AddZoo, HostileInstances, Plant and AddUser lay
// down what a monitor may meet on a host of microvm.nix; each says what systemd
// makes of it. A VM's VMM is a stand-in of 12 KB of memory under the VMM's own
// name and command line, so that thousands fit, or what its Runner brings.
// SIGUSR1 makes a stand-in exit with 0, SIGUSR2 with 2.
//
// # Real guests
//
// Host.QEMURunner makes a VM's VMM a real QEMU with Debian's cloud kernel and the
// program in guest/ as all there is in it, ready about three seconds after its
// start. It is run and shut down as microvm.nix's runner would, its console goes
// to its unit's journal, and it takes commands on GuestPort of its address:
//
//	vm := lab.VM{Name: "db-1", HostName: "db-one", MemoryMB: 128, Taps: []string{"vm-db-1"}}
//	vm.Runner, err = h.QEMURunner(ctx, lab.GuestOptions{Addr: h.GuestAddr(1)})
//	err = h.AddVM(ctx, vm)                // then start it, and await GuestReady in its journal
//	conn, err := h.Dial(ctx, "tcp", net.JoinHostPort(h.GuestAddr(1).String(), "7777"))
//	_, err = fmt.Fprintln(conn, "cpu 50 10") // load, log lines, panic, poweroff, hang: guest/command.go
//
// Whether KVM works is found out once by a trial boot; without it the guest is
// emulated, at the same start-up time and a tenth of the speed.
//
// # Machines
//
// A Machine is a QEMU guest over a disk with the hosts' root file system: a
// kernel, a clock that SetClock sets, systemd as PID 1 of the whole, all of
// cgroup v2, and the kernel's modules, such as dm-flakey, dm-delay and netem. It
// needs no root. It starts from a snapshot of a booted machine in about two
// seconds, with ids, name and random numbers of its own; later it boots from its
// disk, in about ten. Crash is a true power cut: what was not synced is lost.
//
//	m := lab.NewMachine(t, "m1")          // or Lab.AddMachine and Start
//	out, err := m.Exec(ctx, "cat", "/sys/fs/cgroup/cgroup.controllers")
//	err = m.InstallMicroVM(ctx, lab.MicroVMOptions{})
//	err = m.AddVM(ctx, lab.VM{Name: "web-1"}) // with a stand-in
//
// A machine has no network but what Exec, Dial and the files make of an agent in
// it, which only this process can reach. Its methods mean what a Host's do.
// Machines share no cgroup, no network and no kernel with hosts of the lab.
//
// # Network
//
// Each lab has a network namespace with a bridge, and each host a port on it:
// labs cannot see each other, whatever addresses they use. Inside a host the
// address sits on the bridge vmbr, to which guests' taps may be added, so guests
// of all hosts share one network. Cut, CutOneWay and Isolate drop frames without
// a word, as a broken switch does; Heal ends that. Dial reaches into a host from
// the test.
//
// # Cgroups
//
// The host's tree is a cgroup below the machine's cgroup2 mount. On a machine
// that itself runs systemd that is a delegated scope; elsewhere it is the root
// of the mount. Where the machine has no cgroup2 controllers the hosts have none
// either: memory.current and io.stat are absent there, as Controllers tells.
//
// # Nothing left behind
//
// Close ends everything. If the process that opened the lab dies without it, by
// a panic, SIGKILL or Ctrl-C, a keeper process sees its pipe end, kills the
// lab's cgroup and removes its folder, and the kernel kills its machines. If the keeper was killed too, the next
// Open finds the folder's lock free and does the same. Network namespaces and
// mounts belong to the processes and go with them.
//
// # Concurrency
//
// All methods of Lab may be called from many goroutines. So may those of Host
// and Machine; Start, Stop, Crash and Restart of one wait for each other.
//
// The lab is for tests and the demo: it isolates hosts from each other and from
// accidents, not from an attacker, and nothing in production imports it.
package lab
