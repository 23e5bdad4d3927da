// Package names reads from records what people look for in a database.
package names

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"net"
	"strings"

	"github.com/scepkit/scepkit/scep"
)

// Of returns what the certificate of a record is, or will be, for: its subject as RFC 4514 writes it,
// and its other names, with a comma between them. They are there for people who look for a
// row: what cannot be read is left out. crypto/x509 takes five times as long, as it also
// looks at keys and signatures.
func Of(rec *scep.Record) (subject, san string) {
	der, csr := rec.Certificate, false
	if len(der) == 0 {
		der = rec.Template
	}
	if len(der) == 0 {
		der, csr = rec.CSR, true
	}
	body, _ := element(unwrap(der)) // of tbsCertificate, or certificationRequestInfo
	rest := body.content

	// version, serialNumber, signature, issuer, validity, subject, subjectPublicKeyInfo;
	// or version, subject, subjectPKInfo
	skip := 5
	if csr {
		skip = 1
	}
	var e tlv
	if len(rest) > 0 && rest[0] != 0xa0 && !csr {
		skip-- // version 1 has no version
	}
	for range skip {
		_, rest = element(rest)
	}
	e, rest = element(rest)
	var name pkix.RDNSequence
	if _, err := asn1.Unmarshal(e.full, &name); err == nil {
		subject = name.String()
	}
	_, rest = element(rest)
	return subject, generalNames(extension(rest, csr))
}

// oidSAN is 2.5.29.17, with tag and length; oidRequested is 1.2.840.113549.1.9.14.
const (
	oidSAN       = "\x06\x03\x55\x1d\x11"
	oidRequested = "\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x09\x0e"
)

// extension returns the value of the subject alternative name among the extensions of a
// certificate, or among the attributes of a CSR.
func extension(rest []byte, csr bool) []byte {
	var list []byte
	for len(rest) > 0 {
		var e tlv
		e, rest = element(rest)
		switch {
		case csr && e.tag == 0xa0:
			list = find(e.content, oidRequested) // a SET of one SEQUENCE of extensions
		case !csr && e.tag == 0xa3:
			list = e.content // EXPLICIT
		}
	}
	value := find(unwrap(list), oidSAN)
	return unwrap(value)
}

// find returns what comes last in the SEQUENCE that begins with oid, without its tag.
func find(list []byte, oid string) []byte {
	for len(list) > 0 {
		var e tlv
		e, list = element(list)
		if !strings.HasPrefix(string(e.content), oid) {
			continue
		}
		var last tlv
		for rest := e.content; len(rest) > 0; {
			last, rest = element(rest)
		}
		return last.content
	}
	return nil
}

// generalNames writes those of the names that have a plain form.
func generalNames(list []byte) string {
	var all []string
	for len(list) > 0 {
		var e tlv
		e, list = element(list)
		switch e.tag {
		case 0x81:
			all = append(all, "email:"+string(e.content))
		case 0x82:
			all = append(all, "DNS:"+string(e.content))
		case 0x86:
			all = append(all, "URI:"+string(e.content))
		case 0x87:
			all = append(all, "IP:"+net.IP(e.content).String())
		}
	}
	return strings.Join(all, ", ")
}

// tlv is one element of DER.
type tlv struct {
	tag           byte
	content, full []byte
}

// element returns the element that der begins with and what follows. Of anything else than
// well-formed DER it returns nothing.
func element(der []byte) (e tlv, rest []byte) {
	if len(der) < 2 || der[0]&0x1f == 0x1f {
		return tlv{}, nil
	}
	header, length := 2, int(der[1])
	if length >= 0x80 {
		octets := length & 0x7f
		if octets == 0 || octets > 3 || len(der) < 2+octets {
			return tlv{}, nil
		}
		length = 0
		for _, b := range der[2 : 2+octets] {
			length = length<<8 | int(b)
		}
		header += octets
	}
	if len(der)-header < length {
		return tlv{}, nil
	}
	end := header + length
	return tlv{der[0], der[header:end], der[:end]}, der[end:]
}

// unwrap returns what is inside the first element.
func unwrap(der []byte) []byte {
	e, _ := element(der)
	return e.content
}
