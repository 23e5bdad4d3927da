package status

import (
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"math/big"
	"testing"

	"golang.org/x/crypto/ocsp"
)

// FuzzRequest has the parser agree with x/crypto/ocsp wherever that takes a request, and bounds
// what it lets through.
func FuzzRequest(f *testing.F) {
	issuer := &x509.Certificate{RawSubject: []byte{0x30, 0}, RawSubjectPublicKeyInfo: []byte("\x30\x12\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01\x05\x00\x03\x01\x00")}
	for _, hash := range []crypto.Hash{crypto.SHA1, crypto.SHA256} {
		der, err := ocsp.CreateRequest(&x509.Certificate{SerialNumber: big.NewInt(1 << 40)}, issuer, &ocsp.RequestOptions{Hash: hash})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(der)
	}
	nonce, _ := base64.StdEncoding.DecodeString("MGYwZDA+MDwwOjAJBgUrDgMCGgUABBQAAAAAAAAAAAAAAAAAAAAAAAAAAAQUAAAAAAAAAAAAAAAAAAAAAAAAAAACAQGiIjAgMB4GCSsGAQUFBzABAgQRBA8AAAAAAAAAAAAAAAAAAAA=")
	f.Add(nonce)
	f.Fuzz(func(t *testing.T, der []byte) {
		q, err := parseRequest(der)
		if err == nil {
			if len(q.ids) == 0 || len(q.ids) > maxIDs || q.nonce != nil && (len(q.nonce) == 0 || len(q.nonce) > 128) {
				t.Errorf("%d IDs, nonce of %d bytes", len(q.ids), len(q.nonce))
			}
			for _, id := range q.ids {
				if id.serial == nil || len(id.raw) > 512 {
					t.Errorf("%+v", id)
				}
			}
		}
		if theirs, other := ocsp.ParseRequest(der); err == nil && other == nil {
			if id := q.ids[0]; theirs.SerialNumber.Cmp(id.serial) != 0 || string(theirs.IssuerKeyHash) != string(id.key) {
				t.Errorf("serial %x, x/crypto has %x", id.serial, theirs.SerialNumber)
			}
		}
		if got, err2 := findRequest("/ocsp/" + base64.URLEncoding.EncodeToString(der)); err == nil && (err2 != nil || len(got.ids) != len(q.ids)) && der[0] == 0x30 {
			t.Errorf("in a path: %v", err2)
		}
		_, _ = findRequest("/" + string(der))
	})
}
