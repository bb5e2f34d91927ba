package lab

import (
	"archive/tar"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const (
	// machineDiskSize is what a machine sees, in bytes; the file is sparse.
	machineDiskSize = 8 << 30
	// machineInodes bounds the files on it: mke2fs would make eight times as
	// many.
	machineInodes = 200_000
	// diskTimeout bounds the making of a disk, Debian's packages not included.
	diskTimeout = 3 * time.Minute
)

// machineBase is what all machines start from: a disk with the root file system
// and what boots it.
type machineBase struct {
	disk string // raw image, only read
	boot *bootFiles
	key  string
	lock *fileLock
}

func (b *machineBase) Close() error { return errors.Join(b.boot.Close(), b.lock.release()) }

// openMachineBase makes the disk, if the cache does not hold it: as root from
// the hosts' root file system, else from the same packages in a user namespace.
func openMachineBase(ctx context.Context, progress io.Writer) (*machineBase, error) {
	b, err := makeMachineBase(ctx, progress)
	if err != nil {
		return nil, fmt.Errorf("make the machines' disk: %w", err)
	}
	return b, nil
}

func makeMachineBase(ctx context.Context, progress io.Writer) (_ *machineBase, err error) {
	cache, err := CacheDir()
	if err != nil {
		return nil, err
	}
	if missing := missingTools(machineTools...); len(missing) > 0 {
		return nil, missingError(missing)
	}
	recipe := append(rootfsArgs(), mke2fsArgs("")...)
	root := ""
	if os.Geteuid() == 0 {
		tree, err := OpenRootFS(ctx, progress)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, tree.Close()) }()
		root = tree.Root()
		// The same recipe made again has newer packages.
		made, err := os.Stat(tree.Dir)
		if err != nil {
			return nil, err
		}
		recipe = append(recipe, made.ModTime().String())
	}
	key := digest(recipe...)
	name := "machine-" + key
	dir, lock, err := cached(ctx, cache, name, func(ctx context.Context, dir string) error {
		if root != "" {
			say(progress, "Making the machines' disk (once, about half a minute)")
			return makeDisk(ctx, root, filepath.Join(dir, "disk.img"))
		}
		say(progress, "Making the machines' disk from Debian %s (once, about a minute and a half)", rootfsSuite)
		return makeDiskUnshared(ctx, dir)
	})
	if err != nil {
		return nil, err
	}
	b := &machineBase{disk: filepath.Join(dir, "disk.img"), key: key, lock: lock}
	if root == "" {
		root = filepath.Join(dir, "tree")
	}
	if err := forgetOld(cache, "machine-", name); err != nil {
		return nil, errors.Join(fmt.Errorf("remove old disks: %w", err), lock.release())
	}
	if b.boot, err = openBootFiles(ctx, root, progress); err != nil {
		return nil, errors.Join(err, lock.release())
	}
	return b, nil
}

// mke2fsArgs makes a file system with the tree's files. Its inode tables are
// holes of the file: nobody need write zeros into them.
func mke2fsArgs(tree string) []string {
	return []string{"-q", "-F", "-t", "ext4", "-m", "0", "-N", strconv.Itoa(machineInodes),
		"-J", "size=16", "-E", "lazy_itable_init=1", "-d", tree}
}

func makeDisk(ctx context.Context, tree, disk string) error {
	if err := emptyDisk(disk); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, diskTimeout)
	defer cancel()
	mke2fs, err := findTool("mke2fs")
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, mke2fs, append(mke2fsArgs(tree), disk)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("mke2fs: %w: %s", err, tail(string(out), 20))
	}
	return nil
}

func emptyDisk(path string) error {
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return err
	}
	return os.Truncate(path, machineDiskSize)
}

