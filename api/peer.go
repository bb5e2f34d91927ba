package api

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/user"
	"slices"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/blixard/blixard"
)

// Peer is the process at the other end of a Unix socket, as the kernel knew it
// when it connected.
type Peer struct {
	UID uint32
	// Groups are its primary and supplementary groups.
	Groups []uint32
}

// overflowID is the uid and gid the kernel shows for a process of a user
// namespace that has no name here. It is nobody, whoever else has it.
const overflowID = 65534

type peerKey struct{}

// PeerFrom is the peer of the request's connection, nil when it is not known.
func PeerFrom(ctx context.Context) *Peer {
	p, _ := ctx.Value(peerKey{}).(*Peer)
	return p
}

// peerOf asks the kernel who is at the other end of a connection; nil for one
// that is no Unix socket.
func peerOf(c net.Conn) (*Peer, error) {
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return nil, nil
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("ask for the peer: %w", err)
	}
	var p *Peer
	var asked error
	if err := raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil {
			asked = err
			return
		}
		p = &Peer{UID: cred.Uid}
		var groups []uint32
		groups, asked = peerGroups(int(fd))
		p.Groups = append(groups, cred.Gid)
	}); err != nil {
		return nil, fmt.Errorf("ask for the peer: %w", err)
	}
	if asked != nil {
		return nil, fmt.Errorf("ask for the peer: %w", asked)
	}
	return p, nil
}

// peerGroups are the peer's supplementary groups (SO_PEERGROUPS).
func peerGroups(fd int) ([]uint32, error) {
	groups := make([]uint32, 64)
	for {
		size := uint32(len(groups) * 4)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == 0:
			return groups[:size/4], nil
		case errno == unix.ERANGE && int(size/4) > len(groups):
			groups = make([]uint32, size/4)
		default:
			return nil, errno
		}
	}
}

// SocketAuthorizer lets root and the daemon's own user do everything, and the
// members of a group read. Everybody else gets what is public.
type SocketAuthorizer struct {
	// UID is the daemon's own.
	UID uint32
	// Group is the name of the group whose members may read, empty for none.
	// It is looked up anew for each request, so that it may come later; whose
	// membership began after connecting has to connect again, and after logging
	// in again.
	Group string
}

var _ Authorizer = SocketAuthorizer{}

// Authorize decides by the peer of the request's connection.
func (a SocketAuthorizer) Authorize(ctx context.Context, need Role) error {
	p := PeerFrom(ctx)
	if p == nil {
		return blixard.Errorf(blixard.CodeDenied, "who asks is not known here; this needs the role %s", need)
	}
	has, err := a.role(p)
	if err != nil {
		return err
	}
	if has >= need {
		return nil
	}
	e := blixard.Errorf(blixard.CodeDenied, "uid %d may not do this: it needs the role %s", p.UID, need)
	if need == RoleViewer && a.Group != "" {
		return e.WithHint(fmt.Sprintf("join the group and log in again: sudo usermod -aG %s $USER", a.Group))
	}
	return e.WithHint("do it as root: sudo blixard …")
}

func (a SocketAuthorizer) role(p *Peer) (Role, error) {
	if p.UID == 0 || p.UID == a.UID && p.UID != overflowID {
		return RoleAdmin, nil
	}
	if a.Group == "" {
		return RolePublic, nil
	}
	g, err := user.LookupGroup(a.Group)
	if _, unknown := errors.AsType[user.UnknownGroupError](err); unknown {
		return RolePublic, nil
	}
	if err != nil {
		return RolePublic, fmt.Errorf("look up group: %w", err)
	}
	gid, err := strconv.ParseUint(g.Gid, 10, 32)
	if err != nil {
		return RolePublic, fmt.Errorf("look up group: %w", err)
	}
	if gid != overflowID && slices.Contains(p.Groups, uint32(gid)) {
		return RoleViewer, nil
	}
	return RolePublic, nil
}
