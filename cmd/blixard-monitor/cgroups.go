package main

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// cgroups finds the units of users by their cgroups, which everybody may list,
// where the users' managers cannot be asked.
type cgroups struct{}

// maxDepth is how deep below a user's manager a unit's cgroup is looked for:
// slices may nest, and no more than this is usual.
const maxDepth = 4

// Sighted lists the service units whose cgroups a user's manager has.
func (cgroups) Sighted(uid uint32) ([]string, error) {
	root, err := cgroupRoot()
	if err != nil {
		return nil, err
	}
	top := filepath.Join(root, "user.slice", fmt.Sprintf("user-%d.slice", uid), fmt.Sprintf("user@%d.service", uid))
	var names []string
	err = filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // cgroups go while one looks
		case err != nil:
			return err
		case !d.IsDir() || path == top:
			return nil
		}
		if strings.HasSuffix(d.Name(), ".service") {
			names = append(names, d.Name())
			return fs.SkipDir
		}
		if strings.Count(strings.TrimPrefix(path, top), "/") >= maxDepth {
			return fs.SkipDir
		}
		return nil
	})
	return names, err
}

// cgroupRoot is where the unified hierarchy is mounted.
func cgroupRoot() (string, error) {
	f, err := os.Open("/proc/self/mounts")
	if err != nil {
		return "", fmt.Errorf("find the cgroup file system: %w", err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if fields := strings.Fields(s.Text()); len(fields) > 2 && fields[2] == "cgroup2" {
			return fields[1], nil
		}
	}
	return "", errors.New("find the cgroup file system: no cgroup2 is mounted")
}
