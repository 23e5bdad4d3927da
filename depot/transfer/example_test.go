package transfer_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"log"

	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/depot/transfer"
)

// From one depot to another.
func ExampleExport() {
	ctx := context.Background()
	from, to := new(depot.Memory), new(depot.Memory)
	from.Create(ctx, record(1))

	var file bytes.Buffer
	if err := transfer.Export(ctx, from, &file, nil); err != nil {
		fmt.Println(err)
		return
	}
	n, skipped, err := transfer.Import(ctx, &file, to, nil)
	fmt.Println(n, skipped, err)
	// Output: 1 0 <nil>
}

// From a micromdm/scep server that is switched off.
func ExampleImportMicroMDM() {
	var ca *x509.Certificate // from ca.pem
	n, skipped, err := transfer.ImportMicroMDM(context.Background(), "depot", new(depot.Memory), transfer.MicroMDM{
		CA:     ca,
		Report: func(name string, err error) { log.Printf("%s: %v", name, err) },
	}, nil)
	fmt.Println(n, skipped, err)
	// Output: 0 0 transfer: MicroMDM.CA must be the certificate of a CA, that is in ca.pem
}
