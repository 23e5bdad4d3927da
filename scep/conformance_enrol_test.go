package scep_test

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"testing"
	"time"

	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// Extensions that a CSR asks for.
var (
	askSAN       = pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: sceptest.TLV(0x30, sceptest.TLV(0x82, []byte("device.example")))}
	askKeyUsage  = pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 15}, Critical: true, Value: []byte{3, 2, 7, 0x80}}
	askClient    = pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 37}, Value: sceptest.TLV(0x30, sceptest.OID(asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 2}))}
	oidUnknown   = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 13, 2, 1} // szENROLLMENT_NAME_VALUE_PAIR
	oidRandomExt = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 25, 3}  // randomNonce
)

func TestConformanceENR(t *testing.T) {
	c := newTable(t, "ENR")
	ca := newCA(t)
	srv := newServer(t, scep.Config{CA: ca})
	proxy := newServer(t, scep.Config{AnySigner: true})
	enrol := func(t *testing.T, d *sceptest.Device, csr sceptest.CSR) *sceptest.Reply {
		t.Helper()
		return d.Send(t, d.Request(t, sceptest.TypePKCSReq, csr))
	}

	c.run("ENR-01", func(t *testing.T) {
		d := newConformer(srv)
		cert := d.Enroll(t)
		if !bytes.Equal(cert.RawSubject, d.Subject) {
			t.Errorf("subject is %q", cert.Subject)
		}
		if err := cert.CheckSignatureFrom(ca.Certificate()); err != nil {
			t.Error(err)
		}
		roots := x509.NewCertPool()
		roots.AddCert(ca.Certificate())
		if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
			t.Error(err)
		}
	})
	c.run("ENR-02", func(t *testing.T) {
		d := newConformer(srv)
		d.Certificate = sceptest.Certificate{Key: d.Key, Subject: sceptest.CN("7A1F1C6B-0D6B-4B30-9C56-0F2A6B1B1F77")}.DER()
		d.Enroll(t)
	})
	c.run("ENR-03", func(t *testing.T) {
		withKey(srv, sceptest.RSA3072(), "RSA 3072").Enroll(t)
		withKey(srv, sceptest.RSA4096(), "RSA 4096").Enroll(t)
	})
	c.run("ENR-04", func(t *testing.T) {
		d := newConformer(srv)
		csr := d.CSR()
		csr.Extensions = []pkix.Extension{askSAN, askKeyUsage, askClient}
		r := enrol(t, d, csr)
		wantOK(t, r)
		cert := r.Certificate
		if len(cert.DNSNames) != 1 || cert.DNSNames[0] != "device.example" || cert.KeyUsage != x509.KeyUsageDigitalSignature ||
			len(cert.ExtKeyUsage) != 1 || cert.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth {
			t.Errorf("certificate has %q, keyUsage %b, extKeyUsage %v", cert.DNSNames, cert.KeyUsage, cert.ExtKeyUsage)
		}
	})
	c.run("ENR-05", func(t *testing.T) {
		pair := sceptest.Attr(oidUnknown, sceptest.TLV(0x30, sceptest.BMPString("ValidityPeriod"), sceptest.BMPString("Days")))
		for name, change := range map[string]func(csr *sceptest.CSR){
			"unknown attribute":        func(csr *sceptest.CSR) { csr.Attributes = [][]byte{pair} },
			"twice":                    func(csr *sceptest.CSR) { csr.Attributes = [][]byte{pair, pair} },
			"Microsoft's extensions":   func(csr *sceptest.CSR) { csr.Extensions, csr.MSExtensions = []pkix.Extension{askSAN}, true },
			"no attribute but the one": func(csr *sceptest.CSR) {},
			"extensions, but there are none": func(csr *sceptest.CSR) {
				csr.Attributes = [][]byte{sceptest.Attr(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 14}, sceptest.TLV(0x30))}
			},
		} {
			d := newConformer(srv)
			csr := d.CSR()
			change(&csr)
			r := enrol(t, d, csr)
			if r.Certificate == nil {
				t.Errorf("%s: answer is %v", name, r)
			} else if csr.MSExtensions && len(r.Certificate.DNSNames) != 1 {
				t.Errorf("%s: names are %q", name, r.Certificate.DNSNames)
			}
		}
	})
	c.run("ENR-06", func(t *testing.T) {
		d := newConformer(srv)
		m := d.PKCSReq(t)
		root := newCA(t, sceptest.RSA(5))
		m.Bag = [][]byte{root.Certificate().Raw, newSubCA(t, root).Certificate().Raw, m.Certificate}
		wantOK(t, d.Send(t, m))
	})
	c.run("ENR-07", func(t *testing.T) {
		d := newConformer(srv)
		r := d.Send(t, d.PKCSReq(t))
		wantOK(t, r)
		if len(r.Certificates) != 1 {
			t.Errorf("%d certificates in the reply", len(r.Certificates))
		}
		chain := newServer(t, scep.Config{ReplyChain: true})
		d = newConformer(chain)
		r = d.Send(t, d.PKCSReq(t))
		wantOK(t, r)
		if len(r.Certificates) != 2 || !r.Certificates[1].IsCA {
			t.Errorf("with ReplyChain, %d certificates in the reply", len(r.Certificates))
		}
	})
	c.run("ENR-08", func(t *testing.T) {
		srv := newServer(t, scep.Config{})
		d := withKey(srv, sceptest.RSA(0), "signed by another")
		d.Signer, d.Certificate = sceptest.RSA(1), sceptest.Certificate{Key: sceptest.RSA(1)}.DER()
		wantFail(t, d.Send(t, d.PKCSReq(t)), scep.BadRequest, "the request could not be read")
		wantNothingIssued(t, srv)

		d = withKey(proxy, sceptest.RSA(0), "signed by a proxy")
		d.Signer, d.Certificate = sceptest.RSA(1), sceptest.Certificate{Key: sceptest.RSA(1)}.DER()
		d.Enroll(t) // the envelope is to the signer
		d.Challenge = "wrong"
		d.Subject = sceptest.CN("other")
		wantFail(t, d.Send(t, d.PKCSReq(t)), scep.BadRequest, "")
	})
	c.run("ENR-09", func(t *testing.T) {
		d := newConformer(srv)
		d.Subject = sceptest.Name(sceptest.RDN{
			{Type: sceptest.OIDSerialNumber, Value: "FTX1840ABCD"},
			{Type: sceptest.OIDUnstructuredName, Tag: sceptest.TagIA5String, Value: "router.example"},
			{Type: sceptest.OIDUnstructuredAddress, Value: "192.0.2.1"},
		})
		if cert := d.Enroll(t); !bytes.Equal(cert.RawSubject, d.Subject) {
			t.Errorf("subject is %x, not %x", cert.RawSubject, d.Subject)
		}
	})
	c.run("ENR-10", func(t *testing.T) {
		d := newConformer(srv)
		d.Subject = sceptest.CN("john_doe@example.com")
		if got := d.Enroll(t).Subject.CommonName; got != "john_doe@example.com" {
			t.Errorf("common name is %q", got)
		}
		d.Subject = sceptest.CN("j\xf6rg") // not UTF-8
		wantFail(t, d.Send(t, d.PKCSReq(t)), scep.BadRequest, "")
	})
	c.run("ENR-11", func(t *testing.T) {
		d := newConformer(srv)
		csr := d.CSR()
		csr.Subject, csr.Extensions = sceptest.Name(), []pkix.Extension{askSAN}
		r := enrol(t, d, csr)
		wantOK(t, r)
		for _, ext := range r.Certificate.Extensions {
			if ext.Id.Equal(askSAN.Id) && !ext.Critical {
				t.Error("subjectAltName is not critical")
			}
		}
		csr.Extensions = nil
		wantFail(t, enrol(t, d, csr), scep.BadRequest, "")
	})
	c.run("ENR-12", func(t *testing.T) {
		d := withKey(srv, sceptest.RSA(0), "P-256")
		d.Signer, d.Key = sceptest.RSA(0), sceptest.P256()
		wantFail(t, d.Send(t, d.PKCSReq(t)), scep.BadRequest, "")
		for _, key := range []crypto.Signer{sceptest.P256(), sceptest.P384()} {
			d = withKey(proxy, sceptest.RSA(0), "EC behind a proxy")
			d.Signer, d.Key = sceptest.RSA(0), key
			if got := d.Enroll(t).KeyUsage; got != x509.KeyUsageDigitalSignature {
				t.Errorf("keyUsage of an EC key is %b", got)
			}
		}
	})
}

