package lab

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// guestSource is the program in the virtual machines.
//
//go:embed guest/*.go
var guestSource embed.FS

// The modules that a virtual machine needs before it has a file system; what
// they depend on comes with them.
var (
	microVMModules = []string{"virtio_pci", "virtio_net", "virtio_blk", "button", "evdev"}
	machineModules = []string{"virtio_pci", "virtio_net", "virtio_blk"}
)

// bootFiles are what the lab's virtual machines boot from, kept in the cache.
type bootFiles struct {
	kernel  string // bzImage
	release string // the kernel's, as uname tells it
	microVM string // initramfs of a microVM
	machine string // initramfs of a machine
	key     string // changes with any of them

	lock *fileLock
}

func (b *bootFiles) Close() error { return b.lock.release() }

// openBootFiles makes, if the cache does not hold it, what boots the kernel of
// the root file system at root. Only root/boot and root/lib/modules are read.
func openBootFiles(ctx context.Context, root string, progress io.Writer) (*bootFiles, error) {
	b, err := makeBootFiles(ctx, root, progress)
	if err != nil {
		return nil, fmt.Errorf("make boot files: %w", err)
	}
	return b, nil
}

func makeBootFiles(ctx context.Context, root string, progress io.Writer) (*bootFiles, error) {
	cache, err := CacheDir()
	if err != nil {
		return nil, err
	}
	sources, err := guestSources()
	if err != nil {
		return nil, err
	}
	release, err := kernelRelease(root)
	if err != nil {
		return nil, err
	}
	parts := []string{release, runtime.Version(), strings.Join(microVMModules, " "), strings.Join(machineModules, " ")}
	for _, name := range slices.Sorted(maps.Keys(sources)) {
		parts = append(parts, name, string(sources[name]))
	}
	key := digest(parts...)
	name := "boot-" + key
	dir, lock, err := cached(ctx, cache, name, func(ctx context.Context, dir string) error {
		say(progress, "Making what the guests boot from (once, some seconds)")
		if err := copyFile(filepath.Join(root, "boot/vmlinuz-"+release), filepath.Join(dir, "vmlinuz")); err != nil {
			return err
		}
		program, err := buildGuest(ctx, sources, dir)
		if err != nil {
			return err
		}
		modules := filepath.Join(root, "lib/modules", release)
		return errors.Join(
			writeInitramfs(filepath.Join(dir, "microvm.initramfs"), program, modules, microVMModules),
			writeInitramfs(filepath.Join(dir, "machine.initramfs"), program, modules, machineModules))
	})
	if err != nil {
		return nil, err
	}
	b := &bootFiles{
		kernel: filepath.Join(dir, "vmlinuz"), release: release, key: key, lock: lock,
		microVM: filepath.Join(dir, "microvm.initramfs"), machine: filepath.Join(dir, "machine.initramfs"),
	}
	if err := forgetOld(cache, "boot-", name); err != nil {
		return nil, errors.Join(fmt.Errorf("remove old boot files: %w", err), b.Close())
	}
	return b, nil
}

// guestSources are the files of the guest's program by name.
func guestSources() (map[string][]byte, error) {
	names, err := fs.Glob(guestSource, "guest/*.go")
	if err != nil {
		return nil, err
	}
	sources := make(map[string][]byte)
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		text, err := guestSource.ReadFile(name)
		if err != nil {
			return nil, err
		}
		sources[filepath.Base(name)] = text
	}
	return sources, nil
}

// buildGuest compiles the guest's program in dir and returns it. No source and
// no program stays there.
func buildGuest(ctx context.Context, sources map[string][]byte, dir string) (_ []byte, err error) {
	tool, err := goTool()
	if err != nil {
		return nil, err
	}
	src := filepath.Join(dir, "guest")
	if err := os.Mkdir(src, 0o755); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(src)) }()
	args := []string{"build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", "init"}
	for name, text := range sources {
		if err := os.WriteFile(filepath.Join(src, name), text, 0o644); err != nil {
			return nil, err
		}
		args = append(args, name)
	}
	cmd := exec.CommandContext(ctx, tool, args...)
	cmd.Dir = src
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GO111MODULE=off", "GOFLAGS=", "GOOS=linux", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the guest's program: %w: %s", err, out)
	}
	return os.ReadFile(filepath.Join(src, "init"))
}

// kernelRelease is that of the root file system's kernel, the newest if it has
// several.
func kernelRelease(root string) (string, error) {
	kernels, err := filepath.Glob(filepath.Join(root, "boot/vmlinuz-*"))
	if err != nil {
		return "", err
	}
	if len(kernels) == 0 {
		return "", fmt.Errorf("%s/boot has no kernel", root)
	}
	slices.Sort(kernels)
	return strings.TrimPrefix(filepath.Base(kernels[len(kernels)-1]), "vmlinuz-"), nil
}

// writeInitramfs packs the program as /init with the modules it is to load.
func writeInitramfs(path string, program []byte, modules string, wanted []string) (err error) {
	files, err := moduleOrder(modules, wanted)
	if err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	// Not compressed: unpacking costs more, without KVM, than reading.
	archive := newCPIO(f)
	archive.dir("modules")
	var order strings.Builder
	for _, name := range files {
		data, err := os.ReadFile(filepath.Join(modules, name))
		if err != nil {
			return err
		}
		base := filepath.Base(name)
		archive.file("modules/"+base, 0o444, data)
		order.WriteString(base + "\n")
	}
	archive.file("modules/order", 0o444, []byte(order.String()))
	archive.file("init", 0o555, program)
	return archive.close()
}

// moduleOrder lists, relative to the folder of modules, the files of the wanted
// modules and of all they need, each after what it needs.
func moduleOrder(modules string, wanted []string) ([]string, error) {
	text, err := os.ReadFile(filepath.Join(modules, "modules.dep"))
	if err != nil {
		return nil, err
	}
	builtin, err := os.ReadFile(filepath.Join(modules, "modules.builtin"))
	if err != nil {
		return nil, err
	}
	needs := make(map[string][]string) // by file
	files := make(map[string]string)   // by name
	for line := range strings.Lines(string(text)) {
		file, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		needs[file] = strings.Fields(rest)
		files[moduleName(file)] = file
	}
	for line := range strings.Lines(string(builtin)) {
		files[moduleName(strings.TrimSpace(line))] = ""
	}
	var order []string
	add := func(file string) {
		if !slices.Contains(order, file) {
			order = append(order, file)
		}
	}
	for _, name := range wanted {
		file, ok := files[name]
		if !ok {
			return nil, fmt.Errorf("the kernel in %s has no module %s", modules, name)
		}
		if file == "" {
			continue // Built in.
		}
		// modules.dep names what is to be loaded first last.
		for _, need := range slices.Backward(needs[file]) {
			add(need)
		}
		add(file)
	}
	return order, nil
}

// moduleName is a module's name by its file: the kernel takes - and _ as one.
func moduleName(file string) string {
	return strings.ReplaceAll(strings.TrimSuffix(filepath.Base(file), ".ko"), "-", "_")
}

func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	_, err = io.Copy(out, in)
	return err
}
