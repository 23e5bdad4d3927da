package scep_test

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// signOnly hides that a key can decrypt.
type signOnly struct{ k crypto.Signer }

func (s signOnly) Public() crypto.PublicKey { return s.k.Public() }
func (s signOnly) Sign(r io.Reader, d []byte, o crypto.SignerOpts) ([]byte, error) {
	return s.k.Sign(r, d, o)
}

// remoteCA is a CA that is no Identity.
type remoteCA struct{ scep.CA }

// TestNewRefuses has every configuration that cannot work, with the field and the cure that the
// error must name.
func TestNewRefuses(t *testing.T) {
	ca := sceptest.NewCA(t)
	ra := sceptest.NewRA(t, ca)
	ec := sceptest.NewCA(t, sceptest.P256())
	var noDepot *depot.Memory
	var noFunc scep.ChallengeFunc
	usage := func(id *scep.Identity, u x509.KeyUsage) *scep.Identity {
		cert := *id.Certificate()
		cert.KeyUsage = u
		return &scep.Identity{Certificates: []*x509.Certificate{&cert}, Key: id.Key}
	}
	for _, tt := range []struct {
		name   string
		change func(c *scep.Config)
		want   string // parts of the error, split by "…"
	}{
		{"no CA", func(c *scep.Config) { c.CA = nil }, "Config.CA is required…file.Open"},
		{"no depot", func(c *scep.Config) { c.Depot = nil }, "Config.Depot is required…sqlite.Open"},
		{"nil pointer to a depot", func(c *scep.Config) { c.Depot = noDepot }, "Config.Depot is required"},
		{"no challenge", func(c *scep.Config) { c.Challenge = nil }, "Config.Challenge is required…challenge.Static"},
		{"nil func as challenge", func(c *scep.Config) { c.Challenge = noFunc }, "Config.Challenge is required"},
		{"CA without certificate", func(c *scep.Config) { c.CA = &scep.Identity{Key: ca.Key} }, "Config.CA…no certificate"},
		{"CA without key", func(c *scep.Config) { c.CA = &scep.Identity{Certificates: ca.Certificates} }, "Config.CA…without a key"},
		{"key of another", func(c *scep.Config) { c.CA = &scep.Identity{Certificates: ca.Certificates, Key: sceptest.RSA(5)} }, "Config.CA…does not belong to the certificate"},
		{"CA that is none", func(c *scep.Config) { c.CA = ra }, "Config.CA…not that of a CA"},
		{"CA that may not sign", func(c *scep.Config) { c.CA = usage(ca, x509.KeyUsageDigitalSignature) }, "Config.CA…keyCertSign"},
		{"CA that may not decrypt", func(c *scep.Config) { c.CA = usage(ca, x509.KeyUsageCertSign) }, "Config.CA…keyEncipherment…Config.RA…file.RA"},
		{"CA whose key cannot decrypt", func(c *scep.Config) { c.CA = ec }, "Config.CA…cannot decrypt…Config.RA…file.RA"},
		{"CA with a key for signing only", func(c *scep.Config) {
			c.CA = &scep.Identity{Certificates: ca.Certificates, Key: signOnly{ca.Key}}
		}, "Config.CA…sign but not decrypt…Config.RA"},
		{"remote CA without RA", func(c *scep.Config) { c.CA = remoteCA{ca} }, "Config.RA is required…file.RA"},
		{"CA that has expired", func(c *scep.Config) {
			c.Time = func() time.Time { return ca.Certificate().NotAfter.Add(time.Second) }
		}, "Config.CA…expired"},
		{"CA of tomorrow", func(c *scep.Config) {
			c.Time = func() time.Time { return ca.Certificate().NotBefore.Add(-time.Second) }
		}, "Config.CA…clock"},
		{"RA whose key cannot decrypt", func(c *scep.Config) {
			c.RA = &scep.Identity{Certificates: ra.Certificates, Key: signOnly{ra.Key}}
		}, "Config.RA…sign but not decrypt"},
		{"RA with an EC key", func(c *scep.Config) { c.RA = ec }, "Config.RA…cannot decrypt"},
		{"RA for signing only", func(c *scep.Config) { c.RA = usage(ra, x509.KeyUsageDigitalSignature) }, "Config.RA…keyEncipherment"},
		{"RA that may not sign", func(c *scep.Config) { c.RA = usage(ra, x509.KeyUsageKeyEncipherment) }, "Config.RA…digitalSignature"},
		{"RA with another's key", func(c *scep.Config) { c.RA = &scep.Identity{Certificates: ra.Certificates, Key: ca.Key} }, "Config.RA…does not belong"},
		{"past RA that is nil", func(c *scep.Config) { c.PastRA = []*scep.Identity{nil} }, "Config.PastRA[0]"},
		{"past RA that cannot decrypt", func(c *scep.Config) { c.PastRA = []*scep.Identity{ra, ec} }, "Config.PastRA[1]…cannot decrypt"},
		{"responder that may not sign", func(c *scep.Config) { c.Responder = usage(ra, x509.KeyUsageKeyEncipherment) }, "Config.Responder…digitalSignature"},
		{"renewal rules without renewal", func(c *scep.Config) { c.Renewal.Anytime = true }, "Config.Renewal…not On"},
		{"negative window", func(c *scep.Config) { c.Renewal = scep.Renewal{On: true, Window: -1} }, "Config.Renewal…negative"},
		{"negative limit", func(c *scep.Config) { c.Limits.Keys = -1 }, "Config.Limits…negative"},
		{"unknown chain mode", func(c *scep.Config) { c.Chain = 99 }, "Config.Chain"},
		{"unknown legacy", func(c *scep.Config) { c.Legacy = 128 }, "Config.Legacy"},
		{"negative approval window", func(c *scep.Config) { c.ApprovalWindow = -1 }, "Config.ApprovalWindow"},
		{"negative retry window", func(c *scep.Config) { c.RetryWindow = -1 }, "Config.RetryWindow"},
		{"profile of a CA", func(c *scep.Config) { c.Policy = &scep.Profile{KeyUsage: x509.KeyUsageCertSign} }, "Config.Policy…KeyUsage"},
		{"profile with OCSPSigning", func(c *scep.Config) {
			c.Policy = &scep.Profile{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}}
		}, "Config.Policy…OCSPSigning…ExtKeyUsage"},
		{"profile with 512 bits", func(c *scep.Config) { c.Policy = &scep.Profile{MinRSABits: 512} }, "Config.Policy…512"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := scep.Config{CA: ca, Depot: &depot.Memory{}, Challenge: quick("x"), Log: slog.New(slog.DiscardHandler)}
			tt.change(&c)
			h, err := scep.New(c)
			if err == nil || h != nil {
				t.Fatal("it was accepted")
			}
			rest := err.Error()
			for _, part := range strings.Split(tt.want, "…") {
				var found bool
				if _, rest, found = strings.Cut(rest, part); !found {
					t.Fatalf("error %q lacks %q", err, part)
				}
			}
		})
	}
}

