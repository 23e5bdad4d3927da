package scep

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"net"
	"reflect"
	"unicode/utf16"
	"unicode/utf8"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/scepkit/scepkit/scep/internal/cms"
)

var (
	oidChallengePassword  = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7}
	oidExtensionRequest   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 14}
	oidMSExtensionRequest = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 1, 14}
)

// parsedCSR is a PKCS#10 request.
type parsedCSR struct {
	*x509.CertificateRequest
	secret    Secret
	hash      crypto.Hash // of its signature; 0 if that has none, or was not verified
	parts     *csrParts
	challenge []byte // the content octets of the challenge password, a part of parts.der
}

// csrParts are the parts of a PKCS#10 request, each a part of its DER.
type csrParts struct {
	der                   []byte
	info, sigAlg          cryptobyte.String
	subject, spki, others cryptobyte.String
	sig                   asn1.BitString
}

func splitCSR(der []byte) (*csrParts, error) {
	p := &csrParts{der: der}
	var seq, tbs cryptobyte.String
	var version int64
	in := cryptobyte.String(der)
	if !in.ReadASN1(&seq, cbasn1.SEQUENCE) || !in.Empty() ||
		!seq.ReadASN1Element(&p.info, cbasn1.SEQUENCE) ||
		!seq.ReadASN1Element(&p.sigAlg, cbasn1.SEQUENCE) ||
		!seq.ReadASN1BitString(&p.sig) || !seq.Empty() {
		return nil, errors.New("scep: CSR is malformed")
	}
	body := p.info
	if !body.ReadASN1(&tbs, cbasn1.SEQUENCE) ||
		!tbs.ReadASN1Integer(&version) || version != 0 ||
		!tbs.ReadASN1Element(&p.subject, cbasn1.SEQUENCE) ||
		!tbs.ReadASN1Element(&p.spki, cbasn1.SEQUENCE) {
		return nil, errors.New("scep: CSR is malformed")
	}
	p.others = tbs
	return p, nil
}

// parseCSR reads a PKCS#10 request and verifies its signature, whatever hash that uses. The key
// must be key, unless that is nil. The caller must not tell the client what failed; tried says
// whether a signature was computed with, so that the caller can take the time for it otherwise.
func parseCSR(der []byte, key crypto.PublicKey) (csr *parsedCSR, tried bool, err error) {
	p, err := splitCSR(der)
	if err != nil {
		return nil, false, err
	}
	pub, err := cms.ParsePublicKey(p.spki)
	if err != nil {
		return nil, false, fmt.Errorf("scep: key of the CSR: %w", err)
	}
	if key == nil {
		key = pub
	} else if reflect.TypeOf(key) != reflect.TypeOf(pub) {
		return nil, false, errors.New("scep: the message is not signed with the key in the CSR")
	}
	hash, err := cms.VerifySignature(key, p.sigAlg, 0, p.info, p.sig.RightAlign())
	switch {
	case !equalKeys(key, pub):
		return nil, true, errors.New("scep: the message is not signed with the key in the CSR")
	case err != nil:
		return nil, true, fmt.Errorf("scep: signature of the CSR: %w", err)
	}
	csr, err = p.parse()
	if err != nil {
		return nil, true, err
	}
	csr.hash = hash
	return csr, true, nil
}

// storedCSR reads a PKCS#10 request from a record, which has verified once.
func storedCSR(der []byte) (*parsedCSR, error) {
	p, err := splitCSR(der)
	if err != nil {
		return nil, err
	}
	csr, err := p.parse()
	if err != nil {
		return nil, err
	}
	csr.secret = Secret{}
	return csr, nil
}

func (p *csrParts) parse() (*parsedCSR, error) {
	req, err := x509.ParseCertificateRequest(p.der)
	if err != nil {
		mended, failed := p.mend()
		if failed != nil {
			return nil, fmt.Errorf("scep: CSR: %w", failed)
		}
		if req, err = x509.ParseCertificateRequest(mended); err != nil {
			return nil, fmt.Errorf("scep: CSR: %w", err)
		}
		// The subject stays mended: what we sign is correct DER.
		req.Raw = p.der
		req.RawTBSCertificateRequest = p.info
	}
	csr := &parsedCSR{CertificateRequest: req, parts: p}
	if err := csr.readAttributes(p.others); err != nil {
		return nil, err
	}
	return csr, nil
}

