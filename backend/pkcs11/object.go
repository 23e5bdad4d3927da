//go:build cgo

package pkcs11

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"strings"

	"github.com/ThalesGroup/crypto11"
	p11 "github.com/miekg/pkcs11"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/backend/internal/custody"
)

// A session is one of our own beside crypto11's pool, for looking around.
type session struct {
	lib  *p11.Ctx
	slot uint
	h    p11.SessionHandle
}

// look calls f with a session, inside the library, and once more if the token had to be opened
// again before.
func (t *token) look(ctx context.Context, f func(*session) error) error {
	t.m.mu.Lock()
	pin := t.c.PIN
	t.m.mu.Unlock()
	for try := 0; ; try++ {
		_, generation, err := t.m.run(ctx, t, func(*crypto11.Context, uint64) ([]byte, error) {
			h, err := t.m.lib.OpenSession(t.slot, p11.CKF_SERIAL_SESSION|p11.CKF_RW_SESSION)
			if err != nil {
				return nil, err
			}
			defer t.m.lib.CloseSession(h)
			if t.m.apart {
				t.logins.Add(1)
				if err := t.m.lib.Login(h, p11.CKU_USER, pin.Reveal()); err != nil && code(err) != p11.CKR_USER_ALREADY_LOGGED_IN {
					return nil, err
				}
			}
			return nil, f(&session{t.m.lib, t.slot, h})
		})
		if err == nil || try > 0 || classOf(err) != lost {
			return err
		}
		if err := t.m.reopen(ctx, t, generation, err); err != nil {
			return err
		}
	}
}

// find returns the objects of a class that have the id and the label given, if any.
func (s *session) find(class uint, n keyName) ([]p11.ObjectHandle, error) {
	template := []*p11.Attribute{p11.NewAttribute(p11.CKA_CLASS, class)}
	if n.id != nil {
		template = append(template, p11.NewAttribute(p11.CKA_ID, n.id))
	}
	if n.label != "" {
		template = append(template, p11.NewAttribute(p11.CKA_LABEL, n.label))
	}
	if err := s.lib.FindObjectsInit(s.h, template); err != nil {
		return nil, err
	}
	var all []p11.ObjectHandle
	for len(all) < 10_000 {
		some, _, err := s.lib.FindObjects(s.h, 100)
		if err != nil {
			return nil, errors.Join(err, s.lib.FindObjectsFinal(s.h))
		}
		if len(some) == 0 {
			break
		}
		all = append(all, some...)
	}
	return all, s.lib.FindObjectsFinal(s.h)
}

// get returns an attribute, or nil if the object has none. Each is asked for alone: tokens
// give none of several if they do not know one.
func (s *session) get(o p11.ObjectHandle, attribute uint) []byte {
	list, err := s.lib.GetAttributeValue(s.h, o, []*p11.Attribute{p11.NewAttribute(attribute, nil)})
	if err != nil || len(list) == 0 {
		return nil
	}
	return list[0].Value
}

// is reports whether an attribute is true, and whether the object has it.
func (s *session) is(o p11.ObjectHandle, attribute uint) (value, ok bool) {
	b := s.get(o, attribute)
	return len(b) > 0 && b[0] != 0, len(b) > 0
}

// number returns an attribute that is a CK_ULONG.
func (s *session) number(o p11.ObjectHandle, attribute uint) (uint, bool) {
	switch b := s.get(o, attribute); len(b) {
	case 8:
		return uint(binary.NativeEndian.Uint64(b)), true
	case 4:
		return uint(binary.NativeEndian.Uint32(b)), true
	}
	return 0, false
}

// A found is a private key as the token describes it.
type found struct {
	name        keyName
	kind        uint               // CKA_KEY_TYPE
	sign        bool               // it may, and the token can
	decrypt     bool               // it may, and the token can
	why         string             // it may decrypt and the token cannot
	publics     []crypto.PublicKey // what may be its public key
	description []backend.Attribute
	weak        string // what an auditor would not like
}