// makeDiskUnshared makes dir/disk.img and, of the files on it, dir/tree/boot and
// dir/tree/lib/modules, without root.
func makeDiskUnshared(ctx context.Context, dir string) error {
	archive := filepath.Join(dir, "root.tar")
	ctx, cancel := context.WithTimeout(ctx, rootfsTimeout)
	defer cancel()
	args := []string{"--mode=unshare"}
	for _, arg := range rootfsArgs() {
		if arg == "--format=directory" {
			arg = "--format=tar"
		}
		args = append(args, arg)
	}
	out, err := os.Create(archive)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.CommandContext(ctx, "mmdebstrap", append(args, "-")...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 5 * time.Second
	var log tailBuffer
	cmd.Stdout, cmd.Stderr = out, &log
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("mmdebstrap: %w: %s", err, tail(log.String(), 20))
	}
	if err := extractBoot(archive, filepath.Join(dir, "tree")); err != nil {
		return fmt.Errorf("unpack the kernel: %w", err)
	}
	disk := filepath.Join(dir, "disk.img")
	if err := emptyDisk(disk); err != nil {
		return err
	}
	mke2fs, err := findTool("mke2fs")
	if err != nil {
		return err
	}
	// In the namespace files keep their owners while they are on their way, in
	// memory: on disk this user could not remove them if this were cut short. The
	// kernel makes the devices itself.
	const script = `set -e; mount -t tmpfs tmpfs /mnt; tar -x -f "$0" -C /mnt --exclude='./dev/*'; exec "$@"`
	argv := append([]string{"--user", "--map-root-user", "--map-auto", "--mount", "--", "sh", "-c", script, archive, mke2fs},
		append(mke2fsArgs("/mnt"), disk)...)
	if out, err := exec.CommandContext(ctx, "unshare", argv...).CombinedOutput(); err != nil {
		return fmt.Errorf("make disk in a user namespace: %w: %s", err, tail(string(out), 20))
	}
	return os.Remove(archive)
}

// extractBoot unpacks the kernel and its modules.
func extractBoot(archive, to string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	for in := tar.NewReader(f); ; {
		head, err := in.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(filepath.Clean("/"+head.Name), "/")
		// The archive has /lib as a link to /usr/lib; here the one folder is
		// enough.
		name = strings.TrimPrefix(name, "usr/")
		if head.Typeflag != tar.TypeReg || !strings.HasPrefix(name, "boot/vmlinuz-") && !strings.HasPrefix(name, "lib/modules/") {
			continue
		}
		path := filepath.Join(to, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := writeFrom(path, in); err != nil {
			return err
		}
	}
}

func writeFrom(path string, in io.Reader) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, in)
	return errors.Join(err, f.Close())
}

// writeOverlay makes an empty disk image in the format qcow2 over another of
// that format: it holds what differs from it.
func writeOverlay(path, backing, format string) error {
	const (
		clusterBits = 16
		cluster     = 1 << clusterBits
		headerSize  = 104
		// The clusters: header, table of reference counts, counts, table of
		// tables of clusters.
		clusters = 4
		// Each entry of the last one stands for as many clusters as a cluster
		// has entries.
		tables = machineDiskSize / (cluster * cluster / 8)
	)
	header := binary.BigEndian.AppendUint32(nil, 0x514649fb) // "QFI" 0xfb
	put32 := func(v uint32) { header = binary.BigEndian.AppendUint32(header, v) }
	put64 := func(v uint64) { header = binary.BigEndian.AppendUint64(header, v) }
	extension := binary.BigEndian.AppendUint32(nil, 0xe2792aca) // format of the backing file
	extension = binary.BigEndian.AppendUint32(extension, uint32(len(format)))
	extension = append(extension, format...)
	extension = append(extension, make([]byte, -len(format)&7+8)...) // padding, and the end of extensions

	put32(3) // version
	put64(uint64(headerSize + len(extension)))
	put32(uint32(len(backing)))
	put32(clusterBits)
	put64(machineDiskSize)
	put32(0) // not encrypted
	put32(tables)
	put64(3 * cluster)
	put64(1 * cluster)
	put32(1) // clusters of the table of reference counts
	put32(0) // no snapshots
	put64(0)
	put64(0) // no incompatible features
	put64(0) // no compatible ones
	put64(0) // none that clear themselves
	put32(4) // counts of 16 bits
	put32(headerSize)

	image := make([]byte, clusters*cluster)
	if n := copy(image, header) + len(extension) + len(backing); n > cluster {
		return fmt.Errorf("make overlay: the name %q is too long", backing)
	}
	copy(image[headerSize:], extension)
	copy(image[headerSize+len(extension):], backing)
	binary.BigEndian.PutUint64(image[cluster:], 2*cluster)
	for i := range clusters {
		binary.BigEndian.PutUint16(image[2*cluster+2*i:], 1)
	}
	return os.WriteFile(path, image, 0o600)
}
