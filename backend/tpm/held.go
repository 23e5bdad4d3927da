package tpm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/scepkit/scepkit/backend"
)

// held is what is loaded in the TPM for us. Who has the turn uses it.
type held struct {
	storage *storage
	session *session
	keys    []*loaded // used last is last
}

// maxKeys is how many keys stay loaded. With the storage key they are three, which every TPM
// holds, and a process has at /dev/tpmrm0.
const maxKeys = 2

// storageRef says which storage key is above a key.
type storageRef struct {
	handle tpm2.TPMHandle // TPM_RH_OWNER: the primary key made of a template
	rsa    bool           // the template is for RSA
}

// storage is a storage key.
type storage struct {
	ref    storageRef
	handle tpm2.TPMHandle
	public *tpm2.TPMTPublic
	name   []byte
}

// has reports whether something at h is ours.
func (l *held) has(h tpm2.TPMHandle) bool {
	if l.storage != nil && l.storage.handle == h || l.session != nil && l.session.handle == h {
		return true
	}
	return slices.ContainsFunc(l.keys, func(k *loaded) bool { return k.handle == h })
}

func (s *storage) transient() bool { return transient(s.handle) }

// loaded is a key that can be used.
type loaded struct {
	*material
	handle tpm2.TPMHandle
}

func transient(h tpm2.TPMHandle) bool { return h>>24 == 0x80 }

// execute runs a command that takes room in the TPM. If there is none, something of ours makes
// room.
func execute[R any](o *op, command func() (R, error)) (R, error) {
	for swept := false; ; {
		rsp, err := command()
		var rc tpm2.TPMRC
		if err == nil || !errors.As(err, &rc) {
			return rsp, err
		}
		freed := false
		switch rc {
		default:
			return rsp, err
		case tpm2.TPMRCObjectMemory, tpm2.TPMRCObjectHandles, tpm2.TPMRCMemory:
			freed = o.t.evict(o)
		case tpm2.TPMRCSessionMemory, tpm2.TPMRCSessionHandles, tpm2.TPMRCContextGap:
			freed = o.t.endSession(o)
		}
		if !freed && !swept {
			freed, _ = o.sweep(o.t.alone)
			swept = true
		}
		if !freed {
			return rsp, err
		}
	}
}

// evict takes the key out of the TPM that was not used for longest.
func (t *TPM) evict(o *op) bool {
	if len(t.held.keys) == 0 {
		return false
	}
	k := t.held.keys[0]
	t.held.keys = t.held.keys[1:]
	if transient(k.handle) {
		o.flush(k.handle)
	}
	return true
}

func (t *TPM) endSession(o *op) bool {
	s := t.held.session
	if s == nil {
		return false
	}
	t.held.session = nil
	o.flush(s.handle)
	return true
}

// forget takes everything of ours out of the TPM.
func (t *TPM) forget(o *op) {
	t.endSession(o)
	for t.evict(o) {
	}
	if s := t.held.storage; s != nil && s.transient() {
		o.flush(s.handle)
	}
	t.held = held{}
}

// flush takes one thing out of the TPM. Where that fails it is gone already, or the connection
// is, and what is left then is taken out when there is another: see tidy.
func (o *op) flush(h tpm2.TPMHandle) {
	// Also when nobody waits for the operation any more.
	tidying := &op{t: o.t, ctx: context.Background(), deadline: o.deadline}
	if o.t.line.conn != nil {
		if _, err := (tpm2.FlushContext{FlushHandle: h}).Execute(tidying); kindOf(err) == garbled {
			o.t.drop()
		}
	}
}

// sessionRest is how long a session stays open when nobody uses it. One that is open for long
// keeps the sessions of other processes from being put aside (TPM_RC_CONTEXT_GAP).
const sessionRest = 5 * time.Second

// putAside has the session ended when nothing uses it for a while.
func (t *TPM) putAside() {
	if t.held.session == nil {
		return
	}
	if t.rest != nil {
		t.rest.Reset(sessionRest)
		return
	}
	t.rest = time.AfterFunc(sessionRest, func() {
		select {
		case <-t.turn:
			t.endSession(&op{t: t, ctx: context.Background(), deadline: time.Now().Add(closeGrace)})
			t.turn <- struct{}{}
		default: // somebody uses it
		}
	})
}

