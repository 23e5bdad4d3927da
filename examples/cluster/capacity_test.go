package main

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/big"
	mrand "math/rand/v2"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/backend/file"
	"github.com/scepkit/scepkit/challenge"
	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/scepclient"
	"github.com/scepkit/scepkit/scep/status"
)

// TestFormula has what can be worked out by hand.
func TestFormula(t *testing.T) {
	// 1000 devices renew between day 60 and day 90, on average on day 75.
	p := plan{devices: 1000, validity: 90, window: 30, keep: 10, messages: 2, revoked: 0.365, asked: 1, storm: 2}
	u := units{cpu: 36 * time.Millisecond, cores: 2, load: 0.5, writes: 3, commits: 100, crlEntry: 50}
	for _, tt := range []struct {
		name      string
		got, want float64
	}{
		{"life", p.life(), 75},
		{"certificates in a day", p.steady() * day, 1000. / 75},
		{"certificates in a day of the first wave", p.wave() * day, 1000. / 30},
		{"certificates in an hour of storm", p.stormy() * 3600, 500},
		{"records", p.records(), 1000. / 75 * 100},
		{"certificates in the CRL", p.listed(), (90 - 37.5)}, // one is revoked each day, in the middle of its life
		{"processors in a storm", u.busyCores(p, p.stormy()), 0.01},
		{"replicas in a storm", u.replicas(p, p.stormy()), 2},
		{"replicas for a hundred in a second", u.replicas(p, 100), 9}, // 7.2 processors, 1 of each replica
		{"hours for a database to serve all", u.drain(p, 3), 1000 * 3 / 100. / 3600},
		{"hours for a replica to serve all", u.drain(p, 1), 1000 * 2 * 0.036 / 2 / 3600},
		{"revocations in a day", p.revocations(), 1},
		{"CRL signatures in a day", u.crlSignatures(p) * day, 24 + 1}, // one shard
	} {
		if math.Abs(tt.got-tt.want) > 1e-9*tt.want {
			t.Errorf("%s: %v, want %v", tt.name, tt.got, tt.want)
		}
	}
	// Devices that renew at random are never more than so many times the average.
	if q := usual(1); math.Abs(q.wave()/q.steady()-2.5) > 1e-9 {
		t.Errorf("the first wave is %v times the average", q.wave()/q.steady())
	}
}

func TestNumber(t *testing.T) {
	for f, want := range map[float64]string{
		0: "0", 0.0001: "< 0.001", 0.00123: "0.0012", 0.0456: "0.046", 0.5: "0.50", 3: "3", 3.805: "3.8", 11.4: "11", 278.4: "278",
		1495.9: "1 500", 27778: "27 800", 1e8: "100 000 000", 149589041: "150 000 000",
	} {
		if got := number(f); got != want {
			t.Errorf("%v is %q, want %q", f, got, want)
		}
	}
}

// TestDocument recomputes the tables in CAPACITY.md.
func TestDocument(t *testing.T) {
	text, err := os.ReadFile("CAPACITY.md")
	if err != nil {
		t.Fatal(err)
	}
	all := []plan{usual(1e4), usual(1e6), usual(1e8)}
	for name, rows := range map[string][]row{"steady": steadyTable(), "wave": waveTable(), "storm": stormTable()} {
		var want strings.Builder
		writeTable(&want, measured(), rows, all...)
		if !strings.Contains(string(text), "\n\n"+want.String()+"\n") {
			t.Errorf("CAPACITY.md does not have the table %q as it is computed:\n%s", name, &want)
		}
	}
	cells := regexp.MustCompile(`(?m)^\| ([^|]+) \| ([^|]+) \| [^|]+ \|$`)
	in := map[string]string{}
	for _, m := range cells.FindAllStringSubmatch(string(text), -1) {
		in[m[1]] = m[2]
	}
	for _, unit := range measured().table() {
		if in[unit[0]] != unit[1] {
			t.Errorf("CAPACITY.md has %q for %s; want %q", in[unit[0]], unit[0], unit[1])
		}
	}
}

