package status_test

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/scep/sceptest"
	"github.com/scepkit/scepkit/scep/status"
)

// withNonce puts a nonce into a request: a SEQUENCE of extensions after the list.
func withNonce(req, value []byte) []byte {
	tbs := req[4:] // short lengths: 30 xx 30 xx
	if req[1] >= 0x80 {
		tbs = req[6:]
	}
	ext := sceptest.TLV(0xa2, sceptest.TLV(0x30, sceptest.TLV(0x30, []byte("\x06\x09\x2b\x06\x01\x05\x05\x07\x30\x01\x02"), sceptest.TLV(4, value))))
	return sceptest.TLV(0x30, sceptest.TLV(0x30, tbs, ext))
}

func TestNonce(t *testing.T) {
	ca, db := sceptest.NewCA(t), new(depot.Memory)
	id, k := withKey(newResponder(t, ca, sceptest.P256()))
	store(t, db, ca, 1, nil)
	req := question(t, ca, big.NewInt(1), crypto.SHA1)
	o := newOCSP(t, status.OCSPConfig{Issuer: ca.Certificate(), Responder: id, Depot: db})
	nonce := func(n int) []byte { return sceptest.TLV(4, bytes.Repeat([]byte{0xa5}, n)) }
	for _, n := range []int{1, 16, 32, 33, 64, 125, 126, 128} {
		for range 2 {
			got := post(t, o, withNonce(req, nonce(n)))
			wantStatus(t, got, ca, ocsp.Good)
			if !bytes.Contains(got, append([]byte("\x2b\x06\x01\x05\x05\x07\x30\x01\x02"), sceptest.TLV(4, nonce(n))...)) {
				t.Errorf("nonce of %d bytes is not in the answer", n)
			}
		}
	}
	if k.count() != 16 {
		t.Errorf("signed %d times, want 16: a nonce is good once", k.count())
	}
	for name, value := range map[string][]byte{"empty": nonce(0), "long": nonce(129), "no OCTET STRING": {1, 2, 3}, "nothing": nil} {
		if got := errorStatus(post(t, o, withNonce(req, value))); got != int(ocsp.Malformed) {
			t.Errorf("%s: %d", name, got)
		}
	}
	quietly := newOCSP(t, status.OCSPConfig{Issuer: ca.Certificate(), Responder: id, Depot: db, NoNonce: true})
	before := k.count()
	for range 5 {
		wantStatus(t, post(t, quietly, withNonce(req, nonce(16))), ca, ocsp.Good)
	}
	if k.count() != before+1 {
		t.Errorf("with NoNonce signed %d times, want once", k.count()-before)
	}
}

func TestManyIDs(t *testing.T) {
	ca, db := sceptest.NewCA(t), new(depot.Memory)
	store(t, db, ca, 1, nil)
	store(t, db, ca, 2, revoked(time.Now(), 1))
	o := newOCSP(t, status.OCSPConfig{Issuer: ca.Certificate(), Responder: newResponder(t, ca, sceptest.P256()), Depot: db})
	one := func(serial int64) []byte {
		req := question(t, ca, big.NewInt(serial), crypto.SHA256)
		return req[6:] // 30 xx 30 xx 30 xx
	}
	many := func(serials ...int64) []byte {
		var list [][]byte
		for _, s := range serials {
			list = append(list, one(s))
		}
		return sceptest.TLV(0x30, sceptest.TLV(0x30, sceptest.TLV(0x30, list...)))
	}
	der := post(t, o, many(1, 2, 3))
	for serial, want := range map[int64]int{1: ocsp.Good, 2: ocsp.Revoked, 3: ocsp.Unknown} {
		got, err := ocsp.ParseResponseForCert(der, &x509.Certificate{SerialNumber: big.NewInt(serial)}, ca.Certificate())
		if err != nil || got.Status != want {
			t.Errorf("%d: %v, %v; want %d", serial, got, err, want)
		}
	}
	for name, req := range map[string][]byte{"none": many(), "33": many(make([]int64, 33)...), "tail": append(many(1), 0)} {
		if got := errorStatus(post(t, o, req)); got != int(ocsp.Malformed) {
			t.Errorf("%s: %d", name, got)
		}
	}
	w := httptest.NewRecorder()
	o.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/", io.LimitReader(zeros{}, 1<<20)))
	if w.Code != http.StatusRequestEntityTooLarge {
		t.Errorf("a megabyte: %d", w.Code)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestRequestExtensions ignores what is not known, unless it is critical.
func TestRequestExtensions(t *testing.T) {
	ca, db := sceptest.NewCA(t), new(depot.Memory)
	store(t, db, ca, 1, nil)
	o := newOCSP(t, status.OCSPConfig{Issuer: ca.Certificate(), Depot: db, Responder: newResponder(t, ca, sceptest.P256())})
	req := question(t, ca, big.NewInt(1), crypto.SHA1)
	one := req[6:] // Request: 30 xx 30 xx 30 xx around it
	ext := func(oid string, critical ...byte) []byte {
		if critical != nil {
			critical = sceptest.TLV(1, critical)
		}
		return sceptest.TLV(0x30, sceptest.TLV(0x30, []byte(oid), critical, sceptest.TLV(4, []byte{5, 0})))
	}
	known, unknown := "\x06\x09\x2b\x06\x01\x05\x05\x07\x30\x01\x04", "\x06\x03\x2a\x03\x04"
	for name, tt := range map[string]struct {
		ext []byte
		ok  bool
	}{
		"unknown":            {ext(unknown), true},
		"not critical":       {ext(unknown, 0), true},
		"critical":           {ext(unknown, 0xff), false},
		"critical in BER":    {ext(unknown, 1), false},
		"critical and known": {ext(known, 0xff), true},
		"no BOOLEAN":         {ext(unknown, 1, 2), false},
		"empty":              {sceptest.TLV(0x30), true},
		"no list":            {[]byte{5, 0}, false},
	} {
		whole := sceptest.TLV(0x30, sceptest.TLV(0x30, sceptest.TLV(0x30, one), sceptest.TLV(0xa2, tt.ext)))
		inner := append(bytes.Clone(one[2:]), sceptest.TLV(0xa0, tt.ext)...)
		single := sceptest.TLV(0x30, sceptest.TLV(0x30, sceptest.TLV(0x30, sceptest.TLV(0x30, inner))))
		for where, req := range map[string][]byte{"request": whole, "single request": single} {
			der := post(t, o, req)
			if tt.ok {
				wantStatus(t, der, ca, ocsp.Good)
			} else if got := errorStatus(der); got != int(ocsp.Malformed) {
				t.Errorf("%s, in the %s: %d", name, where, got)
			}
		}
	}
	// A signature is not looked at, a version of 0 may be there, and the requestor may have a name.
	signed := sceptest.TLV(0x30, sceptest.TLV(0x30, sceptest.TLV(0xa0, []byte{2, 1, 0}), sceptest.TLV(0xa1, sceptest.TLV(0xa4, sceptest.TLV(0x30))), sceptest.TLV(0x30, one)),
		sceptest.TLV(0xa0, sceptest.TLV(0x30, sceptest.TLV(0x30, []byte("\x06\x03\x2a\x03\x04")), []byte{3, 2, 0, 1})))
	wantStatus(t, post(t, o, signed), ca, ocsp.Good)
	for name, bad := range map[string][]byte{"tail": append(bytes.Clone(req), 0), "cut": req[:len(req)-1], "nothing": nil} {
		if got := errorStatus(post(t, o, bad)); got != int(ocsp.Malformed) {
			t.Errorf("%s: %d", name, got)
		}
	}
}
