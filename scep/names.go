package scep

import (
	"bytes"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"unicode/utf8"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

var (
	oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidNTPrincipal    = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 20, 2, 3}
	oidCommonName     = asn1.ObjectIdentifier{2, 5, 4, 3}
	oidSerialNumber   = asn1.ObjectIdentifier{2, 5, 4, 5}
)

// A SANKind is a set of kinds of subject alternative names.
type SANKind uint8

const (
	SANDNS   SANKind = 1 << iota // dNSName
	SANEmail                     // rfc822Name
	SANURI                       // uniformResourceIdentifier
	SANIP                        // iPAddress
	SANUPN                       // otherName with ntPrincipalName, kept byte for byte
	SANNone                      // no kind: leave every alternative name out
)

// generalName is one GeneralName (RFC 5280, 4.2.1.6).
type generalName struct {
	kind  SANKind // 0: one that we never issue
	raw   []byte  // DER
	value []byte  // content octets
	text  string  // of SANDNS, SANEmail, SANURI
	uri   *url.URL
}

// subjectAltNames reads the alternative names among exts; the kinds that it knows must be
// well formed.
func subjectAltNames(exts []pkix.Extension) ([]generalName, error) {
	for _, ext := range exts {
		if !ext.Id.Equal(oidSubjectAltName) {
			continue
		}
		in := cryptobyte.String(ext.Value)
		var list cryptobyte.String
		if !in.ReadASN1(&list, cbasn1.SEQUENCE) || !in.Empty() {
			return nil, errors.New("scep: subjectAltName is malformed")
		}
		var names []generalName
		for !list.Empty() {
			n, err := readGeneralName(&list)
			if err != nil {
				return nil, err
			}
			names = append(names, n)
		}
		return names, nil
	}
	return nil, nil
}

func readGeneralName(in *cryptobyte.String) (n generalName, err error) {
	var element, value cryptobyte.String
	var tag cbasn1.Tag
	if !in.ReadAnyASN1Element(&element, &tag) {
		return n, errors.New("scep: subjectAltName is malformed")
	}
	n.raw = element
	header := element
	header.ReadAnyASN1(&value, &tag)
	n.value = value
	switch tag {
	case cbasn1.Tag(0).Constructed().ContextSpecific():
		var oid asn1.ObjectIdentifier
		var text, inner cryptobyte.String
		if value.ReadASN1ObjectIdentifier(&oid) && oid.Equal(oidNTPrincipal) {
			if !value.ReadASN1(&text, cbasn1.Tag(0).Constructed().ContextSpecific()) || !value.Empty() ||
				!text.ReadASN1(&inner, cbasn1.UTF8String) || !text.Empty() || !plainText(inner) {
				return n, errors.New("scep: ntPrincipalName is malformed")
			}
			n.kind = SANUPN
		}
	case cbasn1.Tag(1).ContextSpecific():
		n.kind, n.text = SANEmail, string(value)
	case cbasn1.Tag(2).ContextSpecific():
		n.kind, n.text = SANDNS, string(value)
	case cbasn1.Tag(6).ContextSpecific():
		n.kind, n.text = SANURI, string(value)
	case cbasn1.Tag(7).ContextSpecific():
		if len(value) != 4 && len(value) != 16 {
			return n, fmt.Errorf("scep: iPAddress of %d octets", len(value))
		}
		n.kind = SANIP
	}
	if n.text != "" || n.kind&(SANEmail|SANDNS|SANURI) != 0 {
		for _, c := range []byte(n.text) {
			if c <= ' ' || c > '~' {
				return n, errors.New("scep: subjectAltName holds a character that is not printable ASCII")
			}
		}
	}
	switch n.kind {
	case SANDNS:
		if !validDNSName(n.text) {
			return n, errors.New("scep: dNSName is not a host name")
		}
	case SANEmail:
		if i := strings.LastIndexByte(n.text, '@'); i <= 0 || i == len(n.text)-1 {
			return n, errors.New("scep: rfc822Name is not a mailbox")
		}
	case SANURI:
		if n.uri, err = url.Parse(n.text); err != nil || n.uri.Scheme == "" {
			return n, errors.New("scep: uniformResourceIdentifier is not an absolute URI")
		}
	}
	return n, nil
}

