package tpm_test

import (
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"testing"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/backend/tpm"
	"github.com/scepkit/scepkit/hsmtest"
)

// A CA whose key is made in the TPM, and opened again.
func ExampleDriver() {
	ctx := context.Background()
	driver := &tpm.Driver{}
	if err := makeCA(ctx, driver, "/etc/scep"); err != nil {
		log.Fatal(err)
	}

	ca, err := backend.Open(ctx, "tpm:/etc/scep/ca.tpm?chain=/etc/scep/ca.pem", driver)
	if err != nil {
		log.Fatal(err)
	}
	defer ca.Close()
	fmt.Println(ca.Certificate().Subject)
}

func makeCA(ctx context.Context, driver *tpm.Driver, dir string) error {
	uri := "tpm:" + filepath.Join(dir, "ca.tpm") + "?chain=" + filepath.Join(dir, "ca.pem")
	key, err := backend.Create(ctx, uri, backend.Spec{KeyType: backend.P256}, driver)
	if err != nil {
		return err
	}
	defer key.Close()
	cert, err := backend.SelfSign(ctx, key.Key, backend.CAOptions{})
	if err != nil {
		return err
	}
	return backend.Import(ctx, uri, []*x509.Certificate{cert}, false, driver)
}

// A key for an RA, by the TPM of the computer.
func ExampleTPM_Create() {
	t, err := tpm.Open(tpm.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer t.Close()
	ra, err := t.Create(context.Background(), tpm.Name{File: "/etc/scep/ra.tpm"}, backend.Spec{Decrypt: true})
	if err != nil {
		log.Fatal(err)
	}
	for _, a := range ra.Description {
		fmt.Println(a.Name, a.Value)
	}
}

// A name that is not one of a key is refused before a TPM is used.
func ExampleDriver_Open() {
	_, err := backend.Open(context.Background(), "tpm:?handle=0x81010000&pin=1234&device=unix:/run/tpm", &tpm.Driver{})
	fmt.Println(err)
	_, err = backend.Open(context.Background(), "tpm:?handle=0x01010000&device=unix:/run/tpm", &tpm.Driver{})
	fmt.Println(err)
	// Output:
	// tpm: backend: the URI of a key (tpm:...) has pin after the question mark, which its driver does not know; use device, chain, auth-source, handle, parent, parent-name: backend: not supported
	// tpm: key at 0x1010000: a key that stays in a TPM is at 0x81000000 to 0x81ffffff: backend: not supported
}

func TestExample(t *testing.T) {
	chip := hsmtest.TPM(t)
	driver := &tpm.Driver{Dial: func(ctx context.Context) (io.ReadWriteCloser, error) { return chip.Dial(ctx) }}
	dir := t.TempDir()
	if err := makeCA(t.Context(), driver, dir); err != nil {
		t.Fatal(err)
	}
	ca, err := backend.Open(t.Context(), "tpm:"+dir+"/ca.tpm?chain="+dir+"/ca.pem", driver)
	if err != nil {
		t.Fatal(err)
	}
	defer ca.Close()
	if s := fmt.Sprint(ca.Key); s != "[redacted]" {
		t.Errorf("the key prints as %s", s)
	}

	// An RA beside it, and the next one.
	uri := "tpm:" + dir + "/ra-{n}.tpm?chain=" + dir + "/ra-{n}.pem"
	opened := 0
	for range 2 {
		ra, past, err := backend.RA(t.Context(), ca.Identity, uri, backend.RSA2048, backend.RAOptions{}, driver)
		if err != nil {
			t.Fatal(err)
		}
		opened++
		if len(past) > 0 {
			t.Errorf("%d RAs past", len(past))
		}
		ra.Close()
	}
	entries, err := os.ReadDir(dir)
	if err != nil || opened != 2 || len(entries) != 6 { // key, value and certificate, twice
		t.Errorf("%d keys opened, %v, %v", opened, entries, err)
	}
}
