//lint:file-ignore SA1019 SCEP devices send PKCS #1 v1.5

package tpm

import (
	"context"
	"crypto"
	"crypto/rsa"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/hsmtest"
	"github.com/scepkit/scepkit/scep"
)

// load uses keys from many goroutines until stop, which returns how often that worked, as n does
// before. Errors go to bad.
func load(t *testing.T, bad func(error), keys ...*backend.Key) (stop func() int64, n *atomic.Int64) {
	t.Helper()
	var wg sync.WaitGroup
	var done atomic.Bool
	n = new(atomic.Int64)
	for i := range 8 {
		wg.Go(func() {
			for !done.Load() {
				k := keys[i%len(keys)]
				use := sign
				if _, ok := k.Key.(scep.Unwrapper); ok && i%2 == 0 {
					use = unwrap
				}
				ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
				if err := use(ctx, k); err != nil {
					bad(err)
				} else {
					n.Add(1)
				}
				cancel()
			}
		})
	}
	return func() int64 { done.Store(true); wg.Wait(); return n.Load() }, n
}

func TestResetUnderLoad(t *testing.T) {
	chip := hsmtest.TPM(t)
	tpm := open(t, chip, 0)
	k1, _ := create(t, tpm, backend.Spec{Decrypt: true})
	k2, _ := create(t, tpm, backend.Spec{KeyType: backend.P256})
	stop, n := load(t, func(err error) { t.Error(err) }, k1, k2)
	for i := range 10 {
		// Not twice within one operation, which is tried twice.
		for before := n.Load(); n.Load() < before+20; time.Sleep(time.Millisecond) {
			if t.Failed() {
				break
			}
		}
		chip.Restart(i%2 == 0)
	}
	stop()
	for _, k := range []*backend.Key{k1, k2} {
		if err := sign(t.Context(), k); err != nil {
			t.Error(err)
		}
	}
}

func TestPowerLossUnderLoad(t *testing.T) {
	chip := hsmtest.TPM(t)
	tpm := open(t, chip, 0)
	k, _ := create(t, tpm, backend.Spec{Decrypt: true})
	var off atomic.Int64
	stop, _ := load(t, func(err error) {
		off.Add(1)
		if !errors.Is(err, backend.ErrUnavailable) {
			t.Errorf("without power: %v", err)
		}
		time.Sleep(time.Millisecond)
	}, k)
	for range 5 { // more often than wrong values would be forgiven
		time.Sleep(30 * time.Millisecond)
		chip.Kill()
		time.Sleep(20 * time.Millisecond)
		chip.Start()
	}
	t.Logf("%d operations went well, %d did not", stop(), off.Load())
	if err := unwrap(t.Context(), k); err != nil {
		t.Errorf("with power again: %v", err)
	}
}

func TestBrokenConnection(t *testing.T) {
	chip := hsmtest.TPM(t)
	tpm := open(t, chip, 0)
	k, _ := create(t, tpm, backend.Spec{Decrypt: true})
	for i := range 30 { // far more than there is room for in a TPM
		chip.FailIO(1)
		if err := sign(t.Context(), k); err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		if err := unwrap(t.Context(), k); err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
	}
	chip.FailIO(-1)
	checkError(t, sign(t.Context(), k), backend.ErrUnavailable, "reading a response")
	checkError(t, unwrap(t.Context(), k), backend.ErrUnavailable, "reading a response")
	chip.FailIO(0)
	if err := unwrap(t.Context(), k); err != nil {
		t.Error(err)
	}
	tpm.Close()
	if s := loadedNow(t, chip); s != "" {
		t.Errorf("after Close there is in the TPM: %s", s)
	}
}

func TestFourKeysInThreeSlots(t *testing.T) {
	chip := hsmtest.TPM(t)
	tpm := open(t, chip, 0)
	var keys []*backend.Key
	for i := range 4 {
		k, _ := create(t, tpm, backend.Spec{KeyType: []backend.KeyType{backend.RSA2048, backend.P256}[i%2], Decrypt: i%2 == 0})
		keys = append(keys, k)
	}
	stop, _ := load(t, func(err error) { t.Error(err) }, keys...)
	time.Sleep(500 * time.Millisecond)
	t.Logf("%d operations", stop())
}

