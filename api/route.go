package api

import (
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/blixard/blixard"
)

// Role is what a caller may do; each role may do what those below it may.
type Role uint8

// The roles.
const (
	// RolePublic: anybody who can connect. It tells nothing of VMs.
	RolePublic Role = iota
	// RoleViewer may read everything.
	RoleViewer
	// RoleAdmin may also change the records.
	RoleAdmin
)

// String is the role's name in the OpenAPI document and in messages.
func (r Role) String() string {
	switch r {
	case RolePublic:
		return "public"
	case RoleViewer:
		return "viewer"
	default:
		return "admin"
	}
}

// The paths, as the table and the client use them. {…} is one escaped segment.
const (
	pathVMs       = "/v1/vms"
	pathVM        = "/v1/vms/{name}"
	pathScopedVM  = "/v1/vms/{scope}/{name}"
	pathManagedVM = "/v1/vms/{node}/{manager}/{name}"
	pathMicroVM   = "/v1/microvms/{name}"
	pathEvents    = "/v1/events"
	pathNodes     = "/v1/nodes"
	pathNode      = "/v1/nodes/{name}"
	pathCluster   = "/v1/cluster"
	pathVersion   = "/v1/version"
	pathOpenAPI   = "/v1/openapi.yaml"
	pathHealthz   = "/healthz"
	pathReadyz    = "/readyz"
	pathMetrics   = "/metrics"
)

// route is one row of the table. A GET answers HEAD too.
type route struct {
	method string
	path   string
	// role is the least that may ask.
	role Role
	// query are the parameters it knows; any other is refused.
	query  []string
	handle func(*server, http.ResponseWriter, *request) error
}

// routes is the one table of routes.
var routes = []route{
	{http.MethodGet, pathVMs, RoleViewer, []string{"watch"}, (*server).vms},
	{http.MethodGet, pathVM, RoleViewer, nil, (*server).vm},
	{http.MethodPut, pathVM, RoleAdmin, nil, (*server).adoptVM},
	{http.MethodDelete, pathVM, RoleAdmin, nil, (*server).removeVM},
	{http.MethodGet, pathScopedVM, RoleViewer, nil, (*server).vm},
	{http.MethodPut, pathScopedVM, RoleAdmin, nil, (*server).adoptVM},
	{http.MethodDelete, pathScopedVM, RoleAdmin, nil, (*server).removeVM},
	{http.MethodGet, pathManagedVM, RoleViewer, nil, (*server).vm},
	{http.MethodPut, pathManagedVM, RoleAdmin, nil, (*server).adoptVM},
	{http.MethodDelete, pathManagedVM, RoleAdmin, nil, (*server).removeVM},
	{http.MethodGet, pathMicroVM, RoleViewer, nil, (*server).microVM},
	{http.MethodGet, pathEvents, RoleViewer, []string{"vm", "after", "limit", "follow"}, (*server).events},
	{http.MethodGet, pathNodes, RoleViewer, nil, (*server).nodes},
	{http.MethodGet, pathNode, RoleViewer, nil, (*server).node},
	{http.MethodGet, pathCluster, RoleViewer, nil, (*server).cluster},
	{http.MethodGet, pathVersion, RolePublic, nil, (*server).version},
	{http.MethodGet, pathOpenAPI, RolePublic, nil, (*server).openAPI},
	{http.MethodGet, pathHealthz, RolePublic, nil, (*server).healthz},
	{http.MethodGet, pathReadyz, RolePublic, nil, (*server).readyz},
	{http.MethodGet, pathMetrics, RoleViewer, nil, (*server).metrics},
}

// request is a request that a route took, with its parts read.
type request struct {
	*http.Request
	// params are the path's {…} segments, unescaped, in order.
	params []string
	query  query
}

// match finds the routes of an escaped path by method, and the segments that
// stand for its {…}. It works on the escaped path, without cleaning it, so that
// every name can be asked for: ".." is %2E%2E.
func match(escaped string) (byMethod map[string]*route, params []string) {
	got := strings.Split(escaped, "/")
	for i := range routes {
		p, ok := matchPath(strings.Split(routes[i].path, "/"), got)
		if !ok {
			continue
		}
		if byMethod == nil {
			byMethod = map[string]*route{}
		}
		byMethod[routes[i].method], params = &routes[i], p
	}
	return byMethod, params
}

func matchPath(want, got []string) (params []string, ok bool) {
	if len(want) != len(got) {
		return nil, false
	}
	for i, w := range want {
		if !strings.HasPrefix(w, "{") {
			if w != got[i] {
				return nil, false
			}
			continue
		}
		p, err := url.PathUnescape(got[i])
		if err != nil || p == "" {
			return nil, false
		}
		params = append(params, p)
	}
	return params, true
}

// allowed are the methods of a path for the Allow header.
func allowed(byMethod map[string]*route) string {
	methods := []string{http.MethodOptions}
	for m := range byMethod {
		methods = append(methods, m)
		if m == http.MethodGet {
			methods = append(methods, http.MethodHead)
		}
	}
	slices.Sort(methods)
	return strings.Join(methods, ", ")
}

// expand puts the values into a path's {…} and returns it with its escaped
// form.
func expand(path string, values ...string) (plain, escaped string) {
	segments := strings.Split(path, "/")
	raw := slices.Clone(segments)
	for i, s := range segments {
		if strings.HasPrefix(s, "{") {
			segments[i], raw[i] = values[0], escapeSegment(values[0])
			values = values[1:]
		}
	}
	return strings.Join(segments, "/"), strings.Join(raw, "/")
}

// escapeSegment escapes a segment; dots too where a client or proxy would take
// the segment for a step in the tree.
func escapeSegment(s string) string {
	if s == "." || s == ".." {
		return strings.ReplaceAll(s, ".", "%2E")
	}
	return url.PathEscape(s)
}

// vmPath is the path of a VM's address.
func vmPath(ref blixard.VMRef) (plain, escaped string) {
	switch {
	case ref.Node != "" && ref.Manager != "":
		return expand(pathManagedVM, ref.Node, ref.Manager, ref.Name)
	case ref.Node != "":
		return expand(pathScopedVM, ref.Node, ref.Name)
	case ref.Manager != "":
		return expand(pathScopedVM, ref.Manager, ref.Name)
	default:
		return expand(pathVM, ref.Name)
	}
}

// vmRef reads the address in the segments of a path.
func vmRef(params []string) (blixard.VMRef, error) {
	for _, p := range params {
		if strings.Contains(p, "/") {
			return blixard.VMRef{}, blixard.Errorf(blixard.CodeInvalid, "no part of a VM's address contains a slash")
		}
	}
	return blixard.ParseVMRef(strings.Join(params, "/"))
}
