package api

import (
	"context"
	_ "embed"
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/blixard/blixard"
)

//go:embed openapi.yaml
var openAPI []byte

const (
	// requestTimeout is how long one answer that is no stream may take to make.
	requestTimeout = 20 * time.Second
	// frameTimeout is how long a client may take to accept one frame of a
	// stream; then the stream ends.
	frameTimeout = 10 * time.Second
	// KeepAlive is the longest silence of a stream: after it comes a frame that
	// tells the index and nothing else.
	KeepAlive = 15 * time.Second
)

// Authorizer decides who may ask what.
type Authorizer interface {
	// Authorize returns nil when the caller has the role, and an *Error with
	// CodeDenied that says what to do when not. The context is the request's.
	Authorize(ctx context.Context, need Role) error
}

// ServerConfig is what a server needs.
type ServerConfig struct {
	// Fleet answers.
	Fleet blixard.Fleet
	// Authorizer is asked before every route that is not public.
	Authorizer Authorizer
	// Logger gets faults of ours; what a caller did wrong is told to the caller.
	Logger *slog.Logger
	// Version is the daemon's.
	Version string
	// Health, Ready and Metrics serve /healthz, /readyz and /metrics; without
	// them those are not found.
	Health, Ready, Metrics http.Handler
	// KeepAlive is how often a silent stream says that it lives, 0 for the
	// constant KeepAlive.
	KeepAlive time.Duration
}

// Validate names the first part that is missing.
func (c *ServerConfig) Validate() error {
	switch {
	case c.Fleet == nil:
		return errors.New("api server: no Fleet")
	case c.Authorizer == nil:
		return errors.New("api server: no Authorizer")
	case c.Logger == nil:
		return errors.New("api server: no Logger")
	case c.KeepAlive < 0 || c.KeepAlive > KeepAlive:
		return errors.New("api server: KeepAlive out of bounds")
	}
	return nil
}

type server struct{ cfg ServerConfig }

// NewServer makes the handler of the API. It needs Serve around it for the
// bounds on connections and for the peers' identities.
func NewServer(cfg ServerConfig) (http.Handler, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.KeepAlive == 0 {
		cfg.KeepAlive = KeepAlive
	}
	return &server{cfg}, nil
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	if err := s.dispatch(w, r); err != nil {
		s.fail(w, err)
	}
}

// errMethod is the one answer whose status is not its code's.
var errMethod = blixard.Errorf(blixard.CodeInvalid, "the method is not allowed here").WithHint("the Allow header lists those that are")

func (s *server) dispatch(w http.ResponseWriter, r *http.Request) error {
	byMethod, params := match(r.URL.EscapedPath())
	if byMethod == nil {
		return blixard.Errorf(blixard.CodeNotFound, "no such path: %q", r.URL.Path).WithHint("GET " + pathOpenAPI + " describes those there are")
	}
	method := r.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	rt := byMethod[method]
	if rt == nil {
		w.Header().Set("Allow", allowed(byMethod))
		if method == http.MethodOptions {
			w.WriteHeader(http.StatusNoContent)
			return nil
		}
		return errMethod
	}
	if rt.role != RolePublic {
		if err := s.cfg.Authorizer.Authorize(r.Context(), rt.role); err != nil {
			return err
		}
	}
	if r.ContentLength != 0 {
		// What follows the headers is left unread: the connection ends.
		w.Header().Set("Connection", "close")
		if err := http.NewResponseController(w).SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			s.cfg.Logger.Debug("set read deadline", "error", err)
		}
		return blixard.Errorf(blixard.CodeInvalid, "a request has no body here")
	}
	q, err := parseQuery(r.URL.RawQuery, rt.query)
	if err != nil {
		return err
	}
	return rt.handle(s, w, &request{Request: r, params: params, query: q})
}

// errorBody is every answer that is an error.
type errorBody struct {
	Error *blixard.Error `json:"error"`
}

// public is the Error that a caller is told.
func (s *server) public(err error) *blixard.Error {
	if e, ok := errors.AsType[*blixard.Error](err); ok {
		if e.Code == blixard.CodeInternal {
			s.cfg.Logger.Error("answer a request", "error", err)
		}
		return e
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return blixard.Errorf(blixard.CodeTimeout, "the answer took longer than %v", requestTimeout)
	}
	if errors.Is(err, context.Canceled) {
		return blixard.Errorf(blixard.CodeUnavailable, "the daemon is ending")
	}
	s.cfg.Logger.Error("answer a request", "error", err)
	return blixard.Errorf(blixard.CodeInternal, "a fault of the daemon; its log says more").WithHint("journalctl -u blixard-monitor")
}

func (s *server) fail(w http.ResponseWriter, err error) {
	e := s.public(err)
	status := e.Code.Status()
	if e == errMethod {
		status = http.StatusMethodNotAllowed
	}
	s.write(w, status, errorBody{e})
}

