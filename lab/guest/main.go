// Command guest is the lab's program inside virtual machines. It is static and
// uses the standard library only, so that the lab can build it from its embedded
// source. It is one of three things:
//
//   - PID 1 of a microVM, as the kernel starts it from its initramfs: it takes
//     commands on TCP port 7777 and on the serial console that make load, write
//     log lines, or end the machine (microvm.go).
//   - The first program of a machine, with lab.role=machine on the kernel command
//     line: it mounts the disk and becomes that disk's systemd (stage.go).
//   - With the argument "agent", the service in a machine through which the test
//     runs commands, moves files and dials (agent.go).
//
// It trusts whoever reaches its ports: the lab lets nobody else reach them.
package main

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"unsafe"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		os.Exit(1)
	}
}

func run() error {
	if len(os.Args) == 2 && os.Args[1] == "agent" {
		return runAgent()
	}
	if os.Getpid() != 1 {
		return fmt.Errorf("PID 1 of the lab's virtual machines: not for use by hand")
	}
	if err := mountKernel(); err != nil {
		return err
	}
	args, err := kernelArgs()
	if err != nil {
		return err
	}
	if err := loadModules("/modules"); err != nil {
		return err
	}
	if args["lab.role"] == "machine" {
		return runStage()
	}
	return runMicroVM(args)
}

// mountKernel mounts the file systems that the kernel itself fills.
func mountKernel() error {
	for _, m := range []struct{ kind, at string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		if err := syscall.Mount(m.kind, m.at, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	return nil
}

// kernelArgs are the words key=value of the kernel command line.
func kernelArgs() (map[string]string, error) {
	text, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return nil, fmt.Errorf("read kernel command line: %w", err)
	}
	args := map[string]string{}
	for _, word := range strings.Fields(string(text)) {
		if key, value, ok := strings.Cut(word, "="); ok {
			args[key] = value
		}
	}
	return args, nil
}

// sysFinitModule is the number of finit_module on amd64.
const sysFinitModule = 313

// loadModules loads the modules in dir in the order of dir/order, a path a line.
func loadModules(dir string) error {
	list, err := os.ReadFile(dir + "/order")
	if err != nil {
		return fmt.Errorf("read list of modules: %w", err)
	}
	for _, name := range strings.Fields(string(list)) {
		if err := loadModule(dir + "/" + name); err != nil {
			return fmt.Errorf("load module %s: %w", name, err)
		}
	}
	return nil
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	params := []byte{0}
	if _, _, e := syscall.Syscall(sysFinitModule, f.Fd(), uintptr(unsafe.Pointer(&params[0])), 0); e != 0 && e != syscall.EEXIST {
		return e
	}
	return nil
}
