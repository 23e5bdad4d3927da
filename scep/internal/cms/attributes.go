package cms

import (
	"bytes"
	"slices"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Types of signed attributes, as content octets.
const (
	oidContentType    = "\x2a\x86\x48\x86\xf7\x0d\x01\x09\x03" // 1.2.840.113549.1.9.3
	oidMessageDigest  = "\x2a\x86\x48\x86\xf7\x0d\x01\x09\x04"
	oidMessageType    = "\x60\x86\x48\x01\x86\xf8\x45\x01\x09\x02" // 2.16.840.1.113733.1.9.2
	oidPKIStatus      = "\x60\x86\x48\x01\x86\xf8\x45\x01\x09\x03"
	oidFailInfo       = "\x60\x86\x48\x01\x86\xf8\x45\x01\x09\x04"
	oidSenderNonce    = "\x60\x86\x48\x01\x86\xf8\x45\x01\x09\x05"
	oidRecipientNonce = "\x60\x86\x48\x01\x86\xf8\x45\x01\x09\x06"
	oidTransactionID  = "\x60\x86\x48\x01\x86\xf8\x45\x01\x09\x07"
	oidFailInfoText   = "\x2b\x06\x01\x05\x05\x07\x18\x01" // 1.3.6.1.5.5.7.24.1
)

// isTransactionIDTag reports whether a transaction ID may have the tag: that of a string, of
// whatever type.
func isTransactionIDTag(tag casn1.Tag) bool {
	switch tag {
	case 4, 12, 18, 19, 20, 22, 26, 27, 28, 30: // OCTET STRING, UTF8, Numeric, Printable, T61, IA5, Visible, General, Universal, BMP
		return true
	}
	return false
}

// readAttributes reads the content of the SET of signed attributes.
func (m *Message) readAttributes(s cryptobyte.String) error {
	var types [maxAttributes]cryptobyte.String
	for n := 0; !s.Empty(); n++ {
		var (
			raw, seq, oid, set, value cryptobyte.String
			tag                       casn1.Tag
		)
		if n == maxAttributes {
			return syntaxError("signed attributes: too many")
		}
		if !s.ReadASN1Element(&raw, casn1.SEQUENCE) {
			return syntaxError("signed attributes")
		}
		attr := raw
		if !attr.ReadASN1(&seq, casn1.SEQUENCE) || !readOID(&seq, &oid) ||
			!seq.ReadASN1(&set, casn1.SET) || !seq.Empty() {
			return syntaxError("signed attribute")
		}
		// The first of several must not be one thing here and another elsewhere.
		for _, t := range types[:n] {
			if bytes.Equal(t, oid) {
				return syntaxError("signed attribute: occurs twice")
			}
		}
		types[n] = oid
		if !set.ReadAnyASN1(&value, &tag) || !set.Empty() {
			return syntaxError("signed attribute: not exactly one value")
		}
		known, ok := m.setAttribute(oid, value, tag)
		if !ok {
			return syntaxError("signed attribute: value of the wrong type")
		}
		if !known {
			m.Other = append(m.Other, raw)
		}
	}
	return nil
}

func (m *Message) setAttribute(oid, value cryptobyte.String, tag casn1.Tag) (known, ok bool) {
	switch string(oid) {
	case oidContentType:
		m.contentType = value
		return true, tag == casn1.OBJECT_IDENTIFIER
	case oidMessageDigest:
		m.messageDigest = value
		return true, tag == casn1.OCTET_STRING
	case oidMessageType:
		m.MessageType = string(value)
		return true, tag == casn1.PrintableString
	case oidPKIStatus:
		m.PKIStatus = string(value)
		return true, tag == casn1.PrintableString
	case oidFailInfo:
		m.FailInfo = string(value)
		return true, tag == casn1.PrintableString
	case oidFailInfoText:
		m.FailInfoText = string(value)
		return true, tag == casn1.UTF8String || tag == casn1.PrintableString
	case oidSenderNonce:
		m.SenderNonce = value
		return true, tag == casn1.OCTET_STRING
	case oidRecipientNonce:
		m.RecipientNonce = value
		return true, tag == casn1.OCTET_STRING
	case oidTransactionID:
		m.TransactionID, m.TransactionIDTag = value, int(tag)
		return true, isTransactionIDTag(tag)
	}
	return false, true
}

// encode returns the content of the SET of signed attributes, in DER order.
func (a *Attributes) encode(digest []byte) ([]byte, error) {
	var (
		list [9][]byte // as many as there are types above
		n    int
		err  error
	)
	add := func(oid string, tag casn1.Tag, value []byte) {
		b := cryptobyte.NewBuilder(make([]byte, 0, 24+len(value)))
		b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
			addOID(b, oid)
			b.AddASN1(casn1.SET, func(b *cryptobyte.Builder) {
				b.AddASN1(tag, func(b *cryptobyte.Builder) { b.AddBytes(value) })
			})
		})
		der, e := b.Bytes()
		if e != nil {
			err = e
		}
		list[n] = der
		n++
	}
	printable := func(oid, value string) {
		if value != "" {
			add(oid, casn1.PrintableString, []byte(value))
		}
	}
	octets := func(oid string, value []byte) {
		if value != nil {
			add(oid, casn1.OCTET_STRING, value)
		}
	}
	add(oidContentType, casn1.OBJECT_IDENTIFIER, []byte(oidData))
	octets(oidMessageDigest, digest)
	printable(oidMessageType, a.MessageType)
	printable(oidPKIStatus, a.PKIStatus)
	printable(oidFailInfo, a.FailInfo)
	octets(oidSenderNonce, a.SenderNonce)
	octets(oidRecipientNonce, a.RecipientNonce)
	if a.TransactionID != nil {
		tag := casn1.PrintableString
		if a.TransactionIDTag != 0 {
			tag = casn1.Tag(a.TransactionIDTag)
		}
		add(oidTransactionID, tag, a.TransactionID)
	}
	if a.FailInfoText != "" {
		add(oidFailInfoText, casn1.UTF8String, []byte(strings.ToValidUTF8(a.FailInfoText, "\ufffd")))
	}
	if err != nil {
		return nil, err
	}
	slices.SortFunc(list[:n], bytes.Compare)
	return slices.Concat(list[:n]...), nil
}
