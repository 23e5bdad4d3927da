//go:build cgo && unix

//lint:file-ignore SA1019 SCEP is made of PKCS #1 v1.5

package pkcs11_test

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/backend/pkcs11"
	"github.com/scepkit/scepkit/challenge"
	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/hsmtest"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// A bare uses the module without anything of ours.
type bare struct {
	lib      *p11.Ctx
	key      p11.ObjectHandle
	sessions chan p11.SessionHandle
	digest   []byte // in a DigestInfo
	block    []byte // encrypted to the key
}

// newBare is for a token that is open already, so that the module is started and logged in.
func newBare(b *testing.B, k *hsmtest.Token, label string, pub *rsa.PublicKey, sessions int) *bare {
	x := &bare{lib: p11.New(k.Module), sessions: make(chan p11.SessionHandle, sessions)}
	b.Cleanup(x.lib.Destroy)
	var slot uint
	for _, s := range must(x.lib.GetSlotList(true)) {
		if info, err := x.lib.GetTokenInfo(s); err == nil && info.Label == k.Label {
			slot = s
		}
	}
	for range sessions {
		x.sessions <- must(x.lib.OpenSession(slot, p11.CKF_SERIAL_SESSION))
	}
	s := <-x.sessions
	must(0, x.lib.FindObjectsInit(s, []*p11.Attribute{p11.NewAttribute(p11.CKA_CLASS, p11.CKO_PRIVATE_KEY), p11.NewAttribute(p11.CKA_LABEL, label)}))
	found, _, err := x.lib.FindObjects(s, 1)
	must(0, err)
	must(0, x.lib.FindObjectsFinal(s))
	x.sessions <- s
	x.key = found[0]
	sum := sha256.Sum256(nil)
	x.digest = append([]byte{0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00, 0x04, 0x20}, sum[:]...)
	x.block = must(rsa.EncryptPKCS1v15(rand.Reader, pub, make([]byte, 16)))
	return x
}

func (x *bare) sign(b *testing.B) {
	s := <-x.sessions
	defer func() { x.sessions <- s }()
	if err := x.lib.SignInit(s, []*p11.Mechanism{p11.NewMechanism(p11.CKM_RSA_PKCS, nil)}, x.key); err != nil {
		b.Error(err)
	}
	if _, err := x.lib.Sign(s, x.digest); err != nil {
		b.Error(err)
	}
}

func (x *bare) decrypt(b *testing.B) {
	s := <-x.sessions
	defer func() { x.sessions <- s }()
	if err := x.lib.DecryptInit(s, []*p11.Mechanism{p11.NewMechanism(p11.CKM_RSA_PKCS, nil)}, x.key); err != nil {
		b.Error(err)
	}
	if _, err := x.lib.Decrypt(s, x.block); err != nil {
		b.Error(err)
	}
}

