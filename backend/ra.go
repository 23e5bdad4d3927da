package backend

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/scepkit/scepkit/backend/internal/custody"
	"github.com/scepkit/scepkit/scep"
)

// ignoreAfter is how long after its end an RA certificate is still in past.
const ignoreAfter = 90 * 24 // hours

// RA returns the key and certificate that open requests and sign replies for ca, for
// [scep.Config].RA, followed by ca's chain. uri has {n} in it, in the name of the key or of the
// files, where the number of the generation goes: 1, 2 and so on without a gap.
//
//	pkcs11:token=ca;object=ra-{n}?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/run/secrets/pin
//	tpm:/etc/scep/ra-{n}.tpm?chain=/etc/scep/ra-{n}.pem
//
// If there is none, or the newest should be renewed (see [RADue]), RA makes a new key, of RSA with
// 2048 bits unless kind says more, and has ca issue its certificate. All others are returned in
// past, newest first, for [scep.Config].PastRA: devices go on using the certificate that they
// were given. One whose certificate ended more than 90 days ago is left out. Nothing is ever
// deleted or overwritten, and what a crash left half done is finished.
//
// A new one is in past, too, for its first day (or a sixth of its life, or of that of the one before
// it, if that is less), and ra is the one before it as long as that will do: so every process that
// looks meanwhile can open what is sealed to the new one before any of them announces it.
//
// Call RA at every start, and from time to time after that (see [RADue]), from one process at a
// time. All keys that it returns are open: close them.
func RA(ctx context.Context, ca scep.CA, uri string, kind KeyType, o RAOptions, drivers ...Driver) (ra *Key, past []*Key, err error) {
	switch kind {
	case RSA2048, RSA3072, RSA4096:
	default:
		return nil, nil, fmt.Errorf("backend: RA: the key of an RA must decrypt what devices send; use RSA, not %v: %w", kind, ErrUnsupported)
	}
	if !strings.Contains(uri, "{n}") {
		return nil, nil, fmt.Errorf("backend: RA: %s has no {n} where the number of the generation goes", uri)
	}
	chain, err := ca.Chain(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("backend: RA: asking the CA for its chain: %w", err)
	}
	if len(chain) == 0 {
		return nil, nil, errors.New("backend: RA: the CA has no certificate")
	}
	var all []*Key // newest first
	defer func() {
		if err != nil {
			for _, k := range all {
				err = errors.Join(err, k.Close())
			}
			ra, past = nil, nil
		}
	}()

	name := func(n int) string { return strings.ReplaceAll(uri, "{n}", strconv.Itoa(n)) }
	next := 1
	for ; ; next++ {
		k, err := OpenKey(ctx, name(next), drivers...)
		if errors.Is(err, ErrNotFound) {
			break // where the token itself is missing, Create says so
		}
		if err != nil {
			return nil, nil, err
		}
		all = append([]*Key{k}, all...)
		if len(k.Certificates) > 0 {
			continue
		}
		// A crash came between the key and its certificate.
		if err := certify(ctx, ca, chain, k, name(next), o, drivers); err != nil {
			return nil, nil, err
		}
	}
	due := true
	if len(all) > 0 {
		if due, err = RADue(all[0].Certificate(), chain[0], o); err != nil {
			return nil, nil, err
		}
	}
	if due {
		k, err := Create(ctx, name(next), Spec{KeyType: kind, Decrypt: true}, drivers...)
		if err != nil {
			return nil, nil, err
		}
		all = append([]*Key{k}, all...)
		if err := certify(ctx, ca, chain, k, name(next), o, drivers); err != nil {
			return nil, nil, err
		}
	}
	for _, k := range all {
		if _, ok := k.Key.(scep.Unwrapper); !ok {
			return nil, nil, fmt.Errorf("backend: RA: the key of %q can sign but not decrypt, as an RA must; make it with Spec.Decrypt (PKCS#11: CKA_DECRYPT), or take another: %w", k.Certificate().Subject, ErrUnsupported)
		}
	}
	now := clock(o.Time)
	for _, k := range all {
		if own := k.Certificate(); custody.CheckIssued(own, chain[0]) == nil {
			// The CA's certificate may be a newer one of the same key than when this was stored.
			k.Identity = &scep.Identity{Certificates: append([]*x509.Certificate{own}, chain...), Key: k.Key}
		}
	}
	var certs []*x509.Certificate
	for _, k := range all {
		certs = append(certs, k.Certificate())
	}
	use := custody.InUse(certs, chain[0], now)
	for i, k := range all {
		switch {
		case i == use:
			ra = k
		case now.Sub(k.Certificate().NotAfter).Hours() > ignoreAfter:
			err = errors.Join(err, k.Close())
		default:
			past = append(past, k)
		}
	}
	return ra, past, err
}

// certify has the CA issue k's certificate and stores it.
func certify(ctx context.Context, ca scep.CA, chain []*x509.Certificate, k *Key, uri string, o RAOptions, drivers []Driver) error {
	cert, err := IssueRA(ctx, ca, k.Key.Public(), o)
	if err != nil {
		return err
	}
	k.Identity = &scep.Identity{Certificates: append([]*x509.Certificate{cert}, chain...), Key: k.Key}
	return Import(ctx, uri, k.Certificates, false, drivers...)
}
