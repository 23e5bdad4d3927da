package scep_test

import (
	"context"
	"crypto/x509"
	"slices"
	"testing"

	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// TestProfileChangeShares has a Change that appends to lists, and writes into them: neither the profile
// nor another request's template is changed by it.
func TestProfileChangeShares(t *testing.T) {
	csr, err := x509.ParseCertificateRequest(newCSR(t, sceptest.RSA(1), "shared", ""))
	if err != nil {
		t.Fatal(err)
	}
	more := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageEmailProtection}
	room := func(s string) []string { return append(make([]string, 0, 4), s) }
	p := &scep.Profile{
		ExtKeyUsage: append(make([]x509.ExtKeyUsage, 0, 4), x509.ExtKeyUsageClientAuth),
		OCSPServer:  room("http://ocsp.example"), IssuingCertificateURL: room("http://ca.example"), CRLDistributionPoints: room("http://crl.example"),
	}
	n := 0
	p.Change = func(_ context.Context, _ *scep.Request, tmpl *x509.Certificate) error {
		tmpl.ExtKeyUsage = append(tmpl.ExtKeyUsage, more[n%2])
		tmpl.OCSPServer[0] += "/1"
		tmpl.IssuingCertificateURL[0] += "/2"
		tmpl.CRLDistributionPoints[0] += "/3"
		n++
		return nil
	}
	var made []*x509.Certificate
	for range 2 {
		tmpl, err := p.Template(t.Context(), &scep.Request{CSR: csr})
		if err != nil {
			t.Fatal(err)
		}
		made = append(made, tmpl)
	}
	for i, tmpl := range made {
		if want := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, more[i]}; !slices.Equal(tmpl.ExtKeyUsage, want) {
			t.Errorf("template %d has usages %v, want %v", i, tmpl.ExtKeyUsage, want)
		}
		if got := tmpl.OCSPServer[0] + tmpl.IssuingCertificateURL[0] + tmpl.CRLDistributionPoints[0]; got != "http://ocsp.example/1http://ca.example/2http://crl.example/3" {
			t.Errorf("template %d has addresses %s", i, got)
		}
	}
}