// compare calls ours and floor in turn, b.N times each, and reports how they compare:
//
//	op/s       how often ours was done in a second
//	ratio      floor's time by ours: 1 would be no work but the module's
//	cpu-ratio  the same by processor time, which other programs disturb less
func compare(b *testing.B, workers int, ours, floor func(i int)) {
	const slices = 10
	var ourTime, ourCPU, floorTime, floorCPU time.Duration
	b.ResetTimer()
	for s := range slices {
		from, to := b.N*s/slices, b.N*(s+1)/slices
		wall, cpu := parallel(workers, to-from, func(i int) { ours(from + i) })
		ourTime, ourCPU = ourTime+wall, ourCPU+cpu
		b.StopTimer()
		wall, cpu = parallel(workers, to-from, floor)
		floorTime, floorCPU = floorTime+wall, floorCPU+cpu
		b.StartTimer()
	}
	b.StopTimer()
	b.ReportMetric(float64(b.N)/ourTime.Seconds(), "op/s")
	b.ReportMetric(floorTime.Seconds()/ourTime.Seconds(), "ratio")
	b.ReportMetric(floorCPU.Seconds()/ourCPU.Seconds(), "cpu-ratio")
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

// BenchmarkSupervisor compares signatures and decryptions through this package with the same
// through miekg/pkcs11 alone. Ours verifies each signature; "verified" has the floor do so too,
// so that what is left is the supervisor.
func BenchmarkSupervisor(b *testing.B) {
	token := hsmtest.SoftHSM(b)
	identity(b, token, "key", backend.Spec{Decrypt: true})
	id := must(open(b, config(b, token)).Identity(b.Context(), "key"))
	pub := id.Key.Public().(*rsa.PublicKey)
	x := newBare(b, token, "key", pub, 16)
	sum := sha256.Sum256(nil)
	sig := must(id.Key.Sign(rand.Reader, sum[:], crypto.SHA256))
	sign := func(int) {
		if _, err := id.Key.Sign(rand.Reader, sum[:], crypto.SHA256); err != nil {
			b.Error(err)
		}
	}
	for _, workers := range []int{1, 8, 32} {
		b.Run(fmt.Sprintf("sign/workers=%d", workers), func(b *testing.B) {
			compare(b, workers, sign, func(int) { x.sign(b) })
		})
		b.Run(fmt.Sprintf("sign/verified/workers=%d", workers), func(b *testing.B) {
			compare(b, workers, sign, func(int) {
				x.sign(b)
				if err := rsa.VerifyPKCS1v15(pub, crypto.SHA256, sum[:], sig); err != nil {
					b.Error(err)
				}
			})
		})
		b.Run(fmt.Sprintf("decrypt/workers=%d", workers), func(b *testing.B) {
			compare(b, workers, func(int) {
				if _, err := id.Key.(scep.Unwrapper).UnwrapKey(b.Context(), x.block, 16, &rsa.PKCS1v15DecryptOptions{}); err != nil {
					b.Error(err)
				}
			}, func(int) { x.decrypt(b) })
		})
	}
}

// BenchmarkEnroll compares enrolments by a server whose CA and RA keys are in the token with the
// one decryption and two signatures that each of them has the module do.
func BenchmarkEnroll(b *testing.B) {
	token := hsmtest.SoftHSM(b)
	identity(b, token, "ca", backend.Spec{})
	opened := open(b, config(b, token))
	ca := must(opened.Identity(b.Context(), "ca"))
	raKey := must(backend.Create(b.Context(), token.URI("ra"), backend.Spec{Decrypt: true}, pkcs11.Driver{}))
	b.Cleanup(func() { raKey.Close() })
	ra := sceptest.NewRA(b, ca, raKey.Key)
	pub := raKey.Key.Public().(*rsa.PublicKey)
	x, y := newBare(b, token, "ra", pub, 16), newBare(b, token, "ca", pub, 16)
	for _, clients := range []int{8, 32} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) {
			h := must(scep.New(scep.Config{
				CA: ca, RA: ra, Depot: new(depot.Memory), Challenge: challenge.Static(sceptest.Secret), Log: slog.New(slog.DiscardHandler),
			}))
			srv := httptest.NewServer(h)
			defer srv.Close()
			messages := make([]string, b.N)
			for i := range messages {
				d := sceptest.NewDevice(srv.URL, sceptest.RSA(0), fmt.Sprintf("device %d", i))
				d.TransactionID = fmt.Sprintf("%d %d", clients, i)
				messages[i] = string(d.PKCSReq(b).BER())
			}
			compare(b, clients, func(i int) {
				r := must(http.NewRequest("POST", "/scep?operation=PKIOperation", strings.NewReader(messages[i])))
				w := httptest.NewRecorder()
				h.ServeHTTP(w, r)
				if w.Code != http.StatusOK || w.Body.Len() < 1500 { // SUCCESS has a certificate in it
					b.Errorf("HTTP %d, %d bytes", w.Code, w.Body.Len())
				}
			}, func(int) { x.decrypt(b); y.sign(b); x.sign(b) })
		})
	}
}
