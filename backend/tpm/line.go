package tpm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/scepkit/scepkit/backend"
)

// line is the connection to the TPM. Who has the turn uses it.
type line struct {
	conn io.ReadWriteCloser // nil: none

	// What was in the TPM when the first connection since its last start began. If a connection
	// broke since, all else that is there came from us: also that whose handle we did not live
	// to see.
	start  start
	before map[tpm2.TPMHandle]bool
	broke  bool
}

// start tells one start of the TPM from another.
type start struct{ resets, restarts uint32 }

// maxStuck is how many commands may hang in a device that cannot be interrupted.
const maxStuck = 4

// op is one operation, for which it is the transport. Nothing of it is used after its turn.
type op struct {
	t        *TPM
	ctx      context.Context // its end stops the operation before the next command
	deadline time.Time       // at which the command that runs is abandoned
	second   bool            // the operation failed once for what may have been lost
	sent     int             // commands
}

// run runs f when its turn comes. If ctx ends before f does, run returns, and what f has begun
// goes on without it, so that a caller who loses patience does not cost the others the
// connection.
func run[T any](ctx context.Context, t *TPM, timeout time.Duration, f func(*op) (T, error)) (T, error) {
	var none T
	busy := fmt.Errorf("the TPM did not get to answer within %v; if that goes on, restart the computer: %w", timeout, backend.ErrUnavailable)
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, busy)
	select {
	case <-t.turn:
	case <-t.closed:
		cancel()
		return none, errClosed
	case <-ctx.Done():
		defer cancel()
		return none, ended(ctx)
	}
	select {
	case <-t.closed: // and the turn was there too
		t.turn <- struct{}{}
		cancel()
		return none, errClosed
	default:
	}

	type result struct {
		v   T
		err error
	}
	done := make(chan result, 1)
	go func() {
		o := &op{t: t, ctx: ctx, deadline: time.Now().Add(timeout)}
		v, err := attempt(o, f)
		t.putAside()
		t.turn <- struct{}{}
		done <- result{v, err}
	}()
	select {
	case r := <-done:
		cancel()
		return r.v, r.err
	case <-ctx.Done():
	}
	defer cancel()
	select {
	case r := <-done:
		return r.v, r.err
	default:
		return none, ended(ctx)
	}
}

// attempt runs f, and once more if it failed for what a restart of the TPM or a broken
// connection takes away.
func attempt[T any](o *op, f func(*op) (T, error)) (v T, err error) {
	for {
		if err = o.connect(); err == nil {
			v, err = f(o)
		}
		if err == nil {
			return v, nil
		}
		kind := kindOf(err)
		if garbage := o.doubt(err); garbage != nil {
			kind, err = garbled, garbage
		}
		switch kind {
		case garbled:
			o.t.drop()
		case lost:
			o.reload()
		}
		if o.second || kind != garbled && kind != lost || o.over() != nil {
			return v, explain(err)
		}
		o.second = true
	}
}

// doubt asks whether an error of the TPM, which carries no HMAC, was the answer to our command,
// and reports why not: what comes back may be one command late.
func (o *op) doubt(err error) error {
	var rc tpm2.TPMRC
	if o.t.line.conn == nil || o.sent == 0 || !errors.As(err, &rc) {
		return nil
	}
	if err := o.ping(); kindOf(err) == garbled {
		return err
	}
	return nil
}

// over reports why no further command is sent.
func (o *op) over() error {
	select {
	case <-o.t.kill:
		return errClosed
	default:
	}
	if o.ctx.Err() != nil {
		return ended(o.ctx)
	}
	return nil
}

// ended returns why ctx ended. A cause that a caller has set is not lost, nor that it was the end
// of his context: otherwise it could be taken for an error of the key.
func ended(ctx context.Context) error {
	cause := context.Cause(ctx)
	if errors.Is(cause, ctx.Err()) || errors.Is(cause, backend.ErrUnavailable) {
		return cause
	}
	return fmt.Errorf("%w (%w)", cause, ctx.Err())
}

// Send implements transport.TPM.
func (o *op) Send(command []byte) ([]byte, error) {
	for wait := 2 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		if err := o.over(); err != nil {
			return nil, err
		}
		if o.t.line.conn == nil {
			return nil, errors.New("the connection is gone")
		}
		o.sent++
		response, err := o.exchange(command)
		if err != nil {
			o.t.drop()
			return nil, err
		}
		switch tpm2.TPMRC(binary.BigEndian.Uint32(response[6:])) {
		case tpm2.TPMRCRetry, tpm2.TPMRCTesting, tpm2.TPMRCYielded, tpm2.TPMRCNVRate:
		default:
			return response, nil
		}
		if time.Until(o.deadline) < wait {
			return response, nil
		}
		if err := o.sleep(wait); err != nil {
			return nil, err
		}
	}
}

func (o *op) sleep(d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-o.t.kill:
		return errClosed
	case <-o.ctx.Done():
		return ended(o.ctx)
	}
}

// exchange sends one command and waits for its response until the deadline. A goroutine does
// it, because not every connection can be interrupted.
func (o *op) exchange(command []byte) ([]byte, error) {
	conn := o.t.line.conn
	return await(o, func() ([]byte, error) { return roundTrip(conn, command) }, func([]byte) {})
}

// await runs f until the deadline. If f is still running then, late gets what it returns.
func await[T any](o *op, f func() (T, error), late func(T)) (T, error) {
	var none T
	if o.t.stuck.Load() >= maxStuck {
		return none, fmt.Errorf("the TPM answers nothing any more, and %d commands hang in it; restart the computer", maxStuck)
	}
	type result struct {
		v   T
		err error
	}
	done := make(chan result, 1)
	go func() {
		v, err := f()
		done <- result{v, err}
	}()
	timer := time.NewTimer(time.Until(o.deadline))
	defer timer.Stop()
	why := errClosed
	select {
	case r := <-done:
		return r.v, r.err
	case <-timer.C:
		why = errors.New("no answer came in time")
	case <-o.t.kill:
	}
	o.t.stuck.Add(1)
	go func() {
		r := <-done
		o.t.stuck.Add(-1)
		if r.err == nil {
			late(r.v)
		}
	}()
	return none, why
}

// connect makes a connection if there is none.
func (o *op) connect() error {
	t := o.t
	if t.line.conn != nil {
		return nil
	}
	if err := o.over(); err != nil {
		return err
	}
	ctx, cancel := context.WithDeadline(context.Background(), o.deadline)
	defer cancel()
	conn, err := await(o, func() (io.ReadWriteCloser, error) { return t.dial(ctx) }, func(c io.ReadWriteCloser) { c.Close() })
	if err != nil {
		return fmt.Errorf("connecting: %w", err)
	}
	t.line.conn = conn
	return o.tidy()
}

// tidy takes out of the TPM what a connection that broke has left in it, unless it was started
// since. The kernel does that itself; a TPM on a socket would soon be full.
func (o *op) tidy() error {
	l := &o.t.line
	again, err := o.restarted()
	if err != nil {
		return err
	}
	if !again && l.before != nil {
		_, err := o.sweep(false)
		return err
	}
	l.before, l.broke = map[tpm2.TPMHandle]bool{}, false
	all, err := o.all()
	for _, h := range all {
		l.before[h] = true
	}
	return err
}

// restarted reports whether the TPM was started since this was last asked.
func (o *op) restarted() (bool, error) {
	rsp, err := tpm2.ReadClock{}.Execute(o)
	if err != nil {
		return false, err
	}
	info := rsp.CurrentTime.ClockInfo
	now := start{info.ResetCount, info.RestartCount}
	again := now != o.t.line.start
	o.t.line.start = now
	return again, nil
}

// reload has everything loaded again when it is needed.
func (o *op) reload() {
	again, err := o.restarted()
	switch {
	case err != nil:
		o.t.drop()
	case again: // what is at our handles now is not ours
		o.t.held = held{}
		o.t.line.before = nil
		if o.tidy() != nil {
			o.t.drop()
		}
	default:
		o.t.forget(o)
	}
}

// sweep takes out of the TPM what connections that broke have left in it. A command that was
// under way when one broke may have been carried out later than the next one began. If others is
// true, it takes out what is not ours, too.
func (o *op) sweep(others bool) (found bool, err error) {
	l := &o.t.line
	if !l.broke && !others {
		return false, nil
	}
	all, err := o.all()
	if err != nil {
		return false, err
	}
	for _, h := range all {
		if (others || !l.before[h]) && !o.t.held.has(h) {
			o.flush(h)
			found = true
		}
	}
	return found, o.over()
}

// all lists the objects and sessions that are loaded.
func (o *op) all() ([]tpm2.TPMHandle, error) {
	objects, err := o.handles(0x80000000)
	if err != nil {
		return nil, err
	}
	sessions, err := o.handles(0x02000000)
	return append(objects, sessions...), err
}

// handles lists what is in the TPM from a handle on. A TPM that does not tell has nothing.
func (o *op) handles(first uint32) ([]tpm2.TPMHandle, error) {
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 64}.Execute(o)
	if kindOf(err) == garbled {
		return nil, err
	}
	if err != nil {
		return nil, o.over()
	}
	list, err := rsp.CapabilityData.Data.Handles()
	if err != nil {
		return nil, err
	}
	var out []tpm2.TPMHandle
	for _, h := range list.Handle {
		if uint32(h)>>24 == first>>24 { // lists go on with what is next
			out = append(out, h)
		}
	}
	return out, nil
}

// drop gives up the connection, and with it what was loaded through it.
func (t *TPM) drop() {
	if conn := t.line.conn; conn != nil {
		// Closing may wait for a command that hangs.
		go conn.Close()
		t.line.conn = nil
		t.line.broke = true
	}
	t.held = held{}
}
