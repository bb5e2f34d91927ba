package lab

import (
	"context"
	"fmt"
	"strconv"
	"strings"
)

// User is an account on a host whose own systemd runs without a login.
type User struct {
	Name string
	UID  int

	host *Host
}

// AddUser adds a user with a home and lets their manager linger. The host must
// run. It returns when the user's manager is ready.
func (h *Host) AddUser(ctx context.Context, name string) (*User, error) {
	u := &User{Name: name, host: h}
	out, err := h.Exec(ctx, "sh", "-ec", `useradd --create-home --shell /bin/bash -- "$1"; loginctl enable-linger "$1"; id -u "$1"`, "sh", name)
	if err != nil {
		return nil, fmt.Errorf("add user %s: %w", name, err)
	}
	if u.UID, err = strconv.Atoi(strings.TrimSpace(out)); err != nil {
		return nil, fmt.Errorf("add user %s: %w", name, err)
	}
	// Lingering starts it in its own time; this waits for its readiness.
	if _, err := h.Exec(ctx, "systemctl", "start", fmt.Sprintf("user@%d.service", u.UID)); err != nil {
		return nil, fmt.Errorf("add user %s: start their manager: %w", name, err)
	}
	return u, nil
}

// Exec runs a command as the user, with their manager's bus in its environment.
func (u *User) Exec(ctx context.Context, argv ...string) (string, error) {
	runtime := fmt.Sprintf("/run/user/%d", u.UID)
	return u.host.Exec(ctx, append([]string{"setpriv", "--reuid=" + u.Name, "--regid=" + u.Name, "--init-groups", "--",
		"env", "USER=" + u.Name, "HOME=/home/" + u.Name, "XDG_RUNTIME_DIR=" + runtime, "DBUS_SESSION_BUS_ADDRESS=unix:path=" + runtime + "/bus"}, argv...)...)
}

// WriteUnit writes a unit of the user's own and has their manager read it.
func (u *User) WriteUnit(ctx context.Context, name, text string) error {
	if err := u.host.WriteFile("/home/"+u.Name+"/.config/systemd/user/"+name, []byte(text), 0o644); err != nil {
		return err
	}
	_, err := u.Exec(ctx, "systemctl", "--user", "daemon-reload")
	return err
}

// AddVM writes microvm-NAME.service into the user's manager, as people write
// them by hand. It does not start it. InstallMicroVM must have been called.
func (u *User) AddVM(ctx context.Context, vm VM) error {
	if err := vm.complete(); err != nil {
		return fmt.Errorf("add user's VM %q: %w", vm.Name, err)
	}
	files, err := vm.storeFiles()
	if err == nil {
		err = u.host.lay(ctx, files)
	}
	if err != nil {
		return fmt.Errorf("add user's VM %q: %w", vm.Name, err)
	}
	kind := "simple"
	if vm.Notify {
		kind = "notify"
	}
	return u.WriteUnit(ctx, "microvm-"+vm.Name+".service", fmt.Sprintf("[Unit]\nDescription=microVM %s\n\n[Service]\nType=%s\nNotifyAccess=all\nExecStart=%s/bin/microvm-run\nRestart=always\nRestartSec=5s\n",
		vm.Name, kind, vm.runner()))
}

// AddLookAlikes writes units into the user's manager that are no VMs though
// their names begin like one, starts them, and returns their names: instances of
// helper templates, a timer, and a service that only begins with microvm.
func (u *User) AddLookAlikes(ctx context.Context) ([]string, error) {
	service := "[Service]\nExecStart=" + stubsDir + "/stand-in\n"
	for name, text := range map[string]string{
		"microvm-tap-interfaces@.service": service,
		"microvm-virtiofsd@.service":      service,
		"microvm-backup.timer":            "[Timer]\nOnActiveSec=1d\nUnit=backup-of-microvms.service\n",
		"backup-of-microvms.service":      service,
		"microvmd.service":                service,
	} {
		if err := u.WriteUnit(ctx, name, text); err != nil {
			return nil, err
		}
	}
	names := []string{"microvm-tap-interfaces@x.service", "microvm-virtiofsd@x.service", "microvm-backup.timer", "microvmd.service"}
	_, err := u.Exec(ctx, append([]string{"systemctl", "--user", "start", "--"}, names...)...)
	return names, err
}
