package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync/atomic"
	"syscall"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// How a member is tuned. It is alone and near its clients, so it needs few
// ticks, and no log of entries for others to catch up with.
const (
	memberName = "blixard"
	tickMs     = 50
	electionMs = 250
	// snapshotCount is after how many entries the log in memory is cut, and
	// catchUpEntries how many stay.
	snapshotCount  = 500
	catchUpEntries = 100
	// defragBytes is how much its database file may shrink by, a quarter of its
	// quota at most, before it is written anew at a start.
	defragBytes = 64 << 20
	// gcPercent and memoryLimit trade a little of the processor for memory. The
	// limit, to which an eighth of the quota is added, is far above what a member
	// needs at rest, so that it never starves.
	gcPercent   = 50
	memoryLimit = 256 << 20
)

// MinFree is the free space in bytes on its disk below which a member takes no
// writes, so that what etcd itself must still write fits. It takes them again
// at twice that.
const MinFree = 32 << 20

// newSpace is the free space in bytes that a new member needs: two segments of
// etcd's log, which it makes in advance, and some more.
const newSpace = 2*64e6 + MinFree

// errReclaim ends a member whose database is at its quota though little of it
// is in use: the next start writes it anew.
var errReclaim = errors.New("the database is at its quota; it is started again to give back free space")

// RunMember runs one member of the store in this process until ctx ends or
// standard input is closed, whatever comes first; so a child never outlives its
// parent. It opens no TCP port. It tunes the garbage collector of the process,
// which should do nothing else.
//
// It ends with an error when it cannot run: a bad configuration, a folder that
// another process holds, a damaged database. A disk that fails while it runs
// ends the process, as etcd does: what was acknowledged is on the disk.
func RunMember(ctx context.Context, cfg MemberConfig, log *slog.Logger) error {
	cfg = cfg.normal()
	if err := cfg.Validate(); err != nil {
		return fmt.Errorf("run member: %w", err)
	}
	debug.SetGCPercent(gcPercent)
	debug.SetMemoryLimit(memoryLimit + cfg.QuotaBytes/8)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// It ends with the process: there is no way to call off reading. An error
	// is an end like any other.
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()

	if err := makeDir(cfg.Dir); err != nil {
		return fmt.Errorf("run member: %w", err)
	}
	if err := makeSocketDir(cfg.SocketDir); err != nil {
		return fmt.Errorf("run member: %w", err)
	}
	lock, err := tryLock(filepath.Join(cfg.Dir, lockFile))
	if held, ok := errors.AsType[*heldError](err); ok {
		return fmt.Errorf("run member: %s is held by %s", cfg.Dir, held.holder)
	}
	if err != nil {
		return fmt.Errorf("run member: %w", explain(err))
	}
	defer lock.Close()
	if _, err := os.Stat(etcdDir(&cfg)); errors.Is(err, fs.ErrNotExist) {
		// etcd must not run out of space in the middle of making its files.
		switch free, err := freeSpace(cfg.Dir); {
		case err != nil:
			return fmt.Errorf("run member: %w", err)
		case free < newSpace:
			return fmt.Errorf("run member: %w", noSpace(cfg.Dir, free, newSpace))
		}
	}
	return runEtcd(ctx, &cfg, log)
}

// runEtcd runs etcd in a folder that is held.
func runEtcd(ctx context.Context, cfg *MemberConfig, log *slog.Logger) error {
	type started struct {
		etcd *embed.Etcd
		err  error
	}
	core := &zapCore{log: log, quiet: new(atomic.Bool)}
	start := make(chan started, 1)
	go func() {
		e, err := embed.StartEtcd(etcdConfig(cfg, core))
		start <- started{e, err}
	}()
	var s started
	select {
	case <-ctx.Done():
		// It may be in the middle of a long replay, which changes nothing; the
		// process ends with it.
		return nil
	case s = <-start:
	}
	if s.err != nil {
		return fmt.Errorf("start etcd: %w", explain(s.err))
	}
	select {
	case <-s.etcd.Server.ReadyNotify():
		if err := tend(ctx, s.etcd, cfg, log); err != nil {
			// Close would wait for those who watch, and serve nobody meanwhile.
			return err
		}
		// Etcd logs errors for what it closes itself.
		core.quiet.Store(true)
		s.etcd.Close()
		return nil
	case err := <-s.etcd.Err():
		return fmt.Errorf("run etcd: %w", err)
	case <-s.etcd.Server.StopNotify():
		return errors.New("run etcd: it ended by itself")
	case <-ctx.Done():
		// Until etcd is ready its Close waits for what does not come. Nothing was
		// acknowledged yet, and the process ends now.
		return nil
	}
}

// etcdDir is etcd's own folder in a member's.
func etcdDir(cfg *MemberConfig) string { return filepath.Join(cfg.Dir, "etcd") }

