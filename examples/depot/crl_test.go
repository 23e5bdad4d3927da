package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/scepkit/scepkit/depot/postgres/postgrestest"
	"github.com/scepkit/scepkit/examples/internal/exampletest"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// writeCA puts a CA into a folder, as ca.key and ca.pem.
func writeCA(t *testing.T, dir string) *scep.Identity {
	t.Helper()
	ca := sceptest.NewCA(t)
	key, err := x509.MarshalPKCS8PrivateKey(ca.Key)
	if err != nil {
		t.Fatal(err)
	}
	exampletest.Write(t, dir, "ca.key", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})))
	exampletest.Write(t, dir, "ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Certificate().Raw})))
	return ca
}

func readCRL(t *testing.T, name string, ca *scep.Identity) *x509.RevocationList {
	t.Helper()
	der, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	crl, err := x509.ParseRevocationList(der)
	if err != nil {
		t.Fatal(err)
	}
	if err := crl.CheckSignatureFrom(ca.Certificate()); err != nil {
		t.Fatal(err)
	}
	return crl
}

func TestCRL(t *testing.T) {
	const n = 1000
	dir := t.TempDir()
	ca := writeCA(t, dir)
	all := variety(t, n)
	all[4].Issuer = []byte("another CA")
	create(t, filepath.Join(dir, "scep.db"), all...)
	t.Setenv("DEPOT_TEST", postgrestest.Shared(t).Database(t))
	want(t, dir, "export -from DIR/scep.db -out DIR/records", "exported")
	want(t, dir, "import -into env:DEPOT_TEST DIR/records", "imported")
	var last *big.Int
	for _, db := range []string{"DIR/scep.db", "env:DEPOT_TEST"} {
		want(t, dir, "crl -db "+db+" -key file:DIR/ca.key?chain=DIR/ca.pem -out DIR/ca.crl -validity 7d", fmt.Sprintf("revoked: %d in ", n/5-1))
		crl := readCRL(t, filepath.Join(dir, "ca.crl"), ca)
		if len(crl.RevokedCertificateEntries) != n/5-1 || crl.NextUpdate.Sub(crl.ThisUpdate) != 7*24*time.Hour+5*time.Minute || last != nil && last.Cmp(crl.Number) >= 0 {
			t.Errorf("%s: %d entries, number %v after %v, valid from %v to %v", db, len(crl.RevokedCertificateEntries), crl.Number, last, crl.ThisUpdate, crl.NextUpdate)
		}
		if last = crl.Number; !strings.Contains(fmt.Sprint(crl.RevokedCertificateEntries[0].SerialNumber), "0") {
			t.Errorf("serial number %v", crl.RevokedCertificateEntries[0].SerialNumber)
		}
		stdout, _, err := depot(t, dir, "crl -db "+db+" -key file:DIR/ca.key?chain=DIR/ca.pem -out DIR/ca-{n}.crl -shards 3 -url http://pki.example/{n}.crl")
		if err != nil {
			t.Fatal(err)
		}
		entries := 0
		for i := range 3 {
			crl := readCRL(t, filepath.Join(dir, fmt.Sprintf("ca-%d.crl", i)), ca)
			for _, e := range crl.RevokedCertificateEntries {
				if entries++; new(big.Int).Mod(e.SerialNumber, big.NewInt(3)).Int64() != int64(i) {
					t.Errorf("%v is in shard %d", e.SerialNumber, i)
				}
			}
			if !strings.Contains(stdout, "number "+crl.Number.String()) {
				t.Errorf("number %v is not in %s", crl.Number, stdout)
			}
		}
		if entries != n/5-1 {
			t.Errorf("%d entries in all shards", entries)
		}
	}
	before, err := os.ReadFile(filepath.Join(dir, "ca.crl"))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := depot(t, dir, "crl -db DIR/missing.db -key file:DIR/ca.key?chain=DIR/ca.pem -out DIR/ca.crl"); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if after, err := os.ReadFile(filepath.Join(dir, "ca.crl")); err != nil || !bytes.Equal(before, after) {
		t.Errorf("a CRL that could not be made has taken another's place: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) > 0 {
		t.Errorf("%v are left", left)
	}
}

// TestCRLInterrupted interrupts it when the first of two shards has been written.
func TestCRLInterrupted(t *testing.T) {
	dir := t.TempDir()
	writeCA(t, dir)
	create(t, filepath.Join(dir, "scep.db"), variety(t, 10)...)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	args := []string{"crl", "-db", filepath.Join(dir, "scep.db"), "-key", "file:" + filepath.Join(dir, "ca.key") + "?chain=" + filepath.Join(dir, "ca.pem"),
		"-out", filepath.Join(dir, "{n}.crl"), "-shards", "2", "-url", "http://pki.example/{n}.crl"}
	if err := run(ctx, args, strings.NewReader(""), writer(func() { cancel() }), io.Discard); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if written, _ := filepath.Glob(filepath.Join(dir, "*.crl")); len(written) != 1 {
		t.Errorf("%v are written, want one", written)
	}
}

// A writer is called whenever something is written.
type writer func()

func (w writer) Write(b []byte) (int, error) {
	w()
	return len(b), nil
}

// TestCRLFromToken has a key in a PKCS#11 token sign, and openssl verify.
func TestCRLFromToken(t *testing.T) {
	k := exampletest.SoftHSM(t)
	openssl := exampletest.Need(t, "openssl", "openssl")
	dir := t.TempDir()
	writeCA(t, dir)
	create(t, filepath.Join(dir, "scep.db"), variety(t, 10)...)
	exampletest.Run(t, k.Env, dir, "softhsm2-util", "--import", "ca.key", "--token", "ca", "--label", "ca", "--id", "01", "--pin", k.PIN)
	cmd := exampletest.Command(k.Env, "crl", "-db", "scep.db", "-key", k.URI("ca")+"&chain=ca.pem", "-out", "ca.crl")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil || bytes.Contains(out, []byte(k.PIN)) {
		t.Fatalf("%v: %s", err, out)
	}
	text := exampletest.Run(t, nil, dir, openssl, "crl", "-inform", "der", "-in", "ca.crl", "-CAfile", "ca.pem", "-text", "-noout")
	if strings.Count(text, "Serial Number: ") != 2 || !strings.Contains(text, "X509v3 CRL Number") {
		t.Error(text)
	}
}