// useStorage loads a storage key. If name is given, it must have that.
func (o *op) useStorage(ref storageRef, name []byte) (*storage, error) {
	t := o.t
	s := t.held.storage
	if s == nil || s.ref != ref {
		// Keys below another one stay: they do not need it any more.
		if t.endSession(o); s != nil && s.transient() {
			t.held.storage = nil
			o.flush(s.handle)
		}
		var err error
		if s, err = o.loadStorage(ref); err != nil {
			return nil, err
		}
		t.held.storage = s
	}
	if name != nil && !bytes.Equal(name, s.name) {
		return nil, fmt.Errorf("the storage key of the TPM has the name %x and not %x; this is another TPM, it was cleared, or somebody is between it and this program: %w", s.name, name, backend.ErrUnsupported)
	}
	return s, nil
}

func (o *op) loadStorage(ref storageRef) (*storage, error) {
	s := &storage{ref: ref}
	var public tpm2.TPM2BPublic
	var name tpm2.TPM2BName
	if ref.handle == tpm2.TPMRHOwner {
		rsp, err := execute(o, func() (*tpm2.CreatePrimaryResponse, error) {
			return tpm2.CreatePrimary{PrimaryHandle: ref.handle, InPublic: tpm2.New2B(storageTemplate(ref.rsa))}.Execute(o)
		})
		if denied(err) {
			return nil, fmt.Errorf("the owner hierarchy has a password, without which the storage key cannot be made; make it once with tpm2_createprimary, keep it with `tpm2_evictcontrol ... 0x81000001`, and make keys with parent=0x81000001 (%w): %w", err, backend.ErrPIN)
		}
		if err != nil {
			return nil, fmt.Errorf("making the storage key: %w", err)
		}
		s.handle, public, name = rsp.ObjectHandle, rsp.OutPublic, rsp.Name
	} else {
		rsp, err := o.readPublic(ref.handle)
		if missing(err) {
			return nil, fmt.Errorf("there is no storage key at %#x; make it again if the TPM was cleared: its keys are gone then: %w", uint32(ref.handle), backend.ErrUnsupported)
		}
		if err != nil {
			return nil, fmt.Errorf("reading the storage key at %#x: %w", uint32(ref.handle), err)
		}
		s.handle, public, name = ref.handle, rsp.OutPublic, rsp.Name
	}
	err := s.check(&public, name.Buffer)
	if err != nil && s.transient() {
		o.flush(s.handle)
	}
	return s, err
}

// check takes over the public half, which must belong to the name.
func (s *storage) check(public *tpm2.TPM2BPublic, name []byte) error {
	contents, err := public.Contents()
	if err != nil {
		return fmt.Errorf("reading the storage key: %w", err)
	}
	computed, err := tpm2.ObjectName(contents)
	if err != nil {
		return fmt.Errorf("reading the storage key: %w", err)
	}
	if !bytes.Equal(computed.Buffer, name) {
		return errors.New("the storage key does not have the name that the TPM says")
	}
	if a := contents.ObjectAttributes; !a.Restricted || !a.Decrypt || a.SignEncrypt {
		return fmt.Errorf("the key at %#x is not a storage key; name one: %w", uint32(s.ref.handle), backend.ErrUnsupported)
	}
	s.public, s.name = contents, name
	return nil
}

// readPublic reads the public half of a persistent key, for which the TPM takes it to where
// loaded ones are.
func (o *op) readPublic(h tpm2.TPMHandle) (*tpm2.ReadPublicResponse, error) {
	return execute(o, func() (*tpm2.ReadPublicResponse, error) { return tpm2.ReadPublic{ObjectHandle: h}.Execute(o) })
}

// missing reports whether there is nothing at a persistent handle.
func missing(err error) bool {
	var rc tpm2.TPMRC
	return errors.As(err, &rc) && (rc.Is(tpm2.TPMRCHandle) || rc.Is(tpm2.TPMRCValue) && !parameter(rc))
}