// validDNSName admits letters, digits, "-", "_" and a leading "*." (RFC 5280 wants LDH; fleets
// have hosts with "_").
func validDNSName(s string) bool {
	s = strings.TrimPrefix(s, "*.")
	if s == "" || len(s) > 253 {
		return false
	}
	for _, label := range strings.Split(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, c := range []byte(label) {
			switch {
			case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_':
			default:
				return false
			}
		}
	}
	return true
}

// plainText reports whether s is UTF-8 without control characters.
func plainText(s []byte) bool {
	if !utf8.Valid(s) {
		return false
	}
	for _, r := range string(s) {
		if r < ' ' || r == 0x7f || 0x80 <= r && r < 0xa0 {
			return false
		}
	}
	return true
}

// checkSubject refuses names that no certificate should carry. Its errors are for the client.
func checkSubject(rawSubject []byte) error {
	if len(rawSubject) > 1024 {
		return errors.New("subject is longer than 1024 bytes")
	}
	in := cryptobyte.String(rawSubject)
	var rdns, rdn, atv cryptobyte.String
	if !in.ReadASN1(&rdns, cbasn1.SEQUENCE) {
		return errors.New("subject is malformed")
	}
	commonNames, serialNumbers := 0, 0
	for !rdns.Empty() {
		if !rdns.ReadASN1(&rdn, cbasn1.SET) || rdn.Empty() {
			return errors.New("subject is malformed")
		}
		for !rdn.Empty() {
			var oid asn1.ObjectIdentifier
			if !rdn.ReadASN1(&atv, cbasn1.SEQUENCE) || !atv.ReadASN1ObjectIdentifier(&oid) {
				return errors.New("subject is malformed")
			}
			text, ok := readString(&atv)
			if !ok || !atv.Empty() || !plainText([]byte(text)) {
				return errors.New("subject holds a value that is not plain text")
			}
			// Of these pkix.Name shows the last one only, and whoever looks there must see all.
			if oid.Equal(oidSerialNumber) {
				if serialNumbers++; serialNumbers > 1 {
					return errors.New("subject has two serial numbers")
				}
			}
			if oid.Equal(oidCommonName) {
				if commonNames++; commonNames > 1 {
					return errors.New("subject has two common names")
				}
				if utf8.RuneCountInString(text) > 64 {
					return errors.New("common name is longer than 64 characters")
				}
			}
		}
	}
	return nil
}

// emptyName reports whether a DER name has no attributes.
func emptyName(raw []byte) bool { return bytes.Equal(raw, []byte{0x30, 0}) }

// sameName compares two DER names: equal bytes, or equal attributes with equal texts whatever
// the string types.
func sameName(a, b []byte) bool {
	if bytes.Equal(a, b) {
		return true
	}
	ta, oka := nameTexts(a)
	tb, okb := nameTexts(b)
	return oka && okb && ta == tb
}

// nameTexts flattens a name to a text that two names share only if they are the same.
func nameTexts(raw []byte) (string, bool) {
	in := cryptobyte.String(raw)
	var rdns, rdn, atv cryptobyte.String
	if !in.ReadASN1(&rdns, cbasn1.SEQUENCE) || !in.Empty() {
		return "", false
	}
	var b strings.Builder
	for !rdns.Empty() {
		if !rdns.ReadASN1(&rdn, cbasn1.SET) {
			return "", false
		}
		b.WriteString("/")
		for !rdn.Empty() {
			var oid asn1.ObjectIdentifier
			if !rdn.ReadASN1(&atv, cbasn1.SEQUENCE) || !atv.ReadASN1ObjectIdentifier(&oid) {
				return "", false
			}
			text, ok := readString(&atv)
			if !ok || !atv.Empty() {
				return "", false
			}
			fmt.Fprintf(&b, "%s=%q,", oid, text)
		}
	}
	return b.String(), true
}
