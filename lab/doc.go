// Package lab runs real hosts on this machine, for the tests and for the demo.
//
// A Lab holds hosts on one network of its own. A Host is Debian's systemd as
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
// A Machine is a virtual machine instead: a kernel, a clock and all of cgroup v2
// of its own, at some seconds a start and no need of root.
//
// What takes long is made once and kept in CacheDir under the digest of its
// recipe: the root file system from Debian's packages (about a minute, 410 MB),
// and the helper hostinit. Setup makes it beforehand and installs what is
// missing. A day after its last use another recipe's is removed.
//
// # Fixtures
//
// InstallMicroVM, AddVM, AddVMs, AddZoo, HostileInstances, Plant and AddUser lay
// down what a monitor may meet on a host of microvm.nix; each says what systemd
// makes of it. A VM's VMM is a stand-in of 12 KB of memory under the VMM's own
// name and command line, so that thousands fit, or what its Runner brings.
// SIGUSR1 makes a stand-in exit with 0, SIGUSR2 with 2.
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
// lab's cgroup and removes its folder. If the keeper was killed too, the next
// Open finds the folder's lock free and does the same. Network namespaces and
// mounts belong to the processes and go with them.
//
// # Concurrency
//
// All methods of Lab may be called from many goroutines. So may those of Host;
// Start, Stop, Crash and Restart of one host wait for each other.
//
// The lab is for tests and the demo: it isolates hosts from each other and from
// accidents, not from an attacker, and nothing in production imports it.
package lab
