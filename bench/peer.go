package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/blixard/blixard/lab"
)

const (
	exporterPackage = "prometheus-node-exporter"
	// exporterModule is built where Debian's package cannot be had.
	exporterModule = "github.com/prometheus/node_exporter@v1.12.1"
	exporterUnit   = "node-exporter.service"
	exporterAddr   = "127.0.0.1:9100"
)

// exporterFlags leave only the systemd collector, and of the units only VMs and
// their helpers.
func exporterFlags() []string {
	return []string{"--web.listen-address=" + exporterAddr, "--web.disable-exporter-metrics", "--collector.disable-defaults",
		"--collector.systemd", `--collector.systemd.unit-include=microvm(-[a-z-]+)?@.+\.service`}
}

// exporterMore make it serve what the daemon serves too.
func exporterMore() []string {
	return []string{"--collector.systemd.enable-restarts-metrics", "--collector.systemd.enable-start-time-metrics"}
}

// findExporter returns node_exporter's program: the machine's own, Debian's
// unpacked into the cache, or one built there.
func findExporter(ctx context.Context) (string, error) {
	for _, name := range []string{"node_exporter", exporterPackage} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	cache, err := lab.CacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "node_exporter")
	path := filepath.Join(dir, "node_exporter")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	debian := unpackExporter(ctx, dir, path)
	if debian == nil {
		return path, nil
	}
	build := exec.CommandContext(ctx, "go", "install", exporterModule)
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOBIN="+dir)
	// Outside of this module, whose versions are not the exporter's.
	build.Dir = dir
	if out, err := build.CombinedOutput(); err != nil {
		return "", errors.Join(debian, fmt.Errorf("go install %s: %w\n%s", exporterModule, err, out))
	}
	return path, nil
}

// unpackExporter downloads Debian's package and takes the program out of it.
func unpackExporter(ctx context.Context, dir, path string) error {
	tmp, err := os.MkdirTemp(dir, "package-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	download := exec.CommandContext(ctx, "apt-get", "download", "-q", exporterPackage)
	download.Dir = tmp
	if out, err := download.CombinedOutput(); err != nil {
		return fmt.Errorf("apt-get download %s: %w\n%s", exporterPackage, err, out)
	}
	packages, err := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if err != nil || len(packages) != 1 {
		return fmt.Errorf("apt-get download %s: %d packages", exporterPackage, len(packages))
	}
	if out, err := exec.CommandContext(ctx, "dpkg-deb", "-x", packages[0], tmp).CombinedOutput(); err != nil {
		return fmt.Errorf("unpack %s: %w\n%s", exporterPackage, err, out)
	}
	return os.Rename(filepath.Join(tmp, "usr/bin", exporterPackage), path)
}

// exporter is node_exporter as a unit of a host, unprivileged, on the system
// bus.
type exporter struct {
	site *site
	http *http.Client
	pid  int
}

// installExporter puts the program on the host and tells which it is.
func installExporter(ctx context.Context, s *site, program string) (*exporter, error) {
	if err := s.CopyIn(program, "/usr/local/bin/node_exporter"); err != nil {
		return nil, err
	}
	version, err := exec.CommandContext(ctx, program, "--version").CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("ask node_exporter for its version: %w", err)
	}
	line, _, _ := strings.Cut(string(version), "\n")
	fmt.Fprintf(s.log, "# peer: %s\n# peer's flags: %s\n# and for the second figure beside it: %s\n",
		line, strings.Join(exporterFlags(), " "), strings.Join(exporterMore(), " "))
	return &exporter{site: s, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return s.Dial(ctx, network, exporterAddr)
		},
		DisableCompression: true, DisableKeepAlives: true,
	}}}, nil
}

// start runs it with these flags, in place of one that runs.
func (e *exporter) start(ctx context.Context, flags []string) error {
	// A unit file unescapes, so that a backslash is written twice, and a dollar
	// would be a variable.
	command := strings.ReplaceAll(strings.Join(flags, " "), `\`, `\\`)
	text := "[Service]\nUser=nobody\nExecStart=/usr/local/bin/node_exporter " + command + "\n"
	if err := e.site.WriteFile("/etc/systemd/system/"+exporterUnit, []byte(text), 0o644); err != nil {
		return err
	}
	if _, err := e.site.Exec(ctx, "systemctl", "daemon-reload"); err != nil {
		return err
	}
	if err := e.site.systemctl(ctx, "restart", exporterUnit); err != nil {
		return err
	}
	err := e.site.await(ctx, "node_exporter to listen", func() (bool, error) {
		conn, err := e.site.Dial(ctx, "tcp", exporterAddr)
		if err != nil {
			return false, nil
		}
		return true, conn.Close()
	})
	if err != nil {
		return err
	}
	pids, err := unitProcesses(e.site.Cgroup(), exporterUnit)
	if err != nil {
		return err
	}
	e.pid = pids[0]
	return nil
}

// stop ends it, and with it what it holds of the host's memory.
func (e *exporter) stop(ctx context.Context) error {
	return e.site.systemctl(ctx, "stop", exporterUnit)
}

// scrape gets its page and returns what that cost it, systemd and the bus, and
// how many units the page tells of.
func (e *exporter) scrape(ctx context.Context) (cost time.Duration, units int, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	before, err := e.cpu()
	if err != nil {
		return 0, 0, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+exporterAddr+"/metrics", nil)
	if err != nil {
		return 0, 0, err
	}
	var text strings.Builder
	if _, err := download(e.http, req, &text); err != nil {
		return 0, 0, err
	}
	// The bus and systemd hear of the connection's end after us.
	if err := rest(ctx, tail); err != nil {
		return 0, 0, err
	}
	after, err := e.cpu()
	if err != nil {
		return 0, 0, err
	}
	p, err := parsePage(text.String())
	if err != nil {
		return 0, 0, err
	}
	return after - before, int(p.sum("node_systemd_unit_state", "state", "active")), nil
}

func (e *exporter) cpu() (time.Duration, error) {
	total := time.Duration(0)
	for _, pid := range []int{e.pid, e.site.procs.systemd, e.site.procs.bus} {
		d, err := cpuTime(pid)
		if err != nil {
			return 0, err
		}
		total += d
	}
	return total, nil
}