func TestConformanceSGN(t *testing.T) {
	c := newTable(t, "SGN")
	srv := newServer(t, scep.Config{})
	// send enrols with a signer's certificate that change makes odd.
	send := func(t *testing.T, change func(c *sceptest.Certificate)) *sceptest.Reply {
		t.Helper()
		d := newConformer(srv)
		cert := sceptest.Certificate{Key: d.Key, Subject: d.Subject}
		change(&cert)
		d.Certificate = cert.DER()
		return d.Send(t, d.PKCSReq(t))
	}
	now := time.Now()
	for id, cases := range map[string]map[string]func(c *sceptest.Certificate){
		"SGN-01": {"no extensions": func(c *sceptest.Certificate) { c.Extensions = []pkix.Extension{} }},
		"SGN-02": {"Windows": func(c *sceptest.Certificate) {
			c.Subject, c.Hash = sceptest.CN("SCEP Protocol Certificate"), crypto.SHA1
			c.Extensions = []pkix.Extension{sceptest.KeyUsageDSKE, sceptest.CriticalAKI}
		}},
		"SGN-03": {"v1": func(c *sceptest.Certificate) { c.V1 = true }},
		"SGN-04": {
			"negative serial":  func(c *sceptest.Certificate) { c.Serial = []byte{0x80, 1, 2, 3} },
			"-1":               func(c *sceptest.Certificate) { c.Serial = []byte{0xff} },
			"0":                func(c *sceptest.Certificate) { c.Serial = []byte{0} },
			"32 octets":        func(c *sceptest.Certificate) { c.Serial = []byte("0123456789ABCDEF0123456789ABCDEF") },
			"32 octets, large": func(c *sceptest.Certificate) { c.Serial = bytes.Repeat([]byte{0xf0}, 32) },
		},
		"SGN-05": {
			"expired":        func(c *sceptest.Certificate) { c.NotBefore = now.AddDate(-2, 0, 0) },
			"from tomorrow":  func(c *sceptest.Certificate) { c.NotBefore = now.AddDate(0, 0, 1) },
			"ends before it": func(c *sceptest.Certificate) { c.NotAfter = now.AddDate(-1, 0, 0) },
			"one second":     func(c *sceptest.Certificate) { c.NotBefore, c.NotAfter = now, now },
		},
		"SGN-06": {
			"MD5":     func(c *sceptest.Certificate) { c.Hash = crypto.MD5 },
			"broken":  func(c *sceptest.Certificate) { c.Signature = flip },
			"another": func(c *sceptest.Certificate) { c.SignedBy = sceptest.RSA(5) },
			"empty":   func(c *sceptest.Certificate) { c.Signature = func([]byte) []byte { return nil } },
		},
		"SGN-07": {"no names": func(c *sceptest.Certificate) { c.Subject, c.Issuer = sceptest.Name(), sceptest.Name() }},
	} {
		c.run(id, func(t *testing.T) {
			for name, change := range cases {
				if r := send(t, change); r.Certificate == nil {
					t.Errorf("%s: answer is %v", name, r)
				}
			}
		})
	}
	c.run("SGN-08", func(t *testing.T) {
		d := newConformer(srv)
		twin := sceptest.Certificate{Key: d.Key, Subject: d.Subject, Serial: []byte{5}}
		d.Certificate = twin.DER()
		twin.Key = sceptest.RSA(5)
		other := twin.DER()
		for _, bag := range [][][]byte{{d.Certificate, other}, {other, d.Certificate}} {
			m := d.PKCSReq(t)
			m.Bag = bag
			wantFail(t, d.Send(t, m), scep.BadMessageCheck, "")
		}
		m := d.PKCSReq(t)
		m.Bag = [][]byte{d.Certificate, d.Certificate} // the same one twice is no riddle
		wantOK(t, d.Send(t, m))
	})
	c.run("SGN-09", func(t *testing.T) {
		stranger := newCA(t, sceptest.RSA(5))
		d := newConformer(srv)
		d.Certificate = sceptest.Certificate{Key: d.Key, Issuer: stranger.Certificate().RawSubject, Subject: d.Subject, SignedBy: stranger.Key}.DER()
		d.Enroll(t)
		d.Challenge, d.Subject = "", sceptest.CN("without a challenge")
		wantFail(t, d.Send(t, d.PKCSReq(t)), scep.BadRequest, "")
	})
}

// flip changes one bit in the middle.
func flip(b []byte) []byte {
	b = bytes.Clone(b)
	b[len(b)/2] ^= 1
	return b
}
