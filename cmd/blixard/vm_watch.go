package main

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/term"

	"github.com/blixard/blixard"
	"github.com/blixard/blixard/api"
)

const (
	// redrawEvery is how often the live view draws the ages anew, relistEvery
	// how often it asks for the list when nothing changes, and settle how long
	// it waits for more changes after one.
	redrawEvery = time.Second
	relistEvery = 5 * time.Second
	settle      = 200 * time.Millisecond
)

// watchVMs shows the VMs as they change: live on a terminal, as one JSON object
// a line otherwise.
func (a *app) watchVMs(ctx context.Context, v *view[blixard.VM]) error {
	fd := a.terminal()
	switch {
	case v.format == "json", v.human() && fd < 0:
		return a.streamVMs(ctx, v)
	case v.human():
		return a.liveVMs(ctx, v, fd)
	}
	return usagef("--watch does not go with -o %s", v.format).WithHint("it goes with table and wide on a terminal, and with json")
}

// streamVMs prints the frames of the stream. A VM that a filter no longer
// matches is gone for the reader.
func (a *app) streamVMs(ctx context.Context, v *view[blixard.VM]) error {
	client, err := a.dial(a.streamNews)
	if err != nil {
		return err
	}
	defer client.Close()
	shown := map[string]bool{}
	for frame, err := range client.WatchVMs(ctx) {
		if err != nil {
			return err
		}
		switch {
		case frame.VM != nil && !keep(frame.VM, v.filters):
			if !shown[frame.VM.ID] {
				continue
			}
			delete(shown, frame.VM.ID)
			frame.Gone, frame.VM = frame.VM.ID, nil
		case frame.VM != nil:
			shown[frame.VM.ID] = true
		case frame.Gone != "" && len(v.filters) > 0 && !shown[frame.Gone]:
			continue
		case frame.Gone != "":
			delete(shown, frame.Gone)
		}
		b, err := encoded(frame)
		if err != nil {
			return err
		}
		if err := a.print(b); err != nil {
			return err
		}
	}
	return nil
}

// liveVMs draws the list in place. The stream only says that something changed;
// what is drawn is always a whole list, with ages that go on growing while no new
// one comes.
func (a *app) liveVMs(ctx context.Context, v *view[blixard.VM], fd int) error {
	changes := make(chan struct{}, 1)
	changed := func() {
		select {
		case changes <- struct{}{}:
		default:
		}
	}
	client, err := a.dial(func(error) { changed() })
	if err != nil {
		return err
	}
	defer client.Close()
	screen := screen{app: a, view: v, fd: fd}
	if err := screen.take(client.VMs(ctx)); err != nil {
		return err
	}

	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	ended := make(chan error, 1)
	wg.Go(func() { ended <- hints(ctx, client, changed) })
	// One list at a time is asked for, so that a daemon that hangs does not
	// keep the ages from being drawn.
	ask, lists := make(chan struct{}, 1), make(chan listing)
	wg.Go(func() { answer(ctx, client, ask, lists) })

	redraw, relist := time.NewTicker(redrawEvery), time.NewTimer(relistEvery)
	defer redraw.Stop()
	defer relist.Stop()
	for {
		if err := screen.draw(); err != nil {
			return err
		}
		select {
		case err := <-ended:
			return err
		case <-redraw.C:
		case <-changes:
			relist.Reset(settle)
		case <-relist.C:
			select {
			case ask <- struct{}{}:
			default:
			}
		case l := <-lists:
			// A list that fails leaves the last one standing, and growing older.
			screen.lost = screen.take(l.list, l.err)
			relist.Reset(relistEvery)
		}
	}
}

// listing is an answer to the question for every VM.
type listing struct {
	list blixard.List[blixard.VM]
	err  error
}

// hints follows the stream of VMs and says when something changed.
func hints(ctx context.Context, client *api.Client, changed func()) error {
	for _, err := range client.WatchVMs(ctx) {
		if err != nil {
			return err
		}
		changed()
	}
	return nil
}

// answer lists every VM each time it is asked to.
func answer(ctx context.Context, client *api.Client, ask <-chan struct{}, lists chan<- listing) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-ask:
		}
		l, err := client.VMs(ctx)
		select {
		case <-ctx.Done():
			return
		case lists <- listing{l, err}:
		}
	}
}

// screen is the live view.
type screen struct {
	app  *app
	view *view[blixard.VM]
	fd   int
	// list is the last one, received at taken.
	list  blixard.List[blixard.VM]
	all   int
	taken time.Time
	// lost is why no newer one came.
	lost  error
	drawn bool
}

func (s *screen) take(l blixard.List[blixard.VM], err error) error {
	if err != nil {
		return err
	}
	s.all = len(l.Items)
	l.Items = s.view.choose(l.Items)
	s.list, s.taken = l, time.Now()
	return nil
}

// draw writes the whole screen at once: no more lines than fit, none wrapped.
func (s *screen) draw() error {
	_, height, err := term.GetSize(s.fd)
	if err != nil || height < 4 {
		height = 24
	}
	since := time.Since(s.taken)
	l := s.list
	l.Items = aged(l.Items, since)
	rows, err := s.view.render(l)
	if err != nil {
		return err
	}
	var foot bytes.Buffer
	fmt.Fprintln(&foot, vmSummary(l.Items, s.all))
	if s.lost != nil {
		line := fmt.Sprintf("NOT CONNECTED, this is %s old: %s", span(since), safe(s.lost.Error()))
		paint(&foot, line, bad, s.view.color)
		foot.WriteByte('\n')
	}
	for _, p := range l.Problems {
		paint(&foot, "warning: "+safe(p), warn, s.view.color)
		foot.WriteByte('\n')
	}
	lines := fit(bytes.SplitAfter(rows, []byte("\n")), bytes.SplitAfter(foot.Bytes(), []byte("\n")), height-1)
	var b bytes.Buffer
	if !s.drawn {
		b.WriteString("\x1b[2J")
		s.drawn = true
	}
	b.WriteString("\x1b[?7l\x1b[H")
	for _, line := range lines {
		b.Write(bytes.TrimSuffix(line, []byte("\n")))
		b.WriteString("\x1b[K\r\n")
	}
	b.WriteString("\x1b[J\x1b[?7h")
	return s.app.print(b.Bytes())
}

// fit cuts rows so that they and the foot have at most height lines; both end
// with an empty line, which is left out.
func fit(rows, foot [][]byte, height int) [][]byte {
	rows, foot = rows[:len(rows)-1], foot[:len(foot)-1]
	if len(rows)+len(foot) > height {
		room := max(1, height-len(foot)-1)
		more := fmt.Appendf(nil, "… and %d more\n", len(rows)-room)
		rows = append(rows[:room:room], more)
	}
	return append(rows, foot...)
}

// aged is the VMs as they are some time after they were listed.
func aged(items []blixard.VM, since time.Duration) []blixard.VM {
	out := make([]blixard.VM, len(items))
	copy(out, items)
	for i := range out {
		if age := out[i].AgeSeconds; age != nil {
			older := *age + since.Seconds()
			out[i].AgeSeconds = &older
		}
	}
	return out
}