// private returns the one private key of that name.
func (s *session) private(n keyName) (*found, error) {
	handles, err := s.find(p11.CKO_PRIVATE_KEY, n)
	if err != nil {
		return nil, err
	}
	switch len(handles) {
	case 1:
	case 0:
		return nil, s.missing(n)
	default:
		var ids []string
		for _, h := range handles {
			ids = append(ids, s.name(h).String())
		}
		return nil, fmt.Errorf("key %v is more than one: %s; name one of them by \"id=\", or remove the others: %w", n, strings.Join(ids, ", "), backend.ErrAmbiguous)
	}
	h := handles[0]
	k := &found{name: s.name(h)}
	if again, err := s.find(p11.CKO_PRIVATE_KEY, k.name); err != nil || len(again) != 1 {
		return nil, fmt.Errorf("key %v is not the only one with its id and label (%v); remove the others: %w", k.name, err, backend.ErrAmbiguous)
	}
	if always, _ := s.is(h, p11.CKA_ALWAYS_AUTHENTICATE); always {
		return nil, fmt.Errorf("key %v wants the PIN for every use (CKA_ALWAYS_AUTHENTICATE); use a key that does not: %w", k.name, backend.ErrUnsupported)
	}
	var mechanism uint
	k.kind, _ = s.number(h, p11.CKA_KEY_TYPE)
	switch k.kind {
	case p11.CKK_RSA:
		mechanism = p11.CKM_RSA_PKCS
	case p11.CKK_EC:
		mechanism = p11.CKM_ECDSA
	default:
		return nil, fmt.Errorf("key %v is of the PKCS#11 key type %#x; use RSA, or ECDSA on P-256, P-384 or P-521: %w", k.name, k.kind, backend.ErrUnsupported)
	}
	can, err := s.lib.GetMechanismInfo(s.slot, []*p11.Mechanism{p11.NewMechanism(mechanism, nil)})
	if err != nil {
		can.Flags = 0
	}
	sign, _ := s.is(h, p11.CKA_SIGN)
	decrypt, _ := s.is(h, p11.CKA_DECRYPT)
	k.sign = sign && can.Flags&p11.CKF_SIGN != 0
	k.decrypt = decrypt && k.kind == p11.CKK_RSA && can.Flags&p11.CKF_DECRYPT != 0
	if decrypt && k.kind == p11.CKK_RSA && !k.decrypt {
		k.why = "the token has no decryption by CKM_RSA_PKCS"
	}
	if !k.sign && !k.decrypt {
		return nil, fmt.Errorf("key %v can neither sign nor decrypt (CKA_SIGN %t, CKA_DECRYPT %t, and what the token's mechanisms allow): %w", k.name, sign, decrypt, backend.ErrUnsupported)
	}
	k.publics = s.publics(h, k)
	if len(k.publics) == 0 {
		return nil, fmt.Errorf("key %v has no public key object and no certificate with its id in the token; import its certificate, or the public key: %w", k.name, backend.ErrNotFound)
	}
	s.describe(h, k)
	return k, nil
}

// missing says that there is no such private key, and what there is.
func (s *session) missing(n keyName) error {
	for _, other := range []struct {
		class uint
		name  string
	}{{p11.CKO_CERTIFICATE, "certificate"}, {p11.CKO_PUBLIC_KEY, "public key"}} {
		if handles, err := s.find(other.class, n); err == nil && len(handles) > 0 {
			return fmt.Errorf("there is a %s %v in the token, but no private key of that name; name the key as it is, or log in as the user who may see it: %w", other.name, n, backend.ErrNotFound)
		}
	}
	there := "there is none at all"
	if handles, err := s.find(p11.CKO_PRIVATE_KEY, keyName{}); err == nil && len(handles) > 0 {
		var names []string
		for _, h := range handles[:min(len(handles), 10)] {
			names = append(names, s.name(h).String())
		}
		there = "there are " + strings.Join(names, ", ")
		if len(handles) > 10 {
			there += " and more"
		}
	}
	return fmt.Errorf("there is no private key %v in the token (%s); correct the name, or make the key: %w", n, there, backend.ErrNotFound)
}