// mend writes the request as crypto/x509 can read it, for clients that put "_", "@" and more
// into a PrintableString, and for those that leave out the attributes when they have none.
func (p *csrParts) mend() ([]byte, error) {
	subject := retagPrintable(p.subject)
	others := p.others
	if others.Empty() {
		others = []byte{0xa0, 0}
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1Int64(0)
			b.AddBytes(subject)
			b.AddBytes(p.spki)
			b.AddBytes(others)
		})
		b.AddBytes(p.sigAlg)
		b.AddASN1BitString(p.sig.Bytes)
	})
	return b.Bytes()
}

// forRecord returns the DER with the challenge password and the signature overwritten, for with
// the signature a challenge that was guessed could be told from one that was not.
func (p *parsedCSR) forRecord() []byte {
	der := bytes.Clone(p.parts.der)
	for _, part := range [][]byte{p.challenge, p.parts.sig.Bytes} {
		if at := offset(p.parts.der, part); len(part) > 0 {
			for i := range part {
				der[at+i] = '*'
			}
		}
	}
	return der
}

// offset returns where part begins in whole, of which it is a slice.
func offset(whole, part []byte) int { return cap(whole) - cap(part) }

// readAttributes reads the challenge password in any string type, and the extension request
// under either of its names.
func (p *parsedCSR) readAttributes(attrs cryptobyte.String) error {
	bad := errors.New("scep: attributes of the CSR are malformed")
	var list cryptobyte.String
	var present bool
	if !attrs.ReadOptionalASN1(&list, &present, cbasn1.Tag(0).Constructed().ContextSpecific()) || !attrs.Empty() {
		return bad
	}
	var challenges, extensions int
	for !list.Empty() {
		var attr, values cryptobyte.String
		var oid asn1.ObjectIdentifier
		if !list.ReadASN1(&attr, cbasn1.SEQUENCE) || !attr.ReadASN1ObjectIdentifier(&oid) ||
			!attr.ReadASN1(&values, cbasn1.SET) || !attr.Empty() {
			return bad
		}
		switch {
		case oid.Equal(oidChallengePassword):
			if challenges++; challenges > 1 {
				return errors.New("scep: CSR has two challenge passwords")
			}
			if values.Empty() {
				continue // as draft-nourse clients send in renewals
			}
			var tag cbasn1.Tag
			value := values
			text, ok := readString(&values)
			if !ok || !values.Empty() || !value.ReadAnyASN1((*cryptobyte.String)(&p.challenge), &tag) {
				return errors.New("scep: challenge password is malformed")
			}
			p.secret = NewSecret(text)
		case oid.Equal(oidExtensionRequest), oid.Equal(oidMSExtensionRequest):
			if extensions++; extensions > 1 {
				return errors.New("scep: CSR has two extension requests")
			}
			if values.Empty() {
				continue
			}
			exts, ok := readExtensions(&values)
			if !ok || !values.Empty() {
				return errors.New("scep: extension request is malformed")
			}
			p.Extensions = exts
		}
	}
	return p.readNames()
}

// readNames sets the fields for alternative names from the extension, so that a policy that
// looks at them and one that looks at the extension see the same, under either attribute.
func (p *parsedCSR) readNames() error {
	names, err := subjectAltNames(p.Extensions)
	if err != nil {
		return err
	}
	p.DNSNames, p.EmailAddresses, p.IPAddresses, p.URIs = nil, nil, nil, nil
	for _, n := range names {
		switch n.kind {
		case SANDNS:
			p.DNSNames = append(p.DNSNames, n.text)
		case SANEmail:
			p.EmailAddresses = append(p.EmailAddresses, n.text)
		case SANIP:
			p.IPAddresses = append(p.IPAddresses, net.IP(n.value))
		case SANURI:
			p.URIs = append(p.URIs, n.uri)
		}
	}
	return nil
}

