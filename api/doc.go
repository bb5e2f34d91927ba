// Package api carries blixard.Fleet over HTTP and JSON, under /v1.
//
// NewServer makes a handler out of a Fleet and Dial makes a Fleet out of an
// address, so that the two ends are one contract. One table of routes (see
// routes) drives the server, the paths of the client and, held by a test,
// openapi.yaml, which the server hands out at /v1/openapi.yaml.
//
// The package decides who may ask (Authorizer) and how much (bounds on
// connections, headers, queries, answers and lines), never what is answered: it
// makes up no value and fills in no field.
//
// Everything exported may be used by many goroutines at once.
package api
