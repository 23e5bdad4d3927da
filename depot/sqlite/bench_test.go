//go:build unix

package sqlite_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"math/big"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/scepkit/scepkit/depot/sqlite"
	"github.com/scepkit/scepkit/scep"
)

// BenchmarkIssue does what one enrolment does to a depot: it looks for the record, creates
// it with a template, and updates it with the certificate.
func BenchmarkIssue(b *testing.B) {
	for _, writers := range []int{1, 8, 32} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			db, err := sqlite.Open(filepath.Join(b.TempDir(), "scep.db"))
			if err != nil {
				b.Fatal(err)
			}
			defer db.Close()
			issue(b, db, writers)
		})
	}
}

// BenchmarkSpend creates records: alone, together with spending a challenge, and after that in a
// step of its own. The challenges are there before.
func BenchmarkSpend(b *testing.B) {
	create := func(ctx context.Context, db *sqlite.DB, rec *scep.Record, _ scep.ID) error {
		return db.Create(ctx, rec)
	}
	for _, way := range []struct {
		name string
		do   func(context.Context, *sqlite.DB, *scep.Record, scep.ID) error
	}{
		{"Create", create},
		{"CreateSpending", func(ctx context.Context, db *sqlite.DB, rec *scep.Record, challenge scep.ID) error {
			return db.CreateSpending(ctx, rec, challenge, rec.Created)
		}},
		{"SpendChallenge+Create", func(ctx context.Context, db *sqlite.DB, rec *scep.Record, challenge scep.ID) error {
			if _, err := db.SpendChallenge(ctx, challenge, rec.ID, rec.Created); err != nil {
				return err
			}
			return db.Create(ctx, rec)
		}},
	} {
		for _, writers := range []int{1, 32} {
			b.Run(fmt.Sprintf("%s/writers=%d", way.name, writers), func(b *testing.B) {
				db, err := sqlite.Open(filepath.Join(b.TempDir(), "scep.db"))
				if err != nil {
					b.Fatal(err)
				}
				defer db.Close()
				csr, template, _, issuer := realistic(b)
				now := time.Now()
				each := func(do func(n int64) error) {
					var next atomic.Int64
					var group sync.WaitGroup
					for range writers {
						group.Go(func() {
							for n := next.Add(1); n <= int64(b.N); n = next.Add(1) {
								if err := do(n); err != nil {
									b.Error(err)
								}
							}
						})
					}
					group.Wait()
				}
				each(func(n int64) error {
					return db.PutChallenge(b.Context(), &scep.OneTimeChallenge{Hash: benchID("challenge", n), Created: now, Expires: now.Add(time.Hour)}, now, 0)
				})
				b.ResetTimer()
				before := processorTime()
				each(func(n int64) error {
					return way.do(b.Context(), db, &scep.Record{
						ID: benchID("id", n), Transaction: benchID("transaction", n), TransactionID: "6A7B6C2D9E1F4A5B8C3D2E1F0A9B8C7D",
						State: scep.Signing, CSR: csr, Issuer: issuer, Serial: new(big.Int).SetBytes([]byte(benchID("serial", n))[:16]),
						Template: template, NotAfter: now.AddDate(1, 0, 0), Created: now, Changed: now,
					}, benchID("challenge", n))
				})
				b.ReportMetric(float64((processorTime()-before).Microseconds())/float64(b.N), "cpu-µs/op")
			})
		}
	}
}

func issue(b *testing.B, d scep.Depot, writers int) {
	csr, template, certificate, issuer := realistic(b)
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	var next atomic.Int64
	var group sync.WaitGroup
	b.ReportAllocs()
	b.ResetTimer()
	before := processorTime()
	for range writers {
		group.Go(func() {
			for {
				n := next.Add(1)
				if n > int64(b.N) {
					return
				}
				now := time.Now()
				rec := &scep.Record{
					ID:            benchID("id", n),
					Transaction:   benchID("transaction", n),
					TransactionID: "6A7B6C2D9E1F4A5B8C3D2E1F0A9B8C7D",
					RemoteAddr:    "192.0.2.17:51234",
					State:         scep.Signing,
					CSR:           csr,
					Issuer:        issuer,
					Serial:        new(big.Int).SetBytes([]byte(benchID("serial", n))[:16]),
					Template:      template,
					NotAfter:      now.AddDate(1, 0, 0),
					Created:       now,
					Changed:       now,
				}
				if _, err := d.Get(ctx, rec.ID); err == nil {
					b.Error("there already")
				}
				if err := d.Create(ctx, rec); err != nil {
					b.Error(err)
				}
				rec.State = scep.Issued
				rec.Certificate = certificate
				if err := d.Update(ctx, rec); err != nil {
					b.Error(err)
				}
			}
		})
	}
	group.Wait()
	b.ReportMetric(float64((processorTime()-before).Microseconds())/float64(b.N), "cpu-µs/op")
}

func benchID(kind string, n int64) scep.ID {
	sum := sha256.Sum256(fmt.Append(nil, kind, n))
	return scep.ID(hex.EncodeToString(sum[:]))
}

func processorTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// realistic returns a CSR for an RSA-2048 key, and its certificate twice, once in place of
// a template, which has about that size.
func realistic(b *testing.B) (csr, template, certificate, issuer []byte) {
	b.Helper()
	device, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		b.Fatal(err)
	}
	csr, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject:  pkix.Name{CommonName: "laptop-17.example.org", Organization: []string{"Example"}},
		DNSNames: []string{"laptop-17.example.org"},
	}, device)
	if err != nil {
		b.Fatal(err)
	}
	ca, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "laptop-17.example.org", Organization: []string{"Example"}},
		DNSNames:     []string{"laptop-17.example.org"},
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		NotBefore:    time.Now(),
		NotAfter:     time.Now().AddDate(1, 0, 0),
	}
	parent := &x509.Certificate{Subject: pkix.Name{CommonName: "Example Device CA", Organization: []string{"Example"}}}
	certificate, err = x509.CreateCertificate(rand.Reader, tmpl, parent, &device.PublicKey, ca)
	if err != nil {
		b.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(certificate)
	if err != nil {
		b.Fatal(err)
	}
	return csr, certificate, certificate, parsed.RawIssuer
}
