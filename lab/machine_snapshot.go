package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// resumeTimeout bounds the way from a snapshot to a settled machine.
const resumeTimeout = 60 * time.Second

// snapshot is a booted machine at rest, from which others go on.
type snapshot struct {
	memory string // its pages, mapped privately by each machine
	state  string // its devices
	disk   string // what it wrote, over the base's disk
	lock   *fileLock
}

// openSnapshot makes the snapshot if the cache does not hold it: half a minute
// without KVM.
func openSnapshot(ctx context.Context, base *machineBase, accel string, progress io.Writer) (*snapshot, error) {
	s, err := makeSnapshot(ctx, base, accel, progress)
	if err != nil {
		return nil, fmt.Errorf("make the machines' snapshot: %w", err)
	}
	return s, nil
}

func makeSnapshot(ctx context.Context, base *machineBase, accel string, progress io.Writer) (*snapshot, error) {
	cache, err := CacheDir()
	if err != nil {
		return nil, err
	}
	version, err := qemuVersion(ctx)
	if err != nil {
		return nil, err
	}
	// The state fits the same QEMU with the same arguments on the same kind of
	// processor.
	parts := append(machineArgs(base, accel, ""), version, base.key, base.boot.key, snapshotRecipe())
	if accel == "kvm" {
		parts = append(parts, cpuModel())
	}
	name := "snapshot-" + digest(parts...)
	dir, lock, err := cached(ctx, cache, name, func(ctx context.Context, dir string) error {
		say(progress, "Making the machines' snapshot (once, about half a minute)")
		return saveSnapshot(ctx, base, accel, dir)
	})
	if err != nil {
		return nil, err
	}
	if err := forgetOld(cache, "snapshot-", name); err != nil {
		return nil, errors.Join(fmt.Errorf("remove old snapshots: %w", err), lock.release())
	}
	return openedSnapshot(dir, lock), nil
}

func openedSnapshot(dir string, lock *fileLock) *snapshot {
	return &snapshot{
		memory: filepath.Join(dir, "memory"), state: filepath.Join(dir, "state"),
		disk: filepath.Join(dir, "disk.qcow2"), lock: lock,
	}
}

// warmUp is run before the snapshot is taken, so that machines find what most
// tests use in memory and, without KVM, translated.
var warmUp = []string{
	"systemctl daemon-reload", "systemctl --no-pager list-units", "systemd-run --wait true", "journalctl --no-pager --lines=5",
	"systemctl restart systemd-journald", "busctl --no-pager list", "sync",
}

func snapshotRecipe() string { return strings.Join(warmUp, "\n") }

// saveSnapshot boots a machine and leaves its memory, devices and disk in dir.
func saveSnapshot(ctx context.Context, base *machineBase, accel, dir string) (err error) {
	files := openedSnapshot(dir, nil)
	if err := writeOverlay(files.disk, base.disk, "raw"); err != nil {
		return err
	}
	state, err := os.Create(files.state)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, state.Close()) }()
	m := &Machine{name: "snapshot"}
	defer func() { err = errors.Join(err, m.crash()) }()
	run, err := m.begin(append(machineArgs(base, accel, files.disk), memoryArgs(files.memory, true)...))
	if err != nil {
		return err
	}
	if err := m.awaitBoot(ctx, run); err != nil {
		return fmt.Errorf("%w\n%s", err, m.diagnose(context.WithoutCancel(ctx)))
	}
	if out, err := m.Exec(ctx, "sh", "-e", "-c", snapshotRecipe()); err != nil {
		return fmt.Errorf("warm up: %w: %s", err, out)
	}
	if err := run.simple(ctx, agentRequest{Op: "forget"}); err != nil {
		return err
	}
	if err := run.qmp.ask("stop", nil, nil); err != nil {
		return err
	}
	if err := run.shareMemory(); err != nil {
		return err
	}
	if err := run.migrate(ctx, "migrate", state); err != nil {
		return err
	}
	// QEMU writes its disk image out before it ends.
	if err := run.qmp.ask("quit", nil, nil); err != nil {
		return err
	}
	select {
	case <-run.done:
		return run.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// memoryArgs put the machine's memory into a file, shared with it or copied on
// writing.
func memoryArgs(path string, shared bool) []string {
	share := "off"
	if shared {
		share = "on"
	}
	return []string{"-object", fmt.Sprintf("memory-backend-file,id=mem,size=%dM,share=%s,mem-path=%s",
		machineMemoryMB, share, strings.ReplaceAll(path, ",", ",,"))}
}

// shareMemory keeps the memory out of the saved state: it is in its file.
func (r *bootedMachine) shareMemory() error {
	return r.qmp.ask("migrate-set-capabilities", map[string]any{
		"capabilities": []map[string]any{{"capability": "x-ignore-shared", "state": true}},
	}, nil)
}

// migrate writes the state to the file or reads it.
func (r *bootedMachine) migrate(ctx context.Context, command string, state *os.File) error {
	if err := r.qmp.pass("state", state); err != nil {
		return err
	}
	if err := r.qmp.ask(command, map[string]string{"uri": "fd:state"}, nil); err != nil {
		return err
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		var info struct {
			Status string `json:"status"`
			Error  string `json:"error-desc"`
		}
		if err := r.qmp.ask("query-migrate", nil, &info); err != nil {
			return err
		}
		switch info.Status {
		case "completed":
			return nil
		case "failed", "cancelled":
			return fmt.Errorf("state of the machine: %s: %s", info.Status, info.Error)
		}
		select {
		case <-tick.C:
		case <-r.done:
			return r.ended()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// resume starts the machine from the snapshot and makes it one of its own.
func (m *Machine) resume(ctx context.Context, snap *snapshot, args []string) error {
	ctx, cancel := context.WithTimeout(ctx, resumeTimeout)
	defer cancel()
	state, err := os.Open(snap.state)
	if err != nil {
		return err
	}
	defer state.Close()
	args = append(append(args, memoryArgs(snap.memory, false)...), "-incoming", "defer")
	run, err := m.begin(args)
	if err != nil {
		return err
	}
	if err := run.shareMemory(); err != nil {
		return err
	}
	if err := run.migrate(ctx, "migrate-incoming", state); err != nil {
		return err
	}
	// It stands where it stood when it was saved: still.
	if err := run.qmp.ask("cont", nil, nil); err != nil {
		return err
	}
	if err := run.settle(ctx, m.name, true); err != nil {
		return err
	}
	return m.awaitSystemd(ctx)
}
