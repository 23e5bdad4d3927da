package scepclient

import (
	"encoding/asn1"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/internal/cms"
)

// A FailureError is a refusal by the server. errors.Is(err, scep.BadRequest) and the like tell
// which.
type FailureError struct {
	// FailInfo is the reason, or NoFailInfo.
	FailInfo scep.FailInfo

	// Text is what the server said to it, for a person to read: at most 500 bytes of UTF-8
	// without control characters. It is not to be parsed.
	Text string

	// HRESULT is the DER of the value of Microsoft's attribute 1.3.6.1.4.1.311.21.33, if it is
	// there, as from NDES.
	HRESULT []byte

	// TransactionID is that of the request.
	TransactionID string
}

// NoFailInfo is the FailInfo of a refusal without one, or with one that is no number.
const NoFailInfo scep.FailInfo = 255

// Error returns what the server said.
func (e *FailureError) Error() string {
	s := "scepclient: the server refused: "
	if e.FailInfo == NoFailInfo {
		s += "no reason given"
	} else {
		s += e.FailInfo.Error()
	}
	if e.Text != "" {
		s += fmt.Sprintf(": %q", e.Text)
	}
	if len(e.HRESULT) > 2 {
		s += fmt.Sprintf(" (HRESULT %x)", e.HRESULT[2:])
	}
	return s
}

// Unwrap returns e.FailInfo.
func (e *FailureError) Unwrap() error { return e.FailInfo }

var oidHRESULT = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 21, 33}

const (
	maxText    = 500 // bytes of failInfoText
	maxHRESULT = 64
)

// newFailure reads the attributes of a FAILURE.
func newFailure(msg *cms.Message) *FailureError {
	e := &FailureError{FailInfo: NoFailInfo, Text: cleanText(msg.FailInfoText), TransactionID: string(msg.TransactionID)}
	if n, err := strconv.ParseUint(msg.FailInfo, 10, 8); err == nil {
		e.FailInfo = scep.FailInfo(n)
	}
	for _, raw := range msg.Other {
		var (
			s              = cryptobyte.String(raw)
			attr, set, val cryptobyte.String
			oid            asn1.ObjectIdentifier
			tag            casn1.Tag
		)
		if s.ReadASN1(&attr, casn1.SEQUENCE) && attr.ReadASN1ObjectIdentifier(&oid) && oid.Equal(oidHRESULT) &&
			attr.ReadASN1(&set, casn1.SET) && set.ReadAnyASN1Element(&val, &tag) && len(val) <= maxHRESULT {
			e.HRESULT = val
		}
	}
	return e
}

// cleanText bounds what a server says and keeps it to one line of text.
func cleanText(s string) string {
	if len(s) > maxText {
		s = s[:maxText]
		for len(s) > 0 && !utf8.RuneStart(s[len(s)-1]) {
			s = s[:len(s)-1] // perhaps half a character
		}
		if len(s) > 0 && s[len(s)-1] >= utf8.RuneSelf {
			s = s[:len(s)-1]
		}
	}
	return strings.Map(func(r rune) rune {
		// Bidirectional controls could make a terminal show another text than the one sent.
		if !strconv.IsPrint(r) || r == utf8.RuneError {
			return '?'
		}
		return r
	}, s)
}

// A PendingError says that a request still waits, when Client.Retries are used up, the context
// has ended, or something went wrong meanwhile. Nothing is lost: go on with Poll. It is a
// scep.ErrPending.
type PendingError struct {
	Pending *Pending
	Err     error // why waiting came to an end; nil if Client.Retries were used up
}

// Error says what to go on with.
func (e *PendingError) Error() string {
	s := fmt.Sprintf("scepclient: the request of transaction %q waits for approval; go on with Poll", e.Pending.TransactionID)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns [scep.ErrPending] and e.Err.
func (e *PendingError) Unwrap() []error {
	if e.Err == nil {
		return []error{scep.ErrPending}
	}
	return []error{scep.ErrPending, e.Err}
}