// etcdConfig is etcd's configuration.
func etcdConfig(cfg *MemberConfig, core *zapCore) *embed.Config {
	e := embed.NewConfig()
	e.Name = memberName
	e.Dir = etcdDir(cfg)
	client, peer, web := cfg.socketURL(clientSocket), cfg.socketURL(peerSocket), cfg.socketURL(httpSocket)
	e.ListenClientUrls, e.AdvertiseClientUrls = append(e.ListenClientUrls[:0], client), append(e.AdvertiseClientUrls[:0], client)
	// A lone member has no peers and listens for none. Given a unix URL with a
	// path etcd would listen for peers on an abstract socket, which file
	// permissions do not guard.
	e.ListenPeerUrls, e.AdvertisePeerUrls = nil, append(e.AdvertisePeerUrls[:0], peer)
	e.ListenClientHttpUrls = append(e.ListenClientHttpUrls[:0], web)
	e.InitialCluster = memberName + "=" + peer.String()
	e.EnableGRPCGateway = false
	e.AuthToken = ""
	e.TickMs, e.ElectionMs = tickMs, electionMs
	e.PreVote = true
	e.SnapshotCount, e.SnapshotCatchUpEntries = snapshotCount, catchUpEntries
	e.MaxSnapFiles, e.MaxWalFiles = 2, 2
	e.QuotaBackendBytes = cfg.QuotaBytes
	e.BootstrapDefragThresholdMegabytes = uint(min(defragBytes, cfg.QuotaBytes/4) >> 20)
	e.AutoCompactionMode, e.AutoCompactionRetention = embed.CompactorModePeriodic, cfg.CompactAfter.String()
	e.Metrics = "basic"
	e.LogLevel = "warn"
	e.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.New(core))
	return e
}

// makeSocketDir makes a folder for sockets that is this user's alone: etcd's
// sockets themselves are open to everybody who reaches them.
func makeSocketDir(path string) error {
	if err := makeDir(path); err != nil {
		return err
	}
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !info.IsDir() || !ok || int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("socket folder %s is not a directory of this user (uid %d)", path, os.Geteuid())
	}
	if info.Mode().Perm() != 0o700 {
		return os.Chmod(path, 0o700)
	}
	return nil
}

// tendEvery is how often a member looks after its space, quietAfter how long
// nothing is written before it gives memory back.
const (
	tendEvery  = time.Second
	quietAfter = 10 * time.Second
)

// tend waits for the end of a member that runs, and meanwhile keeps it from
// running its disk full: etcd's own alarm for want of space refuses writes while
// reads go on.
func tend(ctx context.Context, e *embed.Etcd, cfg *MemberConfig, log *slog.Logger) error {
	tick := time.NewTicker(tendEvery)
	defer tick.Stop()
	written, rev, spent := time.Now(), int64(0), false
	for {
		// Without writes the collector hardly runs, and what a storm of them
		// left behind would stay.
		if now := e.Server.KV().Rev(); now != rev {
			written, rev, spent = time.Now(), now, true
		} else if spent && time.Since(written) > quietAfter {
			debug.FreeOSMemory()
			spent = false
		}
		if err := tendSpace(ctx, e, cfg, log); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case err := <-e.Err():
			return fmt.Errorf("run etcd: %w", err)
		case <-e.Server.StopNotify():
			return errors.New("run etcd: it ended by itself")
		case <-tick.C:
		}
	}
}

// tendSpace raises the alarm when the disk gets full and takes it back when
// there is room. Only a member that must be started again is an error.
func tendSpace(ctx context.Context, e *embed.Etcd, cfg *MemberConfig, log *slog.Logger) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	free, err := freeSpace(cfg.Dir)
	if err != nil {
		log.Warn("free space is not known", "err", err)
		return nil
	}
	alarmed := false
	for _, a := range e.Server.Alarms() {
		alarmed = alarmed || a.Alarm == pb.AlarmType_NOSPACE
	}
	alarm := func(action pb.AlarmRequest_AlarmAction) error {
		_, err := e.Server.Alarm(ctx, &pb.AlarmRequest{Action: action, MemberID: uint64(e.Server.MemberID()), Alarm: pb.AlarmType_NOSPACE})
		return err
	}
	backend := e.Server.Backend()
	switch {
	case !alarmed && free < MinFree:
		log.Warn("no space: writes are refused until there is", "err", noSpace(cfg.Dir, free, MinFree))
		err = alarm(pb.AlarmRequest_ACTIVATE)
	case alarmed && free >= 2*MinFree && backend.Size() < cfg.QuotaBytes*9/10:
		log.Warn("there is space again: writes are taken", "free_bytes", free)
		err = alarm(pb.AlarmRequest_DEACTIVATE)
	case alarmed && free >= 2*MinFree:
		// At the quota. What is in use shrinks when old history goes.
		c := v3client.New(e.Server)
		defer c.Close()
		_, err = c.Compact(ctx, e.Server.KV().Rev(), clientv3.WithCompactPhysical())
		if errors.Is(err, rpctypes.ErrCompacted) {
			err = nil
		}
		if err == nil && backend.SizeInUse() < cfg.QuotaBytes*8/10 {
			return errReclaim
		}
	}
	if err != nil && ctx.Err() == nil {
		log.Warn("space could not be looked after", "err", err)
	}
	return nil
}

// freeSpace is how many bytes this user may still write where path is.
func freeSpace(path string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, fmt.Errorf("ask for free space of %s: %w", path, err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}

func noSpace(path string, free, need int64) error {
	return fmt.Errorf("%s has %d MiB free, and %d MiB are needed; free some space on that file system", path, free>>20, need>>20)
}