// TestAdvice has the code in CAPACITY.md that gives first certificates different lengths.
func TestAdvice(t *testing.T) {
	// begin
	const spread = 120 * 24 * time.Hour
	profile := &scep.Profile{Change: func(_ context.Context, req *scep.Request, tmpl *x509.Certificate) error {
		if req.Renews == nil { // the first one ends up to four months earlier
			tmpl.NotAfter = tmpl.NotAfter.Add(-mrand.N(spread))
		}
		return nil
	}}
	// end
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "device"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	ends := func(renews *x509.Certificate) time.Duration {
		t.Helper()
		tmpl, err := profile.Template(t.Context(), &scep.Request{CSR: csr, Time: now, Renews: renews})
		if err != nil {
			t.Fatal(err)
		}
		return tmpl.NotAfter.Sub(now)
	}
	year := ends(&x509.Certificate{})
	different := map[time.Duration]bool{}
	for range 10 {
		d := ends(nil)
		different[d] = true
		if d > year || d < year-spread {
			t.Errorf("the first certificate is for %v, the second for %v", d, year)
		}
	}
	if len(different) < 2 {
		t.Error("ten first certificates end at the same time")
	}

	source, err := os.ReadFile("capacity_test.go")
	if err != nil {
		t.Fatal(err)
	}
	document, err := os.ReadFile("CAPACITY.md")
	if err != nil {
		t.Fatal(err)
	}
	_, code, _ := strings.Cut(string(source), "\t// begin\n")
	code, _, _ = strings.Cut(code, "\t// end\n")
	for line := range strings.Lines(code) {
		if want := "   " + strings.TrimPrefix(line, "\t"); !strings.Contains(string(document), "\n"+want) {
			t.Errorf("CAPACITY.md does not have %q", want)
		}
	}
}

// TestCapacityCommand asks for other numbers.
func TestCapacityCommand(t *testing.T) {
	for _, tt := range []struct {
		name string
		args []string
		want string // a line; or of the error
		ok   bool
	}{
		{"as in the document", nil, "| devices | 10 000 | 1 000 000 | 100 000 000 |", true},
		{"one size", []string{"-devices", "86400"}, "| devices | 86 400 |", true},
		{"short life", []string{"-devices", "8640000", "-validity", "12d", "-window", "4d"}, "| certificates per second | 10 |", true},
		{"in hours", []string{"-devices", "8640000", "-validity", "288h", "-window", "96h"}, "| certificates per second | 10 |", true},
		{"storm", []string{"-devices", "7200", "-storm", "2"}, "| certificates per second | 1 |", true},
		{"slow", []string{"-devices", "3600", "-cpu", "10s", "-messages", "1"}, "| processors at work in replicas | 10 |", true},
		{"window too long", []string{"-validity", "30d", "-window", "31d"}, "-window is", false},
		{"not a time", []string{"-validity", "year"}, "year", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out strings.Builder
			err := capacityCommand(&out, tt.args)
			if tt.ok && (err != nil || !strings.Contains(out.String(), tt.want+"\n")) || !tt.ok && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("%v\n%swant %q", err, &out, tt.want)
			}
		})
	}
}

// A meter counts what a certificate needs of depot and keys.
type meter struct {
	scep.Depot
	writes, signatures, decryptions atomic.Int64
}

func (m *meter) Create(ctx context.Context, rec *scep.Record) error {
	m.writes.Add(1)
	return m.Depot.Create(ctx, rec)
}

func (m *meter) Update(ctx context.Context, rec *scep.Record) error {
	m.writes.Add(1)
	return m.Depot.Update(ctx, rec)
}

// A meteredKey counts what a key does.
type meteredKey struct {
	crypto.Signer
	m *meter
}

func (k meteredKey) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	k.m.signatures.Add(1)
	return k.Signer.Sign(rand, digest, opts)
}

func (k meteredKey) UnwrapKey(ctx context.Context, block []byte, n int, opts crypto.DecrypterOpts) ([]byte, error) {
	k.m.decryptions.Add(1)
	return k.Signer.(scep.Unwrapper).UnwrapKey(ctx, block, n, opts)
}

