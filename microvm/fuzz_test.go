package microvm_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/blixard/blixard/microvm"
)

// FuzzScanner builds a state directory and a store from bytes and reads them.
// The program is lines of "KIND PATH TEXT"; paths are kept below one folder, and
// links lead wherever they say.
func FuzzScanner(f *testing.F) {
	for _, program := range []string{
		"l microvms/a/current STORE/" + hash + "-microvm-qemu-a\nf store/" + hash + "-microvm-qemu-a/share/microvm/hypervisor qemu",
		"l microvms/a/current STORE/" + hash + "-microvm-qemu-a\nl store/" + hash + "-microvm-qemu-a ../microvms/a\nl microvms/a/share STORE/../../etc",
		"l microvms/a/current STORE/x\nl store/x STORE/x\n",
		"l microvms/a/current STORE/x\nl store/x/share STORE/y\nl store/y STORE/x/share",
		"p microvms/a/current \nd microvms/b/current \nl microvms/c/booted current\nl microvms/c/current booted",
		"l microvms/a/current STORE/" + hash + "-microvm-a-b\np store/" + hash + "-microvm-a-b/share/microvm/hypervisor \n",
		"l microvms/a/current ../../../../../../etc/passwd\nf microvms/lost+found x\nl microvms/x microvms/a",
	} {
		f.Add(program)
	}
	f.Fuzz(func(t *testing.T, program string) {
		if len(program) > 2000 {
			return
		}
		dir := t.TempDir()
		store := filepath.Join(dir, "store")
		state := filepath.Join(dir, "microvms")
		outside := filepath.Join(dir, "outside")
		for _, d := range []string{store, state, outside} {
			if err := os.Mkdir(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		// What must never be read, where a link may lead.
		for _, name := range []string{"hypervisor", "vsock-cid"} {
			if err := os.MkdirAll(outside+"/share/microvm", 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(outside+"/share/microvm/"+name, []byte("424242"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		root, err := os.OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		for line := range strings.SplitSeq(program, "\n") {
			kind, rest, _ := strings.Cut(line, " ")
			path, text, _ := strings.Cut(rest, " ")
			if strings.ContainsRune(line, 0) || strings.Count(path, "/") > 8 {
				continue
			}
			text = strings.NewReplacer("STORE", store, "OUTSIDE", outside).Replace(text)
			// What cannot be made is left out.
			_ = root.MkdirAll(filepath.Dir(path), 0o755)
			switch kind {
			case "f":
				if strings.HasPrefix(filepath.Clean(path), "outside") {
					continue
				}
				_ = root.WriteFile(path, []byte(text), 0o644)
			case "d":
				_ = root.MkdirAll(path, 0o755)
			case "l":
				_ = root.Symlink(text, path)
			case "p":
				if fd, err := root.Open(filepath.Dir(path)); err == nil {
					_ = unix.Mknodat(int(fd.Fd()), filepath.Base(path), unix.S_IFIFO|0o600, 0)
					fd.Close()
				}
			}
		}
		s, err := microvm.NewScanner(microvm.Config{StateDirs: []string{state}, StoreDir: store})
		if err != nil {
			t.Fatal(err)
		}
		got := s.Scan(t.Context())
		for _, d := range got.Definitions {
			if d.VsockCID == 424242 || d.Hypervisor == "424242" {
				t.Errorf("followed out of the store: %+v", d)
			}
			if d.Hypervisor == "" && d.Unavailable["hypervisor"] == "" || d.HostName == "" && d.Unavailable["host_name"] == "" ||
				d.Config == "" && d.Unavailable["config"] == "" || d.Provenance == "" && d.Unavailable["provenance"] == "" {
				t.Errorf("no reason for what is not known: %+v", d)
			}
			again, err := s.Refresh(d.Name)
			if err != nil || again.VMDefinition != d.VMDefinition {
				t.Errorf("%+v, then %+v, %v", d, again, err)
			}
		}
	})
}

func FuzzSplitRunner(f *testing.F) {
	for _, name := range []string{"-microvm-qemu-web-one", "-microvm-cloud-hypervisor-x", "-microvm-qemu-", "-microvm-", "-nixos-system", "", "-microvm-qemu-\xff\n"} {
		f.Add(hash+name, "")
		f.Add(hash+name, "qemu")
		f.Add(name, "cloud-hypervisor")
	}
	f.Fuzz(func(t *testing.T, name, told string) {
		hypervisor, hostName, err := microvm.SplitRunner(name, told)
		if (err != nil) != (hostName == "") || (err != nil) != (hypervisor == "") {
			t.Fatalf("%q, %q, %v", hypervisor, hostName, err)
		}
		if err == nil && (!strings.HasSuffix(name, "-microvm-"+hypervisor+"-"+hostName) || told != "" && told != hypervisor) {
			t.Errorf("%q becomes %q and %q", name, hypervisor, hostName)
		}
	})
}
