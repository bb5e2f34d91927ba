package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	mib = 1 << 20
	// memReserve is what mem leaves to the kernel and to this program, in MiB.
	// PID 1 must never be the one that runs out of memory.
	memReserve = 24
	// burnPeriod is the time over which a processor's share is kept.
	burnPeriod = 50 * time.Millisecond
	disk       = "/dev/vda"
)

// stats counts what was done since the start. Memory and percent are as of now.
type stats struct {
	percent, memMB, writtenMB, readMB, sentMB int
}

// load makes load on processors, memory, disk and network.
type load struct {
	cpus int

	mu    sync.Mutex // guards what follows
	now   stats
	taken [][]byte
	quiet chan struct{} // closed to end the present burning

	diskMu sync.Mutex // held during a transfer: one at a time
	at     int64      // where in the disk the next one goes on
}

func newLoad() *load { return &load{cpus: runtime.NumCPU(), quiet: make(chan struct{})} }

func (l *load) stats() stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.now
}

// burn keeps the processors busy at percent, 100 for each of them, for that
// time. It replaces what burnt before.
func (l *load) burn(percent, seconds int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.quiet)
	quiet := make(chan struct{})
	l.quiet, l.now.percent = quiet, percent
	time.AfterFunc(time.Duration(seconds)*time.Second, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.quiet == quiet {
			close(quiet)
			l.quiet, l.now.percent = make(chan struct{}), 0
		}
	})
	for ; percent > 0; percent -= 100 {
		go burnOne(burnPeriod*time.Duration(min(percent, 100))/100, quiet)
	}
}

// burnOne is busy for that part of each period.
func burnOne(busy time.Duration, quiet <-chan struct{}) {
	tick := time.NewTicker(burnPeriod)
	defer tick.Stop()
	for x := uint32(1); ; {
		for began := time.Now(); time.Since(began) < busy; {
			for range 10000 {
				x = x*1103515245 + 12345
			}
		}
		// A share of 100 percent is still asked to stop: the tick is due by then.
		select {
		case <-quiet:
			return
		case <-tick.C:
		}
	}
}

// take fills mb MiB of memory. It takes all or nothing.
func (l *load) take(mb int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	free, err := memAvailable()
	if err != nil {
		return err
	}
	if mb > free-memReserve {
		return fmt.Errorf("at most %d MiB can be taken", max(0, free-memReserve))
	}
	block, err := syscall.Mmap(-1, 0, mb*mib, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		return fmt.Errorf("take memory: %w", err)
	}
	for i := 0; i < len(block); i += 4096 {
		block[i] = byte(i>>12) | 1
	}
	l.taken = append(l.taken, block)
	l.now.memMB += mb
	return nil
}

// free gives back all that was taken.
func (l *load) free() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, block := range l.taken {
		if err := syscall.Munmap(block); err != nil {
			return fmt.Errorf("give memory back: %w", err)
		}
		l.now.memMB -= len(block) / mib
	}
	l.taken = nil
	return nil
}

// transfer moves mb MiB to or from the disk past the page cache, going on where
// the last one ended and starting over at the disk's end.
func (l *load) transfer(mb int, write bool) (err error) {
	l.diskMu.Lock()
	defer l.diskMu.Unlock()
	f, err := os.OpenFile(disk, os.O_RDWR|syscall.O_DIRECT, 0)
	if err != nil {
		return fmt.Errorf("open disk: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("read size of disk: %w", err)
	}
	if size < mib {
		return fmt.Errorf("the disk has %d bytes, less than a MiB", size)
	}
	// Mapped memory is aligned as O_DIRECT wants it.
	block, err := syscall.Mmap(-1, 0, mib, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		return fmt.Errorf("take memory: %w", err)
	}
	defer func() { err = errors.Join(err, syscall.Munmap(block)) }()
	copy(block, bytes.Repeat([]byte("blixard "), mib/8))
	for range mb {
		if l.at+mib > size {
			l.at = 0
		}
		if write {
			_, err = f.WriteAt(block, l.at)
		} else {
			_, err = f.ReadAt(block, l.at)
		}
		if err != nil {
			return fmt.Errorf("use disk: %w", err)
		}
		l.at += mib
		l.mu.Lock()
		if write {
			l.now.writtenMB++
		} else {
			l.now.readMB++
		}
		l.mu.Unlock()
	}
	if write {
		return f.Sync()
	}
	return nil
}

// send writes mb MiB of text lines to out.
func (l *load) send(out io.Writer, mb int) error {
	block := bytes.Repeat([]byte("blixard blixard blixard blixard blixard blixard blixard blixard\n"), mib/64)
	for range mb {
		if _, err := out.Write(block); err != nil {
			return fmt.Errorf("send: %w", err)
		}
		l.mu.Lock()
		l.now.sentMB++
		l.mu.Unlock()
	}
	return nil
}

// memAvailable is what the kernel could still give, in MiB.
func memAvailable() (int, error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if rest, ok := strings.CutPrefix(lines.Text(), "MemAvailable:"); ok {
			kib, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(rest, "kB")))
			if err != nil {
				return 0, fmt.Errorf("read /proc/meminfo: %w", err)
			}
			return kib / 1024, nil
		}
	}
	return 0, errors.Join(errors.New("read /proc/meminfo: no MemAvailable"), lines.Err())
}
