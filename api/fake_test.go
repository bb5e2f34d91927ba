package api

import (
	"context"
	"io"
	"log/slog"

	"github.com/blixard/blixard"
)

// failing is a Fleet with a fault.
type failing struct{ blixard.Fleet }

func (failing) Nodes(context.Context) (blixard.List[blixard.Node], error) {
	return blixard.List[blixard.Node]{}, errSecret
}

func newLog(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }
