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

	// What was in the TPM when the connection began. After a connection that broke, all else
	// that is there came from us: also that whose handle we did not live to see.
	before map[tpm2.TPMHandle]bool
	broke  bool
}

// maxStuck is how many commands may hang in a device that cannot be interrupted.
const maxStuck = 4

// op is one operation, for which it is the transport. Nothing of it is used after its turn.
type op struct {
	t        *TPM
	ctx      context.Context // its end stops the operation before the next command
	deadline time.Time       // at which the command that runs is abandoned
	second   bool            // the operation failed once for what may have been lost
}

// run runs f when its turn comes. If ctx ends before f does, run returns, and what f has begun
// goes on without it, so that a caller who loses patience does not cost the others the
// connection.
func run[T any](ctx context.Context, t *TPM, timeout time.Duration, f func(*op) (T, error)) (T, error) {
	var none T
	busy := fmt.Errorf("it did not come to an answer within %v; if that goes on, restart what is in between, or the computer: %w", timeout, backend.ErrUnavailable)
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
		if kind == garbled {
			o.t.drop()
		}
		if kind == lost {
			o.t.forget(o)
		}
		if o.second || kind != garbled && kind != lost || o.over() != nil {
			return v, explain(err)
		}
		o.second = true
	}
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
			return nil, &garbledError{errors.New("the connection is gone")}
		}
		response, err := o.exchange(command)
		if err != nil {
			o.t.drop()
			return nil, &garbledError{err}
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
		return none, fmt.Errorf("%d commands hang in the device", maxStuck)
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

// tidy takes out of the TPM what a connection that broke has left in it. The kernel does that
// itself; a TPM on a socket would soon be full.
func (o *op) tidy() error {
	l := &o.t.line
	before := map[tpm2.TPMHandle]bool{}
	for _, first := range []uint32{0x80000000, 0x02000000} { // loaded objects, loaded sessions
		handles, err := o.handles(first)
		if err != nil {
			return err
		}
		for _, h := range handles {
			if l.broke && !l.before[h] {
				if _, err := (tpm2.FlushContext{FlushHandle: h}).Execute(o); kindOf(err) == garbled {
					return err
				}
				continue
			}
			before[h] = true
		}
	}
	l.before, l.broke = before, false
	return nil
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
		return nil, &garbledError{err}
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
