package cms

import (
	"crypto/x509"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// ParseNextCA reads an answer to GetNextCACert (RFC 8894, 4.7.1), in BER: SignedData with exactly
// one SignerInfo, around a certs-only message, whose certificates it returns. Nothing in it is to be
// trusted before m.Verify returns nil.
//
// The certificates outside, which some clients read, do not count: nobody signed them, and every
// reply without content could be passed off as an answer with other certificates outside.
//
// RFC 8894 does not name the content type. Read are id-data and id-signedData, with a ContentInfo or
// a SignedData as octets, or as they are (PKCS #7).
func ParseNextCA(ber []byte) (m *Message, certificates []*x509.Certificate, err error) {
	der, err := Normalize(ber)
	if err != nil {
		return nil, nil, err
	}
	var sd signedData
	if err := sd.readAny(der); err != nil {
		return nil, nil, err
	}
	switch string(sd.contentType) {
	case oidData, oidSignedData:
	default:
		return nil, nil, syntaxError("answer to GetNextCACert: content type")
	}
	m = &Message{eContentType: string(sd.contentType)}
	if sd.hasContent {
		m.Content = sd.content
	}
	if err := m.readCertificates(sd.certificates); err != nil {
		return nil, nil, err
	}
	if err := m.readSignerInfo(sd.signerInfos); err != nil {
		return nil, nil, err
	}
	inner := sd.inner
	if inner == nil {
		inner = sd.content
	}
	if certificates, _, err = ParseCertsOnly(contentInfo(inner)); err != nil {
		return nil, nil, fmt.Errorf("inner message: %w", err)
	}
	return m, certificates, nil
}

// contentInfo puts a ContentInfo around a SignedData that has none.
func contentInfo(ber cryptobyte.String) []byte {
	der, err := Normalize(ber) // octets may be BER where what is around them is DER
	if err != nil {
		return ber
	}
	in, seq := cryptobyte.String(der), cryptobyte.String(nil)
	if !in.ReadASN1(&seq, casn1.SEQUENCE) || !seq.PeekASN1Tag(casn1.INTEGER) {
		return der
	}
	b := cryptobyte.NewBuilder(nil)
	b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
		addOID(b, oidSignedData)
		b.AddASN1(explicit(0), func(b *cryptobyte.Builder) { b.AddBytes(der) })
	})
	return b.BytesOrPanic()
}
