package lab

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// programs are what BuildBlixard builds.
var programs = []string{"blixard", "blixard-monitor"}

// BuildBlixard builds the project's programs into a folder as the Makefile
// does: static, without cgo. It needs the module's source below the working
// directory's module root.
func BuildBlixard(ctx context.Context, dir string) error {
	for _, name := range programs {
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-X main.version=0.0.0-lab -X main.commit=lab",
			"-o", filepath.Join(dir, name), "github.com/blixard/blixard/cmd/"+name)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w\n%s", name, err, bytes.TrimSpace(out))
		}
	}
	return nil
}

// packagingDir is the project's folder of unit files.
func packagingDir(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/blixard/blixard").Output()
	if err != nil {
		return "", fmt.Errorf("find the project's folder: %w", err)
	}
	return filepath.Join(string(bytes.TrimSpace(out)), "packaging"), nil
}

// InstallBlixard puts the programs found in dir on a running host with exactly
// the unit files that ship, as a package would, and does not start the daemon.
// users says whether the drop-in that lets it reach users' managers comes too.
func (h *Host) InstallBlixard(ctx context.Context, dir string, users bool) error {
	return installBlixard(ctx, h, dir, users)
}

// InstallBlixard is Host.InstallBlixard for a machine.
func (m *Machine) InstallBlixard(ctx context.Context, dir string, users bool) error {
	return installBlixard(ctx, m, dir, users)
}

func installBlixard(ctx context.Context, n Node, dir string, users bool) error {
	packaging, err := packagingDir(ctx)
	if err != nil {
		return err
	}
	files := map[string]string{
		filepath.Join(packaging, "blixard-monitor.service"): "/usr/lib/systemd/system/blixard-monitor.service",
		filepath.Join(packaging, "blixard.sysusers"):        "/usr/lib/sysusers.d/blixard.conf",
	}
	for _, name := range programs {
		files[filepath.Join(dir, name)] = "/usr/bin/" + name
	}
	if users {
		files[filepath.Join(packaging, "users.conf")] = "/usr/lib/systemd/system/blixard-monitor.service.d/users.conf"
	}
	for from, to := range files {
		if err := n.CopyIn(from, to); err != nil {
			return fmt.Errorf("install %s: %w", to, err)
		}
	}
	if _, err := n.Exec(ctx, "systemd-sysusers", "/usr/lib/sysusers.d/blixard.conf"); err != nil {
		return err
	}
	_, err = n.Exec(ctx, "systemctl", "daemon-reload")
	return err
}