// TestTwoHandlers runs two handlers with different algorithms in one process.
func TestTwoHandlers(t *testing.T) {
	ca := sceptest.NewCA(t)
	handler := func(l scep.Legacy) *scep.Handler {
		h, err := scep.New(scep.Config{CA: ca, Depot: &depot.Memory{}, Challenge: quick("x"), Legacy: l, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	strict, legacy := handler(0), handler(scep.SHA1|scep.TripleDES)
	for i := range 16 {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			h, want := strict, "0" // badAlg
			if i%2 == 0 {
				h, want = legacy, ""
			}
			d := newDevice(t, sceptest.RSA(i%6), "two", "x")
			if a := d.send(t, h, d.old(t, ca.Certificate()), ca.Certificate()); a.failInfo != want {
				t.Errorf("SHA-1 and Triple DES: %v", a)
			}
			if a := d.send(t, h, d.pkcsReq(t, ca.Certificate()), ca.Certificate()); a.cert == nil {
				t.Errorf("SHA-256 and AES: %v", a)
			}
		})
	}
}

// TestNewAsksOnce has a CA that counts: New reads its chain, and signs nothing.
func TestNewAsksOnce(t *testing.T) {
	calls := map[string]int{}
	ca := sceptest.NewCA(t)
	_, err := scep.New(scep.Config{
		CA: sceptest.CA{CA: ca, On: func(op string, _ *x509.Certificate) (bool, error) { calls[op]++; return false, nil }},
		RA: sceptest.NewRA(t, ca),
		Depot: sceptest.Depot{Depot: &depot.Memory{}, On: func(op string, _ *scep.Record) (bool, error) {
			t.Errorf("New called %s", op)
			return false, nil
		}},
		Challenge: scep.ChallengeFunc(func(context.Context, *scep.Request) error { t.Error("New asked the challenge"); return nil }),
	})
	if err != nil || calls["Chain"] != 1 || calls["Sign"] != 0 {
		t.Errorf("%v, calls %v", err, calls)
	}
}

// A key that says how many operations it does at once is asked for so many, unless Limits.Keys says
// otherwise.
type wideKey struct {
	*rsa.PrivateKey
	inside, most *atomic.Int32
}

func (k wideKey) Concurrency() int { return 7 }

func (k wideKey) Decrypt(r io.Reader, block []byte, opts crypto.DecrypterOpts) ([]byte, error) {
	n := k.inside.Add(1)
	defer k.inside.Add(-1)
	for old := k.most.Load(); n > old && !k.most.CompareAndSwap(old, n); old = k.most.Load() {
	}
	time.Sleep(20 * time.Millisecond)
	return k.PrivateKey.Decrypt(r, block, opts)
}

func TestConcurrency(t *testing.T) {
	for keys, want := range map[int]int32{0: 7, 3: 3} {
		var inside, most atomic.Int32
		ca := sceptest.NewCA(t)
		ra := sceptest.NewRA(t, ca, wideKey{sceptest.RSA(6), &inside, &most})
		srv := sceptest.NewServer(t, scep.Config{CA: ca, RA: ra, Limits: scep.Limits{Keys: keys}})
		var wg sync.WaitGroup
		for i := range 40 {
			d := sceptest.NewDevice(srv.URL, sceptest.RSA(0), fmt.Sprintf("device %d", i))
			d.TransactionID = fmt.Sprint(i)
			m := d.PKCSReq(t)
			wg.Go(func() {
				if r := d.Send(t, m); r.Certificate == nil {
					t.Errorf("answer is %v", r)
				}
			})
		}
		wg.Wait()
		if n := most.Load(); n > want || n < 2 {
			t.Errorf("Limits.Keys %d: %d operations at once, want at most %d", keys, n, want)
		}
	}
}
