package scep

import (
	"context"
	"crypto/x509"
	"time"
)

// Events are told what happened, after the fact and in the request's goroutine; they cannot
// change the answer, and should be quick. Nil funcs are skipped. They are called once at most: a
// process that dies tells nobody, so what must be complete is the depot.
type Events struct {
	Issued   func(context.Context, Event) // a certificate was signed and stored; it may yet be withheld, or get lost on its way
	Repeated func(context.Context, Event) // an answer was given again: a retry or a poll
	Waiting  func(context.Context, Event) // a request was put aside, or is still waiting
	Refused  func(context.Context, Event) // the client was told no
	Failed   func(context.Context, Event) // our fault: the client was asked to try again, or told 500
	Revoked  func(context.Context, Event) // a certificate was revoked (Reason is [ReasonRevoked]), or a hold was lifted ([ReasonUnrevoked])
}

// An Event is the outcome of one request. What was not known when it ended is zero.
type Event struct {
	Time          time.Time
	Duration      time.Duration
	Operation     string // as "PKIOperation"; "" when Issued; as "Revoke" when Revoked
	MessageType   string // as "PKCSReq"
	Reason        Reason
	ID            ID
	TransactionID string // as the client chose it: any text
	RemoteAddr    string
	Request       *Request          // once verified; without its challenge password
	Certificate   *x509.Certificate // that was issued, or handed out
	FailInfo      FailInfo          // of a refusal
	Err           error             // cause; may hold more than the client was told
}

// A Reason says in one word why a request ended as it did. The words are stable: count them,
// alert on them.
type Reason string

const (
	ReasonIssued       Reason = "issued"
	ReasonRepeated     Reason = "repeated"
	ReasonPending      Reason = "pending"      // a person must decide
	ReasonSigning      Reason = "signing"      // the CA could not sign yet
	ReasonHTTP         Reason = "http"         // no SCEP message: method, operation, encoding
	ReasonTooLarge     Reason = "too_large"    // over Limits.Bytes
	ReasonMalformed    Reason = "malformed"    // not a message that could be answered
	ReasonAlgorithm    Reason = "algorithm"    // not allowed
	ReasonSignature    Reason = "signature"    // the message's signature does not verify
	ReasonMessageType  Reason = "message_type" // unknown, or not offered
	ReasonRecipient    Reason = "recipient"    // enveloped to somebody else
	ReasonUnreadable   Reason = "unreadable"   // the envelope or what is in it
	ReasonKey          Reason = "key"          // the key in the CSR
	ReasonNames        Reason = "names"        // the names in the CSR
	ReasonChallenge    Reason = "challenge"    // refused by the Challenge
	ReasonPolicy       Reason = "policy"       // refused by the Policy
	ReasonRenewal      Reason = "renewal"      // a rule of renewal was broken
	ReasonUnknown      Reason = "unknown"      // no such transaction or certificate
	ReasonDenied       Reason = "denied"       // by a person
	ReasonRevoked      Reason = "revoked"      // the certificate asked for again
	ReasonUnrevoked    Reason = "unrevoked"    // the certificate on hold is good again
	ReasonCRL          Reason = "crl"          // the CRL was handed out
	ReasonRefused      Reason = "refused"      // by an Error that names no reason
	ReasonBusy         Reason = "busy"         // Limits reached
	ReasonUnavailable  Reason = "unavailable"  // a key, a depot or a challenge did not answer
	ReasonUnexpected   Reason = "unexpected"   // a bug, ours or in a part of yours
	ReasonDisconnected Reason = "disconnected" // the client went away
)
