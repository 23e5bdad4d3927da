//go:build unix

//lint:file-ignore SA1019 SCEP is made of PKCS #1 v1.5

package scep_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"log/slog"
	"math/big"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/depot/sqlite"
	"github.com/scepkit/scepkit/scep"
)

// BenchmarkEnroll measures enrolments by 32 clients at once, and what they cost beyond the
// cryptography that each of them needs. The floor is timed in the same run, in slices before,
// between and after, by as many workers:
//
//	enrol/s    enrolments per second
//	floor/s    how many times per second the bare operations can be done
//	ratio      enrol/s by floor/s: 1 would be no work but cryptography
//	cpu-ratio  the same by processor time, which other programs disturb less
func BenchmarkEnroll(b *testing.B) {
	rsaCA := func(b *testing.B) (ca, ra *scep.Identity) { return benchCA(b, benchRSA(b)), nil }
	ecCA := func(b *testing.B) (ca, ra *scep.Identity) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			b.Fatal(err)
		}
		ca = benchCA(b, key)
		return ca, benchRA(b, ca, benchRSA(b))
	}
	memory := func(b *testing.B) scep.Depot { return &depot.Memory{} }
	file := func(b *testing.B) scep.Depot {
		db, err := sqlite.Open(filepath.Join(b.TempDir(), "scep.db"))
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { db.Close() })
		return db
	}
	for _, ca := range []struct {
		name string
		make func(*testing.B) (ca, ra *scep.Identity)
	}{{"RSA2048", rsaCA}, {"P256+RSA2048", ecCA}} {
		for _, d := range []struct {
			name string
			open func(*testing.B) scep.Depot
		}{{"Memory", memory}, {"SQLite", file}} {
			for _, clients := range []int{1, 32} {
				b.Run(fmt.Sprintf("CA=%s/depot=%s/clients=%d", ca.name, d.name, clients), func(b *testing.B) {
					id, ra := ca.make(b)
					benchmarkEnroll(b, id, ra, d.open(b), clients)
				})
			}
		}
	}
}

