package scep_test

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// A hanging is a depot that hangs for a while and then fails.
type hanging struct {
	scep.Depot
	hangs  func(op string) bool
	hung   atomic.Int64
	waited atomic.Int64 // reads that were made with time to wait for them
	begun  chan string
	let    chan struct{}
}

func newHanging(hangs func(op string) bool) *hanging {
	return &hanging{Depot: &depot.Memory{}, hangs: hangs, begun: make(chan string, 100), let: make(chan struct{})}
}

var errHangs = errors.New("hangs")

func (d *hanging) hang(op string) error {
	if !d.hangs(op) {
		return nil
	}
	d.hung.Add(1)
	d.begun <- op
	<-d.let
	return errHangs
}

func (d *hanging) Get(ctx context.Context, id scep.ID) (*scep.Record, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	d.waited.Add(1)
	if err := d.hang("Get"); err != nil {
		return nil, err
	}
	return d.Depot.Get(ctx, id)
}

func (d *hanging) Update(ctx context.Context, rec *scep.Record) error {
	if err := d.hang("Update"); err != nil {
		return err
	}
	return d.Depot.Update(ctx, rec)
}

func (d *hanging) handler(t *testing.T) (*scep.Handler, *scep.Identity) {
	t.Helper()
	ca := sceptest.NewCA(t)
	h, err := scep.New(scep.Config{CA: ca, Depot: d, Challenge: quick("secret"), Log: silent})
	if err != nil {
		t.Fatal(err)
	}
	return h, ca
}

// TestHangOnce sends one message many times at once while the depot hangs: those that wait for each
// other are answered together, and not one after the other.
func TestHangOnce(t *testing.T) {
	var away atomic.Bool
	away.Store(true)
	d := newHanging(func(op string) bool { return op == "Get" && away.Load() })
	h, ca := d.handler(t)
	dev := newDevice(t, sceptest.RSA(0), "hang", "secret")
	msg := dev.pkcsReq(t, ca.Certificate())
	var wg sync.WaitGroup
	send := func() {
		wg.Go(func() {
			if a := dev.send(t, h, msg, ca.Certificate()); a.http != http.StatusServiceUnavailable {
				t.Error(a)
			}
		})
	}
	send()
	<-d.begun
	const more = 8
	for range more {
		send()
	}
	for h.Waiting() < more {
		time.Sleep(time.Millisecond)
	}
	close(d.let)
	wg.Wait()
	if n := d.hung.Load(); n != 1 {
		t.Errorf("%d messages waited for the depot, want 1", n)
	}
	away.Store(false)
	if a := dev.send(t, h, msg, ca.Certificate()); a.cert == nil {
		t.Error(a)
	}
}

// TestHangTwice has a write hang that may have happened: what has become of it is not waited for
// as well.
func TestHangTwice(t *testing.T) {
	var away atomic.Bool
	d := newHanging(func(op string) bool { return op == "Update" && away.Load() })
	h, ca := d.handler(t)
	dev := newDevice(t, sceptest.RSA(0), "hang", "secret")
	msg := dev.pkcsReq(t, ca.Certificate())
	away.Store(true)
	go func() {
		<-d.begun
		time.Sleep(1100 * time.Millisecond)
		close(d.let)
	}()
	if a := dev.send(t, h, msg, ca.Certificate()); a.http != http.StatusServiceUnavailable {
		t.Error(a)
	}
	if n := d.waited.Load(); n != 1 { // that before the record was made
		t.Errorf("%d reads were waited for, want 1", n)
	}
	away.Store(false)
	if a := dev.send(t, h, msg, ca.Certificate()); a.cert == nil {
		t.Error(a)
	}
}
