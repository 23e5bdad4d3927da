//go:build cgo

package pkcs11

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"

	"github.com/ThalesGroup/crypto11"
	p11 "github.com/miekg/pkcs11"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/scep"
)

// A token is one that somebody opened. It implements impl.
type token struct {
	c     Config
	m     *module
	slots chan struct{} // holds an element for each session in use

	// m.mu guards these; while m.settling they belong to the goroutine that settles.
	ctx     *crypto11.Context // nil while it is not open
	slot    uint              // where the token was found last
	closed  bool
	refusal error // the PIN was refused
	down    error // why it could not be opened
	keys    []*device

	operations, failures, reopened, logins atomic.Uint64
}

func open(c Config) (impl, error) {
	t := &token{c: c, slots: make(chan struct{}, c.Sessions)}
	m, err := load(c.Module, t)
	if err != nil {
		return nil, err
	}
	t.m = m
	ctx, cancel := context.WithTimeout(context.Background(), 2*c.Timeout)
	defer cancel()
	m.mu.Lock()
	m.next = m.next.Add(-maxWait) // a new token does not wait for others
	err = m.ready(ctx, t)
	if errors.Is(t.down, backend.ErrNotFound) && len(m.tokens) > 1 && !m.settling && m.overdue == 0 {
		m.settle(true) // a library sees a new token only when it starts
		err = m.ready(ctx, t)
	}
	m.mu.Unlock()
	if err == nil {
		return t, nil
	}
	m.mu.Lock()
	if t.down != nil {
		err = t.down // without saying that it may be otherwise in a moment
	}
	m.mu.Unlock()
	if cause := t.close(); cause != nil {
		err = errors.Join(err, cause)
	}
	return nil, fmt.Errorf("pkcs11: %w", err)
}

