//lint:file-ignore SA1019 SCEP is made of PKCS #1 v1.5

package sceptest_test

import (
	"context"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"math/big"
	"testing"

	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

func TestKeys(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for i := range sceptest.RSAKeys {
		key := sceptest.RSA(i)
		if key.N.BitLen() != 2048 || seen[key.N.String()] {
			t.Errorf("key %d has %d bits, or is another one again", i, key.N.BitLen())
		}
		seen[key.N.String()] = true
	}
	for want, key := range map[int]*rsa.PrivateKey{1024: sceptest.RSA1024(), 3072: sceptest.RSA3072(), 4096: sceptest.RSA4096()} {
		if got := key.N.BitLen(); got != want {
			t.Errorf("key of %d bits has %d", want, got)
		}
	}
	if sceptest.P256().Params().BitSize != 256 || sceptest.P384().Params().BitSize != 384 {
		t.Error("EC keys are on other curves")
	}
}

func TestIdentities(t *testing.T) {
	t.Parallel()
	ca := sceptest.NewCA(t)
	sub := sceptest.NewSubCA(t, ca)
	ra := sceptest.NewRA(t, sub)
	ec := sceptest.NewCA(t, sceptest.P384())
	if ca.Certificate().Subject.String() == ec.Certificate().Subject.String() {
		t.Error("two CAs have one name")
	}
	roots, mid := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(ca.Certificate())
	mid.AddCert(sub.Certificate())
	if _, err := ra.Certificate().Verify(x509.VerifyOptions{Roots: roots, Intermediates: mid}); err != nil {
		t.Error(err)
	}
	if len(ra.Certificates) != 3 || ra.Certificate().IsCA || ra.Certificate().KeyUsage != x509.KeyUsageDigitalSignature|x509.KeyUsageKeyEncipherment {
		t.Errorf("RA: %d certificates, CA %t, keyUsage %b", len(ra.Certificates), ra.Certificate().IsCA, ra.Certificate().KeyUsage)
	}
	// What NewServer makes of each enrols devices.
	for _, c := range []scep.Config{{}, {CA: ca}, {CA: sub}, {CA: ec}, {CA: sub, RA: ra}, {CA: sceptest.CA{CA: ca}}, {CA: &sceptest.CA{CA: sceptest.CA{CA: ec}}}} {
		srv := sceptest.NewServer(t, c)
		if err := srv.Device(0).Enroll(t).CheckSignatureFrom(srv.Device(0).CA(t)[len(srv.Device(0).CA(t))-1]); err != nil && c.CA != scep.CA(sub) && c.RA == nil {
			t.Error(err)
		}
	}
}

func TestFaults(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	ctx := t.Context()
	id := scep.ID("00000000000000000000000000000000000000000000000000000000000000aa")
	ops := map[string]int{}
	for _, apply := range []bool{false, true} {
		memory := new(depot.Memory)
		fail := true
		d := sceptest.Depot{Depot: memory, On: func(op string, rec *scep.Record) (bool, error) {
			ops[op]++
			if fail {
				return apply, broken
			}
			return false, nil
		}}
		rec := &scep.Record{ID: id, Transaction: id, State: scep.Pending}
		if err := d.Create(ctx, rec); err != broken || rec.Version != 0 {
			t.Errorf("Create: %v, version %d", err, rec.Version)
		}
		if _, err := memory.Get(ctx, id); (err == nil) != apply {
			t.Errorf("apply is %t, and Get says %v", apply, err)
		}
		fail = false
		if err := d.Create(ctx, rec); (err == nil) == apply {
			t.Errorf("Create again: %v", err)
		}
		rec.Version, fail = 1, true
		if err := d.Update(ctx, rec); err != broken || rec.Version != 1 {
			t.Errorf("Update: %v, version %d", err, rec.Version)
		}
		if found, err := memory.Get(ctx, id); err != nil || (found.Version == 2) != apply {
			t.Errorf("apply is %t, and Get says %v", apply, err)
		}
		for _, read := range []func() (*scep.Record, error){
			func() (*scep.Record, error) { return d.Get(ctx, id) },
			func() (*scep.Record, error) { return d.Latest(ctx, id) },
			func() (*scep.Record, error) { return d.GetSerial(ctx, []byte{0x30, 0}, big.NewInt(1)) },
		} {
			if rec, err := read(); rec != nil || err == nil {
				t.Errorf("read %v, %v", rec, err)
			}
		}
	}
	for _, op := range []string{"Create", "Update", "Get", "Latest", "GetSerial"} {
		if ops[op] == 0 {
			t.Errorf("%s was not told", op)
		}
	}

	called := 0
	inner := scep.ChallengeFunc(func(context.Context, *scep.Request) error { called++; return nil })
	c := sceptest.Challenge{Challenge: inner, On: func(op string, _ *scep.Request) (bool, error) { return op == "Validate", broken }}
	if err := c.Validate(ctx, nil); err != broken || called != 1 {
		t.Errorf("Validate: %v, called %d times", err, called)
	}
	if err := c.Confirm(ctx, nil, nil); err != broken {
		t.Errorf("Confirm: %v", err)
	}
	c.On = nil
	if err := errors.Join(c.Validate(ctx, nil), c.Confirm(ctx, nil, nil)); err != nil || called != 2 {
		t.Errorf("without faults: %v, called %d times", err, called)
	}

	signed := 0
	ca := sceptest.CA{CA: sceptest.NewCA(t, sceptest.Key{Signer: sceptest.RSA(0), On: func(string) error { signed++; return nil }})}
	ca.On = func(op string, tmpl *x509.Certificate) (bool, error) { return true, broken }
	before := signed
	if _, err := ca.Sign(ctx, &x509.Certificate{SerialNumber: big.NewInt(1)}, sceptest.RSA(1).Public()); err != broken || signed != before+1 {
		t.Errorf("Sign: %v, signed %d times", err, signed-before)
	}
	if _, err := ca.Chain(ctx); err != broken {
		t.Errorf("Chain: %v", err)
	}
	key := sceptest.Key{Signer: sceptest.RSA(0), On: func(string) error { return broken }}
	if _, err := key.UnwrapKey(ctx, nil, 16, &rsa.PKCS1v15DecryptOptions{}); err != broken {
		t.Errorf("UnwrapKey: %v", err)
	}
	key.On = nil
	if got, err := key.UnwrapKey(ctx, []byte("malformed"), 16, &rsa.PKCS1v15DecryptOptions{}); len(got) != 16 || err != nil {
		t.Errorf("UnwrapKey of a malformed block: %x, %v", got, err)
	}
}