// Somebody else fills a TPM that has no resource manager.
func TestFullTPM(t *testing.T) {
	chip := hsmtest.TPM(t)
	tpm := open(t, chip, 0)
	k1, _ := create(t, tpm, backend.Spec{KeyType: backend.P256})
	k2, _ := create(t, tpm, backend.Spec{KeyType: backend.P256})
	other := open(t, chip, 0)
	fill := func(n int) {
		t.Helper()
		_, err := run(t.Context(), other, time.Minute, func(o *op) (int, error) {
			for range n {
				// The room that there is, and all that we make.
				if _, err := (tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(storageTemplate(false))}).Execute(o); err != nil {
					return 0, err
				}
			}
			return 0, nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	// Start over, with one slot taken.
	chip.Restart(true)
	fill(1)
	for range 3 {
		for _, k := range []*backend.Key{k1, k2} {
			if err := sign(t.Context(), k); err != nil {
				t.Fatalf("with two slots: %v", err)
			}
		}
	}
	chip.Restart(true)
	fill(2)
	err := sign(t.Context(), k1)
	checkError(t, err, backend.ErrUnavailable, "tpm2_flushcontext")
	t.Log(err)
	chip.Restart(true)
	if err := sign(t.Context(), k1); err != nil {
		t.Error(err)
	}
}

// Error paths must not leave sessions and objects behind, of which there is room for three each.
func TestNothingLeaks(t *testing.T) {
	chip := hsmtest.TPM(t)
	tpm := open(t, chip, 0)
	k, n := create(t, tpm, backend.Spec{Decrypt: true})
	wrong := n
	wrong.AuthSource = "env:SCEPKIT_TEST_AUTH"
	t.Setenv("SCEPKIT_TEST_AUTH", "wrong")
	for range 10 {
		if _, err := tpm.OpenKey(t.Context(), wrong); err == nil {
			t.Fatal("opened by a wrong value")
		}
		_ = signWith(t.Context(), k, &rsa.PSSOptions{Hash: crypto.SHA256, SaltLength: 20})
		chip.Inject(uint32(tpm2.TPMRCMemory), 1)
		_ = sign(t.Context(), k)
		if err := sign(t.Context(), k); err != nil {
			t.Fatal(err)
		}
	}
	tpm.Close()
	if s := loadedNow(t, chip); s != "" {
		t.Errorf("after Close there is in the TPM: %s", s)
	}
}

func TestSessionIsPutAside(t *testing.T) {
	chip := hsmtest.TPM(t)
	tpm := open(t, chip, 0)
	k, _ := create(t, tpm, backend.Spec{KeyType: backend.P256})
	if s := loadedNow(t, chip); !strings.Contains(s, "0x2000000") {
		t.Errorf("no session stays open: %s", s)
	}
	tpm.turnDo(func() { tpm.rest.Reset(time.Millisecond) })
	time.Sleep(100 * time.Millisecond)
	if s := loadedNow(t, chip); strings.Contains(s, "0x2000000") {
		t.Errorf("a session that nobody uses is open: %s", s)
	}
	if err := sign(t.Context(), k); err != nil {
		t.Error(err)
	}
}

// turnDo calls f when nobody else uses the TPM.
func (t *TPM) turnDo(f func()) {
	<-t.turn
	f()
	t.turn <- struct{}{}
}

// Responses that come one command late must never pass for an answer.
func TestDesync(t *testing.T) {
	chip := hsmtest.TPM(t)
	tpm := open(t, chip, 0)
	k1, n := create(t, tpm, backend.Spec{Decrypt: true})
	k2, _ := create(t, tpm, backend.Spec{KeyType: backend.P256})
	for i := range 30 {
		chip.Desync()
		// Each verifies what it gets: there is a right answer or an error.
		for _, err := range []error{sign(t.Context(), k1), unwrap(t.Context(), k1), sign(t.Context(), k2)} {
			if err != nil && !errors.Is(err, backend.ErrUnavailable) {
				t.Fatalf("round %d: %v", i, err)
			}
		}
		if i%3 == 0 { // also when nothing is loaded yet
			chip.Restart(true)
		}
		if i%5 == 0 {
			chip.Desync()
			if _, err := tpm.OpenKey(t.Context(), n); err != nil && !errors.Is(err, backend.ErrUnavailable) {
				t.Fatalf("round %d: %v", i, err)
			}
		}
	}
	if err := unwrap(t.Context(), k1); err != nil {
		t.Error(err)
	}
}

func TestHang(t *testing.T) {
	chip := hsmtest.TPM(t)
	tpm := open(t, chip, 500*time.Millisecond)
	k, _ := create(t, tpm, backend.Spec{Decrypt: true})
	release := chip.Hang()

	// A caller who has no time leaves at once, and again while the first still hangs.
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		start := time.Now()
		err := sign(ctx, k)
		cancel()
		checkError(t, err, nil, "deadline exceeded")
		if d := time.Since(start); !errors.Is(err, context.DeadlineExceeded) || d > 300*time.Millisecond {
			t.Errorf("after %v: %v", d, err)
		}
	}
	// One who has leaves when the TPM had its time.
	for _, f := range []func() error{
		func() error { return sign(t.Context(), k) },
		func() error { return unwrap(t.Context(), k) },
		func() error { return tpm.Check(t.Context()) },
		func() error { return k.Check(t.Context()) },
	} {
		start := time.Now()
		checkError(t, f(), backend.ErrUnavailable, "")
		if d := time.Since(start); d > 2*time.Second {
			t.Errorf("gave up after %v", d)
		}
	}
	release()
	// It heals by itself. What was sent while it hung is still in the way for a moment.
	deadline := time.Now().Add(10 * time.Second)
	for {
		err := unwrap(t.Context(), k)
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("not healed: %v", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err := tpm.Check(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestCloseOfAHang(t *testing.T) {
	chip := hsmtest.TPM(t)
	tpm := open(t, chip, time.Minute)
	k, _ := create(t, tpm, backend.Spec{KeyType: backend.P256})
	release := chip.Hang()
	defer release()
	done := make(chan error, 8)
	for range cap(done) {
		go func() { done <- sign(context.Background(), k) }()
	}
	time.Sleep(50 * time.Millisecond)
	start := time.Now()
	tpm.Close()
	if d := time.Since(start); d > 2*closeGrace+time.Second {
		t.Errorf("Close took %v", d)
	}
	for range cap(done) {
		select {
		case err := <-done:
			checkError(t, err, backend.ErrUnavailable, "was closed")
		case <-time.After(5 * time.Second):
			t.Fatal("a caller still waits")
		}
	}
}

func TestCloseUnderLoad(t *testing.T) {
	chip := hsmtest.TPM(t)
	tpm := open(t, chip, 0)
	k, _ := create(t, tpm, backend.Spec{Decrypt: true})
	stop, _ := load(t, func(err error) {
		if !errors.Is(err, backend.ErrUnavailable) {
			t.Error(err)
		}
		time.Sleep(time.Millisecond)
	}, k)
	time.Sleep(100 * time.Millisecond)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() { tpm.Close() })
	}
	wg.Wait()
	if s := loadedNow(t, chip); s != "" {
		t.Errorf("after Close there is in the TPM: %s", s)
	}
	stop()
}

// What a program that was killed has left in a TPM on a socket does not keep the next one out.
func TestLeftBehind(t *testing.T) {
	chip := hsmtest.TPM(t)
	device := "unix:" + chip.Listen()
	dir := t.TempDir()
	for i := range 3 {
		tpm, err := Open(Config{Device: device})
		if err != nil {
			t.Fatal(err)
		}
		for j := range 2 {
			name := Name{File: filepath.Join(dir, fmt.Sprintf("%d.tpm", j))}
			var k *backend.Key
			if i == 0 {
				k, err = tpm.Create(t.Context(), name, backend.Spec{KeyType: backend.P256})
			} else {
				k, err = tpm.OpenKey(t.Context(), name)
			}
			if err != nil {
				t.Fatalf("program %d: %v", i, err)
			}
			if _, err := k.Key.Sign(nil, make([]byte, 32), crypto.SHA256); err != nil {
				t.Fatalf("program %d: %v", i, err)
			}
		}
		tpm.line.conn.Close() // and nothing else, as if killed
	}
}