// storageTemplate is that of the TCG EK Credential Profile, templates H-1 and H-2, with an empty
// unique field. The key that a TPM makes of it is always the same.
func storageTemplate(rsa bool) tpm2.TPMTPublic {
	t := tpm2.ECCSRKTemplate
	t.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{})
	if rsa {
		t = tpm2.RSASRKTemplate
		t.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{})
	}
	return t
}

// useSession returns a session whose secret only the holder of s learns.
func (o *op) useSession(s *storage) (*session, error) {
	if o.t.held.session == nil {
		session, err := o.openSession(s.handle, s.public)
		if err != nil {
			return nil, err
		}
		o.t.held.session = session
	}
	return o.t.held.session, nil
}

// useKey loads a key, and returns it with the session that it is used in.
func (o *op) useKey(m *material) (*loaded, *session, error) {
	if m.refused != nil {
		return nil, nil, m.refused
	}
	s, err := o.useStorage(m.storage, m.pin)
	if err != nil {
		return nil, nil, err
	}
	t := o.t
	var k *loaded
	for i, have := range t.held.keys {
		if have.material == m {
			k = have
			t.held.keys = append(append([]*loaded(nil), t.held.keys[:i]...), t.held.keys[i+1:]...)
			break
		}
	}
	if k == nil {
		for len(t.held.keys) >= maxKeys && t.evict(o) {
		}
		if k, err = o.loadKey(m, s); err != nil {
			return nil, nil, err
		}
	}
	t.held.keys = append(t.held.keys, k)
	session, err := o.useSession(s)
	if err != nil {
		return nil, nil, err
	}
	return k, session, nil
}

// loadKey loads a key below its storage key, or makes sure of the one at a persistent handle.
func (o *op) loadKey(m *material, s *storage) (*loaded, error) {
	if m.persistent != 0 {
		rsp, err := o.readPublic(m.persistent)
		switch {
		case missing(err):
			return nil, fmt.Errorf("there is no key at %#x any more; the TPM was cleared, or the key removed: %w", uint32(m.persistent), backend.ErrUnsupported)
		case err != nil:
			return nil, fmt.Errorf("reading the key: %w", err)
		case !bytes.Equal(rsp.Name.Buffer, m.name):
			return nil, fmt.Errorf("there is another key at %#x now: %w", uint32(m.persistent), backend.ErrUnsupported)
		}
		return &loaded{m, m.persistent}, nil
	}
	rsp, err := execute(o, func() (*tpm2.LoadResponse, error) {
		return tpm2.Load{
			// Nothing secret is in clear, and who changes the key makes it unusable.
			ParentHandle: tpm2.AuthHandle{Handle: s.handle, Name: tpm2.TPM2BName{Buffer: s.name}, Auth: tpm2.PasswordAuth(nil)},
			InPrivate:    m.private,
			InPublic:     tpm2.BytesAs2B[tpm2.TPMTPublic](m.public),
		}.Execute(o)
	})
	switch {
	case errors.Is(err, tpm2.TPMRCIntegrity):
		return nil, fmt.Errorf("the key file was made by another TPM, or this TPM was cleared since, or the file is damaged; use the TPM that made it, or make a new key and certificate (%w): %w", err, backend.ErrUnsupported)
	case denied(err):
		return nil, fmt.Errorf("the storage key at %#x has a password; use one without (%w): %w", uint32(m.storage.handle), err, backend.ErrPIN)
	case err != nil:
		var rc tpm2.TPMRC
		if errors.As(err, &rc) && parameter(rc) {
			return nil, fmt.Errorf("this TPM cannot load the key: it does not know keys of this kind, or the file is damaged (%w): %w", err, backend.ErrUnsupported)
		}
		return nil, fmt.Errorf("loading the key: %w", err)
	case !bytes.Equal(rsp.Name.Buffer, m.name):
		o.flush(rsp.ObjectHandle)
		return nil, errors.New("another key was loaded than was asked for")
	}
	return &loaded{m, rsp.ObjectHandle}, nil
}