func (s *session) name(o p11.ObjectHandle) keyName {
	return keyName{label: string(s.get(o, p11.CKA_LABEL)), id: s.get(o, p11.CKA_ID)}
}

// publics returns what may be the public key of the private key h, likeliest first: the public
// exponents of RSA are in the private object, a point is rarely; and the object with the same id
// may be another key's.
func (s *session) publics(h p11.ObjectHandle, k *found) (list []crypto.PublicKey) {
	add := func(pub crypto.PublicKey, ok bool) {
		for _, p := range list {
			if ok && p.(interface{ Equal(crypto.PublicKey) bool }).Equal(pub) {
				return
			}
		}
		if ok {
			list = append(list, pub)
		}
	}
	objects := []p11.ObjectHandle{h}
	for _, n := range []keyName{{id: k.name.id}, {label: k.name.label}} {
		if n.id == nil && n.label == "" {
			continue
		}
		more, err := s.find(p11.CKO_PUBLIC_KEY, n)
		if err == nil {
			objects = append(objects, more...)
		}
	}
	for _, o := range objects {
		if k.kind == p11.CKK_RSA {
			add(rsaKey(s.get(o, p11.CKA_MODULUS), s.get(o, p11.CKA_PUBLIC_EXPONENT)))
		} else {
			add(ecKey(s.get(o, p11.CKA_EC_PARAMS), s.get(o, p11.CKA_EC_POINT)))
		}
	}
	for _, c := range s.certificates(keyName{id: k.name.id}) {
		switch c.cert.PublicKey.(type) {
		case *rsa.PublicKey:
			add(c.cert.PublicKey, k.kind == p11.CKK_RSA)
		case *ecdsa.PublicKey:
			add(c.cert.PublicKey, k.kind == p11.CKK_EC)
		}
	}
	return list
}

func rsaKey(modulus, exponent []byte) (crypto.PublicKey, bool) {
	e := new(big.Int).SetBytes(exponent)
	if len(modulus) == 0 || e.BitLen() < 2 || e.BitLen() > 31 {
		return nil, false
	}
	return &rsa.PublicKey{N: new(big.Int).SetBytes(modulus), E: int(e.Int64())}, true
}

// ecKey reads CKA_EC_PARAMS, the DER of a named curve's OID, and CKA_EC_POINT, an uncompressed
// point in an OCTET STRING, which some tokens leave out.
func ecKey(params, point []byte) (crypto.PublicKey, bool) {
	for oid, curve := range map[string]elliptic.Curve{
		"06082a8648ce3d030107": elliptic.P256(),
		"06052b81040022":       elliptic.P384(),
		"06052b81040023":       elliptic.P521(),
	} {
		if hex.EncodeToString(params) != oid {
			continue
		}
		n := 1 + 2*((curve.Params().BitSize+7)/8)
		if len(point) < n {
			return nil, false
		}
		pub, err := ecdsa.ParseUncompressedPublicKey(curve, point[len(point)-n:])
		return pub, err == nil
	}
	return nil, false
}

