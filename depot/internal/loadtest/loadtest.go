// Package loadtest measures depots with many records, and the operator's tool with them. Its
// users are run by hand.
package loadtest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/scepkit/scepkit/scep"
)

// The sizes of what synthetic records have, as those of a device with a 2048-bit RSA key.
const (
	CSR         = 700
	Template    = 600
	Certificate = 1000
)

// MaxRatio is how much longer an enrolment may take beside all records than beside none.
const MaxRatio = 1.1

// A Depot is what is measured.
type Depot interface {
	scep.Depot
	scep.Lister
}

// Issue does what one enrolment does to a depot: it looks for the record, creates it with a
// template, and updates it with the certificate. name is one that was not used before.
func Issue(ctx context.Context, d scep.Depot, name string) error {
	id := func(kind string) []byte { sum := sha256.Sum256([]byte(kind + name)); return sum[:] }
	now := time.Now()
	rec := &scep.Record{
		ID: scep.ID(hex.EncodeToString(id("id"))), Transaction: scep.ID(hex.EncodeToString(id("transaction"))),
		TransactionID: hex.EncodeToString(id("")), RemoteAddr: "192.0.2.1:1024", State: scep.Signing, Issuer: []byte("issuer"),
		Serial: new(big.Int).SetBytes(id("serial")[:20]), CSR: bytes.Repeat([]byte{'c'}, CSR), Template: bytes.Repeat([]byte{'t'}, Template),
		Created: now, Changed: now, NotAfter: now.AddDate(1, 0, 0),
	}
	if _, err := d.Get(ctx, rec.ID); err != scep.ErrNotFound {
		return fmt.Errorf("depot.Get: %v", err)
	}
	if err := d.Create(ctx, rec); err != nil {
		return err
	}
	rec.State, rec.Certificate = scep.Issued, bytes.Repeat([]byte{'d'}, Certificate)
	return d.Update(ctx, rec)
}

// Enrol has both depots issue n certificates in turns, so that a busy machine is so for both. It
// returns how much longer an enrolment, with its three RSA operations, takes with the second.
func Enrol(t *testing.T, empty, full scep.Depot, n int) float64 {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	var depots, enrolments [2]Times
	run := time.Now().UnixNano()
	for i := range n {
		for j, d := range []scep.Depot{empty, full} {
			begun := time.Now()
			if err := Issue(t.Context(), d, fmt.Sprint("enrolment ", run, i)); err != nil {
				t.Fatal(err)
			}
			depots[j] = append(depots[j], time.Since(begun))
			for range 3 { // opening the envelope, signing the certificate, signing the reply
				if _, err := key.Sign(rand.Reader, make([]byte, 32), crypto.SHA256); err != nil {
					t.Fatal(err)
				}
			}
			enrolments[j] = append(enrolments[j], time.Since(begun))
		}
	}
	var r float64
	for _, part := range []struct {
		what  string
		times [2]Times
	}{{"the depot's part", depots}, {"with three RSA operations", enrolments}} {
		r = float64(part.times[1].At(0.5)) / float64(part.times[0].At(0.5))
		t.Logf("%s: median %.3f of that beside no records, mean %.3f", part.what, r, float64(part.times[1].Mean())/float64(part.times[0].Mean()))
		t.Logf("  beside none: %v", part.times[0])
		t.Logf("  beside all:  %v", part.times[1])
	}
	return r
}

// Beside has one caller issue certificates while f runs, and returns how long each took.
func Beside(t *testing.T, d scep.Depot, f func()) Times {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var times Times
	var group sync.WaitGroup
	run := time.Now().UnixNano()
	group.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			begun := time.Now()
			if err := Issue(t.Context(), d, fmt.Sprint("beside ", run, i)); err != nil {
				t.Error(err)
				return
			}
			times = append(times, time.Since(begun))
		}
	})
	f()
	cancel()
	group.Wait()
	return times
}

// Pages lists pages of 100 records, from all over the depot, and says how long each kind takes.
func Pages(t *testing.T, d Depot) {
	t.Helper()
	some := strings.Repeat("0", 56)
	for _, kind := range []struct {
		what  string
		state scep.State
		after func(i int) scep.ID
	}{
		{"the first", 0, func(int) scep.ID { return "" }},
		{"from anywhere", 0, func(i int) scep.ID { return scep.ID(fmt.Sprintf("%08x", uint32(i)*0x9e3779b1) + some) }},
		{"the first that are pending", scep.Pending, func(int) scep.ID { return "" }},
		{"pending ones from anywhere", scep.Pending, func(i int) scep.ID { return scep.ID(fmt.Sprintf("%08x", uint32(i)*0x9e3779b1) + some) }},
		{"revoked ones from anywhere", scep.Revoked, func(i int) scep.ID { return scep.ID(fmt.Sprintf("%08x", uint32(i)*0x9e3779b1) + some) }},
	} {
		var times Times
		for i := range 200 {
			begun := time.Now()
			all, err := d.List(t.Context(), scep.Query{State: kind.state, After: kind.after(i)})
			if err != nil {
				t.Fatal(err)
			}
			times = append(times, time.Since(begun))
			for _, rec := range all {
				if kind.state != 0 && rec.State != kind.state || rec.ID <= kind.after(i) {
					t.Fatalf("listed %s, which is %s", rec.ID, rec.State)
				}
			}
		}
		t.Logf("a page of 100, %s: %v", kind.what, times)
	}
}

// Times are how long something took, each time.
type Times []time.Duration

// At returns the time below which that part of them is.
func (t Times) At(part float64) time.Duration {
	sorted := slices.Sorted(slices.Values(t))
	return sorted[min(int(float64(len(sorted))*part), len(sorted)-1)]
}

// Mean returns the mean.
func (t Times) Mean() time.Duration {
	var sum time.Duration
	for _, d := range t {
		sum += d
	}
	return sum / time.Duration(max(len(t), 1))
}

func (t Times) String() string {
	if len(t) == 0 {
		return "none"
	}
	round := func(d time.Duration) time.Duration { return d.Round(10 * time.Microsecond) }
	return fmt.Sprintf("median %v, mean %v, 99%% %v, longest %v (%d)", round(t.At(0.5)), round(t.Mean()), round(t.At(0.99)), round(t.At(1)), len(t))
}
