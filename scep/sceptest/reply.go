package sceptest

import (
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"net/http"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/scepkit/scepkit/scep"
)

// A Reply is an answer to a [Message].
type Reply struct {
	// Of HTTP. If StatusCode is not 200, nothing but these is set.
	StatusCode int
	Header     http.Header
	Body       []byte

	Status           string // pkiStatus
	FailInfo         string
	FailInfoText     string
	TransactionID    string
	TransactionIDTag byte
	SenderNonce      []byte
	RecipientNonce   []byte            // nil if absent
	Hash             crypto.Hash       // of the message digest
	Signer           *x509.Certificate // of the reply
	HasContent       bool              // eContent is there, perhaps empty

	// Of a reply with pkiStatus SUCCESS.
	Cipher       Cipher
	Certificate  *x509.Certificate   // the one asked for
	Certificates []*x509.Certificate // all, in the order in which they came
	CRL          []byte              // of GetCRL, DER
}

// Values of pkiStatus.
const (
	StatusSuccess = "0"
	StatusFailure = "2"
	StatusPending = "3"
)

// Refusal returns the reason of a FAILURE.
func (r *Reply) Refusal() (info scep.FailInfo, refused bool) {
	if r.Status != StatusFailure || len(r.FailInfo) != 1 {
		return 0, false
	}
	return scep.FailInfo(r.FailInfo[0] - '0'), true
}

// String returns the outcome in a few words.
func (r *Reply) String() string {
	switch r.Status {
	case StatusSuccess:
		return "SUCCESS"
	case StatusPending:
		return "PENDING"
	case StatusFailure:
		info, _ := r.Refusal()
		return fmt.Sprintf("FAILURE %v %q", info, r.FailInfoText)
	}
	return fmt.Sprintf("HTTP %d %.60q", r.StatusCode, r.Body)
}

// ParseReply reads a CertRep that answers m and holds it to RFC 8894. ca has the certificates that
// the server gave away with GetCACert. The Reply has what could be read; the error joins all that
// is wrong, each under a name as "INV-9".
//
// Where the RFC wants eContent to be absent, it may also be empty: certmonger and OpenSSL need
// that.
func ParseReply(body []byte, m *Message, ca []*x509.Certificate) (*Reply, error) {
	p := &replyParser{m: m, ca: ca, r: &Reply{}}
	if content := p.signedData(body); p.r.Status == StatusSuccess && p.r.HasContent {
		p.envelope(content)
	}
	return p.r, errors.Join(p.errs...)
}

type replyParser struct {
	m    *Message
	ca   []*x509.Certificate
	r    *Reply
	errs []error
}

// check notes a violation unless ok.
func (p *replyParser) check(ok bool, format string, args ...any) bool {
	if !ok {
		p.errs = append(p.errs, fmt.Errorf(format, args...))
	}
	return ok
}

func tagged(n uint8) cbasn1.Tag { return cbasn1.Tag(n).ContextSpecific().Constructed() }

// contentInfo opens a ContentInfo of the given type around a SEQUENCE.
func contentInfo(der []byte, want asn1.ObjectIdentifier) (cryptobyte.String, bool) {
	in := cryptobyte.String(der)
	var info, content, seq cryptobyte.String
	var oid asn1.ObjectIdentifier
	ok := in.ReadASN1(&info, cbasn1.SEQUENCE) && in.Empty() &&
		info.ReadASN1ObjectIdentifier(&oid) && oid.Equal(want) &&
		info.ReadASN1(&content, tagged(0)) && info.Empty() &&
		content.ReadASN1(&seq, cbasn1.SEQUENCE) && content.Empty()
	return seq, ok
}