// describe fills in what an auditor asks about.
func (s *session) describe(h p11.ObjectHandle, k *found) {
	add := func(name, value string) {
		k.description = append(k.description, backend.Attribute{Name: name, Value: value})
	}
	if info, err := s.lib.GetTokenInfo(s.slot); err == nil {
		add("token", trim(info.Label))
		add("token serial", trim(info.SerialNumber))
		add("token model", trim(info.ManufacturerID)+" "+trim(info.Model))
		add("token firmware", fmt.Sprintf("%d.%d", info.FirmwareVersion.Major, info.FirmwareVersion.Minor))
	}
	if info, err := s.lib.GetInfo(); err == nil {
		add("module", fmt.Sprintf("%s %d.%d", trim(info.LibraryDescription), info.LibraryVersion.Major, info.LibraryVersion.Minor))
	}
	add("CKA_LABEL", k.name.label)
	add("CKA_ID", hex.EncodeToString(k.name.id))
	var weak []string
	for _, a := range []struct {
		attribute uint
		name      string
		good      bool
		matters   bool
	}{
		{p11.CKA_TOKEN, "CKA_TOKEN", true, true},
		{p11.CKA_PRIVATE, "CKA_PRIVATE", true, true},
		{p11.CKA_SENSITIVE, "CKA_SENSITIVE", true, true},
		{p11.CKA_EXTRACTABLE, "CKA_EXTRACTABLE", false, true},
		{p11.CKA_ALWAYS_SENSITIVE, "CKA_ALWAYS_SENSITIVE", true, true},
		{p11.CKA_NEVER_EXTRACTABLE, "CKA_NEVER_EXTRACTABLE", true, true},
		{p11.CKA_LOCAL, "CKA_LOCAL", true, true},
		{p11.CKA_MODIFIABLE, "CKA_MODIFIABLE", false, false},
		{p11.CKA_SIGN, "CKA_SIGN", true, false},
		{p11.CKA_DECRYPT, "CKA_DECRYPT", true, false},
		{p11.CKA_UNWRAP, "CKA_UNWRAP", false, false},
	} {
		value, ok := s.is(h, a.attribute)
		if !ok {
			add(a.name, "not told")
			continue
		}
		add(a.name, fmt.Sprint(value))
		if a.matters && value != a.good {
			weak = append(weak, fmt.Sprintf("%s is %t", a.name, value))
		}
	}
	k.weak = strings.Join(weak, ", ")
	if k.why != "" {
		add("decrypts", "no: "+k.why)
	}
}

// A stored is a certificate object.
type stored struct {
	h    p11.ObjectHandle
	id   []byte
	cert *x509.Certificate
}

// certificates returns the X.509 certificates with that name that can be read.
func (s *session) certificates(n keyName) (list []stored) {
	handles, err := s.find(p11.CKO_CERTIFICATE, n)
	if err != nil {
		return nil
	}
	for _, h := range handles {
		if cert, err := x509.ParseCertificate(s.get(h, p11.CKA_VALUE)); err == nil {
			list = append(list, stored{h, s.get(h, p11.CKA_ID), cert})
		}
	}
	return list
}

// chain returns the certificate of the key and its issuers, as far as they are in the token. It
// returns none if the key has none.
func (s *session) chain(k *found, pub crypto.PublicKey) ([]*x509.Certificate, error) {
	all := s.certificates(keyName{})
	var own, foreign []*x509.Certificate
	same := func(list []*x509.Certificate, c *x509.Certificate) bool {
		for _, o := range list {
			if o.Equal(c) {
				return true
			}
		}
		return false
	}
	for _, c := range all {
		switch {
		case pub.(interface{ Equal(crypto.PublicKey) bool }).Equal(c.cert.PublicKey):
			if !same(own, c.cert) {
				own = append(own, c.cert)
			}
		case len(k.name.id) > 0 && bytes.Equal(c.id, k.name.id):
			foreign = append(foreign, c.cert)
		}
	}
	switch {
	case len(own) > 1:
		var names []string
		for _, c := range own {
			names = append(names, fmt.Sprintf("%q (serial %x)", c.Subject, c.SerialNumber))
		}
		return nil, fmt.Errorf("there is more than one certificate for the key %v in the token: %s; remove what is not wanted, or name a PEM file: %w", k.name, strings.Join(names, ", "), backend.ErrAmbiguous)
	case len(own) == 0 && len(foreign) > 0:
		return nil, fmt.Errorf("the certificate %q in the token has the id of the key %v and another public key; remove it, or name a PEM file: %w", foreign[0].Subject, k.name, backend.ErrMismatch)
	case len(own) == 0:
		return nil, nil
	}
	chain := own
	for len(chain) < 10 {
		last := chain[len(chain)-1]
		var next *x509.Certificate
		for _, c := range all {
			if custody.CheckIssued(last, c.cert) == nil && !same(chain, c.cert) && (next == nil || c.cert.NotAfter.After(next.NotAfter)) {
				next = c.cert
			}
		}
		if next == nil {
			break
		}
		chain = append(chain, next)
	}
	return chain, nil
}
