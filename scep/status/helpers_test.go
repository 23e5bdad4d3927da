package status_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// clock is a clock that stands.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock() *clock { return &clock{t: time.Now()} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// key is a signer that counts, and fails or waits if it is told to.
type key struct {
	crypto.Signer
	mu   sync.Mutex
	n    int
	err  error
	hang bool
	lie  bool
}

func (k *key) SignContext(ctx context.Context, rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	k.mu.Lock()
	k.n++
	err, hang, lie := k.err, k.hang, k.lie
	k.mu.Unlock()
	if hang {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	if err != nil {
		return nil, err
	}
	if lie {
		digest = make([]byte, len(digest))
	}
	return k.Sign(rand, digest, opts)
}

func (k *key) become(err error, hang bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.err, k.hang = err, hang
}

func (k *key) count() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.n
}

var errAway = errors.New("the device is away")

// withKey returns an identity with the same certificates, and its key.
func withKey(id *scep.Identity) (*scep.Identity, *key) {
	k := &key{Signer: id.Key}
	return &scep.Identity{Certificates: id.Certificates, Key: k}, k
}

func idOf(name string) scep.ID {
	sum := sha256.Sum256([]byte(name))
	return scep.ID(hex.EncodeToString(sum[:]))
}

// store puts a record of a certificate with this serial number into d.
func store(t testing.TB, d scep.Depot, ca *scep.Identity, serial int64, change func(*scep.Record)) *scep.Record {
	t.Helper()
	issuer := ca.Certificate()
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: issuer.Subject,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
	}
	cert, err := ca.Sign(t.Context(), tmpl, sceptest.P256().Public())
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprint("record ", serial)
	rec := &scep.Record{
		ID: idOf(name), Transaction: idOf(name), TransactionID: name, State: scep.Issued, Issuer: issuer.RawSubject,
		Serial: cert.SerialNumber, Certificate: cert.Raw, NotAfter: cert.NotAfter, Created: time.Now(), Changed: time.Now(),
	}
	if change != nil {
		change(rec)
	}
	if err := d.Create(t.Context(), rec); err != nil {
		t.Fatal(err)
	}
	return rec
}

func revoked(at time.Time, reason scep.RevocationReason) func(*scep.Record) {
	return func(r *scep.Record) {
		r.State, r.Revoked, r.Changed, r.RevocationReason = scep.Revoked, at, at, int(reason)
	}
}

// revocations is a RevocationLister without records: n certificates, and never two lists in memory.
type revocations struct {
	n  int
	at time.Time
}

func (r revocations) Revocations(ctx context.Context, _ scep.RevocationQuery, yield func(scep.Revocation) error) error {
	serial := make([]byte, 20)
	for i := range r.n {
		serial[0], serial[1], serial[2], serial[19], serial[18], serial[17] = 0x7f, byte(i*7), byte(i*13), byte(i), byte(i>>8), byte(i>>16)
		rev := scep.Revocation{Serial: new(big.Int).SetBytes(serial), Revoked: r.at, Reason: scep.RevocationReason(i % 7)}
		if err := yield(rev); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// openssl runs the program and returns what it printed.
func openssl(t *testing.T, ok bool, args ...string) string {
	t.Helper()
	path, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("openssl is not installed")
	}
	cmd := exec.CommandContext(t.Context(), path, args...)
	out, err := cmd.CombinedOutput()
	if (err == nil) != ok {
		t.Errorf("openssl %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// file writes PEM blocks of this type and returns the name of the file.
func file(t *testing.T, name, kind string, blocks ...[]byte) string {
	t.Helper()
	var out []byte
	for _, b := range blocks {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b})...)
	}
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, out, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func newP521(t *testing.T) *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

var _ scep.RevocationLister = (*depot.Memory)(nil)