// take waits for a session.
func (t *token) take(ctx context.Context) error {
	t.m.mu.Lock()
	defer t.m.mu.Unlock()
	for {
		if t.closed {
			return errClosed
		}
		select {
		case t.slots <- struct{}{}:
			return nil
		default:
		}
		if t.m.stuck {
			return t.m.hangs()
		}
		changed := t.m.changed
		t.m.mu.Unlock()
		var err error
		taken := false
		select {
		case t.slots <- struct{}{}: // in order of arrival
			taken = true
		case <-changed:
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
		t.m.mu.Lock()
		if taken || err != nil {
			return err
		}
	}
}

func (t *token) put() { <-t.slots }

// count keeps the score of operations.
func (t *token) count(err error) {
	t.operations.Add(1)
	if err != nil && (classOf(err) == lost || classOf(err) == refused) {
		t.failures.Add(1)
	}
}

// configure finds the token, logs in once and leaves t.ctx open. No call is inside the library.
func (t *token) configure(m *module, others []*token) error {
	loaded := m.apart
	for _, o := range others {
		loaded = loaded || o.ctx != nil
	}
	slot, info, err := t.find(m, loaded)
	if err != nil {
		return err
	}
	pin := t.c.PIN.Reveal()
	switch wants := info.Flags&p11.CKF_LOGIN_REQUIRED != 0; {
	case info.Flags&p11.CKF_USER_PIN_LOCKED != 0:
		return fmt.Errorf("the PIN of %s is locked; have the security officer set a new one: %w", describe(slot, info), backend.ErrPIN)
	case info.Flags&p11.CKF_USER_PIN_FINAL_TRY != 0:
		return fmt.Errorf("%s takes one more PIN and would then lock, so it was not tried; log in once by hand with the right PIN: %w", describe(slot, info), backend.ErrPIN)
	case info.Flags&p11.CKF_USER_PIN_INITIALIZED == 0 && wants:
		return fmt.Errorf("%s has no user PIN yet; have the security officer set one: %w", describe(slot, info), backend.ErrPIN)
	case wants && pin == "" && info.Flags&p11.CKF_PROTECTED_AUTHENTICATION_PATH == 0:
		return fmt.Errorf("%s wants a PIN and none was given: %w", describe(slot, info), backend.ErrPIN)
	}
	t.slot = slot
	for _, o := range others {
		same := subtle.ConstantTimeCompare([]byte(o.c.PIN.Reveal()), []byte(pin)) == 1
		switch {
		case o == t || o.slot != slot:
		case o.ctx != nil && !same: // a token that is logged in takes any PIN
			return fmt.Errorf("%s is open already in this program with another PIN: %w", describe(slot, info), backend.ErrPIN)
		case o.refusal != nil && same:
			return o.refusal
		}
	}

	number := int(slot)
	config := &crypto11.Config{
		Path:              m.path,
		SlotNumber:        &number,
		Pin:               pin,
		MaxSessions:       t.c.Sessions + 1, // crypto11 keeps one to stay logged in
		PoolWaitTimeout:   t.c.Timeout,
		LoginNotSupported: info.Flags&p11.CKF_LOGIN_REQUIRED == 0,
	}
	if t.c.Sessions == 1 {
		config.MaxSessions = 3 // its least; t.slots has the say
	}
	if !config.LoginNotSupported {
		t.logins.Add(1)
	}
	ctx, err := crypto11.Configure(config)
	config.Pin = "" // which crypto11 would keep
	if err != nil {
		return t.explain(err, slot, info)
	}
	if err := m.join(); err != nil {
		ctx.Close()
		return t.explainModule(err)
	}
	if now, err := m.lib.GetTokenInfo(slot); err != nil || trim(now.SerialNumber) != info.SerialNumber || trim(now.Label) != info.Label {
		ctx.Close()
		return fmt.Errorf("the token in slot %d changed while it was opened (%v): %w", slot, err, backend.ErrUnavailable)
	}
	t.ctx = ctx
	t.reopened.Add(1)
	return nil
}

// explain says what an error of opening a token means.
func (t *token) explain(err error, slot uint, info p11.TokenInfo) error {
	what, code := describe(slot, info), code(err)
	switch {
	case code == p11.CKR_PIN_LOCKED:
		return fmt.Errorf("the PIN of %s is locked; have the security officer set a new one: %w: %w", what, err, backend.ErrPIN)
	case code == p11.CKR_PIN_EXPIRED:
		return fmt.Errorf("the PIN of %s has expired; set a new one: %w: %w", what, err, backend.ErrPIN)
	case classOf(err) == refused:
		return fmt.Errorf("%s refused the PIN. It is not tried again, since tokens lock after a few; correct the PIN: %w: %w", what, err, backend.ErrPIN)
	case code == p11.CKR_CRYPTOKI_ALREADY_INITIALIZED:
		return fmt.Errorf("another part of this program uses the module %s; let only one use it: %w: %w", t.m.path, err, backend.ErrUnsupported)
	}
	return fmt.Errorf("opening %s: %w: %w", what, err, backend.ErrUnavailable)
}

// find returns the one token that the configuration names. loaded says that the library is
// initialized; otherwise it is so for the length of this call, as crypto11 insists on doing it
// itself.
func (t *token) find(m *module, loaded bool) (slot uint, info p11.TokenInfo, err error) {
	if !loaded {
		if err := m.lib.Initialize(); err != nil {
			return 0, info, t.explainModule(err)
		}
		defer m.lib.Finalize()
	}
	slots, err := m.lib.GetSlotList(true)
	if err != nil {
		return 0, info, fmt.Errorf("listing the slots of %s: %w: %w", m.path, err, backend.ErrUnavailable)
	}
	var found, all []string
	for _, s := range slots {
		i, err := m.lib.GetTokenInfo(s)
		if err != nil || i.Flags&p11.CKF_TOKEN_INITIALIZED == 0 {
			continue
		}
		i.Label, i.SerialNumber = trim(i.Label), trim(i.SerialNumber)
		i.ManufacturerID, i.Model = trim(i.ManufacturerID), trim(i.Model)
		all = append(all, describe(s, i))
		if t.matches(s, i) {
			found = append(found, describe(s, i))
			slot, info = s, i
		}
	}
	switch len(found) {
	case 1:
		return slot, info, nil
	case 0:
		there := "there is none"
		if len(all) > 0 {
			there = "there are " + strings.Join(all, ", ")
		}
		return 0, info, fmt.Errorf("%s not found in slot list of %s (%s); correct the name, plug the token in, or initialize it with the tool of its maker: %w", t.c.String(), m.path, there, backend.ErrNotFound)
	}
	return 0, info, fmt.Errorf("%s is more than one: %s; name the serial number as well: %w", t.c.String(), strings.Join(found, ", "), backend.ErrAmbiguous)
}

// explainModule says what an error of C_Initialize means.
func (t *token) explainModule(err error) error {
	if code(err) == p11.CKR_CRYPTOKI_ALREADY_INITIALIZED {
		return fmt.Errorf("another part of this program uses the module %s; let only one use it: %w: %w", t.m.path, err, backend.ErrUnsupported)
	}
	return fmt.Errorf("the module %s does not start: %w; check its configuration with `pkcs11-tool --module %s -L`: %w", t.m.path, err, t.m.path, backend.ErrUnavailable)
}

func (t *token) matches(slot uint, i p11.TokenInfo) bool {
	for _, p := range []struct{ want, is string }{
		{t.c.Token, i.Label}, {t.c.Serial, i.SerialNumber}, {t.c.Manufacturer, i.ManufacturerID}, {t.c.Model, i.Model},
	} {
		if p.want != "" && p.want != p.is {
			return false
		}
	}
	return t.c.Slot == nil || *t.c.Slot == slot
}

// trim drops what pads the fixed fields of PKCS#11.
func trim(s string) string { return strings.TrimRight(s, " \x00") }

func describe(slot uint, i p11.TokenInfo) string {
	return fmt.Sprintf("token %q (serial %s, slot %d)", trim(i.Label), trim(i.SerialNumber), slot)
}

func (t *token) login(ctx context.Context, pin scep.Secret) error {
	m := t.m
	m.mu.Lock()
	defer m.mu.Unlock()
	for m.settling && m.overdue == 0 {
		if err := m.await(ctx); err != nil {
			return err
		}
	}
	if m.settling {
		return fmt.Errorf("pkcs11: %w", m.hangs())
	}
	if t.refusal == nil {
		return fmt.Errorf("pkcs11: the PIN of %s was not refused, so there is nothing to log in to", t.c.String())
	}
	t.c.PIN, t.refusal = pin, nil
	m.next = m.next.Add(-maxWait)
	if err := m.ready(ctx, t); err != nil {
		return fmt.Errorf("pkcs11: %w", err)
	}
	return nil
}

func (t *token) check(ctx context.Context) error {
	t.m.mu.Lock()
	if len(t.keys) == 0 {
		defer t.m.mu.Unlock()
		if err := t.m.ready(ctx, t); err != nil {
			return fmt.Errorf("pkcs11: %w", err)
		}
		return nil
	}
	keys := t.keys
	t.m.mu.Unlock()
	for _, k := range keys {
		if err := k.check(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (t *token) stats() Stats {
	t.m.mu.Lock()
	defer t.m.mu.Unlock()
	s := Stats{
		Operations: t.operations.Load(), Failures: t.failures.Load(), Logins: t.logins.Load(),
		Reopened: t.reopened.Load(), Inside: t.m.calls, Overdue: t.m.overdue,
	}
	if s.Reopened > 0 {
		s.Reopened-- // the first time was no repetition
	}
	return s
}

func (t *token) close() error {
	m := t.m
	m.mu.Lock()
	defer m.mu.Unlock()
	first := !t.closed
	t.closed = true
	if first {
		m.wake()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*m.timeout)
	defer cancel()
	for {
		switch {
		case m.settling && m.overdue > 0:
			return fmt.Errorf("pkcs11: closing %s: %w", t.c.String(), m.hangs())
		case m.settling:
			if err := m.await(ctx); err != nil {
				return fmt.Errorf("pkcs11: closing %s: %w", t.c.String(), m.hangs())
			}
		case m.dead || !m.has(t):
			return nil
		case m.overdue > 0:
			return fmt.Errorf("pkcs11: closing %s: %w", t.c.String(), m.hangs())
		default:
			m.settle(false)
		}
	}
}

// has reports whether t is still a token of m. m.mu is held.
func (m *module) has(t *token) bool {
	for _, o := range m.tokens {
		if o == t {
			return true
		}
	}
	return false
}
