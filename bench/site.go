package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/blixard/blixard"
	"github.com/blixard/blixard/api"
	"github.com/blixard/blixard/lab"
)

const (
	daemonUnit   = "blixard-monitor.service"
	daemonSocket = "/run/blixard/blixard.sock"
	// settleTimeout bounds every wait for a host to come to rest.
	settleTimeout = 5 * time.Minute
	// pollEvery is the pause between two looks at something that settles.
	pollEvery = 200 * time.Millisecond
)

// Intervals between listings. Between those of an hour a measurement is alone
// with what it measures.
const (
	shippedInterval = 30 * time.Second
	quietInterval   = time.Hour
)

// site is a lab host with microVMs and with the daemon under the unit that
// ships.
type site struct {
	*lab.Host
	log io.Writer
	// vms are the names of those that were started.
	vms []string
	// http asks the daemon over its socket, client speaks its API.
	http   *http.Client
	client *api.Client
	procs  processes
}

// newSite boots a host and installs everything; the daemon is off.
func newSite(ctx context.Context, l *lab.Lab, name, programs string, log io.Writer) (*site, error) {
	hosts, err := l.Boot(ctx, name)
	if err != nil {
		return nil, err
	}
	s := &site{Host: hosts[0], log: log}
	if err := s.InstallMicroVM(ctx, lab.MicroVMOptions{}); err != nil {
		return nil, err
	}
	if err := s.InstallBlixard(ctx, programs, false); err != nil {
		return nil, err
	}
	s.http = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return s.Dial(ctx, "unix", daemonSocket)
		},
		DisableCompression: true,
	}}
	pid, err := s.PID()
	if err != nil {
		return nil, err
	}
	// The host's files as this process reaches them.
	s.client, err = api.Dial(api.ClientConfig{Addr: fmt.Sprintf("unix:///proc/%d/root%s", pid, daemonSocket), Timeout: time.Minute})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// close ends the connections; the host ends with its lab.
func (s *site) close() {
	s.http.CloseIdleConnections()
	s.client.Close()
}

// grow starts VMs with their five helpers until there are n.
func (s *site) grow(ctx context.Context, n int) error {
	more := n - len(s.vms)
	if more <= 0 {
		return nil
	}
	start := time.Now()
	// The names are numbered from 1: each crowd has a name of its own.
	kind := lab.VM{Name: fmt.Sprintf("vm%d-", len(s.vms)), IdleHelpers: true}
	names, err := s.AddVMs(ctx, kind, more)
	if err != nil {
		return err
	}
	laid := time.Since(start)
	if err := s.StartVMs(ctx, names...); err != nil {
		return err
	}
	s.vms = append(s.vms, names...)
	fmt.Fprintf(s.log, "# %d VMs with five helpers each: %d laid down in %.0f s, started in %.0f s\n",
		len(s.vms), more, laid.Seconds(), (time.Since(start) - laid).Seconds())
	return nil
}

// startDaemon starts the daemon and returns when it shows all VMs.
func (s *site) startDaemon(ctx context.Context, interval time.Duration) error {
	if err := s.writeInterval(interval); err != nil {
		return err
	}
	if err := s.systemctl(ctx, "start", daemonUnit); err != nil {
		return err
	}
	if err := s.findProcesses(); err != nil {
		return err
	}
	return s.settle(ctx, len(s.vms))
}

func (s *site) findProcesses() error {
	pid, err := s.PID()
	if err != nil {
		return err
	}
	s.procs, err = processesOf(s.Cgroup(), pid)
	return err
}

func (s *site) systemctl(ctx context.Context, verb, unit string) error {
	if _, err := s.Exec(ctx, "systemctl", verb, unit); err != nil {
		log, _ := s.Exec(context.WithoutCancel(ctx), "journalctl", "-u", unit, "-n", "30", "--no-pager", "-o", "short-precise")
		return fmt.Errorf("%s %s: %w\n%s", verb, unit, err, log)
	}
	return nil
}

func (s *site) writeInterval(d time.Duration) error {
	return s.WriteFile("/etc/blixard/config.toml", fmt.Appendf(nil, "interval = %q\n", d.String()), 0o644)
}

