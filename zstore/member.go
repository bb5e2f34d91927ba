package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/spf13/pflag"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/features"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

const (
	// memberName is the only member's name in the store.
	memberName = "blixard"
	// maxSocketPath is the kernel's bound on the path of a socket, in bytes.
	maxSocketPath = 107
	// compactEvery is for how long the store keeps old revisions.
	compactEvery = 5 * time.Minute
	// snapshotEvery is how many writes the log holds: fewer than etcd's own
	// default, since one host writes little and its member shall stay small.
	snapshotEvery = 5000
	// memoryLimit is a soft bound of the member's Go heap, in bytes.
	memoryLimit = 48 << 20
	// endTimeout bounds the member's orderly end.
	endTimeout = 10 * time.Second
	// readyLine is what a member writes when it answers.
	readyLine = "ready"
)

// MemberConfig says where a member keeps its data and where it answers.
type MemberConfig struct {
	// Dir is the member's data directory.
	Dir string
	// SocketDir is an absolute path; the folder is made 0700.
	SocketDir string
	// QuotaBytes bounds the database; beyond it writes are refused.
	QuotaBytes int64
}

// AddFlags adds the flags that Args makes.
func (c *MemberConfig) AddFlags(f *pflag.FlagSet) {
	f.StringVar(&c.Dir, "dir", "", "")
	f.StringVar(&c.SocketDir, "sockets", "", "")
	f.Int64Var(&c.QuotaBytes, "quota", 0, "")
}

// Args are the arguments that give a child the configuration.
func (c *MemberConfig) Args() []string {
	return []string{"--dir", c.Dir, "--sockets", c.SocketDir, "--quota", strconv.FormatInt(c.QuotaBytes, 10)}
}

// ClientURL is where the member answers.
func (c *MemberConfig) ClientURL() string { return "unix://" + filepath.Join(c.SocketDir, "client") }

func (c *MemberConfig) peerURL() string { return "unix://" + filepath.Join(c.SocketDir, "peer") }

// Validate refuses what no member can run with.
func (c *MemberConfig) Validate() error {
	switch {
	case !filepath.IsAbs(c.Dir) || !filepath.IsAbs(c.SocketDir):
		return fmt.Errorf("member: paths must be absolute: %q, %q", c.Dir, c.SocketDir)
	case len(filepath.Join(c.SocketDir, "client")) > maxSocketPath:
		return fmt.Errorf("member: the path of the socket folder %s is too long: a socket's path has at most %d bytes", c.SocketDir, maxSocketPath)
	case c.QuotaBytes <= 0:
		return fmt.Errorf("member: quota of %d bytes", c.QuotaBytes)
	}
	return nil
}

// RunMember runs one member of the store in this process until ctx ends or
// standard input does, so that it never outlives the daemon that started it. It
// opens no TCP port. It writes a line to standard output when it answers.
func RunMember(ctx context.Context, c MemberConfig, log *slog.Logger) error {
	if err := c.Validate(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		// Nobody writes there; the end of the daemon closes it.
		io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	debug.SetMemoryLimit(memoryLimit)
	debug.SetGCPercent(50)
	if err := os.MkdirAll(c.SocketDir, 0o700); err != nil {
		return fmt.Errorf("make socket folder: %w", err)
	}
	cfg, err := etcdConfig(c)
	if err != nil {
		return err
	}
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return fmt.Errorf("start member: %w", err)
	}
	defer closeMember(e, log)
	select {
	case <-e.Server.ReadyNotify():
	case <-e.Server.StopNotify():
		return errors.New("member ended before it was ready")
	case err := <-e.Err():
		return fmt.Errorf("member: %w", err)
	case <-ctx.Done():
		return nil
	}
	fmt.Println(readyLine)
	select {
	case <-ctx.Done():
		return nil
	case <-e.Server.StopNotify():
		return errors.New("member ended by itself")
	case err := <-e.Err():
		return fmt.Errorf("member: %w", err)
	}
}

// closeMember ends the member in order, or after a while without it: the
// process ends then, and its log holds everything that was acknowledged.
func closeMember(e *embed.Etcd, log *slog.Logger) {
	done := make(chan struct{})
	go func() {
		e.Close()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(endTimeout):
		log.Warn("the member does not end in order")
	}
}

func etcdConfig(c MemberConfig) (*embed.Config, error) {
	cfg := embed.NewConfig()
	cfg.Name, cfg.Dir = memberName, c.Dir
	client, err := url.Parse(c.ClientURL())
	if err != nil {
		return nil, fmt.Errorf("member: %w", err)
	}
	peer, err := url.Parse(c.peerURL())
	if err != nil {
		return nil, fmt.Errorf("member: %w", err)
	}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{*client}, []url.URL{*client}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{*peer}, []url.URL{*peer}
	cfg.InitialCluster = memberName + "=" + c.peerURL()
	cfg.ClusterState = embed.ClusterStateFlagNew
	cfg.AutoCompactionMode, cfg.AutoCompactionRetention = embed.CompactorModePeriodic, compactEvery.String()
	cfg.QuotaBackendBytes = c.QuotaBytes
	cfg.SnapshotCount, cfg.SnapshotCatchUpEntries = snapshotEvery, snapshotEvery
	cfg.MaxSnapFiles, cfg.MaxWalFiles = 2, 2
	cfg.PreVote = true
	cfg.Metrics = "basic"
	cfg.EnableGRPCGateway = false
	for _, f := range []string{string(features.InitialCorruptCheck), string(features.CompactHashCheck)} {
		if err := cfg.ServerFeatureGate.(interface{ Set(string) error }).Set(f + "=true"); err != nil {
			return nil, fmt.Errorf("member: %w", err)
		}
	}
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.New(zapcore.NewCore(
		zapcore.NewConsoleEncoder(zapcore.EncoderConfig{MessageKey: "msg", EncodeDuration: zapcore.StringDurationEncoder}),
		zapcore.Lock(os.Stderr), zapcore.WarnLevel)))
	return cfg, nil
}
