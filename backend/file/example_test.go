package file_test

import (
	"context"
	"crypto/x509/pkix"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/backend/file"
)

// tempDir stands for the directory that a program keeps its keys in.
func tempDir() string {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	return dir
}

func ExampleOpen() {
	dir := tempDir()
	defer os.RemoveAll(dir)
	chain, key := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca.key")
	if _, err := file.CreateCA(chain, key, file.CAOptions{}); err != nil {
		log.Fatal(err)
	}

	ca, err := file.Open(chain, key)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(ca.Certificate().Subject)
	fmt.Println(ca.Key)
	// Output:
	// CN=SCEP CA
	// [redacted]
}

func ExampleCreateCA() {
	dir := tempDir()
	defer os.RemoveAll(dir)

	ca, err := file.CreateCA(filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca.key"), file.CAOptions{
		KeyType: backend.P384,
		Subject: pkix.Name{Organization: []string{"Example"}, CommonName: "Example Device CA"},
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(ca.Certificate().Subject, ca.Certificate().PublicKeyAlgorithm)
	// Output: CN=Example Device CA,O=Example ECDSA
}

func ExampleRA() {
	dir := tempDir()
	defer os.RemoveAll(dir)
	ca, err := file.CreateCA(filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca.key"), file.CAOptions{KeyType: backend.P256})
	if err != nil {
		log.Fatal(err)
	}

	// An ECDSA key cannot open requests. An RA does, with a key that the CA certifies.
	ra, past, err := file.RA(context.Background(), ca, filepath.Join(dir, "ra"), file.RAOptions{})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(ra.Certificate().Subject, "issued by", ra.Certificate().Issuer)
	fmt.Println(len(past), "before it")
	// Output:
	// CN=SCEP CA SCEP RA issued by CN=SCEP CA
	// 0 before it
}