// TestOperations counts the writes and the operations of the keys that a renewal takes, and those
// of an answer that is given again: what the tables are computed from.
func TestOperations(t *testing.T) {
	dir := t.TempDir()
	ca, err := file.CreateCA(filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca.key"), file.CAOptions{KeyType: backend.P256})
	if err != nil {
		t.Fatal(err)
	}
	ra, _, err := file.RA(t.Context(), ca, dir, file.RAOptions{})
	if err != nil {
		t.Fatal(err)
	}
	m, ras := &meter{Depot: &depot.Memory{}}, &meter{}
	h, err := scep.New(scep.Config{
		CA:        &scep.Identity{Certificates: ca.Certificates, Key: meteredKey{ca.Key, m}},
		RA:        &scep.Identity{Certificates: ra.Certificates, Key: meteredKey{ra.Key, ras}},
		Depot:     m,
		Challenge: challenge.Static("capacity"),
		Renewal:   scep.Renewal{On: true, Anytime: true},
		Log:       slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(h)
	defer server.Close()
	c := &scepclient.Client{URL: server.URL + "/scep", Roots: ca.Certificates}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	first, err := c.Enroll(t.Context(), scepclient.Request{
		Key: key, Template: &x509.CertificateRequest{Subject: pkix.Name{CommonName: "device"}}, Challenge: scep.NewSecret("capacity"),
	})
	if err != nil {
		t.Fatal(err)
	}
	renew := func() {
		t.Helper()
		if _, err := c.Renew(t.Context(), first.Certificate, key, scepclient.Request{Key: key, TransactionID: "renewal"}); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name                                     string
		writes, signatures, replies, decryptions int64
	}{
		{"a renewal", int64(measured().writes), 1, 1, 1},
		{"the same again", 0, 0, 1, 1},
	} {
		for _, n := range []*atomic.Int64{&m.writes, &m.signatures, &ras.signatures, &ras.decryptions} {
			n.Store(0)
		}
		renew()
		if m.writes.Load() != tt.writes || m.signatures.Load() != tt.signatures || ras.signatures.Load() != tt.replies || ras.decryptions.Load() != tt.decryptions {
			t.Errorf("%s: %d writes, %d signatures of the CA, %d of the RA, %d decryptions; want %+v",
				tt.name, m.writes.Load(), m.signatures.Load(), ras.signatures.Load(), ras.decryptions.Load(), tt)
		}
	}
}

// revoked are so many certificates.
type revoked int

func (r revoked) Revocations(_ context.Context, _ scep.RevocationQuery, yield func(scep.Revocation) error) error {
	serial := new(big.Int).Lsh(big.NewInt(1), 158) // 20 bytes, as ours
	for range r {
		serial = new(big.Int).Add(serial, big.NewInt(1))
		if err := yield(scep.Revocation{Serial: serial, Revoked: time.Now(), Reason: scep.Superseded}); err != nil {
			return err
		}
	}
	return nil
}

// TestCRLEntry measures what one more certificate adds to a CRL.
func TestCRLEntry(t *testing.T) {
	dir := t.TempDir()
	ca, err := file.CreateCA(filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca.key"), file.CAOptions{KeyType: backend.P256})
	if err != nil {
		t.Fatal(err)
	}
	size := func(n int) int {
		crl, err := status.NewCRL(status.CRLConfig{Issuer: ca, Depot: revoked(n), Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		der, err := crl.CRL(t.Context(), ca.Certificate().RawSubject, big.NewInt(1))
		if err != nil {
			t.Fatal(err)
		}
		return len(der)
	}
	if got := float64(size(21000)-size(1000)) / 20000; math.Abs(got-measured().crlEntry) > 0.1 {
		t.Errorf("an entry has %v bytes, want %v", got, measured().crlEntry)
	}
}

// TestCRLSignatures counts what a CRL in shards asks of the key of the CA, which may be in an HSM: one
// signature for each revocation, and one for each shard in an hour without any.
func TestCRLSignatures(t *testing.T) {
	dir := t.TempDir()
	ca, err := file.CreateCA(filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca.key"), file.CAOptions{KeyType: backend.P256})
	if err != nil {
		t.Fatal(err)
	}
	m := &meter{}
	var past time.Duration
	db := &depot.Memory{}
	crl, err := status.NewCRL(status.CRLConfig{
		Issuer: &scep.Identity{Certificates: ca.Certificates, Key: meteredKey{ca.Key, m}}, Depot: db,
		URL: "http://pki.example/{n}.crl", Shards: 5, Log: slog.New(slog.DiscardHandler),
		Time: func() time.Time { return time.Now().Add(past) },
	})
	if err != nil {
		t.Fatal(err)
	}
	revoke := func(serial int64) func() {
		return func() {
			id, now := scep.ID(fmt.Sprintf("%064d", serial)), time.Now().Add(past)
			if err := db.Create(t.Context(), &scep.Record{
				ID: id, Transaction: id, State: scep.Revoked, Issuer: ca.Certificate().RawSubject, Serial: big.NewInt(serial),
				NotAfter: now.AddDate(1, 0, 0), Created: now, Changed: now, Revoked: now,
			}); err != nil {
				t.Fatal(err)
			}
			crl.Renew()
		}
	}
	for _, tt := range []struct {
		name string
		do   func()
		want int64
	}{
		{"the first", func() {}, 5},
		{"soon after", func() { past += time.Minute }, 0},
		{"after a revocation", revoke(7), 1},
		{"after another", revoke(12), 1},
		{"after nothing", crl.Renew, 0},
		{"after an hour", func() { past += time.Hour }, 5},
	} {
		m.signatures.Store(0)
		tt.do()
		for serial := range int64(5) {
			if _, err := crl.CRL(t.Context(), ca.Certificate().RawSubject, big.NewInt(serial)); err != nil {
				t.Fatal(err)
			}
		}
		if got := m.signatures.Load(); got != tt.want {
			t.Errorf("%s: %d signatures, want %d", tt.name, got, tt.want)
		}
	}
}
