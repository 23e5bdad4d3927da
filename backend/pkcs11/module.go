//go:build cgo

package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/ThalesGroup/crypto11"
	p11 "github.com/miekg/pkcs11"

	"github.com/scepkit/scepkit/backend"
)

// modules has the modules that are loaded. It is the one variable of its kind in this library:
// PKCS#11 has C_Initialize and C_Login act on the process, not on a caller.
var modules = struct {
	sync.Mutex
	byPath map[string]*module
}{}

const (
	minWait  = 100 * time.Millisecond // between two attempts to open a token again
	maxWait  = 3 * time.Second
	fullWait = 30 * time.Second // between two that disturb other tokens which work
)

// A module is a loaded library and the supervisor of all calls into it. A token can be opened
// again only when no call is inside, since the library is finalized for that: what was lost
// with its sessions, the client side of a remote token above all, does not come back otherwise.
type module struct {
	path    string
	lib     *p11.Ctx // beside crypto11's, for what that does not offer
	apart   bool     // the library gave lib a life of its own, as p11-kit's does; belongs to who settles
	timeout time.Duration
	log     *slog.Logger

	mu         sync.Mutex
	changed    chan struct{} // closed when a waiter should look again
	tokens     []*token
	generation uint64
	calls      int  // inside the library
	overdue    int  // those of them that are past their time
	stuck      bool // the last that was heard of a call is that it is overdue
	probing    bool // one call is inside to see whether it still is
	settling   bool // tokens are being opened and closed: no call may enter
	proven     bool // a call succeeded since the tokens were opened
	wait       time.Duration
	next       time.Time // no attempt to open tokens before
	nextFull   time.Time
	dead       bool // no token is left, the library is not loaded any more
}

// load returns the module at path with t among its tokens, not opened yet.
func load(path string, t *token) (*module, error) {
	real, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("pkcs11: there is no module %q; install it, or correct the path: %w", path, backend.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("pkcs11: module: %w", err)
	}
	if real, err = filepath.Abs(real); err != nil {
		return nil, fmt.Errorf("pkcs11: module: %w", err)
	}
	modules.Lock()
	defer modules.Unlock()
	if m := modules.byPath[real]; m != nil && m.add(t) {
		return m, nil
	}
	if info, err := os.Stat(real); err != nil || !info.Mode().IsRegular() {
		return nil, fmt.Errorf("pkcs11: module %q is not a file: %w", path, backend.ErrNotFound)
	}
	m := &module{path: real, lib: p11.New(real), timeout: t.c.Timeout, log: t.c.Log, changed: make(chan struct{}), tokens: []*token{t}}
	if m.lib == nil {
		return nil, fmt.Errorf("pkcs11: %q cannot be loaded as a PKCS#11 module; check it with `pkcs11-tool --module %s -L`: %w", path, path, backend.ErrUnsupported)
	}
	if modules.byPath == nil {
		modules.byPath = map[string]*module{}
	}
	modules.byPath[real] = m
	return m, nil
}

// add takes t in, unless the module is dead.
func (m *module) add(t *token) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dead {
		return false
	}
	m.tokens = append(m.tokens, t)
	return true
}

// current returns the generation of the open tokens.
func (m *module) current() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.generation
}

// wake has everybody look again. m.mu is held.
func (m *module) wake() {
	close(m.changed)
	m.changed = make(chan struct{})
}

