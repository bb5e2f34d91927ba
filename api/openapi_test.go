package api

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"

	"github.com/blixard/blixard"
)

func document(t *testing.T) *openapi3.T {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromData(openAPI)
	if err != nil {
		t.Fatal(err)
	}
	if err := doc.Validate(context.Background()); err != nil {
		t.Fatal(err)
	}
	return doc
}

// TestOpenAPI_Routes holds the document against the table: the same paths,
// methods, roles and parameters.
func TestOpenAPI_Routes(t *testing.T) {
	doc := document(t)
	documented := map[string]*openapi3.Operation{}
	items := map[string]*openapi3.PathItem{}
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			documented[method+" "+path] = op
			items[method+" "+path] = item
		}
	}
	for _, r := range routes {
		key := r.method + " " + r.path
		op := documented[key]
		if op == nil {
			t.Errorf("%s is not documented", key)
			continue
		}
		delete(documented, key)
		if got := op.Extensions["x-role"]; got != r.role.String() {
			t.Errorf("%s: x-role is %v, the table says %s", key, got, r.role)
		}
		var query, path []string
		for _, p := range append(slices.Clone(op.Parameters), items[key].Parameters...) {
			switch p.Value.In {
			case "query":
				query = append(query, p.Value.Name)
			case "path":
				path = append(path, "{"+p.Value.Name+"}")
			}
		}
		want := slices.Clone(r.query)
		slices.Sort(query)
		slices.Sort(want)
		if !slices.Equal(query, want) {
			t.Errorf("%s: documented query %v, the table has %v", key, query, want)
		}
		if n := strings.Count(r.path, "{"); len(path) != n {
			t.Errorf("%s: documented path parameters %v, want %d", key, path, n)
		}
	}
	for key := range documented {
		t.Errorf("%s is documented and not served", key)
	}
}

// TestOpenAPI_Schemas holds the document's fields against the nouns' JSON.
func TestOpenAPI_Schemas(t *testing.T) {
	doc := document(t)
	for name, v := range map[string]any{
		"VM": blixard.VM{}, "Helper": blixard.Helper{}, "Health": blixard.VMHealth{}, "Check": blixard.HealthCheck{},
		"Event": blixard.Event{}, "Node": blixard.Node{}, "Manager": blixard.ManagerStatus{},
		"ClusterStatus": blixard.ClusterStatus{}, "Store": blixard.StoreStatus{}, "Member": blixard.MemberStatus{},
		"VMFrame": blixard.VMFrame{}, "EventFrame": blixard.EventFrame{}, "Error": blixard.Error{}, "ErrorAnswer": errorBody{},
		"VMList": blixard.List[blixard.VM]{}, "EventList": blixard.List[blixard.Event]{}, "NodeList": blixard.List[blixard.Node]{},
		"Version": Version{},
	} {
		schema := doc.Components.Schemas[name]
		if schema == nil {
			t.Errorf("%s is not documented", name)
			continue
		}
		var always, all []string
		jsonFields(reflect.TypeOf(v), func(field string, optional bool) {
			all = append(all, field)
			if !optional {
				always = append(always, field)
			}
		})
		var documented []string
		for p := range schema.Value.Properties {
			documented = append(documented, p)
		}
		for _, l := range [][]string{always, all, documented, schema.Value.Required} {
			slices.Sort(l)
		}
		if !slices.Equal(documented, all) {
			t.Errorf("%s: documented %v\nthe noun has %v", name, documented, all)
		}
		if !slices.Equal(schema.Value.Required, always) {
			t.Errorf("%s: documented as always there %v\nthe noun always writes %v", name, schema.Value.Required, always)
		}
		delete(doc.Components.Schemas, name)
	}
	for name := range doc.Components.Schemas {
		t.Errorf("%s is documented and no noun", name)
	}
}

func jsonFields(t reflect.Type, each func(name string, optional bool)) {
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Anonymous {
			jsonFields(f.Type, each)
			continue
		}
		name, rest, _ := strings.Cut(f.Tag.Get("json"), ",")
		each(name, strings.Contains(rest, "omitempty"))
	}
}

