package status

import (
	"context"
	"crypto"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// golang.org/x/crypto/ocsp knows one certificate and no nonce; so requests are read, and answers
// written, here.

// request is an OCSPRequest (RFC 6960, 4.1.1).
type request struct {
	ids   []certID // at least one
	nonce []byte   // nil if there is none
}

// certID names a certificate.
type certID struct {
	raw       []byte
	algorithm crypto.Hash // 0 if unknown
	name, key []byte      // hashes
	serial    *big.Int
}

// maxIDs is how many certificates one request may ask about.
const maxIDs = 32

var errRequest = errors.New("status: OCSP request is malformed")

// parseRequest reads an OCSPRequest. Its signature, if it has one, is not looked at.
func parseRequest(der []byte) (*request, error) {
	in := cryptobyte.String(der)
	context := func(n uint8) cbasn1.Tag { return cbasn1.Tag(n).ContextSpecific().Constructed() }
	var whole, tbs, list, extensions, version cryptobyte.String
	var versioned, extended bool
	if !in.ReadASN1(&whole, cbasn1.SEQUENCE) || !in.Empty() || !whole.ReadASN1(&tbs, cbasn1.SEQUENCE) ||
		!whole.SkipOptionalASN1(context(0)) || !whole.Empty() ||
		!tbs.ReadOptionalASN1(&version, &versioned, context(0)) || !tbs.SkipOptionalASN1(context(1)) ||
		!tbs.ReadASN1(&list, cbasn1.SEQUENCE) || !tbs.ReadOptionalASN1(&extensions, &extended, context(2)) || !tbs.Empty() {
		return nil, errRequest
	}
	var v int
	if versioned && (!version.ReadASN1Integer(&v) || !version.Empty() || v != 0) {
		return nil, fmt.Errorf("%w: version", errRequest)
	}
	q := &request{}
	for !list.Empty() {
		var one cryptobyte.String
		if len(q.ids) == maxIDs {
			return nil, fmt.Errorf("%w: it asks about more than %d certificates", errRequest, maxIDs)
		}
		if !list.ReadASN1(&one, cbasn1.SEQUENCE) {
			return nil, errRequest
		}
		id, ok := readCertID(&one)
		var single cryptobyte.String
		var more bool
		if !ok || !one.ReadOptionalASN1(&single, &more, context(0)) || !one.Empty() {
			return nil, fmt.Errorf("%w: CertID", errRequest)
		}
		if more {
			if _, err := readExtensions(single); err != nil {
				return nil, err
			}
		}
		q.ids = append(q.ids, id)
	}
	if len(q.ids) == 0 {
		return nil, fmt.Errorf("%w: it asks about nothing", errRequest)
	}
	if extended {
		var err error
		if q.nonce, err = readExtensions(extensions); err != nil {
			return nil, err
		}
	}
	return q, nil
}

func readCertID(in *cryptobyte.String) (id certID, ok bool) {
	var raw, seq, algorithm, name, key cryptobyte.String
	var oid asn1.ObjectIdentifier
	id.serial = new(big.Int)
	if !in.ReadASN1Element(&raw, cbasn1.SEQUENCE) {
		return id, false
	}
	id.raw = raw
	if !raw.ReadASN1(&seq, cbasn1.SEQUENCE) || !seq.ReadASN1(&algorithm, cbasn1.SEQUENCE) || !algorithm.ReadASN1ObjectIdentifier(&oid) ||
		len(algorithm) > 0 && string(algorithm) != "\x05\x00" || // or one certificate would have answers without number
		!seq.ReadASN1(&name, cbasn1.OCTET_STRING) || !seq.ReadASN1(&key, cbasn1.OCTET_STRING) ||
		!seq.ReadASN1Integer(id.serial) || !seq.Empty() || len(id.raw) > 512 {
		return id, false
	}
	id.name, id.key = name, key
	switch oid.String() {
	case "1.3.14.3.2.26":
		id.algorithm = crypto.SHA1
	case "2.16.840.1.101.3.4.2.1":
		id.algorithm = crypto.SHA256
	case "2.16.840.1.101.3.4.2.2":
		id.algorithm = crypto.SHA384
	case "2.16.840.1.101.3.4.2.3":
		id.algorithm = crypto.SHA512
	}
	return id, true
}

// Extensions of requests (RFC 6960, 4.4), DER: id-pkix-ocsp-nonce, -response, -service-locator and
// -pref-sig-algs.
const (
	oidNonce      = "\x06\x09\x2b\x06\x01\x05\x05\x07\x30\x01\x02"
	oidResponse   = "\x06\x09\x2b\x06\x01\x05\x05\x07\x30\x01\x04"
	oidLocator    = "\x06\x09\x2b\x06\x01\x05\x05\x07\x30\x01\x07"
	oidAlgorithms = "\x06\x09\x2b\x06\x01\x05\x05\x07\x30\x01\x08"
)

// readExtensions returns the nonce among extensions. RFC 9654 has 1 to 128 bytes. What else is there
// is ignored, unless it is critical and not known here (RFC 6960, 4.4).
func readExtensions(in cryptobyte.String) (nonce []byte, err error) {
	var list cryptobyte.String
	if !in.ReadASN1(&list, cbasn1.SEQUENCE) || !in.Empty() {
		return nil, fmt.Errorf("%w: extensions", errRequest)
	}
	for !list.Empty() {
		var one, oid, flag, value cryptobyte.String
		var flagged bool
		if !list.ReadASN1(&one, cbasn1.SEQUENCE) || !one.ReadASN1Element(&oid, cbasn1.OBJECT_IDENTIFIER) ||
			!one.ReadOptionalASN1(&flag, &flagged, cbasn1.BOOLEAN) || flagged && len(flag) != 1 ||
			!one.ReadASN1(&value, cbasn1.OCTET_STRING) || !one.Empty() {
			return nil, fmt.Errorf("%w: extensions", errRequest)
		}
		switch string(oid) {
		case oidNonce:
			var inner cryptobyte.String
			if nonce != nil || !value.ReadASN1(&inner, cbasn1.OCTET_STRING) || !value.Empty() || len(inner) == 0 || len(inner) > 128 {
				return nil, fmt.Errorf("%w: nonce", errRequest)
			}
			nonce = inner
		case oidResponse, oidLocator, oidAlgorithms: // there is one type of response; they are preferences
		default:
			if flagged && flag[0] != 0 {
				return nil, fmt.Errorf("%w: a critical extension that is not known here", errRequest)
			}
		}
	}
	return nonce, nil
}

// respond writes and signs an OCSPResponse (RFC 6960, 4.2.1).
func (r *responder) respond(ctx context.Context, all []*single, produced, this, next time.Time, nonce []byte) ([]byte, error) {
	tag := func(n uint8) cbasn1.Tag { return cbasn1.Tag(n).ContextSpecific().Constructed() }
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { // ResponseData
		b.AddBytes(r.id)
		b.AddASN1GeneralizedTime(produced)
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			for _, s := range all {
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddBytes(s.certID)
					s.add(b)
					b.AddASN1GeneralizedTime(this)
					b.AddASN1(tag(0), func(b *cryptobyte.Builder) { b.AddASN1GeneralizedTime(next.UTC()) })
				})
			}
		})
		if nonce == nil {
			return
		}
		b.AddASN1(tag(1), func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddBytes([]byte(oidNonce))
					b.AddASN1(cbasn1.OCTET_STRING, func(b *cryptobyte.Builder) { b.AddASN1OctetString(nonce) })
				})
			})
		})
	})
	tbs, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("status: OCSP answer: %w", err)
	}
	sig, err := r.sign(ctx, tbs)
	if err != nil {
		return nil, err
	}
	var out cryptobyte.Builder
	out.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Enum(0) // successful
		b.AddASN1(tag(0), func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1ObjectIdentifier(asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 1}) // id-pkix-ocsp-basic
				b.AddASN1(cbasn1.OCTET_STRING, func(b *cryptobyte.Builder) {
					b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { // BasicOCSPResponse
						b.AddBytes(tbs)
						b.AddBytes(r.algorithm)
						b.AddASN1BitString(sig)
						if r.embedded {
							b.AddASN1(tag(0), func(b *cryptobyte.Builder) {
								b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddBytes(r.cert.Raw) })
							})
						}
					})
				})
			})
		})
	})
	der, err := out.Bytes()
	if err != nil {
		return nil, fmt.Errorf("status: OCSP answer: %w", err)
	}
	return der, nil
}

// add writes CertStatus.
func (s *single) add(b *cryptobyte.Builder) {
	if s.status != 1 {
		b.AddASN1(cbasn1.Tag(s.status).ContextSpecific(), func(*cryptobyte.Builder) {})
		return
	}
	b.AddASN1(cbasn1.Tag(1).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
		b.AddASN1GeneralizedTime(s.revoked.UTC())
		if s.reason != 0 {
			b.AddASN1(cbasn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) { b.AddASN1Enum(int64(s.reason)) })
		}
	})
}

// keyBits returns what is in the BIT STRING of a SubjectPublicKeyInfo.
func keyBits(spki []byte) ([]byte, error) {
	in := cryptobyte.String(spki)
	var seq cryptobyte.String
	var bits asn1.BitString
	if !in.ReadASN1(&seq, cbasn1.SEQUENCE) || !seq.SkipASN1(cbasn1.SEQUENCE) || !seq.ReadASN1BitString(&bits) {
		return nil, errors.New("the certificate's public key is malformed")
	}
	return bits.RightAlign(), nil
}
