package sceptest_test

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// The service under test has a policy of its own: no printers.
func ExampleNewServer() {
	t := newT() // in a test, its *testing.T
	defer t.end()

	srv := sceptest.NewServer(t, scep.Config{
		Policy: &scep.Profile{Change: func(_ context.Context, req *scep.Request, _ *x509.Certificate) error {
			if req.CSR.Subject.CommonName == "printer" {
				return scep.Reject(scep.BadRequest, "no printers")
			}
			return nil
		}},
	})

	router := sceptest.NewDevice(srv.URL, sceptest.RSA(0), "router")
	fmt.Println(router.Enroll(t).Subject)

	printer := sceptest.NewDevice(srv.URL, sceptest.RSA(1), "printer")
	fmt.Println(printer.Send(t, printer.PKCSReq(t)))
	// Output:
	// CN=router
	// FAILURE badRequest "no printers"
}

func ExampleDevice_Renew() {
	t := newT()
	defer t.end()

	srv := sceptest.NewServer(t, scep.Config{Renewal: scep.Renewal{On: true, Anytime: true}})
	old := srv.Device(0).Enroll(t)

	// The new key is RSA(1); what signs is the old certificate, whose key is RSA(0).
	next := srv.Device(1)
	next.Subject = old.RawSubject
	cert := next.Renew(t, old, sceptest.RSA(0))
	fmt.Println(cert.Subject, cert.SerialNumber.Cmp(old.SerialNumber) != 0)
	// Output: CN=device 0 true
}

func ExamplePend() {
	t := newT()
	defer t.end()

	records := new(depot.Memory)
	srv := sceptest.NewServer(t, scep.Config{Depot: records, Challenge: sceptest.Pend(sceptest.Secret)})
	device := srv.Device(0)
	fmt.Println(device.Send(t, device.PKCSReq(t)))

	waiting, _ := records.List(t.Context(), scep.Query{State: scep.Pending})
	srv.Handler.Approve(t.Context(), waiting[0].ID, scep.Decision{})
	fmt.Println(device.Poll(t))
	// Output:
	// PENDING
	// SUCCESS
}

// The connection to the database breaks after the certificate was signed and stored, but before
// the server learns of it.
func ExampleDepot() {
	t := newT()
	defer t.end()

	broken := true
	srv := sceptest.NewServer(t, scep.Config{
		Depot: sceptest.Depot{Depot: new(depot.Memory), On: func(op string, rec *scep.Record) (apply bool, err error) {
			if op == "Create" && broken {
				return true, errors.New("connection reset")
			}
			return false, nil
		}},
	})
	device := srv.Device(0)
	request := device.PKCSReq(t)
	fmt.Println(device.Send(t, request).StatusCode)

	broken = false
	fmt.Println(device.Send(t, request.Again()))
	// Output:
	// 503
	// SUCCESS
}

// A Message can be bent before it is sent.
func ExampleMessage() {
	t := newT()
	defer t.end()

	srv := sceptest.NewServer(t, scep.Config{})
	device := srv.Device(0)
	m := device.PKCSReq(t)
	m.Indefinite = true                                         // BER
	m.Attributes, m.Order = sceptest.Reverse, sceptest.AsListed // not sorted
	m.Envelope.Cipher = sceptest.AES256
	fmt.Println(device.Send(t, m))

	m = device.PKCSReq(t)
	m.Signature = func(b []byte) []byte { b[0] ^= 1; return b }
	fmt.Println(device.Send(t, m))
	// Output:
	// SUCCESS
	// FAILURE badMessageCheck "the signature does not verify"
}