// maxExtensions is more than any device asks for.
const maxExtensions = 64

// readExtensions reads Extensions (RFC 5280, 4.1), perhaps none, each type at most once.
func readExtensions(in *cryptobyte.String) ([]pkix.Extension, bool) {
	var list cryptobyte.String
	if !in.ReadASN1(&list, cbasn1.SEQUENCE) {
		return nil, false
	}
	var exts []pkix.Extension
	for !list.Empty() {
		if len(exts) == maxExtensions {
			return nil, false
		}
		var e cryptobyte.String
		var ext pkix.Extension
		if !list.ReadASN1(&e, cbasn1.SEQUENCE) || !e.ReadASN1ObjectIdentifier(&ext.Id) {
			return nil, false
		}
		if e.PeekASN1Tag(cbasn1.BOOLEAN) && !e.ReadASN1Boolean(&ext.Critical) {
			return nil, false
		}
		var value cryptobyte.String
		if !e.ReadASN1(&value, cbasn1.OCTET_STRING) || !e.Empty() {
			return nil, false
		}
		for _, other := range exts {
			if other.Id.Equal(ext.Id) {
				return nil, false
			}
		}
		ext.Value = value
		exts = append(exts, ext)
	}
	return exts, true
}

// readString reads one string of any type that fielded clients use, as UTF-8.
func readString(in *cryptobyte.String) (string, bool) {
	var raw cryptobyte.String
	var tag cbasn1.Tag
	if !in.ReadAnyASN1(&raw, &tag) {
		return "", false
	}
	switch tag {
	case cbasn1.PrintableString, cbasn1.IA5String, cbasn1.UTF8String, 18 /* NumericString */, 26 /* VisibleString */ :
		// The characters of a PrintableString are not checked: clients put "_" there.
		return string(raw), utf8.Valid(raw)
	case cbasn1.T61String:
		if utf8.Valid(raw) {
			return string(raw), true
		}
		runes := make([]rune, len(raw)) // Latin-1, as everybody reads it
		for i, b := range raw {
			runes[i] = rune(b)
		}
		return string(runes), true
	case 30: // BMPString
		if len(raw)%2 != 0 {
			return "", false
		}
		units := make([]uint16, len(raw)/2)
		for i := range units {
			units[i] = uint16(raw[2*i])<<8 | uint16(raw[2*i+1])
		}
		return string(utf16.Decode(units)), true
	case 28: // UniversalString
		if len(raw)%4 != 0 {
			return "", false
		}
		runes := make([]rune, len(raw)/4)
		for i := range runes {
			runes[i] = rune(raw[4*i])<<24 | rune(raw[4*i+1])<<16 | rune(raw[4*i+2])<<8 | rune(raw[4*i+3])
		}
		return string(runes), true
	}
	return "", false
}

// retagPrintable returns a copy of a name in which the PrintableStrings that are none have become
// UTF8Strings, which have the same length. What is no name comes back as it is.
func retagPrintable(subject []byte) []byte {
	out := bytes.Clone(subject)
	var rdns, rdn, atv, value cryptobyte.String
	name := cryptobyte.String(out)
	if !name.ReadASN1(&rdns, cbasn1.SEQUENCE) {
		return out
	}
	for !rdns.Empty() {
		if !rdns.ReadASN1(&rdn, cbasn1.SET) {
			return out
		}
		for !rdn.Empty() {
			var oid asn1.ObjectIdentifier
			if !rdn.ReadASN1(&atv, cbasn1.SEQUENCE) || !atv.ReadASN1ObjectIdentifier(&oid) {
				return out
			}
			element := atv // the value with its header, a window on out
			if atv.ReadASN1(&value, cbasn1.PrintableString) && utf8.Valid(value) && !isPrintable(value) {
				element[0] = byte(cbasn1.UTF8String)
			}
		}
	}
	return out
}

func isPrintable(s []byte) bool {
	for _, c := range s {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case bytes.IndexByte([]byte(" '()+,-./:=?"), c) >= 0:
		default:
			return false
		}
	}
	return true
}
