package scep_test

import (
	"crypto"
	"crypto/x509"
	"fmt"
	"log/slog"
	"strconv"
	"testing"

	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// silent keeps the logs of long loops out of the output.
var silent = slog.New(slog.DiscardHandler)

// issued counts the certificates in a depot.
func issued(t *testing.T, srv *sceptest.Server) int {
	t.Helper()
	n := 0
	for _, rec := range records(t, srv) {
		if rec.State == scep.Issued {
			n++
		}
	}
	return n
}

// TestAuthorityByType sends every message type, and ways to misspell them, from somebody without
// a challenge password, somebody with one, and the holder of a certificate. Only an exact
// PKCSReq, or RenewalReq where that is on, issues.
func TestAuthorityByType(t *testing.T) {
	t.Parallel()
	type spelling struct {
		text string
		tag  byte
	}
	var spellings []spelling
	for i := range 100 {
		spellings = append(spellings, spelling{strconv.Itoa(i), 0})
	}
	for _, s := range []string{"019", "19 ", " 19", "+19", "-19", "0019", "19\x00", "1９", "017", "17 ", "0x13", "19.0", "1e1", "xix", "19,17"} {
		spellings = append(spellings, spelling{s, 0})
	}
	spellings = append(spellings, []spelling{
		{"\x13", sceptest.TagInteger}, {"\x11", sceptest.TagInteger}, {"19", sceptest.TagUTF8String}, {"19", sceptest.TagIA5String},
		{"19", sceptest.TagOctetString}, {"19", sceptest.TagBMPString}, {"\x0019", sceptest.TagBitString}, {"17", sceptest.TagUTF8String},
	}...)
	for _, on := range []bool{false, true} {
		t.Run(fmt.Sprintf("renewal=%t", on), func(t *testing.T) {
			t.Parallel()
			srv := newServer(t, scep.Config{Log: silent, Renewal: scep.Renewal{On: on, Anytime: on}})
			member := withKey(srv, sceptest.RSA(0), "member")
			cert := member.Enroll(t)
			certificates := 1
			d := withKey(srv, sceptest.RSA(1), "guest")
			stranger := *d
			stranger.Challenge = ""
			holder := member.As(cert, member.Key)
			holder.Key = sceptest.RSA(1)
			people := []string{"nobody", "knows the challenge", "holder"}
			requests := map[string]*sceptest.Message{"nobody": stranger.PKCSReq(t), "knows the challenge": d.PKCSReq(t), "holder": holder.PKCSReq(t)}
			for _, s := range spellings {
				if on && s.tag == 0 && len(s.text) == 2 && s.text != "17" && s.text != "19" && s.text != "18" && s.text != "20" {
					continue // as without renewal
				}
				for _, who := range people {
					want := false
					switch who {
					case "knows the challenge":
						want = s == spelling{"19", 0} || on && s == spelling{"17", 0}
					case "holder":
						want = on && (s == spelling{"19", 0} || s == spelling{"17", 0})
					}
					m := requests[who].Again()
					m.TransactionID = fmt.Sprintf("%q %d %s", s.text, s.tag, who)
					m.Type, m.TypeTag = s.text, s.tag
					r := d.Send(t, m)
					if got := r.Certificate != nil; got != want {
						t.Errorf("type %q with tag %d, %s: answer is %v", s.text, s.tag, who, r)
					}
					if want {
						certificates++
					}
					if r.StatusCode >= 500 || r.Status == sceptest.StatusPending {
						t.Errorf("type %q with tag %d, %s: answer is %v", s.text, s.tag, who, r)
					}
				}
			}
			if n := issued(t, srv); n != certificates {
				t.Errorf("%d certificates, not %d", n, certificates)
			}
		})
	}
}

// A signer is one who signs a message in TestAuthority.
type signer struct {
	name    string
	key     crypto.Signer
	cert    []byte // nil: self-signed
	ofCSR   bool   // the key is the one in the CSR
	claims  bool   // the certificate has the name of our CA as its issuer
	genuine bool   // it is in the depot, valid and not revoked
}

// TestAuthority is the decision table: who signed, with which challenge password, under which
// rules of renewal. What must come of it is worked out here from the rules, not from the server.
func TestAuthority(t *testing.T) {
	t.Parallel()
	always := scep.Renewal{On: true, Anytime: true}
	withChallenge, newKey, early := always, always, scep.Renewal{On: true}
	withChallenge.Challenge, newKey.NewKey = true, true
	ca := newCA(t)
	stranger := newCA(t, sceptest.RSA(5))
	rows := 0
	for _, c := range []scep.Config{
		{}, {AnySigner: true},
		{Renewal: always}, {Renewal: always, AnySigner: true},
		{Renewal: withChallenge}, {Renewal: newKey}, {Renewal: early},
	} {
		c.CA, c.Log = ca, silent
		rows += 2 * 9 * 3
		t.Run(fmt.Sprintf("%+v,AnySigner=%t", c.Renewal, c.AnySigner), func(t *testing.T) {
			t.Parallel()
			srv := newServer(t, c)
			subject := sceptest.CN("device")
			member := func(key crypto.Signer, id string) *x509.Certificate {
				d := sceptest.NewDevice(srv.URL, key, "device")
				d.TransactionID = id
				return d.Enroll(t)
			}
			own, other := sceptest.RSA(1), sceptest.RSA(2)
			holder, same, revoked := member(other, "holder"), member(own, "same"), member(other, "revoked")
			revoke(t, srv, revoked)
			forged := sceptest.Certificate{Issuer: ca.Certificate().RawSubject, Subject: subject, Serial: holder.SerialNumber.Bytes(), SignedBy: stranger.Key}
			forgedOther, forgedOwn := forged, forged
			forgedOther.Key, forgedOwn.Key = other, own
			foreign := sceptest.Certificate{Issuer: stranger.Certificate().RawSubject, Subject: subject, SignedBy: stranger.Key}
			foreignOther, foreignOwn := foreign, foreign
			foreignOther.Key, foreignOwn.Key = other, own
			signers := []signer{
				{name: "self", key: own, ofCSR: true},
				{name: "other", key: other},
				{name: "holder", key: other, cert: holder.Raw, claims: true, genuine: true},
				{name: "holder with the key of the CSR", key: own, cert: same.Raw, ofCSR: true, claims: true, genuine: true},
				{name: "revoked", key: other, cert: revoked.Raw, claims: true},
				{name: "forger", key: other, cert: forgedOther.DER(), claims: true},
				{name: "forger with the key of the CSR", key: own, cert: forgedOwn.DER(), ofCSR: true, claims: true},
				{name: "foreign", key: other, cert: foreignOther.DER()},
				{name: "foreign with the key of the CSR", key: own, cert: foreignOwn.DER(), ofCSR: true},
			}
			before, want := issued(t, srv), 0
			for _, kind := range []string{sceptest.TypeRenewalReq, sceptest.TypePKCSReq} {
				for _, s := range signers {
					for _, challenge := range []string{"", "wrong", sceptest.Secret} {
						right := challenge == sceptest.Secret
						may := (s.ofCSR || c.AnySigner) && right
						if rule := c.Renewal; rule.On && s.claims {
							may = s.genuine && rule.Anytime && (right || !rule.Challenge) && !(rule.NewKey && s.ofCSR)
						} else if !rule.On && kind == sceptest.TypeRenewalReq {
							may = false
						}
						d := sceptest.NewDevice(srv.URL, own, "device")
						d.Challenge, d.Signer, d.Certificate = challenge, s.key, s.cert
						d.TransactionID = kind + s.name + challenge
						r := d.Send(t, d.Request(t, kind, d.CSR()))
						if got := r.Certificate != nil; got != may {
							t.Errorf("type %s, signer %s, challenge %q: answer is %v", kind, s.name, challenge, r)
						}
						if !may {
							wantFail(t, r, scep.BadRequest, "")
						} else {
							want++
						}
					}
				}
			}
			if got := issued(t, srv) - before; got != want {
				t.Errorf("%d certificates, not %d", got, want)
			}
		})
	}
	if rows < 300 {
		t.Errorf("only %d rows", rows)
	}
}
