package sqlite

import (
	"crypto/x509"
	"net"
	"net/url"
	"strings"

	"github.com/scepkit/scepkit/scep"
)

// names returns what the certificate is, or will be, for: its subject as RFC 4514 writes it,
// and its other names, with a comma between them. They are for people who look for a row,
// and empty if there is nothing that can be parsed.
func names(rec *scep.Record) (subject, san string) {
	for _, der := range [][]byte{rec.Certificate, rec.Template} {
		if cert, err := x509.ParseCertificate(der); err == nil {
			return cert.Subject.String(), join(cert.DNSNames, cert.EmailAddresses, cert.IPAddresses, cert.URIs)
		}
	}
	if csr, err := x509.ParseCertificateRequest(rec.CSR); err == nil {
		return csr.Subject.String(), join(csr.DNSNames, csr.EmailAddresses, csr.IPAddresses, csr.URIs)
	}
	return "", ""
}

func join(dns, email []string, ips []net.IP, uris []*url.URL) string {
	var all []string
	for _, name := range dns {
		all = append(all, "DNS:"+name)
	}
	for _, name := range email {
		all = append(all, "email:"+name)
	}
	for _, ip := range ips {
		all = append(all, "IP:"+ip.String())
	}
	for _, uri := range uris {
		all = append(all, "URI:"+uri.String())
	}
	return strings.Join(all, ", ")
}
