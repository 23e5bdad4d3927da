package backend_test

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/backend/file"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

func TestRA(t *testing.T) {
	ca := sceptest.NewCA(t, sceptest.P256())
	dir := t.TempDir()
	uri := "file:" + dir + "/ra-{n}.key?chain=" + dir + "/ra-{n}.pem"
	day := 24 * time.Hour
	get := func(after time.Duration) (*backend.Key, []*backend.Key) {
		t.Helper()
		ra, past, err := backend.RA(t.Context(), ca, uri, backend.RSA2048, backend.RAOptions{Time: func() time.Time { return time.Now().Add(after) }}, file.Driver{})
		if err != nil {
			t.Fatal(err)
		}
		return ra, past
	}
	first, past := get(0)
	if len(past) != 0 || len(first.Certificates) != 2 || !first.Certificates[1].Equal(ca.Certificate()) {
		t.Errorf("%d past, %d certificates", len(past), len(first.Certificates))
	}
	if _, err := scep.New(sceptest.Fill(t, scep.Config{CA: ca, RA: first.Identity})); err != nil {
		t.Error(err)
	}
	if again, _ := get(200 * day); !again.Certificate().Equal(first.Certificate()) {
		t.Error("another certificate long before its time")
	}
	// A new one is opened by all before it takes over a day later.
	ra, past := get(300 * day)
	if !ra.Certificate().Equal(first.Certificate()) || len(past) != 1 || past[0].Certificate().Equal(first.Certificate()) {
		t.Fatalf("not renewed, or at once, or %d past", len(past))
	}
	second := past[0]
	if ra, past := get(300*day + 23*time.Hour); !ra.Certificate().Equal(first.Certificate()) || len(past) != 1 {
		t.Error("taken over in less than a day")
	}
	if ra, past := get(301*day + time.Minute); !ra.Certificate().Equal(second.Certificate()) || len(past) != 1 || !past[0].Certificate().Equal(first.Certificate()) {
		t.Errorf("not taken over after a day, or %d past", len(past))
	}
	// Before the certificate there is the key.
	if err := os.Remove(filepath.Join(dir, "ra-2.pem")); err != nil {
		t.Fatal(err)
	}
	if _, past := get(300 * day); len(past) != 1 || past[0].Certificate().Equal(second.Certificate()) || !second.Key.Public().(interface{ Equal(x crypto.PublicKey) bool }).Equal(past[0].Key.Public()) {
		t.Error("what was half done is not finished")
	}
	if _, past := get(600 * day); len(past) != 1 {
		t.Errorf("%d past; the first has long ended", len(past))
	}
	// Another CA makes all of them past.
	ca = sceptest.NewCA(t, sceptest.P384())
	if ra, past := get(300 * day); len(past) != 3 || ra.Certificate().CheckSignatureFrom(ca.Certificate()) != nil {
		t.Errorf("%d past", len(past))
	}
}

// A closer counts keys that are open.
type closer struct {
	file.Driver
	open *int
	fail string // of Import
}

func (d closer) count(k *backend.Key, err error) (*backend.Key, error) {
	if err == nil {
		*d.open++
		k.Closer = func() error { *d.open--; return nil }
	}
	return k, err
}

func (d closer) Open(ctx context.Context, u *backend.URI) (*backend.Key, error) {
	return d.count(d.Driver.Open(ctx, u))
}

func (d closer) Create(ctx context.Context, u *backend.URI, spec backend.Spec) (*backend.Key, error) {
	return d.count(d.Driver.Create(ctx, u, spec))
}

func (d closer) Import(ctx context.Context, u *backend.URI, certs []*x509.Certificate, replace bool) error {
	if d.fail != "" && strings.Contains(u.Path, d.fail) {
		return fs.ErrPermission
	}
	return d.Driver.Import(ctx, u, certs, replace)
}

func TestRARefused(t *testing.T) {
	ca := sceptest.NewCA(t, sceptest.P256())
	dir := t.TempDir()
	uri := "file:" + dir + "/ra-{n}.key?chain=" + dir + "/ra-{n}.pem"
	var open int
	d := closer{open: &open}
	ask := func(ca scep.CA, uri string, kind backend.KeyType, d closer) error {
		_, _, err := backend.RA(t.Context(), ca, uri, kind, backend.RAOptions{}, d)
		return err
	}
	for _, err := range []error{
		ask(ca, strings.ReplaceAll(uri, "{n}", "1"), backend.RSA2048, d),
		ask(ca, uri, backend.P256, d),
		ask(&scep.Identity{}, uri, backend.RSA2048, d),
		ask(ca, "tpm:"+dir+"/{n}", backend.RSA2048, d),
		ask(ca, uri, backend.RSA2048, closer{open: &open, fail: "ra-1"}),
	} {
		if err == nil || !strings.HasPrefix(err.Error(), "backend: ") && !errors.Is(err, fs.ErrPermission) {
			t.Errorf("error is %v", err)
		}
	}
	if open != 0 {
		t.Errorf("%d keys are open after errors", open)
	}
	if err := ask(ca, uri, backend.RSA2048, d); err != nil || open != 1 {
		t.Errorf("%v, %d open", err, open)
	}
}
