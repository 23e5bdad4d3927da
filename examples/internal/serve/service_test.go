package serve

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"log/slog"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/scepkit/scepkit/challenge"
	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// TestRenew has the RA of a running server renewed: new devices are given the new one, and those
// that know the old one are served on.
func TestRenew(t *testing.T) {
	ctx := t.Context()
	ca := sceptest.NewCA(t)
	next, old := sceptest.NewRA(t, ca), sceptest.NewRA(t, ca, sceptest.RSA(0))
	tmpl := *old.Certificate()
	tmpl.NotBefore, tmpl.NotAfter = time.Now().AddDate(0, 0, -300), time.Now().AddDate(0, 0, 65)
	der, err := x509.CreateCertificate(rand.Reader, &tmpl, ca.Certificate(), tmpl.PublicKey, ca.Key)
	if err != nil {
		t.Fatal(err)
	}
	if old.Certificates[0], err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}

	var log bytes.Buffer
	opened, closed := 0, 0
	away := errors.New("the token is away")
	s := &service{
		program: Program{Keys: func(context.Context, Options) (*Keys, error) {
			k := &Keys{CA: ca, RA: old, Close: func() error { closed++; return nil }}
			switch opened++; opened {
			case 1:
			case 2:
				return nil, away
			case 3, 4:
				k.PastRA = []*scep.Identity{next}
			default:
				k.RA, k.PastRA = next, []*scep.Identity{old}
			}
			return k, nil
		}},
		options: Options{Log: slog.New(slog.NewTextHandler(&log, nil))},
		config:  scep.Config{Depot: &depot.Memory{}, Challenge: challenge.Static(sceptest.Secret), Log: slog.New(slog.DiscardHandler)},
	}
	if err := s.open(ctx); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(s.pages())
	defer srv.Close()
	has := func(ra *scep.Identity) bool {
		d := sceptest.NewDevice(srv.URL+"/scep", sceptest.RSA(1), "new")
		return slices.ContainsFunc(d.CA(t), ra.Certificate().Equal)
	}
	before := sceptest.NewDevice(srv.URL+"/scep", sceptest.RSA(2), "old")
	before.CA(t)

	s.look(ctx)
	if !has(old) || !strings.Contains(log.String(), away.Error()) {
		t.Fatalf("while the token is away: still the old RA %v; log:\n%s", has(old), log.String())
	}
	s.look(ctx)
	if !has(old) {
		t.Fatal("the new RA has taken over at once")
	}
	sceptest.NewDevice(srv.URL+"/scep", sceptest.RSA(4), "told by another server").To(next.Certificates...).Enroll(t)
	if s.look(ctx); closed != 1 {
		t.Errorf("keys that are no others were closed %d times, want once", closed)
	}
	s.look(ctx)
	if !has(next) {
		t.Fatal("the new RA has not taken over")
	}
	if s.look(ctx); opened != 5 {
		t.Errorf("keys were opened %d times, want 5", opened)
	}
	for _, d := range []*sceptest.Device{before, sceptest.NewDevice(srv.URL+"/scep", sceptest.RSA(3), "new")} {
		d.Enroll(t)
	}
	if err := s.close(); err != nil || closed != 4 {
		t.Errorf("close: %v; %d of 4 were closed", err, closed)
	}
}

// TestUnusableKeys has keys opened that no server can be made of: they do not stay open.
func TestUnusableKeys(t *testing.T) {
	closed := 0
	s := &service{
		program: Program{Keys: func(context.Context, Options) (*Keys, error) {
			return &Keys{Close: func() error { closed++; return nil }}, nil
		}},
		config: scep.Config{Depot: &depot.Memory{}, Challenge: challenge.Static(sceptest.Secret)},
	}
	if err := s.open(t.Context()); err == nil || closed != 1 {
		t.Errorf("%v, closed %d times", err, closed)
	}
	if err := s.close(); err != nil || closed != 1 {
		t.Errorf("close: %v, closed %d times", err, closed)
	}
}