// await gives m.mu up until something has changed or ctx ends.
func (m *module) await(ctx context.Context) error {
	changed := m.changed
	m.mu.Unlock()
	defer m.mu.Lock()
	select {
	case <-changed:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// hangs is the error while calls do not come back.
func (m *module) hangs() error {
	return fmt.Errorf("%d calls into %s have not come back in %v: %w", m.overdue, m.path, m.timeout, backend.ErrUnavailable)
}

// A call is a stay inside the library.
type call struct {
	probe bool
	timer *time.Timer
	late  chan struct{} // closed when it is overdue
	over  bool
}

// begin counts a call in, which is overdue after timeout. m.mu is held.
func (m *module) begin(probe bool, timeout time.Duration) *call {
	c := &call{probe: probe, late: make(chan struct{})}
	m.calls++
	m.probing = m.probing || probe
	c.timer = time.AfterFunc(timeout, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if c.over {
			return
		}
		close(c.late)
		m.overdue++
		if !m.stuck {
			m.log.Error("pkcs11: a call into the module hangs", "module", m.path, "timeout", timeout)
		}
		m.stuck = true
		m.wake()
	})
	return c
}

// end counts a call out. m.mu is held.
func (m *module) end(c *call) {
	c.timer.Stop()
	c.over = true
	m.calls--
	if c.probe {
		m.probing = false
	}
	select {
	case <-c.late:
		m.overdue--
		if m.overdue > 0 {
			break
		}
		m.answers()
		m.wake()
		if slices.ContainsFunc(m.tokens, func(t *token) bool { return t.closed }) && !m.settling {
			m.settle(false)
		}
	default:
		if m.stuck {
			m.answers()
			m.wake()
		}
	}
	if m.calls == 0 && m.settling {
		m.wake()
	}
}

// answers notes that the library is not stuck, or no longer. m.mu is held.
func (m *module) answers() {
	if m.stuck {
		m.log.Info("pkcs11: the module answers again", "module", m.path)
	}
	m.stuck = false
}

// run calls f, inside the library, with the context of t and its generation. It returns when f
// does, when ctx ends or when f is overdue; in the last two cases f goes on by itself, in a
// session that nobody else gets.
func (m *module) run(ctx context.Context, t *token, f func(*crypto11.Context, uint64) ([]byte, error)) ([]byte, uint64, error) {
	return m.runFor(ctx, t, m.timeout, f)
}

// runFor is run with another time after which the call is overdue.
func (m *module) runFor(ctx context.Context, t *token, timeout time.Duration, f func(*crypto11.Context, uint64) ([]byte, error)) ([]byte, uint64, error) {
	if err := t.take(ctx); err != nil {
		return nil, 0, err
	}
	m.mu.Lock()
	if err := m.ready(ctx, t); err != nil {
		m.mu.Unlock()
		t.put()
		return nil, 0, err
	}
	c := m.begin(m.stuck, timeout)
	p11ctx, generation := t.ctx, m.generation
	m.mu.Unlock()

	type result struct {
		out []byte
		err error
	}
	done := make(chan result, 1)
	go func() {
		out, err := guarded(func() ([]byte, error) { return f(p11ctx, generation) })
		m.mu.Lock()
		m.end(c)
		if err == nil {
			m.proven, m.wait = true, 0
		}
		m.mu.Unlock()
		t.put()
		t.count(err)
		done <- result{out, err}
	}()
	select {
	case r := <-done:
		return r.out, generation, r.err
	case <-ctx.Done():
		return nil, generation, context.Cause(ctx)
	case <-c.late:
		m.mu.Lock()
		defer m.mu.Unlock()
		return nil, generation, m.hangs()
	}
}

// guarded turns a panic in the library's Go side into an error: it would end the process, since
// it is not in the goroutine of a request.
func guarded(f func() ([]byte, error)) (out []byte, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("panic: %v: %w", v, backend.ErrUnavailable)
		}
	}()
	return f()
}

// ready waits until a call for t may enter, opening the token again if it is not open. m.mu is
// held.
func (m *module) ready(ctx context.Context, t *token) error {
	for {
		switch {
		case t.closed:
			return errClosed
		case m.settling && m.overdue > 0:
			return m.hangs()
		case m.settling:
			if err := m.await(ctx); err != nil {
				return err
			}
		case t.refusal != nil:
			return t.refusal
		case m.stuck && m.probing, m.overdue > 0 && t.ctx == nil:
			return m.hangs()
		case t.ctx != nil:
			return nil
		case time.Now().Before(m.next):
			return unavailable(t.down)
		default:
			m.settle(false)
		}
	}
}

var errClosed = fmt.Errorf("token was closed: %w", backend.ErrUnavailable)

// reopen opens the tokens again unless that was done since generation, in which cause happened.
// It returns nil if t can then be used.
func (m *module) reopen(ctx context.Context, t *token, generation uint64, cause error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for m.settling && m.overdue == 0 {
		if err := m.await(ctx); err != nil {
			return err
		}
	}
	if !m.settling && m.generation == generation && t.ctx != nil {
		if m.overdue > 0 {
			return m.hangs()
		}
		if !m.proven && time.Now().Before(m.next) {
			return fmt.Errorf("%w, as before the token was opened again: %w", cause, backend.ErrUnavailable)
		}
		m.log.Warn("pkcs11: the token is lost and is opened again", "module", m.path, "token", t.c.String(), "cause", cause)
		m.settle(true)
	}
	return m.ready(ctx, t)
}

