package blixard

import (
	"errors"
	"fmt"
	"net/http"
)

// Code classifies an Error for programs. The set is closed; it is part of the
// API's contract.
type Code string

// The codes, with the HTTP status and the exit code of the CLI in the table
// below.
const (
	// CodeInvalid is a request that can never succeed as it stands.
	CodeInvalid Code = "invalid"
	// CodeAmbiguous is a name that more than one VM has; Error.Candidates
	// lists the addresses to choose from.
	CodeAmbiguous Code = "ambiguous"
	// CodeNotFound is a VM, node or event index that is not known.
	CodeNotFound Code = "not_found"
	// CodeDenied is a caller who may not do this.
	CodeDenied Code = "denied"
	// CodeConflict is a write that lost against another one, or that the
	// present state forbids.
	CodeConflict Code = "conflict"
	// CodeTooLarge is a request or value above its bound.
	CodeTooLarge Code = "too_large"
	// CodeBusy is a limit reached for now; try again later.
	CodeBusy Code = "busy"
	// CodeUnavailable is a daemon, store or leader that cannot be reached.
	CodeUnavailable Code = "unavailable"
	// CodeTimeout is a deadline that passed; the outcome of a write is unknown.
	CodeTimeout Code = "timeout"
	// CodeInternal is a fault of ours.
	CodeInternal Code = "internal"
)

// codes is the one table of codes.
var codes = map[Code]struct{ status, exit int }{
	CodeInvalid:     {http.StatusBadRequest, 2},
	CodeAmbiguous:   {http.StatusConflict, 2},
	CodeNotFound:    {http.StatusNotFound, 3},
	CodeDenied:      {http.StatusForbidden, 4},
	CodeConflict:    {http.StatusConflict, 1},
	CodeTooLarge:    {http.StatusRequestEntityTooLarge, 2},
	CodeBusy:        {http.StatusTooManyRequests, 1},
	CodeUnavailable: {http.StatusServiceUnavailable, 5},
	CodeTimeout:     {http.StatusGatewayTimeout, 6},
	CodeInternal:    {http.StatusInternalServerError, 1},
}

// Status is the HTTP status that carries the code, 500 for one that is not
// known.
func (c Code) Status() int {
	if e, ok := codes[c]; ok {
		return e.status
	}
	return http.StatusInternalServerError
}

// Exit is the exit code of the CLI for the code, 1 for one that is not known.
func (c Code) Exit() int {
	if e, ok := codes[c]; ok {
		return e.exit
	}
	return 1
}

// Error is the one error that crosses the API. Inside a package errors are
// ordinary; at the border they become an Error.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
	// Hint says what to type or do next; it may be empty.
	Hint string `json:"hint,omitempty"`
	// Candidates are the addresses an ambiguous name could mean.
	Candidates []string `json:"candidates,omitempty"`
}

func (e *Error) Error() string { return e.Message }

// Errorf makes an Error with a formatted message.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// WithHint returns a copy of e that says what to do next.
func (e *Error) WithHint(hint string) *Error {
	c := *e
	c.Hint = hint
	return &c
}

// ErrorCode is the code of the first Error in err's chain, and CodeInternal for
// any other error that is not nil.
func ErrorCode(err error) Code {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return CodeInternal
}
