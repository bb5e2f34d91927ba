package lab_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/blixard/blixard/lab"
)

func TestCached_once(t *testing.T) {
	root := t.TempDir()
	var builds atomic.Int32
	var group errgroup.Group
	for range 8 {
		group.Go(func() error {
			dir, lock, err := lab.Cached(t.Context(), root, "thing-1", func(_ context.Context, dir string) error {
				builds.Add(1)
				return os.WriteFile(filepath.Join(dir, "file"), []byte("whole"), 0o600)
			})
			if err != nil {
				return err
			}
			data, err := os.ReadFile(filepath.Join(dir, "file"))
			if string(data) != "whole" {
				t.Errorf("read %q", data)
			}
			return errors.Join(err, lock.Release())
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	if n := builds.Load(); n != 1 {
		t.Errorf("built %d times", n)
	}
}

func TestCached_failure(t *testing.T) {
	root := t.TempDir()
	boom := errors.New("boom")
	_, _, err := lab.Cached(t.Context(), root, "thing-1", func(_ context.Context, dir string) error {
		return errors.Join(os.WriteFile(filepath.Join(dir, "half"), nil, 0o600), boom)
	})
	if !errors.Is(err, boom) {
		t.Fatalf("error %v", err)
	}
	left, err := filepath.Glob(filepath.Join(root, "thing-1*"))
	if err != nil || len(left) != 1 || filepath.Ext(left[0]) != ".lock" {
		t.Errorf("left behind: %q, %v", left, err)
	}
	dir, lock, err := lab.Cached(t.Context(), root, "thing-1", func(_ context.Context, dir string) error {
		return os.WriteFile(filepath.Join(dir, "whole"), nil, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := lock.Release(); err != nil {
			t.Error(err)
		}
	}()
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 1 || files[0].Name() != "whole" {
		t.Errorf("second try holds %v, %v", files, err)
	}
}

func TestForgetOld(t *testing.T) {
	root := t.TempDir()
	build := func(name string) interface{ Release() error } {
		_, lock, err := lab.Cached(t.Context(), root, name, func(context.Context, string) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		return lock
	}
	free, used, recent, present := build("thing-free"), build("thing-used"), build("thing-recent"), build("thing-present")
	if err := errors.Join(free.Release(), recent.Release(), present.Release()); err != nil {
		t.Fatal(err)
	}
	long := time.Now().Add(-48 * time.Hour)
	for _, name := range []string{"thing-free", "thing-used", "thing-present"} {
		if err := os.Chtimes(filepath.Join(root, name+".lock"), long, long); err != nil {
			t.Fatal(err)
		}
	}
	if err := lab.ForgetOld(root, "thing-", "thing-present"); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"thing-free": false, "thing-used": true, "thing-recent": true, "thing-present": true} {
		if _, err := os.Stat(filepath.Join(root, name)); (err == nil) != want {
			t.Errorf("%s: there %v, want %v", name, err == nil, want)
		}
	}
	if err := used.Release(); err != nil {
		t.Fatal(err)
	}
}