// TestOpenAPI_Enums holds the documented enumerations against the code.
func TestOpenAPI_Enums(t *testing.T) {
	doc := document(t)
	values := func(schema, property string) []string {
		var out []string
		for _, v := range doc.Components.Schemas[schema].Value.Properties[property].Value.Enum {
			out = append(out, v.(string))
		}
		return out
	}
	var states, verdicts []string
	for _, s := range blixard.VMStates {
		states = append(states, string(s))
	}
	for _, h := range blixard.HealthStatuses {
		verdicts = append(verdicts, string(h))
	}
	for _, c := range []struct {
		schema, property string
		want             []string
	}{{"VM", "state", states}, {"Helper", "state", states}, {"Health", "status", verdicts}, {"Check", "status", verdicts}, {"ClusterStatus", "status", verdicts}} {
		if got := values(c.schema, c.property); !slices.Equal(got, c.want) {
			t.Errorf("%s.%s: documented %v, want %v", c.schema, c.property, got, c.want)
		}
	}
	told := *doc.Components.Responses["Error"].Value.Description
	for _, code := range values("Error", "code") {
		if !regexp.MustCompile(`\b` + code + `\b[a-z_ ]* ` + strconv.Itoa(blixard.Code(code).Status())).MatchString(strings.ReplaceAll(told, "\n", " ")) {
			t.Errorf("the status of %s is not documented as %d", code, blixard.Code(code).Status())
		}
	}
}

// TestOpenAPI_Answers asks a real server for every route, rightly and wrongly,
// and validates each answer.
func TestOpenAPI_Answers(t *testing.T) {
	doc := document(t)
	openapi3filter.RegisterBodyDecoder("application/yaml", openapi3filter.PlainBodyDecoder)
	d := newDaemon(t, nil)
	asked := map[string]bool{}
	for _, c := range []struct {
		method, target string
		status         int
	}{
		{"GET", "/v1/vms", 200},
		{"HEAD", "/v1/vms", 200},
		{"GET", "/v1/vms?watch=perhaps", 400},
		{"GET", "/v1/vms?limit=1", 400},
		{"GET", "/v1/vms/db", 200},
		{"GET", "/v1/vms/web-1", 409},
		{"GET", "/v1/vms/nothing", 404},
		{"GET", "/v1/vms/h1/web-1", 200},
		{"GET", "/v1/vms/user:1000/web-1", 200},
		{"GET", "/v1/vms/h1/user:1000/web-1", 200},
		{"GET", "/v1/vms/h1/user:x/web-1", 400},
		{"PUT", "/v1/vms/db", 200},
		{"PUT", "/v1/vms/h2/db", 200},
		{"PUT", "/v1/vms/h2/system/db", 200},
		{"PUT", "/v1/vms/nothing", 404},
		{"DELETE", "/v1/vms/h1/system/web-1", 200},
		{"DELETE", "/v1/vms/h2/db", 200},
		{"DELETE", "/v1/vms/web-1", 409},
		{"DELETE", "/v1/vms/h1/user:1000/web-1", 200},
		{"GET", "/v1/microvms/web-1", 200},
		{"GET", "/v1/microvms/nothing", 404},
		{"GET", "/v1/events", 200},
		{"GET", "/v1/events?vm=h1/web-1&after=1&limit=5", 200},
		{"GET", "/v1/events?limit=0", 400},
		{"GET", "/v1/events?limit=5&follow", 400},
		{"GET", "/v1/nodes", 200},
		{"GET", "/v1/nodes/n2", 200},
		{"GET", "/v1/nodes/nobody", 404},
		{"GET", "/v1/cluster", 200},
		{"GET", "/v1/version", 200},
		{"GET", "/v1/openapi.yaml", 200},
		{"GET", "/healthz", 200},
		{"GET", "/readyz", 200},
		{"GET", "/metrics", 200},
	} {
		resp, body := d.do(c.method, c.target, nil, nil)
		if resp.StatusCode != c.status {
			t.Errorf("%s %s: status %d, want %d: %s", c.method, c.target, resp.StatusCode, c.status, body)
			continue
		}
		if c.method == "HEAD" {
			if body != "" {
				t.Errorf("HEAD %s has a body", c.target)
			}
			continue
		}
		asked[validate(t, doc, resp, body)] = true
	}
	for _, r := range routes {
		if !asked[r.method+" "+r.path] {
			t.Errorf("%s %s was not asked for", r.method, r.path)
		}
	}
}

// validate holds an answer against the document and returns the route.
func validate(t *testing.T, doc *openapi3.T, resp *http.Response, body string) string {
	t.Helper()
	byMethod, _ := match(resp.Request.URL.EscapedPath())
	r := byMethod[resp.Request.Method]
	item := doc.Paths.Map()[r.path]
	input := &openapi3filter.ResponseValidationInput{
		RequestValidationInput: &openapi3filter.RequestValidationInput{
			Request: resp.Request,
			Route:   &routers.Route{Spec: doc, Path: r.path, PathItem: item, Method: r.method, Operation: item.GetOperation(r.method)},
		},
		Status:  resp.StatusCode,
		Header:  resp.Header,
		Body:    io.NopCloser(bytes.NewBufferString(body)),
		Options: &openapi3filter.Options{IncludeResponseStatus: true},
	}
	if err := openapi3filter.ValidateResponse(context.Background(), input); err != nil {
		t.Errorf("%s %s: %v", resp.Request.Method, resp.Request.URL, err)
	}
	return r.method + " " + r.path
}