// settle has a goroutine of its own close and open tokens as they should be: those closed by
// their users are closed, and those that are not open are opened. If again is true, all are
// closed and opened again. Others wait by m.settling. m.mu is held.
func (m *module) settle(again bool) {
	m.settling = true
	go func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		defer m.wake()
		defer func() {
			m.settling = false
			if slices.ContainsFunc(m.tokens, func(t *token) bool { return t.closed && t.ctx != nil }) && m.overdue == 0 {
				m.settle(false) // closed meanwhile
			}
		}()
		for m.calls > 0 && m.overdue == 0 {
			_ = m.await(context.Background()) // begin's timer bounds it
		}
		if m.overdue > 0 {
			return
		}
		now := time.Now()
		working := func(t *token) bool { return t.ctx != nil }
		if !slices.ContainsFunc(m.tokens, working) || slices.ContainsFunc(m.tokens, func(t *token) bool { return t.ctx == nil && t.down != nil }) && now.After(m.nextFull) {
			again = true
		}
		if again {
			m.nextFull = now.Add(fullWait)
		}
		tokens := slices.Clone(m.tokens)
		var closed []bool
		for _, t := range tokens {
			closed = append(closed, t.closed)
		}
		c := m.begin(false, m.timeout)
		m.mu.Unlock()
		results := m.rebuild(tokens, closed, again)
		m.mu.Lock()
		m.end(c)

		m.generation++
		m.proven = false
		if m.wait = 2 * m.wait; m.wait < minWait {
			m.wait = minWait
		}
		m.wait = min(m.wait, maxWait)
		m.next = time.Now().Add(m.wait - rand.N(m.wait/2))
		for i, t := range tokens {
			if !closed[i] {
				m.note(t, results[i])
			}
		}
		m.tokens = slices.DeleteFunc(m.tokens, func(t *token) bool { return t.closed && t.ctx == nil })
		m.unloadIfUnused()
	}()
}

// note keeps how opening t came out. m.mu is held.
func (m *module) note(t *token, err error) {
	known := t.reopened.Load() > 0 // to who opened it; Open returns its error
	switch {
	case err == nil:
		if t.down != nil {
			m.log.Info("pkcs11: the token is open again", "module", m.path, "token", t.c.String())
		}
		t.down = nil
	case errors.Is(err, backend.ErrPIN):
		if known {
			m.log.Error("pkcs11: the PIN is not tried again", "module", m.path, "token", t.c.String(), "cause", err)
		}
	default:
		if t.down == nil && known {
			m.log.Warn("pkcs11: the token cannot be opened", "module", m.path, "token", t.c.String(), "cause", err)
		}
		t.down = err
	}
}

// join has lib share what crypto11 has started. Most libraries are one in a process; one that
// gives each user its own is started for lib too, and wants a login of its own.
func (m *module) join() error {
	if m.apart {
		return nil
	}
	switch err := m.lib.Initialize(); code(err) {
	case p11.CKR_CRYPTOKI_ALREADY_INITIALIZED:
		return nil
	case p11.CKR_OK:
		m.apart = err == nil
		return err
	default:
		return err
	}
}

// part undoes join.
func (m *module) part() {
	if m.apart {
		m.lib.Finalize()
		m.apart = false
	}
}

// rebuild closes and opens tokens, and returns how that came out for each. No other call is
// inside the library.
func (m *module) rebuild(tokens []*token, closed []bool, again bool) []error {
	for i, t := range tokens {
		if t.ctx != nil && (again || closed[i]) {
			t.ctx.Close() // waits for sessions in use, and there are none; always returns nil
			t.ctx = nil
		}
	}
	if !slices.ContainsFunc(tokens, func(t *token) bool { return t.ctx != nil }) {
		m.part()
	}
	results := make([]error, len(tokens))
	for i, t := range tokens {
		if closed[i] || t.ctx != nil || t.refusal != nil {
			continue
		}
		_, err := guarded(func() ([]byte, error) { return nil, t.configure(m, tokens) })
		if results[i] = err; errors.Is(err, backend.ErrPIN) {
			t.refusal = err // which the next may have to know
		}
	}
	return results
}

// unloadIfUnused lets the library go with its last token. m.mu is held.
func (m *module) unloadIfUnused() {
	if len(m.tokens) > 0 || m.dead {
		return
	}
	m.dead = true
	m.lib.Destroy()
	go func() { // modules is locked before m.mu elsewhere
		modules.Lock()
		defer modules.Unlock()
		if modules.byPath[m.path] == m {
			delete(modules.byPath, m.path)
		}
	}()
}