// setInterval has the running daemon take up another interval. It returns after
// cycles more listings and readings of files, and after a moment without any.
func (s *site) setInterval(ctx context.Context, d time.Duration, cycles uint64) error {
	before, err := s.scrape(ctx)
	if err != nil {
		return err
	}
	if err := s.writeInterval(d); err != nil {
		return err
	}
	if err := s.systemctl(ctx, "reload", daemonUnit); err != nil {
		return err
	}
	err = s.await(ctx, fmt.Sprintf("%d cycles at an interval of %s", cycles, d), func() (bool, error) {
		after, err := s.scrape(ctx)
		if err != nil {
			return false, err
		}
		return after.listings()-before.listings() >= cycles && after.readings()-before.readings() >= cycles, nil
	})
	if err != nil {
		return err
	}
	return rest(ctx, time.Second)
}

// settle waits until the daemon shows n VMs, all of them running, and has
// nothing left to write.
func (s *site) settle(ctx context.Context, n int) error {
	return s.await(ctx, fmt.Sprintf("%d VMs shown as running and recorded", n), func() (bool, error) {
		m, err := s.scrape(ctx)
		if err != nil {
			return false, err
		}
		return m.value("blixard_vms") == float64(n) && m.sum("blixard_vm_state", "state", "running") == float64(n) &&
			m.value("blixard_store_healthy") == 1 && m.value("blixard_store_pending_commands") == 0 && m.value("blixard_store_buffered_events") == 0, nil
	})
}

// await polls until done says so.
func (s *site) await(ctx context.Context, what string, done func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	for {
		ok, err := done()
		if err != nil {
			return fmt.Errorf("wait for %s: %w", what, err)
		}
		if ok {
			return nil
		}
		if err := rest(ctx, pollEvery); err != nil {
			return fmt.Errorf("wait for %s: %w", what, err)
		}
	}
}

// rest lets time pass: a window of a measurement.
func rest(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// fetch gets the page of all series and returns its size in bytes.
func (s *site) fetch(ctx context.Context, w io.Writer) (int64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost/metrics", nil)
	if err != nil {
		return 0, err
	}
	return download(s.http, req, w)
}

// download sends a request and copies the body of a good answer.
func download(client *http.Client, req *http.Request, w io.Writer) (int64, error) {
	resp, err := client.Do(req)
	if err != nil {
		return 0, fmt.Errorf("get %s: %w", req.URL, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("get %s: %s", req.URL, resp.Status)
	}
	n, err := io.Copy(w, resp.Body)
	if err != nil {
		return n, fmt.Errorf("get %s: %w", req.URL, err)
	}
	return n, nil
}

// scrape reads the daemon's metrics.
func (s *site) scrape(ctx context.Context) (page, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var text bytes.Buffer
	if _, err := s.fetch(ctx, &text); err != nil {
		return nil, fmt.Errorf("scrape: %w", err)
	}
	return parsePage(text.String())
}

// list is the API's list of VMs by name.
func (s *site) list(ctx context.Context) (map[string]*blixard.VM, error) {
	l, err := s.client.VMs(ctx)
	if err != nil {
		return nil, fmt.Errorf("list VMs: %w", err)
	}
	vms := make(map[string]*blixard.VM, len(l.Items))
	for i := range l.Items {
		vms[l.Items[i].Name] = &l.Items[i]
	}
	return vms, nil
}

// vmProcess is the main process of a VM as this machine counts it.
func (s *site) vmProcess(name string) (int, error) {
	pids, err := unitProcesses(s.Cgroup(), "system-microvm.slice/"+vmUnit(name))
	if err != nil {
		return 0, err
	}
	if len(pids) != 1 {
		return 0, fmt.Errorf("find the process of VM %s: there are %d", name, len(pids))
	}
	return pids[0], nil
}

func vmUnit(name string) string { return "microvm@" + name + ".service" }

// describe tells what the figures were measured on.
func (s *site) describe(ctx context.Context) error {
	systemd, err := s.Exec(ctx, "systemctl", "--version")
	if err != nil {
		return err
	}
	bus, err := s.Exec(ctx, "dbus-daemon", "--version")
	if err != nil {
		return err
	}
	kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return err
	}
	first := func(s string) string { line, _, _ := strings.Cut(s, "\n"); return line }
	fmt.Fprintf(s.log, "# kernel %s; %s; %s\n", strings.TrimSpace(string(kernel)), first(systemd), first(bus))
	return nil
}
