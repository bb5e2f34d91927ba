package metrics

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/prometheus/common/expfmt"

	"github.com/blixard/blixard"
)

// Source is what VMs and the node are told from. It answers from memory; Fleet
// satisfies it.
type Source interface {
	VMs(ctx context.Context) (blixard.List[blixard.VM], error)
	Cluster(ctx context.Context) (blixard.ClusterStatus, error)
}

// handler serves the page of all series.
type handler struct {
	source Source
	self   *Self
	// pages keeps the buffers of pages for the next ones.
	pages sync.Pool
	// size is that of the last page: a new buffer begins with it, since one that
	// grows leaves several times its size as garbage.
	size atomic.Int64
}

// NewHandler makes the handler that serves all series, in the format that the
// Accept header prefers. Where the source does not answer it serves none, with
// the source's status.
func NewHandler(source Source, self *Self) http.Handler {
	return &handler{source: source, self: self, pages: sync.Pool{New: func() any { return new(page) }}}
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// Without the escaping that was negotiated: no name here needs one.
	format := expfmt.FmtText
	if expfmt.NegotiateAccept(r.Header, expfmt.FmtOpenMetrics_1_0_0, expfmt.FmtText).FormatType() == expfmt.TypeOpenMetrics {
		format = expfmt.FmtOpenMetrics_1_0_0
	}
	p := h.pages.Get().(*page)
	defer h.pages.Put(p)
	const room = 16 << 10 // for what changed since the last page
	p.buf, p.open = slices.Grow(p.buf[:0], int(h.size.Load())+room), format.FormatType() == expfmt.TypeOpenMetrics
	if err := h.write(r.Context(), p, format); err != nil {
		http.Error(w, "cannot tell metrics: "+err.Error(), blixard.ErrorCode(err).Status())
		return
	}
	h.size.Store(int64(len(p.buf)))
	w.Header().Set("Content-Type", string(format))
	w.Header().Set("Content-Length", strconv.Itoa(len(p.buf)))
	// A failed write is the reader's, who went away.
	_, _ = w.Write(p.buf)
}

// write writes the whole page.
func (h *handler) write(ctx context.Context, p *page, format expfmt.Format) error {
	cluster, err := h.source.Cluster(ctx)
	if err != nil {
		return fmt.Errorf("read cluster: %w", err)
	}
	list, err := h.source.VMs(ctx)
	if err != nil {
		return fmt.Errorf("read VMs: %w", err)
	}
	vms := list.Items
	if foreign := func(v blixard.VM) bool { return v.Node != cluster.Node }; slices.ContainsFunc(vms, foreign) {
		vms = slices.DeleteFunc(slices.Clone(vms), foreign)
	}
	p.nodeFamilies(&cluster, len(vms))
	p.vmFamilies(vms)

	families, err := h.self.registry.Gather()
	if err != nil {
		return fmt.Errorf("gather the daemon's own: %w", err)
	}
	buf := bytes.NewBuffer(p.buf)
	enc := expfmt.NewEncoder(buf, format)
	for _, f := range families {
		if err := enc.Encode(f); err != nil {
			return fmt.Errorf("write the daemon's own: %w", err)
		}
	}
	if c, ok := enc.(expfmt.Closer); ok {
		if err := c.Close(); err != nil {
			return fmt.Errorf("write the daemon's own: %w", err)
		}
	}
	p.buf = buf.Bytes()
	return nil
}