// write sends one JSON value. A client that went away is nobody's fault.
func (s *server) write(w http.ResponseWriter, status int, v any) {
	b, err := encode(v)
	if err != nil {
		s.cfg.Logger.Error("encode an answer", "error", err)
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(status)
	if _, err := w.Write(b); err != nil {
		s.cfg.Logger.Debug("write an answer", "error", err)
	}
}

// answer asks the Fleet under the deadline of a request and sends what it says.
func answer[T any](s *server, w http.ResponseWriter, r *request, ask func(context.Context) (T, error), fill func(T) T) error {
	ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
	defer cancel()
	v, err := ask(ctx)
	if err != nil {
		return err
	}
	s.write(w, http.StatusOK, fill(v))
	return nil
}

func (s *server) vms(w http.ResponseWriter, r *request) error {
	watch, err := r.query.flag("watch")
	if err != nil {
		return err
	}
	if watch {
		s.watchVMs(w, r)
		return nil
	}
	return answer(s, w, r, s.cfg.Fleet.VMs, listOfVMs)
}

// oneVM answers with what the Fleet says or does to the VM of the path.
func (s *server) oneVM(w http.ResponseWriter, r *request, do func(context.Context, blixard.VMRef) (blixard.List[blixard.VM], error)) error {
	ref, err := vmRef(r.params)
	if err != nil {
		return err
	}
	return answer(s, w, r, func(ctx context.Context) (blixard.List[blixard.VM], error) { return do(ctx, ref) }, listOfVMs)
}

func (s *server) vm(w http.ResponseWriter, r *request) error {
	return s.oneVM(w, r, s.cfg.Fleet.VM)
}

func (s *server) adoptVM(w http.ResponseWriter, r *request) error {
	return s.oneVM(w, r, s.cfg.Fleet.AdoptVM)
}

func (s *server) removeVM(w http.ResponseWriter, r *request) error {
	return s.oneVM(w, r, s.cfg.Fleet.RemoveVM)
}

// microVM lists every VM of a name.
func (s *server) microVM(w http.ResponseWriter, r *request) error {
	name := r.params[0]
	return answer(s, w, r, func(ctx context.Context) (blixard.List[blixard.VM], error) {
		l, err := s.cfg.Fleet.VMs(ctx)
		if err != nil {
			return l, err
		}
		all := l.Items
		l.Items, l.AgeSeconds = nil, nil
		for _, v := range all {
			if v.Name != name {
				continue
			}
			l.Items = append(l.Items, v)
			if v.State != blixard.StateUnknown && v.AgeSeconds != nil && (l.AgeSeconds == nil || *v.AgeSeconds > *l.AgeSeconds) {
				l.AgeSeconds = v.AgeSeconds
			}
		}
		if len(l.Items) == 0 {
			return l, blixard.Errorf(blixard.CodeNotFound, "no VM %q", name).WithHint("blixard vm list")
		}
		return l, nil
	}, listOfVMs)
}

func (s *server) events(w http.ResponseWriter, r *request) error {
	q, follow, err := r.query.events()
	if err != nil {
		return err
	}
	if follow {
		return s.followEvents(w, r, q)
	}
	return answer(s, w, r, func(ctx context.Context) (blixard.List[blixard.Event], error) { return s.cfg.Fleet.Events(ctx, q) }, listOfEvents)
}

func (s *server) nodes(w http.ResponseWriter, r *request) error {
	return answer(s, w, r, s.cfg.Fleet.Nodes, listOfNodes)
}

func (s *server) node(w http.ResponseWriter, r *request) error {
	return answer(s, w, r, func(ctx context.Context) (blixard.List[blixard.Node], error) {
		return s.cfg.Fleet.Node(ctx, r.params[0])
	}, listOfNodes)
}

func (s *server) cluster(w http.ResponseWriter, r *request) error {
	return answer(s, w, r, s.cfg.Fleet.Cluster, cluster)
}

// Version is the answer of /v1/version.
type Version struct {
	APIVersion string `json:"api_version"`
	// Version is the daemon's.
	Version string `json:"version"`
}

func (s *server) version(w http.ResponseWriter, r *request) error {
	s.write(w, http.StatusOK, Version{APIVersion: blixard.APIVersion, Version: s.cfg.Version})
	return nil
}

func (s *server) openAPI(w http.ResponseWriter, r *request) error {
	w.Header().Set("Content-Type", "application/yaml")
	w.Header().Set("Content-Length", strconv.Itoa(len(openAPI)))
	if _, err := w.Write(openAPI); err != nil {
		s.cfg.Logger.Debug("write an answer", "error", err)
	}
	return nil
}

func (s *server) healthz(w http.ResponseWriter, r *request) error {
	return s.pass(w, r, s.cfg.Health)
}

func (s *server) readyz(w http.ResponseWriter, r *request) error {
	return s.pass(w, r, s.cfg.Ready)
}

func (s *server) metrics(w http.ResponseWriter, r *request) error {
	return s.pass(w, r, s.cfg.Metrics)
}

func (s *server) pass(w http.ResponseWriter, r *request, h http.Handler) error {
	if h == nil {
		return blixard.Errorf(blixard.CodeNotFound, "%s is not served here", r.URL.Path)
	}
	h.ServeHTTP(w, r.Request)
	return nil
}
