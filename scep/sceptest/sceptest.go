// Package sceptest helps to test programs that serve SCEP: what net/http/httptest is to HTTP.
//
// [NewServer] starts a server for the length of a test and fills in whatever its configuration
// leaves open; [NewCA] and [NewRA] make throw-away identities; a [Device] enrols, polls and
// renews, and holds each reply to RFC 8894 as it does so:
//
//	func TestEnrol(t *testing.T) {
//		srv := sceptest.NewServer(t, scep.Config{Policy: myPolicy})
//		cert := srv.Device(0).Enroll(t)
//		...
//	}
//
// [Depot], [CA], [Challenge] and [Key] put faults into the parts of a server. A [Message] can be
// bent in every way that devices in the field do, and in those that attackers might: it shares no
// code with the server.
//
// All keys are fixed and published with this package. They protect nothing.
package sceptest

import (
	"context"
	"crypto/subtle"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/scep"
)

// Secret is the challenge password that a [Server] asks for if its Config has no Challenge.
const Secret = "secret"

// A Server is a SCEP server on the loopback interface. It is closed when the test ends.
type Server struct {
	URL     string        // of the SCEP service, without a query
	Handler *scep.Handler // what answers there
	Config  scep.Config   // with the gaps filled
	HTTP    *httptest.Server
}

// NewServer starts a server at the path /scep and everything below it. Of c, it fills in what is
// required and missing: CA is [NewCA], or, if it is none that can open requests, RA is [NewRA] by
// it, and so with Next and NextRA; Depot is in memory; Challenge admits [Secret]; Log is the test's output.
func NewServer(t testing.TB, c scep.Config) *Server {
	t.Helper()
	c = Fill(t, c)
	h, err := scep.New(c)
	if err != nil {
		t.Fatal(err)
	}
	// Not a ServeMux: that would redirect requests whose path has a doubled slash.
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if path := "/" + strings.TrimLeft(r.URL.Path, "/"); path != "/scep" && !strings.HasPrefix(path, "/scep/") {
			http.NotFound(w, r)
			return
		}
		h.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	return &Server{URL: srv.URL + "/scep", Handler: h, Config: c, HTTP: srv}
}

// Fill returns c with the gaps filled as [NewServer] does, ready for [scep.New].
func Fill(t testing.TB, c scep.Config) scep.Config {
	t.Helper()
	if c.CA == nil {
		c.CA = NewCA(t)
	}
	if c.RA == nil {
		ca := identity(c.CA)
		if ca != nil && (c.CA != scep.CA(ca) || !canOpen(ca)) {
			c.RA = NewRA(t, ca)
		}
	}
	if next := identity(c.Next); next != nil && next.Key != nil && c.NextRA == nil && (c.Next != scep.CA(next) || !canOpen(next)) {
		c.NextRA = NewRA(t, next)
	}
	if c.Depot == nil {
		c.Depot = new(depot.Memory)
	}
	if c.Challenge == nil {
		c.Challenge = scep.ChallengeFunc(func(_ context.Context, req *scep.Request) error { return admit(req, Secret) })
	}
	if c.Log == nil {
		c.Log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return c
}

// identity returns what is behind the faults of a CA, or nil.
func identity(ca scep.CA) *scep.Identity {
	switch ca := ca.(type) {
	case *scep.Identity:
		return ca
	case CA:
		return identity(ca.CA)
	case *CA:
		return identity(ca.CA)
	}
	return nil
}

// Pend returns a challenge that has a person decide on whoever knows secret; see
// [scep.Handler.Approve].
func Pend(secret string) scep.Challenge {
	return scep.ChallengeFunc(func(ctx context.Context, req *scep.Request) error {
		if err := admit(req, secret); err != nil {
			return err
		}
		return scep.ErrPending
	})
}

func admit(req *scep.Request, secret string) error {
	if subtle.ConstantTimeCompare([]byte(req.Secret.Reveal()), []byte(secret)) != 1 {
		return &scep.Error{FailInfo: scep.BadRequest, Reason: scep.ReasonChallenge, Text: "the challenge password is wrong"}
	}
	return nil
}