func benchmarkEnroll(b *testing.B, ca, ra *scep.Identity, d scep.Depot, clients int) {
	h, err := scep.New(scep.Config{CA: ca, RA: ra, Depot: d, Challenge: quick("bench"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	if ra == nil {
		ra = ca
	}
	dev := newDevice(b, benchRSA(b), "bench", "bench")
	messages := make([]string, b.N)
	for i := range messages {
		dev.id = fmt.Sprintf("bench %d", i) // another transaction: another certificate
		messages[i] = string(dev.pkcsReq(b, ra.Certificate()))
	}
	replies := make([]reply, b.N)

	// Slices of enrolments and of floor take turns, so that both see the same machine.
	const slices = 8
	floor := newFloor(b, ca, ra, dev)
	var enrolTime, enrolCPU, floorTime, floorCPU time.Duration
	b.ReportAllocs()
	b.ResetTimer()
	for s := range slices {
		from, to := b.N*s/slices, b.N*(s+1)/slices
		wall, cpu := parallel(clients, to-from, func(i int) {
			r, _ := http.NewRequest("POST", "/scep?operation=PKIOperation", strings.NewReader(messages[from+i]))
			h.ServeHTTP(&replies[from+i], r)
		})
		enrolTime, enrolCPU = enrolTime+wall, enrolCPU+cpu
		b.StopTimer()
		wall, cpu = parallel(clients, to-from, func(int) { floor.once(b) })
		floorTime, floorCPU = floorTime+wall, floorCPU+cpu
		b.StartTimer()
	}
	b.StopTimer()

	for i := 0; i < b.N; i += 1 + b.N/20 {
		dev.id = fmt.Sprintf("bench %d", i)
		if a := dev.read(b, replies[i].code, replies[i].body, ra.Certificate()); a.cert == nil {
			b.Fatal(a)
		}
	}
	b.ReportMetric(float64(b.N)/enrolTime.Seconds(), "enrol/s")
	b.ReportMetric(float64(b.N)/floorTime.Seconds(), "floor/s")
	b.ReportMetric(floorTime.Seconds()/enrolTime.Seconds(), "ratio")
	b.ReportMetric(floorCPU.Seconds()/enrolCPU.Seconds(), "cpu-ratio")
}

// parallel calls f(0) to f(n-1) from so many workers.
func parallel(workers, n int, f func(i int)) (wall, cpu time.Duration) {
	var next atomic.Int64
	var wg sync.WaitGroup
	begin, used := time.Now(), cpuTime()
	for range workers {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				f(i)
			}
		})
	}
	wg.Wait()
	return time.Since(begin), cpuTime() - used
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// A floor does the public and private-key operations that one enrolment cannot do without.
type floor struct {
	ca     crypto.Signer
	ra     *rsa.PrivateKey
	device *rsa.PublicKey
	sum    [32]byte
	block  []byte // encrypted to the RA
	sig    []byte // by the device
	signer *rsa.PrivateKey
}

func newFloor(b *testing.B, ca, ra *scep.Identity, dev *device) *floor {
	f := &floor{ca: ca.Key, ra: ra.Key.(*rsa.PrivateKey), device: &dev.key.PublicKey, signer: dev.key}
	f.sum = sha256.Sum256([]byte("floor"))
	var err error
	if f.block, err = rsa.EncryptPKCS1v15(rand.Reader, &f.ra.PublicKey, make([]byte, 16)); err != nil {
		b.Fatal(err)
	}
	if f.sig, err = rsa.SignPKCS1v15(rand.Reader, dev.key, crypto.SHA256, f.sum[:]); err != nil {
		b.Fatal(err)
	}
	return f
}

func (f *floor) once(b *testing.B) {
	must := func(err error) {
		if err != nil {
			b.Error(err)
		}
	}
	must(rsa.VerifyPKCS1v15(f.device, crypto.SHA256, f.sum[:], f.sig)) // message
	key := make([]byte, 16)
	must(rsa.DecryptPKCS1v15SessionKey(rand.Reader, f.ra, f.block, key))
	must(rsa.VerifyPKCS1v15(f.device, crypto.SHA256, f.sum[:], f.sig)) // CSR
	sig, err := f.ca.Sign(rand.Reader, f.sum[:], crypto.SHA256)        // certificate
	must(err)
	switch pub := f.ca.Public().(type) { // what we signed
	case *rsa.PublicKey:
		must(rsa.VerifyPKCS1v15(pub, crypto.SHA256, f.sum[:], sig))
	case *ecdsa.PublicKey:
		if !ecdsa.VerifyASN1(pub, f.sum[:], sig) {
			b.Error("bad signature")
		}
	}
	_, err = rsa.EncryptPKCS1v15(rand.Reader, f.device, key)
	must(err)
	_, err = rsa.SignPKCS1v15(rand.Reader, f.ra, crypto.SHA256, f.sum[:]) // reply
	must(err)
}

// reply is an http.ResponseWriter that costs next to nothing.
type reply struct {
	header http.Header
	code   int
	body   []byte
}

func (r *reply) Header() http.Header {
	if r.header == nil {
		r.header = make(http.Header)
	}
	return r.header
}

func (r *reply) WriteHeader(code int) { r.code = code }

func (r *reply) Write(p []byte) (int, error) {
	if r.code == 0 {
		r.code = http.StatusOK
	}
	r.body = append(r.body, p...)
	return len(p), nil
}

func benchRSA(b *testing.B) *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		b.Fatal(err)
	}
	return key
}

func benchCA(b *testing.B, key crypto.Signer) *scep.Identity {
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(10, 0, 0),
		BasicConstraintsValid: true, IsCA: true,
	}
	return benchIssue(b, tmpl, tmpl, key.Public(), key, key)
}

func benchRA(b *testing.B, ca *scep.Identity, key *rsa.PrivateKey) *scep.Identity {
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "bench RA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
	}
	return benchIssue(b, tmpl, ca.Certificate(), key.Public(), ca.Key, key)
}

func benchIssue(b *testing.B, tmpl, parent *x509.Certificate, pub crypto.PublicKey, issuer, key crypto.Signer) *scep.Identity {
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, issuer)
	if err != nil {
		b.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		b.Fatal(err)
	}
	return &scep.Identity{Certificates: []*x509.Certificate{cert}, Key: key}
}
