package scep

import (
	"errors"
	"fmt"
)

// A FailInfo is SCEP's reason for a refusal (RFC 8894, 3.2.1.4). Each is an error, so that
// errors.Is(err, scep.BadRequest) tells what a server said or is about to say.
type FailInfo uint8

const (
	BadAlg          FailInfo = iota // unknown or forbidden algorithm
	BadMessageCheck                 // the signature over the message does not verify
	BadRequest                      // not permitted, or not understood
	BadTime                         // signing time too far off
	BadCertID                       // no such certificate or transaction
)

var failInfoNames = [...]string{"badAlg", "badMessageCheck", "badRequest", "badTime", "badCertId"}

// Error returns the name in the RFC, as "badRequest".
func (f FailInfo) Error() string {
	if int(f) < len(failInfoNames) {
		return failInfoNames[f]
	}
	return fmt.Sprintf("failInfo %d", uint8(f))
}

// An Error is a refusal that the client is told about.
type Error struct {
	FailInfo FailInfo
	Reason   Reason // what monitoring counts; "" counts as [ReasonRefused]
	Text     string // sent to the client as failInfoText; at most 200 bytes of it
	Err      error  // the cause; logged, never sent
}

// Reject returns an [*Error] whose text the client will see.
func Reject(info FailInfo, text string) *Error { return &Error{FailInfo: info, Text: text} }

// Error implements error. It includes the cause.
func (e *Error) Error() string {
	s := "scep: " + e.FailInfo.Error()
	if e.Text != "" {
		s += ": " + e.Text
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the FailInfo and the cause.
func (e *Error) Unwrap() []error {
	if e.Err == nil {
		return []error{e.FailInfo}
	}
	return []error{e.FailInfo, e.Err}
}

var (
	// ErrPending is returned by a [Challenge] or a [Policy] to have a person decide: the
	// device polls until [Handler.Approve] or [Handler.Deny] is called. The request is a record
	// until then, so do not return it to just anybody, who could use up [Limits].Pending.
	ErrPending = errors.New("scep: waiting for approval")

	// ErrNotFound is returned by a [Depot] that has no such record, and by a
	// [ChallengeStore] that has no such challenge.
	ErrNotFound = errors.New("scep: no such record")

	// ErrSpent is returned by a [Spender] if another record has spent the challenge.
	ErrSpent = errors.New("scep: challenge was spent by another record")

	// ErrExists is returned by [Depot] Create if the ID or the serial number is taken.
	ErrExists = errors.New("scep: record exists")

	// ErrStale is returned by [Depot] Update if the record has changed since it was read.
	ErrStale = errors.New("scep: record has changed since it was read")

	// ErrLimit is returned by a [ChallengeStore] that holds as many unspent challenges as it may.
	ErrLimit = errors.New("scep: too many unspent challenges")
)
