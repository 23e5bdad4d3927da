package pkcs11_test

import (
	"context"
	"crypto/x509"
	"log"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/backend/pkcs11"
	"github.com/scepkit/scepkit/challenge"
	"github.com/scepkit/scepkit/depot/sqlite"
	"github.com/scepkit/scepkit/scep"
)

// A server with the keys of CA and RA in one token.
func ExampleOpen() {
	ctx := context.Background()
	pin, err := backend.ReadPIN(ctx, "file:/run/secrets/pin")
	if err != nil {
		log.Fatal(err)
	}
	token, err := pkcs11.Open(pkcs11.Config{Module: "/usr/lib/softhsm/libsofthsm2.so", Token: "ca", PIN: pin})
	if err != nil {
		log.Fatal(err)
	}
	defer token.Close()
	ca, err := token.Identity(ctx, "issuing-ca")
	if err != nil {
		log.Fatal(err)
	}
	ra, err := token.Identity(ctx, "scep-ra")
	if err != nil {
		log.Fatal(err)
	}
	db, err := sqlite.Open("scep.db")
	if err != nil {
		log.Fatal(err)
	}
	handler, err := scep.New(scep.Config{CA: ca, RA: ra, Depot: db, Challenge: challenge.Static("secret")})
	if err != nil {
		log.Fatal(err)
	}
	_ = handler
}

// A new key in a token, and a certificate for it.
func ExampleDriver() {
	ctx := context.Background()
	const uri = "pkcs11:token=ca;object=issuing-ca?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/run/secrets/pin"
	key, err := backend.Create(ctx, uri, backend.Spec{KeyType: backend.P256}, pkcs11.Driver{})
	if err != nil {
		log.Fatal(err)
	}
	defer key.Close()
	cert, err := backend.SelfSign(ctx, key.Key, backend.CAOptions{})
	if err != nil {
		log.Fatal(err)
	}
	err = backend.Import(ctx, uri, []*x509.Certificate{cert}, false, pkcs11.Driver{})
	if err != nil {
		log.Fatal(err)
	}
}
